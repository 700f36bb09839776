"""open_clip: any CLIP of open_clip whose image and text towers are plain transformers.

Reference: Ilharco et al., "OpenCLIP", 2021, https://github.com/mlfoundations/open_clip.
"""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones import _reach
from vprompt.backbones._checkpoints import unwrap
from vprompt.backbones._filling import check_fills, filled_whole
from vprompt.backbones._open_clip_models import (
    check_activation,
    check_config,
    check_supported,
    refusal,
)
from vprompt.backbones._open_clip_towers import (
    OpenClipText,
    TimmTower,
    projected,
    prompted,
    width_of,
)
from vprompt.core.errors import VPromptError
from vprompt.core.registry import Spec, suggest
from vprompt.core.types import (
    Features,
    Images,
    Present,
    PromptRows,
    ReadTokens,
    Tokens,
    Which,
)
from vprompt.data.preprocessing import DataConfig, ImageSize, check_filled, checked, pair, sides
from vprompt.models.attention import Attend, assigned, hide, logits, project
from vprompt.models.two_tower import TwoTower

INSTALL = "pip install 'vprompt[clip]'"
_CROPS = {"shortest": "center", "squash": "squash"}
_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


class OpenClip(TwoTower):
    """An open_clip model, both towers cut at their blocks; its own code is used as it is."""

    clip: Any
    # The image tower where it is timm's: a view in a tuple, as its weights are the model's own.
    _timm: tuple[TimmTower, ...] = ()

    def __init__(self, clip: nn.Module, name: str, tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        check_supported(clip, name)
        self.clip = clip.eval().requires_grad_(False)
        vision: Any = clip.visual
        self.name, self.data_config = name, _data_config(vision, name)
        if hasattr(vision, "trunk"):
            tower = TimmTower(vision, name, self.data_config)
            for key in ("dim", "depth", "feature_dim", "prefix", "pooled", "patch_size"):
                setattr(self, key, getattr(tower, key))
            self.centres_tokens, self._timm = tower.centres_tokens, (tower,)
        else:
            self.dim, self.depth = vision.transformer.width, len(vision.transformer.resblocks)
            self.feature_dim = self.dim if vision.proj is None else width_of(vision.proj)
            self.prefix = 1
            self.pooled = 1 if vision.pool_type == "tok" and vision.attn_pool is None else None
            height, width = vision.patch_size
            self.patch_size = (int(height), int(width))
        self.text = OpenClipText(clip, name, tokenizer)
        self.eval()
        _check_same_features(self)

    def embed(self, images: Images) -> Tokens:
        """Cut the image into patches behind the class token; `ln_pre` is part of it."""
        if self._timm:
            return self._timm[0].embed(images)
        return self.clip.visual._embeds(images)

    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block."""
        if self._timm:
            return self._timm[0].block(index, tokens)
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
        if self._timm:
            return self._timm[0].prompted_block(index, tokens, prompt, attend, reads=reads)
        block = self.clip.visual.transformer.resblocks[index]
        return prompted(block, tokens, prompt, attend, None, reads)

    def attention_of(self, index: int, tokens: Tokens) -> Tensor:
        """Return the weights of a block of the image tower."""
        if self._timm:
            return self._timm[0].attention_of(index, tokens)
        block = self.clip.visual.transformer.resblocks[index]
        attention = block.attn
        joined = (attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
        query, own = project(block.ln_1(tokens), *joined, None)
        return logits(query, own.key, attention.head_dim**-0.5).softmax(-1)

    def attend_each(self, index: int, which: Which, present: Present) -> Attend | None:
        """Return the attention in which every image sees its own prompt's keys."""
        if self._timm:
            return self._timm[0].attend_each(index, which, present)
        return assigned(which, present)

    def masked_block(self, index: int, tokens: Tokens, present: Present) -> Tokens:
        """Run one block in which absent tokens are hidden by its own mask."""
        if self._timm:
            return self._timm[0].masked_block(index, tokens, present)
        block = self.clip.visual.transformer.resblocks[index]
        each = (
            hide(present, tokens.dtype)
            .to(tokens.device)
            .expand(-1, block.attn.num_heads, tokens.shape[1], -1)
        )
        return block(tokens, attn_mask=each.flatten(0, 1))

    def pool(self, tokens: Tokens) -> Features:
        """Normalise and pool as the model was built to, and project to the joint space."""
        if self._timm:
            return self._timm[0].pool(tokens)
        pooled, _ = self.clip.visual._pool(tokens)
        return projected(pooled, self.clip.visual.proj)

    def enter(self, tokens: Tokens) -> Tokens:
        """Apply the norm before the first block, where the model has it."""
        return self._timm[0].vit.norm_pre(tokens) if self._timm else self.clip.visual.ln_pre(tokens)

    @property
    def scale(self) -> Tensor:
        """The exponential of the checkpoint's logit scale."""
        return self.clip.logit_scale.exp().reshape(())

    @property
    def shift(self) -> Tensor | None:
        """The checkpoint's bias of all logits, where it was trained by SigLIP's sigmoid loss."""
        bias = getattr(self.clip, "logit_bias", None)
        return None if bias is None else bias.reshape(())

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
        config = library.get_model_config(architecture)
        check_config(config, model, image_size)
        weights = (library.get_pretrained_cfg(architecture, tag) or {}) if tag else {}
        check_activation(config, weights, model)
        tokenizer = library.get_tokenizer(architecture)
        if "quick_gelu" in weights:
            # The tag knows which activation it was trained with; under the other one a model
            # still runs, several points worse, and open_clip only warns.
            options["quick_gelu"] = bool(weights["quick_gelu"])
        torch.manual_seed(seed)
        if pretrained and weights.get("url") and not weights.get("hf_hub"):
            _reach.check_url(model, weights["url"], Path("~/.cache/clip").expanduser())
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
    if place.startswith("local-dir:"):
        return None
    parts = place.removeprefix("hf-hub:").partition("@")[0].split("/")
    is_hub = place.startswith("hf-hub:") or len(parts) > 2
    return "/".join(parts[:2]) if is_hub and len(parts) > 1 else None


def from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    seed: int = 0,
    tokenizer: Callable[..., Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    trunk: nn.Module | None = None,
) -> "OpenClip":
    """Return a model of open_clip's own kind of config, random unless `weights` fill it.

    `config` holds `embed_dim`, `vision_cfg` and `text_cfg`, perhaps `quick_gelu`; with
    `custom_text` the text tower is a module of its own, as in many newer checkpoints. `tokenizer`
    is open_clip's own, unless another is given. The weights' position embedding is resampled where
    the config has another image size. `trunk` is a model of timm in place of the image tower that
    the config names, with its weights, which `weights` leave out; it is resampled as well.
    """
    library, given = _library(), dict(config)
    vision = given["vision_cfg"]
    if not vision.get("timm_model_name"):
        check_filled(sides(vision.get("image_size", 224)), pair(vision.get("patch_size", 16)), name)
    custom = given.pop("custom_text", False)
    kind = library.CoCa if "multimodal_cfg" in given else None
    kind = kind or (library.CustomTextCLIP if custom else library.CLIP)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = kind(**given)
        if trunk is not None:
            clip.visual.trunk = trunk
        if hasattr(clip.visual, "set_input_size"):
            clip.visual.set_input_size(vision.get("image_size", 224))
    if weights is not None:
        state = dict(weights)
        if trunk is not None:
            state |= {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
        importlib.import_module("open_clip.model").resize_pos_embed(state, clip)
        check_fills(clip, state, name, f"The checkpoint of {name!r}", strict=True)
        clip.load_state_dict(state)
    if tokenizer is None:
        tokenizer = library.SimpleTokenizer(context_length=clip.context_length)
    return OpenClip(clip, name, tokenizer)


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
        read, mask = text.words(ids), text.mask(ids)
        read = read + text.positions(read.shape[1])
        for index in range(text.depth):
            read = text.block(index, read, mask)
        plain = {"normalize": False}  # which a CoCa would do by itself
        same = torch.equal(backbone.pool(seen), backbone.clip.encode_image(images, **plain))
        if not same or not torch.equal(
            text.pool(read, text.ends(ids)), backbone.clip.encode_text(ids, **plain)
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
