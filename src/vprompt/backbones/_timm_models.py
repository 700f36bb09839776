"""Which models of timm can be prompted, and how one is made: what is refused, is before a download.

A model without weights, made in no time and without memory, tells what it is.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict_from_hf
from torch import nn

from vprompt.backbones import _checkpoints, _reach
from vprompt.backbones._filling import filled_whole
from vprompt.backbones._names import advice
from vprompt.core.errors import VPromptError
from vprompt.data.preprocessing import ImageSize, check_filled, checked, pair, shown

_HUB, _FOLDER = "hf-hub:", "local-dir:"


def create(
    model: str, *, pretrained: bool, checkpoint: str | None, image_size: ImageSize | None
) -> tuple[Any, str]:
    """Return a timm model without a head, and what was taken off the names of its weights.

    Raises VPromptError where it cannot be prompted, and unless its weights fill it whole.
    """
    options = {} if image_size is None else {"img_size": checked(image_size)}
    if model.startswith(_FOLDER):
        model = f"{_FOLDER}{Path(model.removeprefix(_FOLDER)).expanduser()}"
    with _quiet(), _reach.hub(model, _repository(model)):
        if not pretrained and checkpoint is None:
            vit = _make(model, False, options)
            check_supported(vit, model)
            check_image_size(vit, model)
            return vit, f"{model}: random weights, since pretrained=False; nothing was loaded"
        sketch = sketched(model, **options)
        if checkpoint is None or "." in model:
            _check_activation(sketch, model)
        file = _weight_file(model, checkpoint)
        if file is not None and _checkpoints.is_archive_of_arrays(file):
            vit = _make(model, False, options)
            _checkpoints.fill_from_arrays(vit, file, model)
            return vit, f"{file}: read as the original ViT's arrays"
        held = _held(model, file, sketch.pretrained_cfg)
        if held is None:
            known = sketch.pretrained_cfg
            if known.get("url") and not known.get("hf_hub_id"):
                _reach.check_url(model, known["url"], Path(torch.hub.get_dir()) / "checkpoints")
            with _reach.hub(model, known.get("hf_hub_id")):
                return _make(model, True, options), ""
        source = str(file) if file is not None else model
        state, remark = _checkpoints.unwrap(held, list(sketch.state_dict()), source)
        # An empty source, for otherwise timm would fetch what a hub or a folder holds.
        overlay = {"state_dict": state, "source": "", "custom_load": False}
        vit = _make(model, True, {**options, "pretrained_cfg_overlay": overlay}, source)
        vit.pretrained_cfg.pop("state_dict", None)
        return vit, remark


def check_supported(vit: nn.Module, name: str) -> None:
    """Raise VPromptError unless a model has the cuts of a plain vision transformer."""
    kind, reason = type(vit).__name__, _reason_against(vit)
    if reason:
        raise VPromptError(
            f"{name!r} ({kind}) {reason}. Use a timm model of the `vit_*`, `deit*` or `eva*` "
            "families, such as `vit_base_patch16_224.orig_in21k`."
        )


def _reason_against(vit: nn.Module) -> str:
    """Return why a model cannot be prompted, or nothing."""
    if any("relative_position" in name or "rel_pos" in name for name, _ in _parts(vit)):
        return (
            "adds to attention a bias for how far apart two patches lie, a table that has no entry "
            "for a prompt"
        )
    if type(vit).__name__ == "NaFlexVit":
        return "takes images that were cut into any number of patches beforehand"
    needed = ["blocks", "patch_embed", "_pos_embed", "norm_pre", "patch_drop", "norm", "embed_dim"]
    missing = [attribute for attribute in needed if not hasattr(vit, attribute)]
    return f"is not a plain vision transformer: it lacks {', '.join(missing)}" if missing else ""


def _parts(vit: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from vit.named_modules()
    yield from vit.named_parameters()


def check_image_size(vit: Any, name: str) -> None:
    """Raise VPromptError where patches leave a border of the image unread.

    A size that the model was published with is its own, whatever it leaves.
    """
    size = vit.patch_embed.img_size
    own = tuple(vit.pretrained_cfg.get("input_size", (0, 0, 0))[1:])
    if size and tuple(size) != own and not getattr(vit.patch_embed, "dynamic_img_pad", False):
        check_filled((size[0], size[1]), patch_size_of(vit), name)


def patch_size_of(vit: Any) -> tuple[int, int]:
    """Return the pixels of a patch; in a hybrid, those that a token is made of."""
    embed = vit.patch_embed
    height, width = embed.patch_size
    cells = getattr(embed, "feature_size", None)  # of the network before the patches
    if cells is None or not embed.img_size:
        return int(height), int(width)
    rows, columns = (_stride(*each) for each in zip(embed.img_size, cells, strict=True))
    return int(height) * rows, int(width) * columns


def _stride(pixels: int, cells: int) -> int:
    """Return how many pixels a cell steps over, of a network that fills up the last one.

    Strides are powers of two; what is left of the division is not what they were.
    """
    stride = 1
    while -(-pixels // stride) > cells:
        stride *= 2
    return stride if -(-pixels // stride) == cells else pixels // cells


def _repository(model: str) -> str | None:
    """Return the repository that a name asks a hub for; a name of timm's own asks later."""
    return model.removeprefix(_HUB).partition("@")[0] if model.startswith(_HUB) else None


