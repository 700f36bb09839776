"""Scored prompt: deep tokens with a block each, and what is known of how they do there."""

from typing import Any

import torch
from torch import Tensor

from vprompt.adapters._placement import scores
from vprompt.adapters._placement.allocators import Allocator
from vprompt.adapters._placement.moves import Fresh
from vprompt.adapters._placement.probe import Probe, sorted_prompt
from vprompt.adapters._placement.rules import LEARNERS, Rules
from vprompt.core.types import Features, Images
from vprompt.learning.adapter import PromptAdapter, Training
from vprompt.models.backbone import Backbone, Entering, extract
from vprompt.prompts.prompt import Prompt


class ScoredPrompt(PromptAdapter):
    """Tokens `[count, dim]` in the order of their birth, and the block of each.

    `prompt()` sorts them by block. Scores, gains, rests and what an allocator learned are buffers,
    so that a stopped run continues with the same bits.
    """

    moves_tokens = True
    idle: Tensor
    removal: Tensor
    gains: Tensor
    measured: Tensor
    moved_at: Tensor
    born: Tensor

    def __init__(
        self, backbone: Backbone, start: Prompt, rules: Rules, allocator: Allocator
    ) -> None:
        super().__init__(backbone, start, prompt_dropout=rules.prompt_dropout)
        self.rules, self.depth = rules, backbone.depth
        self.allocator = allocator.to(backbone.device)
        count = self.blocks.new_zeros(len(self.tokens))
        share = scores.wide(self.tokens.detach()).new_zeros(len(self.tokens))
        self.register_buffer("idle", share)  # mean score over epochs, positive where idle
        self.register_buffer("removal", share.clone())  # mask score of the last scored epoch
        self.register_buffer("measured", count)  # epochs in `idle` since the token last moved
        self.register_buffer("born", self.tokens.detach().clone())  # what every token began as
        self.register_buffer("moved_at", count.clone())  # the epoch before which it moved, or 0
        fresh = rules.move_init == "fresh"
        scored = rules.candidates if fresh and rules.alloc == "grad" else 0
        self.register_buffer("gains", share.new_zeros(scored, self.depth))
        self.fresh = Fresh(backbone, blank=rules.prompt_init == "blank") if fresh else None
        self.probe: Probe | None = None

    @property
    def constant_blocks(self) -> int:
        """None: a token may move to any block."""
        return 0

    def features(
        self, images: Images | Entering, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the features under the prompt, through the gates of a probe where there is one."""
        probe = self.probe
        tokens, blocks = (self.tokens, self.blocks) if probe is None else probe.rows(self.tokens)
        prompt, order = sorted_prompt(tokens, blocks)
        rows = self.dropped(tokens, len(images), generator)
        rows = None if rows is None else rows[:, order]
        attend = None if probe is None else probe.attend
        return extract(self.backbone, images, prompt, rows, attend)

    def prompt(self) -> Prompt:
        """Return the tokens as they are now, detached, sorted by block."""
        return sorted_prompt(self.tokens.detach().cpu(), self.blocks.cpu())[0]

    def started(self) -> Prompt:
        """Return what every token began as, where it stands now, sorted by block."""
        return sorted_prompt(self.born.cpu(), self.blocks.cpu())[0]

    def counts(self) -> list[int]:
        """Return how many tokens stand in each block."""
        return torch.bincount(self.blocks, minlength=self.depth).tolist()

    @property
    def keeps_places(self) -> bool:
        """Whether no token has moved or was made anew."""
        return not bool(self.moved_at.any())

    def identity(self) -> dict[str, Any]:
        """Add the rules."""
        return {**super().identity(), "rules": self.rules.to_json()}

    # Scores

    @property
    def moves(self) -> int:
        """How many tokens may move before an epoch; 0 makes this plain VPT."""
        return self.rules.moves(len(self.tokens))

    @property
    def learns(self) -> bool:
        """Whether the allocator learns from the training loss."""
        return self.rules.alloc in LEARNERS

    def new_probe(self, candidates: Tensor | None = None) -> Probe:
        """Return gates on the tokens as they stand, and on candidates `[n, depth, dim]`."""
        return Probe(
            self.blocks,
            self.depth,
            candidates=candidates,
            scaled=self.rules.score == "taylor_norm",
            exact=self.rules.exact,
            dtype=self.idle.dtype,
        )

    def candidates(self, seed: int, epoch: int) -> Tensor | None:
        """Return the vectors `[n, depth, dim]` whose gains an epoch measures, if it does."""
        if self.fresh is None or not len(self.gains):
            return None
        drawn = self.fresh.vectors(len(self.gains), seed, epoch, explore=self.rules.explore)
        return drawn.to(self.tokens.device)

    def slopes(
        self,
        training: Training,
        rows: Tensor,
        probe: Probe | None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], list[Tensor]]:
        """Return loss, gradient of the tokens, a probe's slopes and other gradients on images."""
        self.probe = probe
        try:
            loss = training.loss(training.train, rows, generator)
        finally:
            self.probe = None
        leaves = {} if probe is None else probe.leaves
        wanted = [self.tokens, *leaves.values(), *self.others(training)]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        slopes = dict(zip(leaves, found[1:], strict=False))
        return loss.detach(), found[0], slopes, list(found[1 + len(leaves) :])

    def others(self, training: Training) -> list[Tensor]:
        """Return what is trained beside the tokens, where the rules clip by it."""
        if not self.rules.score_clip:
            return []
        groups = [p for group in training.optimizer.param_groups for p in group["params"]]
        return [p for p in groups if p is not self.tokens]
