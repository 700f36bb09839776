"""Softening: weights on the way from an optimum back to the plain average.

An optimum of a few hundred images is often a single source, and another one for other images.
"""

from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.types import Weights

RULES = ("none", "bagged", "spread")


def check(soften: str | float) -> None:
    """Raise unless `soften` is a rule or a share from 0 to 1."""
    named = isinstance(soften, str) and soften in RULES
    share = isinstance(soften, int | float) and 0 <= soften <= 1
    if not (named or share):
        raise VPromptError(
            f"soften is none, bagged, spread or a share from 0 to 1, but got {soften!r}."
        )


def soften_weights(weights: Weights, soften: str | float, samples: Tensor | None) -> Weights:
    """Return the weights that `soften` makes of an optimum and its resampled ones.

    `bagged` is the mean of the resampled optima `[resamples, sources]`. `spread` pulls that mean
    towards uniform weights by `uniform_share`. A number is the share of the uniform weights itself.
    """
    if soften == "none":
        return weights
    if isinstance(soften, str):
        assert samples is not None
        weights = samples.mean(0)
    return _pull(weights, _share(soften, samples))


def soften_samples(samples: Tensor, soften: str | float) -> Tensor:
    """Return the resampled optima pulled as the weights were, so that their spread fits them."""
    return _pull(samples, _share(soften, samples))


def uniform_share(samples: Tensor) -> float:
    """Return the share of uniform weights: spread / (spread + distance).

    `spread` is the total variance of the resampled optima, `distance` the squared one of their mean
    from uniform weights: the share with the least expected squared error if the optima are
    unbiased, as in shrinkage of a mean towards a fixed point.
    """
    mean = samples.mean(0)
    spread = float((samples - mean).square().sum(1).mean())
    distance = float((mean - 1 / samples.shape[1]).square().sum())
    return spread / (spread + distance) if spread > 0 else 0.0


def _share(soften: str | float, samples: Tensor | None) -> float:
    if not isinstance(soften, str):
        return soften
    return uniform_share(samples) if soften == "spread" and samples is not None else 0.0


def _pull(weights: Tensor, share: float) -> Tensor:
    return (1 - share) * weights + share / weights.shape[-1]
