#!/usr/bin/env bash
# timm has two nonlinearities for one family. Of the SigLIP towers looked at here, B/16 at 224 px, L/16 at 256 and
# So400m/14 at 224 have the exact GELU; B/32 at 256, L/16 at 512 and So400m/16 at 256 have the one that is
# approximated by tanh. transformers' config of SigLIP has the approximation by default. With the same weights in
# both, the features of timm's B/16 are those of transformers only after its nonlinearity is exchanged.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0
"$folder/venv/bin/python" - <<'P'
import sys

import timm
import torch
import transformers
from torch import nn

print(f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
NAMES = {  # in timm, and what its activation is
    "vit_base_patch16_siglip_224": "none",
    "vit_large_patch16_siglip_256": "none",
    "vit_so400m_patch14_siglip_224": "none",
    "vit_base_patch32_siglip_256": "tanh",
    "vit_large_patch16_siglip_512": "tanh",
    "vit_so400m_patch16_siglip_256": "tanh",
}
theirs = transformers.SiglipVisionConfig().hidden_act
print("transformers' default of SigLIP:", theirs)
same = theirs == "gelu_pytorch_tanh"
for name, expected in NAMES.items():
    with torch.device("meta"):
        found = timm.create_model(name, num_classes=0).blocks[0].mlp.act
    approximate = getattr(found, "approximate", "tanh" if "Tanh" in type(found).__name__ else "none")
    print(f"{name}: {found} ({approximate})")
    same = same and approximate == expected

# One set of weights in both: blocks of transformers' own width, drawn larger than at the start of training.
torch.manual_seed(0)
small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
config = transformers.SiglipVisionConfig(**small, image_size=32, patch_size=8)
original = transformers.SiglipVisionModel(config).eval()
with torch.no_grad():
    for parameter in original.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
state = {key.removeprefix("vision_model."): value for key, value in original.state_dict().items()}


def block(index):
    """Return timm's names of one layer's weights."""
    at, found = f"encoder.layers.{index}.", {}
    for kind in ("weight", "bias"):
        parts = [state[f"{at}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
        found[f"attn.qkv.{kind}"] = torch.cat(parts)
        for there, here in {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1",
                            "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
            found[f"{there}.{kind}"] = state[f"{at}{here}.{kind}"]
    return {f"blocks.{index}.{key}": value for key, value in found.items()}


made = {"patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embedding.bias"],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "norm.weight": state["post_layernorm.weight"], "norm.bias": state["post_layernorm.bias"]}
for index in range(4):
    made |= block(index)
images, gaps = torch.randn(2, 3, 32, 32), {}
for name, activation in {"exact": nn.GELU, "tanh": lambda: nn.GELU(approximate="tanh")}.items():
    vit = timm.create_model("vit_base_patch16_siglip_224", img_size=32, patch_size=8, embed_dim=64,
                            depth=4, num_heads=4, mlp_ratio=2.0, num_classes=0, act_layer=activation)
    vit.load_state_dict(made, strict=False)  # without the pooling, which is not compared
    with torch.no_grad():
        ours, own = vit.eval().forward_features(images), original(pixel_values=images).last_hidden_state
    gaps[name] = float((ours - own).abs().max() / own.abs().max())
    print(f"features of timm with the {name} GELU differ from transformers' by {gaps[name]:.1e} of the largest")
same = same and gaps["tanh"] < 1e-5 and gaps["exact"] > 5e-5
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
P
