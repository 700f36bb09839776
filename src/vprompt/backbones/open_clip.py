"""open_clip: any CLIP of open_clip whose image and text towers are plain transformers.

Reference: Ilharco et al., "OpenCLIP", 2021, https://github.com/mlfoundations/open_clip.
"""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones import _reach
from vprompt.backbones._checkpoints import unwrap
from vprompt.backbones._filling import filled_whole
from vprompt.backbones._open_clip_models import (
    check_config,
    check_supported,
    check_tokenizer,
    pooling,
    refusal,
)
from vprompt.core.errors import VPromptError
from vprompt.core.precision import steady
from vprompt.core.registry import Spec, suggest
from vprompt.core.types import (
    Features,
    Images,
    Present,
    PromptRows,
    ReadTokens,
    TextEnds,
    TextIds,
    Tokens,
    Which,
)
from vprompt.data.preprocessing import DataConfig, ImageSize, check_filled, checked, pair, sides
from vprompt.models.attention import Attend, assigned, hide, joint, keys_and_values, project
from vprompt.models.two_tower import TextTower, TwoTower

INSTALL = "pip install 'vprompt[clip]'"
_CROPS = {"shortest": "center", "squash": "squash"}
_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


class OpenClipText(TextTower):
    """The text tower of an open_clip model; its own code is used as it is."""

    def __init__(self, clip: nn.Module, name: str, tokenizer: Callable[..., Tensor]) -> None:
        # In `CLIP` the parts of the tower are the model's own, in `CustomTextCLIP` a submodule's.
        self.part: Any = getattr(clip, "text", clip)
        self.name, self.tokenizer = name, tokenizer
        self.dim, self.depth = self.part.transformer.width, len(self.part.transformer.resblocks)
        self.context_length = int(self.part.context_length)
        projection = self.part.text_projection
        self.feature_dim = self.dim if projection is None else _width(projection)

    def tokenise(self, texts: Sequence[str], length: int) -> TextIds:
        """Return token numbers of the model's own tokeniser."""
        return self.tokenizer(list(texts), context_length=length)

    def ends(self, ids: TextIds) -> TextEnds:
        """Return where the end token is: the largest number, or the number the model names."""
        kind, number = pooling(self.part)
        return ids.argmax(1) if kind == "argmax" else torch.eq(ids, number).int().argmax(1)

    def words(self, ids: TextIds) -> Tokens:
        """Look the tokens up."""
        return self.part.token_embedding(ids)

    def positions(self, length: int) -> Tensor:
        """Return the first rows of the position embedding."""
        return self.part.positional_embedding[:length]

    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block under the causal mask."""
        length = tokens.shape[1]
        mask = self.part.attn_mask[:length, :length]
        return self.part.transformer.resblocks[index](tokens, attn_mask=mask)

    def prompted_block(
        self, index: int, tokens: Tokens, prompt: PromptRows, attend: Attend | None = None
    ) -> Tokens:
        """Run one block with the prompt in its keys and values; the mask hides words alone."""
        length = tokens.shape[1]
        mask = self.part.attn_mask[:length, :length]
        return _prompted(self.part.transformer.resblocks[index], tokens, prompt, attend, mask)

    def pool(self, tokens: Tokens, ends: TextEnds) -> Features:
        """Normalise, read the end tokens, project."""
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        return _project(self.part.ln_final(tokens)[rows, ends], self.part.text_projection)


class OpenClip(TwoTower):
    """An open_clip model, both towers cut at their blocks; its own code is used as it is."""

    clip: Any

    def __init__(self, clip: nn.Module, name: str, tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        check_supported(clip, name)
        self.clip = clip.eval().requires_grad_(False)
        vision: Any = clip.visual
        self.name, self.data_config = name, _data_config(vision, name)
        self.dim, self.depth = vision.transformer.width, len(vision.transformer.resblocks)
        self.feature_dim = self.dim if vision.proj is None else _width(vision.proj)
        self.prefix = 1
        self.pooled = 1 if vision.pool_type == "tok" and vision.attn_pool is None else None
        height, width = vision.patch_size
        self.patch_size = (int(height), int(width))
        self.text = OpenClipText(clip, name, tokenizer)
        self.eval()
        _check_same_features(self)

    def embed(self, images: Images) -> Tokens:
        """Cut the image into patches behind the class token; `ln_pre` is part of it."""
        return self.clip.visual._embeds(images)

    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block."""
        return self.clip.visual.transformer.resblocks[index](tokens)

    def prompted_block(
        self,
        index: int,
        tokens: Tokens,
        prompt: PromptRows,
        attend: Attend | None = None,
        *,
        reads: int | None = None,
    ) -> ReadTokens:
        """Run one block with the prompt, and tokens that are not read, in keys and values alone."""
        block = self.clip.visual.transformer.resblocks[index]
        return _prompted(block, tokens, prompt, attend, None, reads)

    def attend_each(self, index: int, which: Which, present: Present) -> Attend:
        """Return the attention in which every image sees its own prompt's keys."""
        del index
        return assigned(which, present)

    def masked_block(self, index: int, tokens: Tokens, present: Present) -> Tokens:
        """Run one block in which absent tokens are hidden by its own mask."""
        block = self.clip.visual.transformer.resblocks[index]
        each = (
            hide(present, tokens.dtype)
            .to(tokens.device)
            .expand(-1, block.attn.num_heads, tokens.shape[1], -1)
        )
        return block(tokens, attn_mask=each.flatten(0, 1))

    def pool(self, tokens: Tokens) -> Features:
        """Normalise and pool as the model was built to, and project to the joint space."""
        pooled, _ = self.clip.visual._pool(tokens)
        return _project(pooled, self.clip.visual.proj)

    def enter(self, tokens: Tokens) -> Tokens:
        """Apply `ln_pre`, where the model has it."""
        return self.clip.visual.ln_pre(tokens)

    @property
    def scale(self) -> Tensor:
        """The exponential of the checkpoint's logit scale."""
        return self.clip.logit_scale.exp().reshape(())

    def template_set(self, name: str) -> tuple[str, ...]:
        """Return `imagenet` (CLIP's 80 templates) or `simple` (the 7 best of them)."""
        if name not in _TEMPLATES:
            raise VPromptError(f"No set of templates called {name!r}.{suggest(name, _TEMPLATES)}")
        return tuple(write("{}") for write in getattr(_library(), _TEMPLATES[name]))


