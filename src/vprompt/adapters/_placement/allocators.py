"""Allocators: to which block an idle token goes."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vprompt.core.randomness import numpy_stream, stream


@dataclass(frozen=True, eq=False)
class Situation:
    """What an allocator may know: the block a token leaves, and every block as it is.

    `sums` `[depth]` are the scores of each block's tokens added up, `counts` `[depth]` its tokens,
    `room` `[depth]` whether one more fits. `gains` `[candidates, depth]` is the first-order fall
    of the loss for inserting each candidate, where that was measured.
    """

    origin: int
    sums: Tensor
    counts: Tensor
    room: Tensor
    gains: Tensor | None = None


class Allocator(nn.Module, abc.ABC):
    """Chooses blocks; what it learns stands in buffers, so that a checkpoint holds it."""

    @abc.abstractmethod
    def choose(self, situation: Situation, seed: int, purpose: str) -> int | None:
        """Return a block, which may be the origin, or None where there is no room."""

    def learn(self, reward: float) -> None:
        """Hear what the last choice was worth, in units of the training loss."""
        del reward


class Gain(Allocator):
    """The block in which some candidate would lower the loss most, to first order."""

    def choose(self, situation: Situation, seed: int, purpose: str) -> int | None:
        """Return the best other block by insertion gain."""
        del seed, purpose
        assert situation.gains is not None
        room = situation.room.clone()
        room[situation.origin] = False
        best = situation.gains.amax(0).masked_fill(~room, -torch.inf)
        return int(best.argmax()) if bool(torch.isfinite(best).any()) else None


class Random(Allocator):
    """Any other block: the control that every claim about a destination has to pass."""

    def choose(self, situation: Situation, seed: int, purpose: str) -> int | None:
        """Return another block, all alike."""
        room = situation.room.clone()
        room[situation.origin] = False
        options = room.nonzero().flatten()
        if not len(options):
            return None
        drawn = torch.randint(len(options), (1,), generator=stream(seed, purpose))
        return int(options[drawn])


class Stay(Allocator):
    """The same block: the token starts afresh where it is, the control for moving at all."""

    def choose(self, situation: Situation, seed: int, purpose: str) -> int | None:
        """Return the origin."""
        del seed, purpose
        return situation.origin


class Thompson(Allocator):
    """One Beta-Bernoulli arm per block, from Beta(1, 1); a reward of 0 or more is a success.

    Reference: Thompson, "On the likelihood that one unknown probability exceeds another in view of
    the evidence of two samples", Biometrika 1933.
    """

    successes: Tensor
    failures: Tensor
    arm: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.register_buffer("successes", torch.zeros(depth, dtype=torch.long))
        self.register_buffer("failures", torch.zeros(depth, dtype=torch.long))
        self.register_buffer("arm", torch.zeros((), dtype=torch.long))

    def choose(self, situation: Situation, seed: int, purpose: str) -> int | None:
        """Draw every arm's rate of success from its posterior, and return the highest."""
        generator = numpy_stream(seed, purpose)
        wins, losses = self.successes.cpu().numpy(), self.failures.cpu().numpy()
        drawn = torch.from_numpy(generator.beta(1 + wins, 1 + losses))
        drawn = drawn.masked_fill(~situation.room.cpu(), -torch.inf)
        self.arm.fill_(int(drawn.argmax()))
        return int(self.arm)

    def learn(self, reward: float) -> None:
        """Count the last arm's success or failure."""
        (self.successes if reward >= 0 else self.failures)[int(self.arm)] += 1
