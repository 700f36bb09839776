"""hf: a model saved by transformers, its weights put into timm's modules and checked against it.

Reference: Wolf et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020
(demonstrations), arXiv 1910.03771.
"""

import contextlib
import functools
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones import _hf_clip, _hf_models, _hf_positions, _hf_siglip, _reach
from vprompt.backbones._filling import check_fills, listed
from vprompt.backbones._hf_processor import data_config_of
from vprompt.backbones._timm_models import patch_size_of
from vprompt.backbones.timm_vit import TimmViT
from vprompt.core.errors import VPromptError
from vprompt.core.registry import Spec
from vprompt.data.preprocessing import ImageSize, check_filled, checked, pair
from vprompt.models.backbone import Backbone

INSTALL = "pip install 'vprompt[transformers]'"
_TWO_TOWERS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_TOLERANCE = 1e-3  # of the largest feature: what another order of sums makes in fp32


def load(*, model: str = "facebook/dinov2-small", image_size: ImageSize | None = None) -> Backbone:
    """Return a frozen model of transformers: ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP.

    `model` is a repository (`org/name`, `org/name@revision`) or a folder with `config.json`,
    `preprocessor_config.json` and weights as safetensors, of a CLIP or SigLIP its tokenizer as
    well, since those have both towers. Code in a repository is never run.
    `image_size` is in place of the processor's; transformers resamples position embeddings.
    """
    place, revision = _place(model)
    _check_installed()
    repository = None if Path(place).is_dir() else place
    with _explained(model), _quiet(), _reach.hub(model, repository):
        library = importlib.import_module("transformers")  # slow, so after the hub was asked
        where = {"revision": revision} if revision else {}
        raw, _ = library.PretrainedConfig.get_config_dict(place, **where)
        if raw.get("model_type") in _TWO_TOWERS:
            original = _TWO_TOWERS[raw["model_type"]]
            return _two_towers(library, original, place, where, model, image_size)
        kind = _kind(raw, model)
        processor = _processor(place, where, model)
        original = _original(library, kind.original, place, where, model)
    config = original.config
    vit: Any = kind.make(config).eval()
    state = _hf_models.timm_state(kind, original.state_dict(), config)
    check_fills(vit, state, model, f"The checkpoint of {model!r}", strict=True)
    vit.load_state_dict(state)
    gap = _check_same(vit, original, model)
    size, data_config, note = data_config_of(processor, pair(vit.patch_embed.img_size), model)
    wanted = pair(size if image_size is None else checked(image_size))
    check_filled(wanted, patch_size_of(vit), model)
    remarks = [
        f"{model}: {type(original).__name__} of transformers in timm's {type(vit).__name__}, "
        f"features equal to {gap:.0e}",
        note,
    ]
    if hasattr(vit, "dist_token"):
        remarks.append("its feature is the mean of class and distillation token, as timm has it")
    own = pair(vit.patch_embed.img_size)
    if wanted != own:
        vit.set_input_size(img_size=wanted)
        remark, same = _hf_positions.resample(vit.pos_embed, original, own, wanted)
        remarks.append(remark)
        if same:
            _check_same(vit, original, model, resampled=True)
    backbone = TimmViT(vit, str(Spec("hf", {"model": model})), data_config.resized(wanted))
    backbone.remark = "; ".join(remarks)
    return backbone


