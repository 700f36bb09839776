"""Scores of fused features as functions of the weights, each with its closed-form gradient.

The fused features are f(alpha) = sum_i alpha_i F_i, F_i the centred features of source i. All
scores are normalised to [0, 1], so that one `lambda_` means the same on every data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import (
    cholesky,
    class_means_factor,
    hscore_and_slope,
    per_source,
    shrinkage_intensity,
    weighted_sum,
)
from vprompt.core.types import Labels, SourceFeatures, Weights


@dataclass(frozen=True, eq=False)
class HScore:
    """Shrunk H-score of the fused features, divided by classes - 1.

    H = (1 - rho) tr(S^-1 Z'Z) with S = (1 - rho) Sigma + rho tr(Sigma)/h I; rho is fixed, so the
    objective is smooth. `features` `[sources, images, width]` are centred, float64; `indicator`
    `[images, classes]` has orthonormal columns, one for every class present.

    Uses the h x h covariance, or with fewer images than dimensions the N x N Gram matrix.
    """

    features: Tensor
    labels: Labels
    indicator: Tensor
    rho: float

    @classmethod
    def of(
        cls,
        features: SourceFeatures,
        labels: Labels,
        shrinkage: float | str | None = None,
        *,
        class_balanced: bool = False,
    ) -> "HScore":
        """Centre the features and fix rho at uniform weights, by Ledoit-Wolf unless it is given.

        `class_balanced` gives every class the same say, however many images it has.
        """
        centred = centre(features, labels, class_balanced)
        rho = shrinkage_intensity(centred.mean(0), shrinkage)
        count, width = centred.shape[1:]
        _, index, counts = labels.unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise VPromptError("A transferability score needs images of at least two classes.")
        if rho == 0 and count - 1 <= width:
            raise VPromptError(
                f"With {count} images in {width} dimensions the raw H-score is "
                f"{len(counts) - 1} for any weights. Use score=hscore_shrunk or "
                "score=trace_ratio."
            )
        indicator = torch.nn.functional.one_hot(index).double() / counts.double().sqrt()
        return cls(centred, index, indicator, rho)

    @property
    def most(self) -> int:
        """The largest H-score there can be, by which it is divided."""
        return self.indicator.shape[1] - 1

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the score and its gradient `[sources]`."""
        fused = weighted_sum(alpha, self.features)
        if not fused.any():
            return 0.0, torch.zeros_like(alpha)  # constant features tell no class from another
        count, width = fused.shape
        dual = count < width and self.rho > 0
        value, gradient = self._dual(fused) if dual else self._primal(fused)
        if not -1e-9 <= value <= self.most * (1 + 1e-9):
            raise VPromptError(
                f"The H-score came out as {value:.4g}, outside [0, {self.most}]: the features are "
                "too badly conditioned. Use score=trace_ratio."
            )
        return value / self.most, gradient / self.most

    def _primal(self, fused: Tensor) -> tuple[float, Tensor]:
        value, slope = hscore_and_slope(fused, self.labels, self.rho)
        return value, per_source(self.features, slope)

    def _dual(self, fused: Tensor) -> tuple[float, Tensor]:
        rho, (count, width) = self.rho, fused.shape
        gram = fused @ fused.T / (count - 1)
        ridge = rho / (1 - rho) * gram.trace() / width
        system = gram.clone()
        system.diagonal().add_(ridge)
        solved = torch.cholesky_solve(self.indicator, cholesky(system))
        inner = (self.indicator * solved).sum()
        # The mean direction is in no feature: its part of the indicator is not explained by any.
        value = self.indicator.shape[1] - ridge * inner
        slope = rho / (1 - rho) * 2 / (width * (count - 1))
        ridge_gradient = slope * per_source(self.features, fused)
        bend = per_source(self.features, solved @ (solved.T @ fused))
        gradient = ridge * 2 / (count - 1) * bend
        gradient -= ridge_gradient * (inner - ridge * solved.square().sum())
        return float(value), gradient


@dataclass(frozen=True, eq=False)
class AdjustedHScore:
    """H-score less what meaningless labels would score: 0 is chance, 1 is perfect.

    Labels shuffled over the images score (classes - 1) df / (N - 1) on average, exactly, with
    df = tr(Sigma (Sigma + gamma I)^-1). With few images most of H is that floor, and weights that
    climb the plain H climb the floor: they pick the source with the most effective dimensions.
    """

    plain: HScore

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the adjusted score, at most 1, and its gradient."""
        value, gradient = self.plain(alpha)
        floor, slope = self.floor(alpha)
        if floor >= 1 - 1e-9:
            return 0.0, torch.zeros_like(alpha)
        adjusted = (value - floor) / (1 - floor)
        return adjusted, gradient / (1 - floor) - slope * (1 - value) / (1 - floor) ** 2

    def floor(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return df / (N - 1), what chance reaches of the maximum, and its gradient."""
        features, rho = self.plain.features, self.plain.rho
        count, width = features.shape[1:]
        fused = weighted_sum(alpha, features)
        if not fused.any():
            return 0.0, torch.zeros_like(alpha)
        small = count < width
        gram = (fused @ fused.T if small else fused.T @ fused) / (count - 1)
        ridge = rho / (1 - rho) * gram.trace() / width
        gram.diagonal().add_(ridge)
        inverse = torch.cholesky_inverse(cholesky(gram))
        trace, square = inverse.trace(), inverse @ inverse
        pull = square @ fused if small else fused @ square
        bend = 2 / (count - 1) * per_source(features, pull)
        ridge_slope = rho / (1 - rho) * 2 / (width * (count - 1)) * per_source(features, fused)
        freedom = len(gram) - ridge * trace
        slope = ridge * (bend + ridge_slope * square.trace()) - ridge_slope * trace
        return float(freedom) / (count - 1), slope / (count - 1)


@dataclass(frozen=True, eq=False)
class TraceRatio:
    """tr(between) / tr(total) of the fused features: two M x M matrices and no inverse.

    It ignores correlations between feature axes, so large nuisance axes dominate, but it is
    microseconds per step for any number of sources.
    """

    between: Tensor
    total: Tensor

    @classmethod
    def of(
        cls, features: SourceFeatures, labels: Labels, *, class_balanced: bool = False
    ) -> "TraceRatio":
        """Reduce the features to the two matrices."""
        centred = centre(features, labels, class_balanced)
        means = torch.stack([class_means_factor(source, labels) for source in centred]).flatten(1)
        flat = centred.flatten(1)
        return cls(means @ means.T, flat @ flat.T / (centred.shape[1] - 1))

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the score in [0, 1] and its gradient."""
        above, below = self.between @ alpha, self.total @ alpha
        top, bottom = alpha @ above, alpha @ below
        if float(bottom) == 0:
            return 0.0, torch.zeros_like(alpha)
        return float(top / bottom), 2 * (above * bottom - below * top) / bottom**2

    def best_share(self, alpha: Weights, to: int, away: int) -> float:
        """Return how much of the weight of `away` is best moved `to` another source.

        Along the segment both traces are quadratic in the share, so their ratio is stationary at
        the roots of a quadratic; these and both ends are compared.
        """
        parts = []
        for matrix in (self.between, self.total):
            row = matrix[to] - matrix[away]
            bend = float(row[to] - row[away])
            parts.append((float(alpha @ (matrix @ alpha)), float(row @ alpha), bend))
        (n0, n1, n2), (d0, d1, d2) = parts
        most = float(alpha[away])
        roots = np.roots([n2 * d1 - n1 * d2, n2 * d0 - n0 * d2, n1 * d0 - n0 * d1])
        inside = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and 0 < r.real < most]

        def value(share: float) -> float:
            below = d0 + 2 * d1 * share + d2 * share**2
            return (n0 + 2 * n1 * share + n2 * share**2) / below if below > 0 else 0.0

        return max([most, *inside], key=value)

    def select(self, rows: Sequence[int]) -> "TraceRatio":
        """Return the ratio of some of the sources, in this order."""
        index = torch.as_tensor(rows)
        return TraceRatio(self.between[index][:, index], self.total[index][:, index])


def centre(features: SourceFeatures, labels: Labels, class_balanced: bool) -> SourceFeatures:
    """Return features in float64 about their mean.

    Balanced, an image counts N / (classes * images of its class) times: the mean is that of the
    class means, and rows are scaled by the root of their count, so that sums of squares and of
    classes come out weighted.
    """
    data = features.double()
    if not class_balanced:
        return data - data.mean(1, keepdim=True)
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    share = (len(labels) / (len(counts) * counts.double()))[index]
    mean = torch.einsum("n,snh->sh", share / len(labels), data)
    return (data - mean[:, None]) * share.sqrt()[:, None]


@dataclass(frozen=True, eq=False)
class Times:
    """A score in other units: `factor` times its value and gradient."""

    score: "HScore | AdjustedHScore | TraceRatio"
    factor: float

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the scaled value and gradient."""
        value, gradient = self.score(alpha)
        return self.factor * value, self.factor * gradient
