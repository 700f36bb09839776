"""H-score: how well features separate the classes, as tr(covariance^-1 between-class covariance).

Shrunk by default: with few images in many dimensions the raw inverse lets any labels look
perfectly separated.

Reference: Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer
Learning", ICIP 2019; shrinkage after Ibrahim et al., arXiv 2110.06893.
"""

from vprompt.errors import VPromptError
from vprompt.metrics._hscore import shrunk_hscore
from vprompt.types import Features, Labels

RANGE = (0.0, float("inf"))
CONVENTIONS = ("share", "tllib")


def score(
    features: Features,
    labels: Labels,
    *,
    shrinkage: float | str = "ledoit_wolf",
    convention: str = "share",
) -> float:
    """Return H divided by its maximum, classes - 1: from 0 to 1, higher means better separated.

    `shrinkage` is `ledoit_wolf`, `oas` or a number in [0, 1). At 0 the raw H-score is refused where
    it is constant, that is with no more images than dimensions + 1. `convention="tllib"` returns
    the undivided score of the Transfer-Learning-Library, for comparison with published figures: it
    divides one covariance by N and the other by N - 1, which makes it N / (N - 1) times as large.
    """
    if convention not in CONVENTIONS:
        raise VPromptError(f"convention is one of {', '.join(CONVENTIONS)}, not {convention!r}.")
    share, _, classes = shrunk_hscore(features, labels, shrinkage)
    if convention == "share":
        return share
    return share * (classes - 1) * len(features) / (len(features) - 1)
