"""Training steps of VPT-Deep, ours and as others write them, and attention alone."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.core.precision import autocast
from vprompt.learning.adapter import PromptAdapter
from vprompt.models.attention import KeyValue, joint
from vprompt.models.backbone import Backbone
from vprompt.opening import open_backbone
from vprompt.prompts.prompt import Prompt, place

TOKENS, CLASSES = 50, 100
FP32 = ("ours fp32", "timm concatenation fp32", "classical fp32")
ALL = (*FP32, "ours bf16", "timm concatenation bf16")
WHOLE = "ours, last block whole, fp32"


def variants(names: Sequence[str], model: str, batch: int) -> dict[str, Callable[[], None]]:
    """Return one training step each, all from the same tokens and head on the same images."""
    return {name: variant(name, model, batch) for name in names}


def arithmetic_limit(backbone: Backbone) -> float:
    """Return the products with weights of concatenation over ours; attention maps are left out."""
    image = backbone.embed(torch.zeros(1, *backbone.data_config.input_size)).shape[1]
    key_value, block = 2, 12  # in products of a row with a square matrix; the MLP has 8
    last = image * block
    if backbone.pooled is not None:
        last = image * key_value + backbone.pooled * (block - key_value)
    ours = image * block * (backbone.depth - 1) + last
    return (image + TOKENS) * block * backbone.depth / ours


def variant(name: str, model: str, batch: int) -> Callable[[], None]:
    """Return a step: forward, cross-entropy, backward, AdamW on prompt and head."""
    backbone: Any = open_backbone(model)
    randomness = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *backbone.data_config.input_size, generator=randomness)
    labels = torch.randint(0, CLASSES, (batch,), generator=randomness)
    images, labels = images.to(backbone.device), labels.to(backbone.device)
    blocks = place(TOKENS, backbone.depth, deep=True)
    tokens = 0.02 * torch.randn(len(blocks), backbone.dim, generator=randomness)
    head = nn.Linear(backbone.feature_dim, CLASSES).to(backbone.device)
    kind = name.split()[-1]
    if name == WHOLE:
        backbone.pooled = None
    ours = PromptAdapter(backbone, Prompt(tokens, blocks, False))
    prompt = ours.tokens
    maps: list[Tensor] = []
    for block in backbone.vit.blocks:
        if not name.startswith("ours"):
            block.attn.fused_attn = not name.startswith("classical")
        if name.startswith("classical"):
            block.attn.attn_drop.register_forward_hook(lambda *given: maps.append(given[2]))

    def concatenated() -> Tensor:
        sequence, prefix = backbone.embed(images), backbone.prefix
        for index, block in enumerate(backbone.vit.blocks):
            rows = prompt[TOKENS * index : TOKENS * (index + 1)].expand(batch, -1, -1)
            rest = sequence[:, prefix + (TOKENS if index else 0) :]
            sequence = block(torch.cat([sequence[:, :prefix], rows, rest], 1))
        kept = [sequence[:, :prefix], sequence[:, prefix + TOKENS :]]
        return backbone.pool(torch.cat(kept, 1))

    optimizer = torch.optim.AdamW([prompt, *head.parameters()], lr=1e-3)

    def step() -> None:
        with autocast(kind, backbone.device):
            features = ours.features(images) if name.startswith("ours") else concatenated()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(head(features.float()), labels).backward()
        optimizer.step()
        maps.clear()

    return step


def peak_memory(name: str, model: str, batch: int) -> float:
    """Return by how many MB the second step of a fresh process rises above the model alone."""
    step = variant(name, model, batch)
    step()
    # Give back what the allocator holds of the first step, or the second would not rise above it.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory("VmRSS")
    step()
    return (_memory("VmHWM") - before) / 1024


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(what))


def attentions(batch: int, length: int) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes of attention alone, torch's kernel or written out."""

    def one(fused: bool, dtype: torch.dtype) -> None:
        shape = (batch, 12, length, 64)
        query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
        if fused:
            found = functional.scaled_dot_product_attention(query, key, value)
        else:
            none = KeyValue(key[:, :, :0], value[:, :, :0])
            found = joint(fused=False)(query, KeyValue(key, value), none, 0.125, None)
        found.backward(torch.ones_like(found))

    return {
        f"{how} {kind}": lambda fused=fused, dtype=dtype: one(fused, dtype)  # type: ignore[misc]
        for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for how, fused in (("fused", True), ("written out", False))
    }