def sketched(model: str, **options: Any) -> Any:
    """Return the model without its weights, and without memory where this timm can, checked."""
    try:
        with torch.device("meta"):
            sketch = _make(model, False, options)
    except VPromptError as error:
        if "meta" not in str(error.__cause__):
            raise
        sketch = _make(model, False, options)
    check_supported(sketch, model)
    check_image_size(sketch, model)
    return sketch


def _make(model: str, pretrained: bool, options: dict[str, Any], source: str | None = None) -> Any:
    vit: Any
    try:
        with filled_whole(model, source or f"The checkpoint of {model!r}") as filled:
            vit = timm.create_model(model, pretrained=pretrained, num_classes=0, **options)
    except VPromptError:
        raise
    except Exception as error:
        # timm raises a dozen kinds of errors here, from unknown names to network failures.
        raise VPromptError(_reason(model, pretrained, options, error)) from error
    if pretrained and not filled.modules and not vit.pretrained_cfg.get("custom_load"):
        raise VPromptError(f"timm loaded no weights for {model!r}.")
    return vit


def _reason(model: str, pretrained: bool, options: dict[str, Any], error: Exception) -> str:
    """Return why a model could not be made, and what to type."""
    # With weights, the size was found good before; what a network raises is an OSError.
    if "img_size" in options and not pretrained and not isinstance(error, OSError):
        refusal = _size_refusal(model, options["img_size"], error)
        if refusal:
            return refusal
    reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    if isinstance(error, KeyError):
        reason = f"its config holds no {reason}, so it is not timm's"
    hint = f"{advice(model)}Check the spelling with `timm.list_models('*vit*')`"
    if pretrained:
        hint += ", or, without a network, use `local-dir:/path`, `checkpoint=/path`, or `demo`"
    return f"timm could not create {model!r}: {reason}. {hint}."


def _size_refusal(model: str, size: ImageSize, error: Exception) -> str:
    """Return what to say where the model can be made, but not at this size; else nothing."""
    try:
        with torch.device("meta"):
            sketch = timm.create_model(model, pretrained=False, num_classes=0)
    except Exception:
        return ""
    check_supported(sketch, model)
    check_filled(pair(size), patch_size_of(sketch), model)
    first = str(error).strip().split("\n")[0].rstrip(".")
    return (
        f"timm cannot make {model!r} for images of {shown(*pair(size))} pixels"
        f"{f': {first}' if first else ''}. Leave --image-size out, or choose another."
    )


def _weight_file(model: str, checkpoint: str | None) -> Path | None:
    """Return the file that a person names, by itself or by its folder; None for a fetched one."""
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            address = " Download it, and give the path of the file." if "://" in checkpoint else ""
            raise VPromptError(f"No weight file at {checkpoint!r}.{address}")
        return path
    if model.startswith(_FOLDER):
        return _checkpoints.find_in(Path(model.removeprefix(_FOLDER)))
    return None


def _held(model: str, file: Path | None, config: dict[str, Any]) -> Any:
    """Return what a file or a repository holds; None where timm knows the file itself."""
    if file is not None:
        return _checkpoints.read(file)
    if not model.startswith(_HUB) or config.get("custom_load"):
        return None
    named = config.get("hf_hub_filename")
    try:
        return load_state_dict_from_hf(model.removeprefix(_HUB), *([named] if named else []))
    except Exception as error:
        raise VPromptError(_reason(model, True, {}, error)) from error


def _check_activation(sketch: Any, name: str) -> None:
    """Refuse weights that were trained under QuickGELU in a model of exact GELU.

    timm lists them under both, and says so in notes that nobody sees; features are several points
    worse under the wrong one.
    """
    config = sketch.pretrained_cfg
    notes = [*(config.get("notes") or ()), *_notes_of_namesake(name, config)]
    quick = any("quickgelu" in str(note).lower() for note in notes)
    own = {type(module).__name__ for module in sketch.blocks[0].modules()}
    if not quick or "QuickGELU" in own:
        return
    plain = f"{config.get('architecture', name)}.{config.get('tag') or ''}".rstrip(".")
    right = plain.replace("_clip_", "_clip_quickgelu_")
    raise VPromptError(
        f"The weights of {name!r} were trained with QuickGELU, and this name gives them exact "
        f"GELU, under which their features are others. Use {right!r}."
    )


def _notes_of_namesake(name: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Return timm's notes on the weights that a hub's or a folder's model is a copy of."""
    found: list[str] = []
    copied = f"{config.get('architecture')}.{config.get('tag')}"
    for known in (copied, name.partition("@")[0].rpartition("/")[2]):
        if timm.models.is_model_pretrained(known):
            found += getattr(timm.models.get_pretrained_cfg(known), "notes", None) or ()
    return tuple(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
