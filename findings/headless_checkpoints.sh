#!/bin/bash
# timm loads a checkpoint without strictness wherever the head is left out (num_classes=0), which is how a
# backbone is loaded. Then weights of which no name matches, weights that lack blocks, and weights with layer
# scales for a model that has none all load without an error, and the model computes something else. Names
# that are too many are logged as a warning, names that are missing at INFO, which nobody sees. The .npz files
# of the original ViT are read block by block up to the model's own depth: those of a deeper model fill a
# shallower one.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy
venv/bin/python - <<'P'
import logging
import sys

import numpy as np
import timm
import torch

print("timm", timm.__version__, "torch", torch.__version__)
NAME = "test_vit"  # 6 blocks of width 64
warned = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warned.append(record.getMessage())
logging.getLogger("timm").addHandler(handler)
logging.getLogger("timm").propagate = False


def load(state):
    """Load as one loads a backbone from a file of one's own; return the model or the error."""
    torch.save(state, "weights.pth")
    overlay = {"file": "weights.pth"}
    try:
        return timm.create_model(NAME, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except Exception as error:
        return error


def filled(found, wanted):
    """Count the tensors that hold what was in the file."""
    own = found.state_dict()
    return sum(torch.equal(own[k], v) for k, v in wanted.items() if k in own)


torch.manual_seed(0)
source = timm.create_model(NAME, num_classes=0)
with torch.no_grad():
    for parameter in source.parameters():
        parameter.normal_()
whole = source.state_dict()
cases = {
    "no name matches (MoCo v3's)": {f"module.base_encoder.{k}": v for k, v in whole.items()},
    "three of six blocks are missing": {
        k: v for k, v in whole.items() if not k.startswith(("blocks.3", "blocks.4", "blocks.5"))
    },
    "layer scales that the model lacks": {**whole, "blocks.0.ls1.gamma": torch.zeros(64)},
}
silent = []
for case, state in cases.items():
    warned.clear()
    found = load(state)
    if isinstance(found, Exception):
        print(f"{case}: {type(found).__name__}")
        continue
    logged = f"a warning of {len(warned[0])} characters" if warned else "nothing logged as a warning"
    print(f"{case}: no error, {filled(found, whole)} of {len(whole)} tensors are the file's, {logged}")
    silent.append(case)
    if bool(warned) == case.startswith("three"):
        sys.exit("the behaviour changed")

with_head = timm.create_model(NAME, num_classes=0)
try:
    with_head.load_state_dict(cases["no name matches (MoCo v3's)"])
    strict = False
except RuntimeError:
    strict = True
print("torch's own load_state_dict refuses the first of them:", strict)

# The original ViT's names, of a model with eight blocks, into one of six.
deep = timm.create_model(NAME, num_classes=0, depth=8)
held = {
    "embedding/kernel": deep.patch_embed.proj.weight.permute(2, 3, 1, 0),
    "embedding/bias": deep.patch_embed.proj.bias,
    "cls": deep.cls_token,
    "Transformer/posembed_input/pos_embedding": deep.pos_embed,
    "Transformer/encoder_norm/scale": deep.norm.weight,
    "Transformer/encoder_norm/bias": deep.norm.bias,
}
for index, block in enumerate(deep.blocks):
    at, heads = f"Transformer/encoderblock_{index}", block.attn.num_heads
    for number, norm in ((0, block.norm1), (2, block.norm2)):
        held[f"{at}/LayerNorm_{number}/scale"] = norm.weight
        held[f"{at}/LayerNorm_{number}/bias"] = norm.bias
    weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
    for part, weight, bias in zip(("query", "key", "value"), weights, biases):
        held[f"{at}/MultiHeadDotProductAttention_1/{part}/kernel"] = weight.T.unflatten(1, (heads, -1))
        held[f"{at}/MultiHeadDotProductAttention_1/{part}/bias"] = bias.unflatten(0, (heads, -1))
    out = block.attn.proj
    held[f"{at}/MultiHeadDotProductAttention_1/out/kernel"] = out.weight.T.unflatten(0, (heads, -1))
    held[f"{at}/MultiHeadDotProductAttention_1/out/bias"] = out.bias
    for number, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
        held[f"{at}/MlpBlock_3/Dense_{number}/kernel"] = layer.weight.T
        held[f"{at}/MlpBlock_3/Dense_{number}/bias"] = layer.bias
np.savez("deep.npz", **{name: value.detach().numpy() for name, value in held.items()})
shallow = timm.create_model(NAME, num_classes=0)
try:
    shallow.load_pretrained("deep.npz")
    cut = torch.equal(shallow.blocks[5].attn.qkv.weight, deep.blocks[5].attn.qkv.weight)
    print("eight blocks into six: no error, the first six are the file's:", cut)
except Exception as error:
    cut = False
    print("eight blocks into six:", type(error).__name__)

if len(silent) != len(cases) or not strict or not cut:
    sys.exit("the behaviour changed")
P
