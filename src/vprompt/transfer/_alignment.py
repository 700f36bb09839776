"""Alignment of prompt gradients: the paper's Eq. 8 to 10, and two others, all from Gram matrices.

**Theorem.** With K the cosines between M gradients, the paper's loss
L_align(alpha) = 1 - 1'K alpha / (M sqrt(alpha'K alpha)) is least at uniform weights, whatever K.

*Proof.* K is positive semi-definite, so by Cauchy-Schwarz in its inner product
1'K alpha <= sqrt(1'K1) sqrt(alpha'K alpha), with equality where alpha is proportional to 1. In
words: the direction that agrees best with a set of directions, summed, is their mean.

So it is a pull towards the plain average, and cannot suppress a conflicting source; nor can any
loss that averages over the sources without their weights. With their weights, every vertex is a
minimum. Only a direction from outside, such as `ReferenceAlignment` has, tells sources apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import cosine_matrix, unit_rows
from vprompt.core.types import PromptTokens, SourceGradients, Weights

_SMALLEST = 1e-12  # below this length, gradients cancel and have no common direction


@dataclass(frozen=True, eq=False)
class UniformAlignment:
    """L_align(alpha) = 1 - 1'K alpha / (M sqrt(alpha'K alpha)); 0 when all gradients agree.

    A source without any gradient agrees with none and conflicts with none: it is left out.
    """

    cosines: Tensor

    @classmethod
    def of(cls, gradients: SourceGradients) -> "UniformAlignment":
        """Reduce the gradients to their cosines."""
        return cls(cosine_matrix(_present(gradients)))

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the loss in [0, 2] and its gradient."""
        count = max(int((self.cosines.diagonal() > 0).sum()), 1)
        return _misalignment(alpha, self.cosines, self.cosines.sum(0) / count)


@dataclass(frozen=True, eq=False)
class ReferenceAlignment:
    """L_ref(alpha) = 1 - k'alpha / sqrt(alpha'K alpha), k the cosines with a reference gradient.

    Unlike the paper's loss it tells sources apart: the reference comes from other images.
    """

    cosines: Tensor
    reference: Tensor

    @classmethod
    def of(cls, gradients: SourceGradients, reference: PromptTokens) -> "ReferenceAlignment":
        """Reduce the gradients to their cosines with one another and with the reference."""
        units = unit_rows(_present(gradients).double().flatten(1))
        direction = unit_rows(reference.double().reshape(1, -1))[0]
        return cls(cosine_matrix(gradients), units @ direction)

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the loss in [0, 2] and its gradient."""
        return _misalignment(alpha, self.cosines, self.reference)


@dataclass(frozen=True, eq=False)
class VarianceAlignment:
    """L_var(alpha) = mean_i |v_i - sum_j alpha_j v_j|^2, v_i the variance of gradients over images.

    Our reading of the paper's later abstract ("match the gradient variances"), with each v divided
    by the pool's mean length. Uniform weights are its minimum as well.

    Reference: Rame et al., "Fishr", ICML 2022, arXiv 2109.02934, for the variances.
    """

    gram: Tensor

    @classmethod
    def of(cls, variances: SourceGradients) -> "VarianceAlignment":
        """Reduce the variances to their inner products."""
        rows = _present(variances).double().flatten(1)
        rows = rows / rows.norm(dim=1).mean().clamp_min(torch.finfo(rows.dtype).tiny)
        return cls(rows @ rows.T)

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the loss and its gradient."""
        pulled, middle = self.gram @ alpha, self.gram.mean(0)
        value = self.gram.diagonal().mean() - 2 * middle @ alpha + alpha @ pulled
        return float(value), 2 * (pulled - middle)


def _misalignment(alpha: Weights, cosines: Tensor, towards: Tensor) -> tuple[float, Tensor]:
    pulled = cosines @ alpha
    length = (alpha @ pulled).clamp_min(0).sqrt().clamp_min(_SMALLEST)
    shared = towards @ alpha
    return float(1 - shared / length), -(towards / length - shared * pulled / length**3)


def _present(gradients: SourceGradients) -> SourceGradients:
    if not gradients.numel():
        raise VPromptError("Alignment needs prompt gradients, but the evidence holds none.")
    return gradients
