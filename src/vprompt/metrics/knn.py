"""k-NN: leave-one-out accuracy of the nearest neighbours by cosine; the check of every comparison.

Reference: "k-NN as a Simple and Effective Estimator of Transferability", arXiv 2503.18528.
"""

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import unit_rows
from vprompt.core.types import Features, Labels
from vprompt.metrics._checks import contiguous

RANGE = (0.0, 1.0)


def score(features: Features, labels: Labels, *, neighbours: int = 1) -> float:
    """Return the share of images whose `neighbours` nearest others vote for their label, 0 to 1.

    Ties go to the label of the nearest among those tied.
    """
    if not 1 <= neighbours < len(features):
        raise VPromptError(
            f"neighbours lies between 1 and {len(features) - 1}, one less than the images, but got "
            f"{neighbours}."
        )
    index, classes = contiguous(labels)
    units = unit_rows(features.double())
    cosines = units @ units.T
    cosines.fill_diagonal_(-torch.inf)
    nearest = index[cosines.topk(neighbours, dim=1).indices]
    votes = torch.nn.functional.one_hot(nearest, classes).double()
    # Less than any vote, and more for a nearer neighbour.
    closeness = 1e-3 * torch.linspace(1, 0.5, neighbours).double() / neighbours
    ranked = votes.sum(1) + (votes * closeness[:, None]).amax(1)
    return (ranked.argmax(1) == index).double().mean().item()
