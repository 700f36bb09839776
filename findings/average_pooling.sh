#!/usr/bin/env bash
# Whoever asks timm for a pretrained ViT with average pooling (global_pool="avg") and another number of classes, or
# none, gets the mean of the patches under a norm that has learned nothing. Average pooling moves the last norm
# behind the pooling, where it is called fc_norm; a checkpoint of class-token pooling has it as norm, and the
# weights are dropped. The number of classes being another, the load is not strict: the log says that two names
# were not expected, "if model is being adapted", and not that a norm stayed as it was drawn. With the checkpoint's
# own number of classes the same request is an error.
#
# The same request after loading, reset_classifier(0, "avg"), leaves the learned norm where it is, so that one
# request has two meanings. With the random weights here their features are 52 % apart. fc_norm=False makes the
# first the second.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31
cd "$folder"
"$folder/venv/bin/python" - <<'P'
import logging
import sys

import timm
import torch

print(f"timm {timm.__version__}, torch {torch.__version__}")
SMALL = {"img_size": 32, "depth": 2}
said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("timm").addHandler(handler)
logging.getLogger("timm").propagate = False

torch.manual_seed(0)
source = timm.create_model("vit_tiny_patch16_224", num_classes=1000, **SMALL)
with torch.no_grad():
    for parameter in source.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
torch.save(source.state_dict(), "weights.pth")


def load(**options):
    """Return the model as timm makes it of a checkpoint that it knows."""
    said.clear()
    return timm.create_model("vit_tiny_patch16_224", pretrained=True, **SMALL, **options,
                             pretrained_cfg_overlay={"file": "weights.pth"}).eval()


def fresh(norm):
    """Say whether a norm has the weights that it is made with."""
    return bool((norm.weight == 1).all()) and not norm.bias.any()


def apart(one, other):
    """Return the distance as a share of the length of the second."""
    return float((one - other).norm() / other.norm())


same = True
for classes in (10, 0):
    model = load(num_classes=classes, global_pool="avg")
    print(f"num_classes={classes}, global_pool='avg': norm is {type(model.norm).__name__}, fc_norm has learned "
          f"nothing: {fresh(model.fc_norm)}; said: {said}")
    same = same and isinstance(model.norm, torch.nn.Identity) and fresh(model.fc_norm)
    same = same and len(said) == 1 and "fc_norm" not in said[0]
try:
    load(num_classes=1000, global_pool="avg")
    strict = False
except RuntimeError as error:
    strict = "fc_norm.weight" in str(error)
print("num_classes=1000, global_pool='avg': an error that names fc_norm:", strict)

later = load(num_classes=0)
later.reset_classifier(0, "avg")
first, staying = load(num_classes=0, global_pool="avg"), load(num_classes=0, global_pool="avg", fc_norm=False)
images = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    wanted = later(images)
    gaps = [apart(model(images), wanted) for model in (first, staying)]
print(f"features of create_model(global_pool='avg') are {gaps[0]:.1%} from those of reset_classifier(0, 'avg'), "
      f"and with fc_norm=False {gaps[1]:.1%}")
same = same and strict and gaps[0] > 0.05 and gaps[1] == 0 and torch.equal(later.norm.weight, source.norm.weight)
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
P
