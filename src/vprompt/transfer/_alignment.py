"""Alignment of prompt gradients, as the paper's Eq. 8 to 10, from their Gram matrix alone.

Its minimum over the simplex is the uniform weighting, whatever the gradients: by Cauchy-Schwarz in
the inner product of K, 1'K alpha <= sqrt(1'K1) sqrt(alpha'K alpha) with equality at uniform. So it
is a pull towards the plain average, and cannot suppress a conflicting source.
"""

from dataclasses import dataclass

from torch import Tensor

from vprompt.errors import VPromptError
from vprompt.linalg import cosine_matrix
from vprompt.types import SourceGradients, Weights


@dataclass(frozen=True, eq=False)
class UniformAlignment:
    """L_align(alpha) = 1 - 1'K alpha / (M sqrt(alpha'K alpha)); 0 when all gradients agree."""

    cosines: Tensor

    @classmethod
    def of(cls, gradients: SourceGradients) -> "UniformAlignment":
        """Reduce the gradients to their cosines."""
        if not gradients.numel():
            raise VPromptError("Alignment needs prompt gradients, but the evidence holds none.")
        return cls(cosine_matrix(gradients))

    def __call__(self, alpha: Weights) -> tuple[float, Tensor]:
        """Return the loss in [0, 2] and its gradient."""
        pulled = self.cosines @ alpha
        summed, length = pulled.sum(), (alpha @ pulled).clamp_min(0).sqrt().clamp_min(1e-12)
        count = len(alpha)
        gradient = -(self.cosines.sum(0) / length - summed * pulled / length**3) / count
        return float(1 - summed / (count * length)), gradient