def _two_towers(
    library: Any,
    kind: str,
    place: str,
    where: dict[str, str],
    model: str,
    image_size: ImageSize | None,
) -> Backbone:
    """Return a CLIP or SigLIP, both towers, in open_clip's modules."""
    from vprompt.backbones import open_clip  # loading it takes a second that image towers spare

    processor = _processor(place, where, model)
    original = _original(library, kind, place, where, model)
    sigmoid = kind == "SiglipModel"
    into: Any = _hf_siglip if sigmoid else _hf_clip
    config = into.open_clip_config(original.config, model)
    weights = into.open_clip_state(original.state_dict())
    trunk = _hf_siglip.image_tower(original, model) if sigmoid else None
    own, context = pair(config["vision_cfg"]["image_size"]), config["text_cfg"]["context_length"]
    name = str(Spec("hf", {"model": model}))
    tokenizer = _tokenizer(place, where, context, model, lower=sigmoid)
    # A SigLIP reads its last place, whatever stands there; its config names ends of no use.
    text = original.config.text_config
    _check_tokens(tokenizer, text.vocab_size, None if sigmoid else text.eos_token_id, model)
    build = functools.partial(
        open_clip.from_config, config, name=name, tokenizer=tokenizer, weights=weights, trunk=trunk
    )
    clip = build()
    gap = _check_same_towers(clip, original, model)
    size, data_config, note = data_config_of(processor, own, model)
    wanted = pair(size if image_size is None else checked(image_size))
    remarks = [
        f"{model}: {kind} of transformers in open_clip's {type(clip.clip).__name__}, features "
        f"equal to {gap:.0e}",
        note,
    ]
    if wanted != own:
        check_filled(wanted, clip.patch_size, model)
        config["vision_cfg"]["image_size"] = wanted
        clip = build()
        vision: Any = clip.clip.visual
        positions = vision.trunk.pos_embed if sigmoid else vision.positional_embedding
        remark, same = _hf_positions.resample(positions, original.vision_model, own, wanted)
        remarks.append(remark)
        if same:
            _check_same_towers(clip, original, model, resampled=True)
    clip.data_config = data_config.resized(wanted)
    clip.remark = "; ".join(remarks)
    return clip


def _tokenizer(
    place: str, where: dict[str, str], context: int, model: str, *, lower: bool = False
) -> Any:
    """Return the tokeniser that stands beside a model, as open_clip calls one.

    SigLIP has learned from lower case alone (`lower`), the first without punctuation too, and not
    every tokenizer sees to that by itself.
    """
    module = importlib.import_module("open_clip.tokenizer")
    auto = importlib.import_module("transformers.models.auto.tokenization_auto")
    try:
        called = auto.get_tokenizer_config(place, **where).get("tokenizer_class")
        clean = {"SiglipTokenizer": "canonicalize"}.get(called, "lower") if lower else "whitespace"
        found = module.HFTokenizer(
            place, context_length=context, clean=clean, trust_remote_code=False, **where
        )
        # Where there are no files, transformers makes one that knows no words.
        if not torch.equal(*found(["a photo", "two"], context_length=context)):
            return found
        reason = "it knows no words"
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    raise VPromptError(
        f"{model!r} has no tokenizer that can be read ({reason}). Save it beside the model: "
        "`tokenizer.save_pretrained(folder)`."
    )


def _check_tokens(tokenizer: Any, words: int, end: int | None, model: str) -> None:
    """Refuse a tokenizer of another model: its numbers would be other words, or none."""
    own = tokenizer.tokenizer
    if len(own) > words or end not in (None, 2, own.eos_token_id):
        looks = "" if end is None else f" and looks for number {end}"
        raise VPromptError(
            f"The tokenizer of {model!r} has {len(own)} tokens and ends a text by number "
            f"{own.eos_token_id}, and its text tower has {words}{looks}. Save the tokenizer that "
            "the model was trained with beside it."
        )
    if own.padding_side != "right":
        raise VPromptError(
            f"The tokenizer of {model!r} fills short texts up on the {own.padding_side}, and its "
            "text tower has learned from texts that begin at the first place. Set "
            "`tokenizer.padding_side = 'right'` and save it again."
        )


@torch.no_grad()
def _check_same_towers(clip: Any, original: Any, model: str, *, resampled: bool = False) -> float:
    """Return how far apart the features of both towers are; refuse what is not the same."""
    images = torch.zeros(1, *clip.data_config.input_size)
    images[:, :, ::7, ::5] = 1.0
    ids = clip.text.tokenise(["a photo of a model.", "two"], clip.text.context_length)
    seen = original.get_image_features(images, interpolate_pos_encoding=resampled)
    read = original.get_text_features(ids)
    gap = max(
        _apart(clip.clip.encode_image(images), seen.pooler_output),
        _apart(clip.clip.encode_text(ids), read.pooler_output),
    )
    return _same(gap, f"open_clip's {type(clip.clip).__name__}", model)


