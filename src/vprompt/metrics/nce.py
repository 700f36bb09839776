"""NCE: minus how unsure of an image's label one remains who knows which source class it looks like.

Only the source head's first choice counts. With as many source classes as images it is near 0 for
any labels, and it favours targets with few classes.

Reference: Tran et al., "Transferability and Hardness of Supervised Classification Tasks", ICCV
2019, arXiv 1908.08142.
"""

import torch

from vprompt.core.types import Labels, SourceProbabilities
from vprompt.metrics._empirical import distributions, joint, negative_conditional_entropy

RANGE = (-float("inf"), 0.0)


def score(source_probabilities: SourceProbabilities, labels: Labels) -> float:
    """Return -H(label | most probable source class) in nats, at most 0; higher is better.

    `source_probabilities` `[images, source classes]` are what the source's head says of the
    target's images, rows with sum 1.
    """
    theta = distributions(source_probabilities)
    chosen = torch.nn.functional.one_hot(theta.argmax(1), theta.shape[1]).double()
    table, _, _ = joint(chosen, labels)
    return negative_conditional_entropy(table)
