"""Statistics: what a score of fused features needs, collected batch by batch and merged.

Machines or days may each see a part of the images; their statistics add up to those of all, in any
order. The state is a few M r x M r matrices for M sources in r dimensions, however many images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import cholesky, oas_intensity
from vprompt.core.types import Labels, SourceFeatures, Weights
from vprompt.pooling.scores import TraceRatio


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts, class sums and centred second moments of the features of all sources; float64.

    `counts` `[classes]`, `sums` `[classes, sources, width]`, `scatter`
    `[sources * width, sources * width]` about the mean, not yet divided by anything. Sums are
    those of features less `origin` `[sources, width]`, which all parts that are merged share.
    """

    counts: Tensor
    sums: Tensor
    scatter: Tensor
    origin: Tensor

    @classmethod
    def empty(cls, origin: Tensor, num_classes: int) -> "Statistics":
        """Start from nothing. `origin` is a rough mean, such as that of the first batch."""
        sources, width = origin.shape
        return cls(
            torch.zeros(num_classes, dtype=torch.float64),
            torch.zeros(num_classes, sources, width, dtype=torch.float64),
            torch.zeros(sources * width, sources * width, dtype=torch.float64),
            origin.double(),
        )

    def update(self, features: SourceFeatures, labels: Labels) -> "Statistics":
        """Return the statistics with a batch added; features are those of the same images."""
        shifted = features.double() - self.origin[:, None]
        rows = shifted.transpose(0, 1)
        centred = (rows - rows.mean(0)).flatten(1)
        part = Statistics(
            torch.bincount(labels, minlength=len(self.counts)).double(),
            torch.zeros_like(self.sums).index_add_(0, labels, rows),
            centred.T @ centred,
            self.origin,
        )
        return self.merge(part)

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both parts together.

        Reference: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
        """
        if not torch.equal(self.origin, other.origin):
            raise VPromptError("Statistics merge only where both were started at the same origin.")
        here, there = float(self.counts.sum()), float(other.counts.sum())
        scatter = self.scatter + other.scatter
        if here and there:
            gap = (self.sums.sum(0) / here - other.sums.sum(0) / there).flatten()
            scatter = scatter + here * there / (here + there) * torch.outer(gap, gap)
        return Statistics(self.counts + other.counts, self.sums + other.sums, scatter, self.origin)

    def means(self) -> Tensor:
        """Return the class-mean factors `[sources, classes present, width]`."""
        total, present = self.counts.sum(), self.counts > 0
        if int(present.sum()) < 2:
            raise VPromptError("A transferability score needs images of at least two classes.")
        counts = self.counts[present]
        middle = self.sums.sum(0) / total
        means = self.sums[present] / counts[:, None, None] - middle
        return (means * (counts / (total - 1)).sqrt()[:, None, None]).transpose(0, 1)

    def hscore(self, rho: float | None = None) -> "BlockHScore":
        """Return the H-score as a function of weights; rho by OAS at uniform weights if None."""
        total, (sources, width) = float(self.counts.sum()), self.origin.shape
        blocks = self.scatter.reshape(sources, width, sources, width) / (total - 1)
        if rho is None:
            fused = blocks.mean((0, 2)) * ((total - 1) / total)
            rho = oas_intensity(fused, int(total))
        return BlockHScore(blocks, self.means(), rho)

    def trace_ratio(self) -> TraceRatio:
        """Return the trace ratio as a function of weights."""
        total, (sources, width) = float(self.counts.sum()), self.origin.shape
        blocks = self.scatter.reshape(sources, width, sources, width)
        means = self.means().flatten(1)
        return TraceRatio(means @ means.T, torch.einsum("iaja->ij", blocks) / (total - 1))


@dataclass(frozen=True, eq=False)
class BlockHScore:
    """The shrunk H-score over classes - 1 from cross-covariances, without any features.

    `blocks[i, :, j, :]` is the covariance between sources i and j. Equal to `HScore`; cheaper only
    where the width is small.
    """

    blocks: Tensor
    means: Tensor
    rho: float

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the score and its gradient `[sources]`."""
        rho, width = self.rho, self.blocks.shape[1]
        rows = torch.einsum("iajb,j->iab", self.blocks, alpha)
        sigma = torch.einsum("i,iab->ab", alpha, rows)
        factor = torch.einsum("s,sch->ch", alpha, self.means)
        shrunk = (1 - rho) * sigma
        shrunk.diagonal().add_(rho * sigma.trace() / width)
        solved = torch.cholesky_solve(factor.T, cholesky(shrunk))
        value = (1 - rho) * (factor.T * solved).sum()
        push = torch.einsum("sch,hc->s", self.means, solved)
        outer = (1 - rho) * solved @ solved.T
        outer.diagonal().add_(rho / width * solved.square().sum())
        pull = torch.einsum("iab,ab->i", rows, outer)
        most = self.means.shape[1] - 1
        return float(value) / most, 2 * (1 - rho) * (push - pull) / most


def collect(
    batches: Sequence[tuple[Tensor, Tensor]], num_classes: int, origin: Tensor | None = None
) -> Statistics:
    """Return the statistics of batches of features `[sources, batch, width]` and labels.

    The origin is the first batch's mean unless it is given.
    """
    first = batches[0][0].double().mean(1) if origin is None else origin
    found = Statistics.empty(first, num_classes)
    for features, labels in batches:
        found = found.update(features, labels)
    return found


def mapped_trace_ratio(
    features: NDArray[np.float32], labels: Labels, *, most_bytes: int = 2**26
) -> TraceRatio:
    """Return the trace ratio of features `[sources, images, width]` that are read in pieces.

    For a memory-mapped file that no memory has to hold: of the images of a class, as many are
    read at a time as `most_bytes` of float64 hold, one at least. The state is two M x M matrices
    and two M x width ones for M sources. Equal to `TraceRatio.of` up to rounding.
    """
    sources, images, width = features.shape
    classes = labels.unique()
    if len(classes) < 2:
        raise VPromptError("A transferability score needs images of at least two classes.")
    piece = max(1, most_bytes // (8 * sources * width))

    def read(rows: Tensor) -> Tensor:
        return torch.from_numpy(features[:, rows.numpy()]).double()

    mean = torch.zeros(sources, width, dtype=torch.float64)
    for rows in torch.arange(images).split(piece):
        mean += read(rows).sum(1) / images
    total = torch.zeros(sources, sources, dtype=torch.float64)
    between = torch.zeros_like(total)
    for label in classes:
        own = (labels == label).nonzero().flatten()
        sums = torch.zeros_like(mean)
        for rows in own.split(piece):
            part = read(rows) - mean[:, None]
            sums += part.sum(1)
            flat = part.flatten(1)
            total += flat @ flat.T
        between += sums @ sums.T / len(own)
    return TraceRatio(between / (images - 1), total / (images - 1))