def load(
    *,
    model: str = "ViT-B-16,openai",
    pretrained: bool = True,
    image_size: ImageSize | None = None,
    seed: int = 0,
) -> TwoTower:
    """Return a frozen CLIP.

    `model` is an architecture and its weights (`ViT-B-16,openai`), `hf-hub:org/name` or
    `local-dir:/path` (a folder with `open_clip_config.json` and the weights as safetensors).
    `image_size` resamples the position embedding. `pretrained=False` draws random weights from
    `seed`, for tests and timings.
    """
    library = _library()
    architecture, _, tag = model.partition(",")
    named = ":" in architecture
    architecture = architecture if named else architecture.replace("/", "-")  # CLIP's `ViT-B/16`
    if pretrained and not named and not tag:
        known = library.list_pretrained_tags_by_model(architecture)
        raise VPromptError(
            f"{model!r} names no weights. Write an architecture and a tag, such as "
            f"'ViT-B-16,openai'.{suggest(tag, known) if known else ''}"
        )
    options: dict[str, Any] = {}
    if image_size is not None:
        options["force_image_size"] = checked(image_size)
    with (
        _explained(model, pretrained),
        _quiet(),
        torch.random.fork_rng(devices=[]),
        filled_whole(model, f"The checkpoint of {model!r}", _without_wrappers) as filled,
        _reach.hub(model, _repository(architecture)),
    ):
        check_config(library.get_model_config(architecture), model, image_size)
        tokenizer = library.get_tokenizer(architecture)
        check_tokenizer(tokenizer, model)
        weights = library.get_pretrained_cfg(architecture, tag) if tag else {}
        if "quick_gelu" in weights:
            # The tag knows which activation it was trained with; under the other one a model
            # still runs, several points worse, and open_clip only warns.
            options["quick_gelu"] = bool(weights["quick_gelu"])
        torch.manual_seed(seed)
        with _reach.hub(model, _repository(weights.get("hf_hub", "")) if pretrained else None):
            clip = library.create_model(
                architecture,
                pretrained=(tag or None) if pretrained else None,
                load_weights=pretrained,
                require_pretrained=pretrained,
                **options,
            )
    given = {"pretrained": (pretrained, True), "seed": (seed, 0)}
    changed = {key: value for key, (value, plain) in given.items() if value != plain}
    name = str(Spec("open_clip", {"model": model, **changed})) if changed else model
    backbone = OpenClip(clip, name, tokenizer)
    backbone.remark = filled.remark
    place = _repository(weights.get("hf_hub", "")) or _repository(architecture)
    backbone.repository = place if pretrained and place else ""
    if not pretrained:
        backbone.remark = f"{model}: random weights, since pretrained=False; nothing was loaded"
    return backbone


def _repository(place: str) -> str | None:
    """Return the repository of `hf-hub:org/name@revision`, or of `org/name/file`; else None."""
    parts = place.removeprefix("hf-hub:").partition("@")[0].split("/")
    is_hub = place.startswith("hf-hub:") or len(parts) > 2
    return "/".join(parts[:2]) if is_hub and len(parts) > 1 else None


