"""What the released code of CoOp, MaPLe, IVLP and DPL has in common in how it trains.

The rate changes epoch by epoch and is 1e-5 throughout the first. Their images are cut and mirrored
as well, which `augment=crop_flip` does; only DPL's preset turns it on by itself.
"""

from typing import Any

PUBLISHED: dict[str, Any] = {
    "opt": "sgd",
    "weight_decay": 5e-4,
    "sched": "cosine_by_epoch",
    "first_epoch_lr": 1e-5,
    "min_lr": 0.0,
}
