#!/usr/bin/env bash
# A classifier of timm gives one image other logits alone than in a batch, on an x86 CPU in fp32.
#
# Everything up to the head is the same to the bit: 197 rows an image are enough for a matrix product.
# The head sees one row an image, and torch's linear layer (MKL's sgemm) sums fewer than 4 rows in
# another order than more of them. With two threads on two cores the limit is not 4 rows but 12: each
# thread has its share, and a share below 4 is summed otherwise. Whoever computes the class token alone
# in the last block, to save the other tokens, carries this into the features.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31
"$folder/venv/bin/python" - <<'EOF'
import platform
import sys

import timm
import torch

print(f"python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}")
print(f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2).eval()
images = torch.randn(16, 3, 224, 224)


def sizes_that_differ(function, rows):
    """Return the sizes of batch at which the first rows are not those of the whole batch."""
    whole = function(rows)
    return [n for n in range(1, len(rows)) if not torch.equal(function(rows[:n]), whole[:n])]


same = True
with torch.no_grad():
    for threads in (1, 2):
        torch.set_num_threads(threads)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        parts = [model.forward_head(model.forward_features(x), pre_logits=True) for x in
                 images.split(1)]
        alike = torch.equal(torch.cat(parts), features)
        found = sizes_that_differ(model.head, features)
        gap = float((model(images[:1]) - model(images)[:1]).abs().max())
        print(f"{threads} thread(s): features alone and in a batch of 16 the same bits: {alike}; "
              f"logits differ in batches of {found}; of one image by up to {gap:.1e}")
        same = same and alike and {1, 2, 3} <= set(found) <= set(range(1, 12)) and 0 < gap < 1e-4
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
EOF
