#!/usr/bin/env bash
# A DINOv2 has positions for 518 pixels and is mostly shown 224. Then positions are resampled, and each library
# does it in a way of its own: transformers' DINOv2 (ViT, CLIP and SigLIP alike) by bicubic interpolation without
# antialiasing, its DINOv2 with registers with antialiasing, timm and open_clip with antialiasing for every model,
# torchvision without it and with aligned corners. From 37 x 37 to 16 x 16 that is 15 % of slowly changing
# positions. The same random weights in timm and in transformers have equal features at 518 pixels, and at 224
# class tokens that are 2 % apart and patch tokens that are 5 % apart. Nothing is said of it.
#
# Larger images do not help: torch's switch for antialiasing, which should do nothing where a grid grows, changes
# the bicubic kernel as well (its slope is -0.5 with it and -0.75 without), so positions differ by 2 % from 37 x 37
# to 48 x 48. The bilinear kernel stays the same.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0 \
  open_clip_torch==3.3.0
"$folder/venv/bin/python" - <<'P'
import sys
from types import SimpleNamespace

import open_clip
import timm
import torch
import torchvision
import transformers
from timm.layers import resample_abs_pos_embed
from torch.nn import functional
from torchvision.models.vision_transformer import interpolate_embeddings

print(f"timm {timm.__version__}, transformers {transformers.__version__}, open_clip {open_clip.__version__}, "
      f"torchvision {torchvision.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
PATCH, GRID, WIDTH = 14, 37, 64
small = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": PATCH,
         "image_size": PATCH * GRID}
plain = transformers.Dinov2Model(transformers.Dinov2Config(**small, mlp_ratio=2)).eval()
with torch.no_grad():
    for name, parameter in plain.named_parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    # Positions that change slowly over the image, as learned ones do, and a little noise.
    coarse = functional.interpolate(torch.randn(1, WIDTH, 8, 8), size=(GRID, GRID), mode="bicubic")
    table = (coarse + 0.2 * torch.randn(coarse.shape)).flatten(2).transpose(1, 2)
    plain.embeddings.position_embeddings[:, 1:] = table
registers = transformers.Dinov2WithRegistersModel(
    transformers.Dinov2WithRegistersConfig(**small, mlp_ratio=2, num_register_tokens=4)).eval()
whole = plain.embeddings.position_embeddings.detach()
registers.embeddings.position_embeddings.data = whole.clone()


def apart(one, other):
    """Return the distance as a share of the length of the second."""
    return float((one - other).norm() / other.norm())


@torch.no_grad()
def resampled(side):
    """Return the patches' positions for a grid of `side` x `side`, as each library makes them."""
    empty, pixels = torch.zeros(1, side * side + 1, WIDTH), side * PATCH
    held = {"visual.positional_embedding": whole[0]}
    open_clip.model.resize_pos_embed(held, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
    vision = interpolate_embeddings(pixels, PATCH, {"encoder.pos_embedding": whole.clone()})
    return {
        "transformers' DINOv2": plain.embeddings.interpolate_pos_encoding(empty, pixels, pixels)[0, 1:],
        "transformers' DINOv2 with registers": registers.embeddings.interpolate_pos_encoding(
            empty, pixels, pixels)[0, 1:],
        "timm": resample_abs_pos_embed(whole, [side, side])[0, 1:],
        "open_clip": held["visual.positional_embedding"][1:],
        "torchvision": vision["encoder.pos_embedding"][0, 1:],
    }


same = True
for side in (16, 48):
    found = resampled(side)
    first = found["transformers' DINOv2"]
    for name, made in found.items():
        gap = apart(made, first)
        print(f"positions {GRID} x {GRID} to {side} x {side}: {name} is {gap:.1%} from the first")
        smoothed = torch.allclose(made, found["timm"], atol=1e-5)
        same = same and smoothed == (name in ("timm", "open_clip", "transformers' DINOv2 with registers"))
        same = same and (gap > 0.01) == (made is not first)

# One point of a grid that is doubled: what stands around it is the kernel. Keys' kernel with slope a, at a
# distance of 1.25, is a * (1.25 - 1) * (2 - 1.25) ** 2.
point = torch.zeros(1, 1, 9, 9)
point[..., 4, 4] = 1
for mode in ("bilinear", "bicubic"):
    both = [functional.interpolate(point, scale_factor=2, mode=mode, antialias=smooth) for smooth in (False, True)]
    equal = torch.allclose(*both)
    print(f"{mode}, doubled: the same with and without antialiasing: {equal}")
    same = same and equal == (mode == "bilinear")
slopes = []
for made in both:  # the bicubic ones
    line = made[0, 0].sum(0) / 2  # weights along one axis: those along the other sum to two
    slopes.append(float(line[11]) / (0.25 * 0.75**2))
print(f"the slope of the bicubic kernel without antialiasing: {slopes[0]:.2f}, with it: {slopes[1]:.2f}")
same = same and abs(slopes[0] + 0.75) < 1e-3 and abs(slopes[1] + 0.5) < 1e-3

# One set of weights in both libraries.
names = {"attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "norm1": "norm1",
         "norm2": "norm2"}
state = plain.state_dict()
made = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
for kind in ("weight", "bias"):
    made[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
    made[f"norm.{kind}"] = state[f"layernorm.{kind}"]
    for index in range(4):
        at = next(key for key in state if f".{index}.attention.q_proj" in key).partition("attention.")[0]
        parts = [state[f"{at}attention.{letter}_proj.{kind}"] for letter in "qkv"]
        made[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
        made |= {f"blocks.{index}.{there}.{kind}": state[f"{at}{here}.{kind}"] for here, there in names.items()}
        for number in (1, 2):
            made[f"blocks.{index}.ls{number}.gamma"] = state[f"{at}layer_scale{number}.lambda1"]
gaps = {}
for pixels in (PATCH * GRID, 224):
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=PATCH * GRID, embed_dim=WIDTH,
                            depth=4, num_heads=4, mlp_ratio=2)
    vit.load_state_dict(made)
    vit.set_input_size(img_size=pixels)
    images = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        theirs, own = vit.eval().forward_features(images), plain(pixel_values=images).last_hidden_state
    gaps[pixels] = apart(theirs[:, 0], own[:, 0]), apart(theirs[:, 1:], own[:, 1:])
    print(f"timm and transformers at {pixels} pixels: class tokens {gaps[pixels][0]:.1e} apart, patch tokens "
          f"{gaps[pixels][1]:.1e}")
same = same and max(gaps[518]) < 1e-4 and min(gaps[224]) > 0.01
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
P
