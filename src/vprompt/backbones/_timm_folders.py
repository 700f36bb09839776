"""Folders of timm: a model's weights and its head as timm itself keeps them, and opens them."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vprompt.backbones.timm_vit import TimmViT
from vprompt.core.errors import VPromptError
from vprompt.core.files import write_json, write_tensors
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: Path, backbone: Backbone, head: Head, classes: list[str]) -> None:
    """Write the state of a timm model with a head, and the config that timm makes it from."""
    if not isinstance(backbone, TimmViT):
        raise VPromptError(
            f"{backbone.name!r} is no model of timm's, so timm could not open what was written. "
            "Export it with --to onnx or --to torch."
        )
    vit = backbone.vit
    own = {key: value for key, value in vit.state_dict().items() if not key.startswith("head.")}
    head_state = {"head.weight": head.weight, "head.bias": head.bias}
    plain = {key: value.detach().cpu().contiguous() for key, value in (own | head_state).items()}
    write_tensors(folder / WEIGHTS, plain, {"format": "pt"})
    write_json(folder / CONFIG, _config(backbone, classes))


def reopen(folder: Path) -> nn.Module:
    """Return the model as timm makes it of a folder."""
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return what timm's model says."""
    with torch.no_grad():
        found: Tensor = model(images)
    return found


def _config(backbone: TimmViT, classes: list[str]) -> dict[str, Any]:
    vit, data = backbone.vit, backbone.data_config
    known = vit.pretrained_cfg
    size = [int(side) for side in data.input_size]
    return {
        "architecture": known["architecture"],
        "num_classes": len(classes),
        "num_features": int(vit.num_features),
        "global_pool": vit.global_pool,
        "label_names": classes,
        "model_args": {"img_size": size[1:]},
        "pretrained_cfg": {
            "tag": "vprompt",
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": True,
            "interpolation": data.interpolation,
            "crop_pct": data.crop_pct,
            "crop_mode": data.crop_mode,
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": len(classes),
            "pool_size": None,
            "first_conv": known.get("first_conv", "patch_embed.proj"),
            "classifier": "head",
        },
    }
