#!/usr/bin/env bash
# PEFT wraps the output projection of torch's nn.MultiheadAttention, which the towers of open_clip and the ViT of
# torchvision are made of, and the update is never used: torch reads the layer's weight and does not call it, and
# what PEFT shows as the weight is the frozen one. The parameters count as trainable and get no gradient. A finished
# adapter of this kind changes no feature while it is attached, and does once it is merged: here by 29 % and 108 %.
# With out_proj as the only target backward fails, for nothing hangs on it; beside other layers nothing is said, so
# target_modules="all-linear" takes four dead updates of twelve in, and its features move when it is merged. (It
# leaves out queries, keys and values, which are no linear layer here.) The attention's own name as the target (attn,
# self_attention) trains queries, keys, values and the output, and merging changes nothing.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 open_clip_torch==3.3.0 peft==0.21.2 \
  transformers==5.24.0
"$folder/venv/bin/python" - <<'P'
import sys
import warnings

import open_clip
import peft
import torch
import torchvision

print(f"peft {peft.__version__}, open_clip {open_clip.__version__}, torchvision {torchvision.__version__}, "
      f"torch {torch.__version__}")
VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"layers": 2, "width": 32, "heads": 2, "vocab_size": 50, "context_length": 8}


def clip():
    """Return the image tower of a small CLIP."""
    return open_clip.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT).visual.eval()


def vit():
    """Return a small ViT of torchvision without a head."""
    found = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48)
    found.heads = torch.nn.Identity()
    return found.eval()


def apart(one, other):
    """Return the distance as a share of the length of the second."""
    return float((one - other).norm() / other.norm())


def tried(build, target):
    """Return how many updates get a gradient, the share of change while attached and merged, and warnings."""
    torch.manual_seed(0)
    model, images = build(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        plain = model(images)
    # Updates that are drawn, in place of those that start at zero: an adapter that has learned something.
    config = peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.get_peft_model(model, config).eval()
        attached = model(images)
    if attached.requires_grad:
        attached.sum().backward()
    updates = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    alive = sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in updates)
    with torch.no_grad():
        change = apart(attached, plain)
        merged = apart(model.merge_and_unload()(images), plain)
    print(f"{build.__name__}, {target}: {alive} of {len(updates)} updates have a gradient; features change by "
          f"{change:.1%} while attached, by {merged:.1%} merged; {len(said)} warnings")
    return alive, len(updates), change, merged, len(said)


same = True
for build, whole in ((clip, "attn"), (vit, "self_attention")):
    alive, count, change, merged, said = tried(build, ["out_proj"])
    same = same and (alive, count, change, said) == (0, 4, 0.0, 0) and merged > 0.01
    alive, count, change, merged, said = tried(build, "all-linear")
    same = same and alive == count - 4 and said == 0 and abs(change - merged) > 0.001
    alive, count, change, merged, said = tried(build, [whole])
    same = same and alive == count == 8 and abs(change - merged) < 1e-5 and change > 0.01
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
P