def _place(model: str) -> tuple[str, str | None]:
    """Return a folder or a repository, and its revision."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder), None
    if folder.is_file() or model.startswith(("/", ".", "~")) or not model.strip():
        raise VPromptError(
            f"No folder at {model!r}. Give a folder that `save_pretrained` wrote, or a repository "
            "such as 'hf:facebook/dinov2-small'."
        )
    name, _, revision = model.partition("@")
    return name, revision or None


def _kind(config: Mapping[str, Any], model: str) -> _hf_models.Kind:
    """Return how a model is read, or refuse it by its config alone."""
    name = str(config.get("model_type", ""))
    if name in _hf_models.KINDS:
        return _hf_models.KINDS[name]
    known = ", ".join(sorted((*_hf_models.supported(), *_TWO_TOWERS)))
    if "auto_map" in config:
        raise VPromptError(
            f"{model!r} brings code of its own (auto_map in its config.json), which is never run. "
            f"Read are the kinds {known}."
        )
    why = {
        "siglip2": "it takes images that were cut into any number of patches beforehand",
    }.get(name, "it is no plain vision transformer, or not known here")
    raise VPromptError(
        f"{model!r} is of the kind {name!r} and is not read: {why}. Read are {known}."
    )


def _processor(place: str, where: dict[str, str], model: str) -> dict[str, Any]:
    base = importlib.import_module("transformers.image_processing_base")
    try:
        found, _ = base.ImageProcessingMixin.get_image_processor_dict(place, **where)
    except OSError as error:
        raise VPromptError(
            f"{model!r} has no preprocessor_config.json, so how its images are scaled is not "
            "known. Save it beside the model: `processor.save_pretrained(folder)`."
        ) from error
    return dict(found)


def _original(library: Any, name: str, place: str, where: dict[str, str], model: str) -> Any:
    """Return the model in transformers' own code, filled whole from safetensors."""
    found, report = getattr(library, name).from_pretrained(
        place,
        **where,
        output_loading_info=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    other = sorted(report["mismatched_keys"])
    if other:
        raise VPromptError(
            f"The checkpoint of {model!r} holds {other[0][0]} and {len(other) - 1} more in another "
            f"shape than its config.json says: {tuple(other[0][1])}, not {tuple(other[0][2])}. "
            "Give the weights that it describes."
        )
    lacking = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    if lacking:
        raise VPromptError(
            f"The checkpoint of {model!r} lacks {listed(sorted(lacking))}, which transformers "
            "would draw at random. Give the weights that its config.json describes."
        )
    return found.eval()


@torch.no_grad()
def _check_same(vit: Any, original: nn.Module, model: str, *, resampled: bool = False) -> float:
    """Return how far apart features are, as a share of the largest; refuse what is not the same."""
    size = pair(vit.patch_embed.img_size)
    images = torch.zeros(1, vit.patch_embed.proj.in_channels, *size)
    images[:, :, ::7, ::5] = 1.0
    made: Tensor = vit.forward_features(images)
    asked = "interpolate_pos_encoding" in inspect.signature(original.forward).parameters
    options = {"interpolate_pos_encoding": True} if asked and resampled else {}
    own = original(pixel_values=images, **options)
    gap = _apart(made, own.last_hidden_state)
    if vit.attn_pool is not None:
        gap = max(gap, _apart(vit.forward_head(made, pre_logits=True), own.pooler_output))
    return _same(gap, f"timm's {type(vit).__name__}", model)


def _same(gap: float, where: str, model: str) -> float:
    if not gap < _TOLERANCE:
        raise VPromptError(
            f"{model!r} has other features in {where} than in transformers (they differ by "
            f"{gap:.1e} of the largest), so it is not read."
        )
    return gap


def _apart(made: Tensor, own: Tensor) -> float:
    return float((made - own).abs().max() / own.abs().max())


def _check_installed() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise VPromptError(f"Models of transformers need that library. Run: {INSTALL}")


@contextlib.contextmanager
def _explained(model: str) -> Iterator[None]:
    try:
        yield
    except VPromptError:
        raise
    except Exception as error:
        # transformers raises a dozen kinds of errors here, from shapes to network failures.
        reason = (str(error).strip().split("\n") or [""])[0].rstrip(".") or type(error).__name__
        raise VPromptError(
            f"transformers could not load {model!r}: {reason[:300]}. Without a network, give a "
            "folder with config.json, preprocessor_config.json and model.safetensors: 'hf:/path'."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's lines and bars from the terminal; what matters of them is an error."""
    before = logging.root.manager.disable
    bars = importlib.import_module("transformers.utils.logging")
    shown_before = bars.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        bars.disable_progress_bar()
        try:
            yield
        finally:
            logging.disable(before)
            if shown_before:
                bars.enable_progress_bar()