def from_config(config: Mapping[str, Any], *, name: str, seed: int = 0) -> TwoTower:
    """Return a random model of open_clip's own kind of config, for tests and examples.

    `config` holds `embed_dim`, `vision_cfg` and `text_cfg`, perhaps `quick_gelu`; with
    `custom_text` the text tower is a module of its own, as in many newer checkpoints.
    """
    library, given = _library(), dict(config)
    vision = given["vision_cfg"]
    check_filled(sides(vision.get("image_size", 224)), pair(vision.get("patch_size", 16)), name)
    kind = library.CustomTextCLIP if given.pop("custom_text", False) else library.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = kind(**given)
    length = clip.context_length
    return OpenClip(clip, name, library.SimpleTokenizer(context_length=length))


def _without_wrappers(
    held: Mapping[str, Any], names: Sequence[str]
) -> tuple[Mapping[str, Any], str]:
    """Take off what a training program put around the weights; open_clip knows its own alone."""
    return unwrap(held, names, "the checkpoint")


def _library() -> Any:
    try:
        return importlib.import_module("open_clip")
    except ImportError:
        raise VPromptError(f"CLIP models need open_clip. Run: {INSTALL}") from None


@contextlib.contextmanager
def _explained(model: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except VPromptError:
        raise
    except Exception as error:
        # open_clip raises a dozen kinds of errors here, from unknown names to network failures.
        hint = "Check the spelling with `open_clip.list_pretrained()`"
        if pretrained:
            hint += ", or, without a network, use `local-dir:/path`"
        reason = str(error).strip().split("\n")[0].partition(". Available")[0].rstrip(".")
        raise VPromptError(f"open_clip could not create {model!r}: {reason}. {hint}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's log lines from the terminal; what matters of them is an error here."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def _prompted(
    block: Any,
    tokens: Tokens,
    prompt: PromptRows,
    attend: Attend | None,
    mask: Tensor | None,
    reads: int | None = None,
) -> ReadTokens:
    """Spell out open_clip's `ResidualAttentionBlock`; prompt rows pass its first norm too."""
    attention = block.attn
    joined = (attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
    query, own = project(block.ln_1(tokens), *joined, reads)
    inside = keys_and_values(block.ln_1(prompt), *joined)
    attend = attend or joint()
    hidden = None if mask is None else mask.to(query.dtype)
    mixed = attend(query, own, inside, attention.head_dim**-0.5, hidden)
    mixed, count = mixed.transpose(1, 2).flatten(2), tokens.shape[0]
    if reads is not None:
        tokens, mixed = steady(tokens[:, :reads]), steady(mixed)
    tokens = tokens + block.ls_1(attention.out_proj(mixed))
    return (tokens + block.ls_2(block.mlp(block.ln_2(tokens))))[:count]


def _check_same_features(backbone: OpenClip) -> None:
    """Refuse models whose own forward pass does more than the cuts that prompts are put between."""
    images = torch.zeros(1, *backbone.data_config.input_size)
    images[:, :, ::7, ::5] = 1.0
    text = backbone.text
    ids = text.tokenise(["a photo of a model."], text.context_length)
    with torch.no_grad():
        seen = backbone.embed(images)
        for index in range(backbone.depth):
            seen = backbone.block(index, seen)
        read = text.words(ids) + text.positions(ids.shape[1])
        for index in range(text.depth):
            read = text.block(index, read)
        same = torch.equal(backbone.pool(seen), backbone.clip.encode_image(images))
        if not same or not torch.equal(
            text.pool(read, text.ends(ids)), backbone.clip.encode_text(ids)
        ):
            raise VPromptError(refusal(backbone.name, "it does more between its blocks"))


def _data_config(vision: Any, name: str) -> DataConfig:
    """Return the model's own preprocessing; a model made from a bare config has CLIP's."""
    library = _library()
    given = getattr(vision, "preprocess_cfg", {})
    mode = given.get("resize_mode", "shortest")
    if mode not in _CROPS:
        raise VPromptError(
            f"{name!r} asks for the resize mode {mode!r}; images are resized by {sorted(_CROPS)}."
        )
    height, width = vision.image_size
    return DataConfig(
        input_size=(3, int(height), int(width)),
        interpolation=str(given.get("interpolation", "bicubic")),
        mean=tuple(given.get("mean", library.OPENAI_DATASET_MEAN)),
        std=tuple(given.get("std", library.OPENAI_DATASET_STD)),
        crop_mode=_CROPS[mode],
    )


def _project(features: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return features
    return projection(features) if isinstance(projection, nn.Linear) else features @ projection


def _width(projection: Any) -> int:
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
