"""H-score: how well features separate the classes, as tr(covariance^-1 between-class covariance).

Shrunk by default: with few images in many dimensions the raw inverse lets any labels look
perfectly separated.

Reference: Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer
Learning", ICIP 2019; shrinkage after Ibrahim et al., arXiv 2110.06893.
"""

from sklearn.covariance import ledoit_wolf_shrinkage

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Labels
from vprompt.metrics._hscore import shrunk_hscore

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
    the undivided score of the Transfer-Learning-Library, for comparison with published figures. At
    0 that is its `h_score`, both of whose covariances divide by N - 1 as ours do; above 0 it is its
    `regularized_h_score`, which shrinks a covariance over N and is N / (N - 1) times as large.
    """
    if convention not in CONVENTIONS:
        raise VPromptError(f"convention is one of {', '.join(CONVENTIONS)}, not {convention!r}.")
    if convention == "share":
        return shrunk_hscore(features, labels, shrinkage)[0]
    raw = shrinkage == 0
    if shrinkage == "ledoit_wolf":  # theirs has no least intensity
        centred = (features.double() - features.double().mean(0)).numpy()
        shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    share, _, classes = shrunk_hscore(features, labels, shrinkage)
    return share * (classes - 1) * (1 if raw else len(features) / (len(features) - 1))
