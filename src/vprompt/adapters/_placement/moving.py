"""Moving prompt: deep tokens whose block is one integer each, changed while they are trained.

Before every epoch: the scores of the epoch before (or of a pass of their own), the reward of the
last move where an allocator learns, then at most a few moves. After that it trains as VPT does.
"""

from typing import Any

import torch
from torch import Tensor

from vprompt.adapters._placement import scores
from vprompt.adapters._placement.allocators import Allocator
from vprompt.adapters._placement.meter import Meter
from vprompt.adapters._placement.relocation import relocate
from vprompt.adapters._placement.rules import Rules
from vprompt.adapters._placement.scored import ScoredPrompt
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.learning.adapter import Training
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt


class MovingPrompt(ScoredPrompt):
    """Tokens that move between blocks; with `moves_per_epoch=0` they are those of VPT-Deep.

    `memory["placement"]` holds the counts per block of every epoch and every decision.
    """

    shares_steps = False  # scores are read of whole batches

    def __init__(
        self, backbone: Backbone, start: Prompt, rules: Rules, allocator: Allocator
    ) -> None:
        super().__init__(backbone, start, rules, allocator)
        self.meter, self.scored, self.batch = Meter(rules), False, 0

    def begin_epoch(self, training: Training) -> None:
        """Score in a pass of its own where asked, reward the last move, and move."""
        if "placement" not in self.memory:
            self.memory["placement"] = self._blank_memory()
        place, done = self.memory["placement"], training.epoch - 1
        if self.moves:
            if self.rules.score_source == "extra_pass" and self._needed(done, training.epochs):
                self._score_in_a_pass(training)
            self._reward(place)
            if self.rules.is_open(done, training.epochs):
                relocate(self, training, place)
        place["distribution"].append(self.counts())
        self.meter, self.labels = Meter(self.rules), training.train.labels
        self.criterion = training.criterion

    def begin_step(self, training: Training) -> None:
        """Open a probe on the first step of an epoch and every `score_every`-th after it."""
        index = training.step - (training.epoch - 1) * training.steps_per_epoch
        self.scored = self._listens(training) and index % self.rules.score_every == 0
        if self.scored and self.rules.gates:
            self.probe = self.new_probe(self.candidates(training.seed, training.epoch))

    def extra_loss(self, logits: Tensor, rows: Tensor) -> Tensor | None:
        """Add nothing; note the size of the batch, and its loss where an allocator learns."""
        self.batch = len(rows)
        if self.learns:
            labels = self.labels[rows].to(logits.device)
            self.meter.add_loss(self.criterion(logits.detach(), labels), len(rows))
        return None

    def after_backward(self, training: Training) -> None:
        """Read the slopes of a scored step, before gradients are clipped."""
        probe, self.probe = self.probe, None
        if not self.scored:
            return
        leaves = {} if probe is None else probe.leaves
        slopes = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        others = [p.grad for p in self.others(training) if p.grad is not None]
        assert self.tokens.grad is not None
        self.meter.add(self.tokens, self.tokens.grad, slopes, others, self.batch)

    def end_epoch(self, training: Training) -> None:
        """Take the scores of the steps into the running ones."""
        if self._listens(training):
            self._take(training)

    def _score_in_a_pass(self, training: Training) -> None:
        epoch, seed = training.epoch, training.seed
        shuffled = stream(seed, f"scoring order, epoch {epoch}")
        dropout = stream(seed, f"scoring dropout, epoch {epoch}")
        candidates, self.meter = self.candidates(seed, epoch), Meter(self.rules)
        order = torch.randperm(len(training.train), generator=shuffled)
        for rows in order.split(training.batch_size):
            probe = self.new_probe(candidates) if self.rules.gates else None
            loss, gradient, slopes, others = self.slopes(training, rows, probe, dropout)
            self.meter.add(self.tokens, gradient, slopes, others, len(rows))
            self.meter.add_loss(loss, len(rows))
        self._take(training)

    def _take(self, training: Training) -> None:
        """Move the means of what was measured into the buffers, and the loss into the memory."""
        means = self.meter.means()
        now = self._scores(means, training)
        for name, values in {**means, self.rules.score: now}.items():
            if not torch.isfinite(values).all():
                raise VPromptError(
                    f"The scores {name!r} are not finite in epoch {training.epoch}. Nothing was "
                    "kept. Use a smaller --lr, or --precision fp32."
                )
        share = 0.0 if self.rules.score == "random" else self.rules.score_ema
        running = share * self.idle + (1 - share) * now
        self.idle.copy_(torch.where(self.measured > 0, running, now))
        self.measured += 1
        if "mask" in means:
            self.removal.copy_(means["mask"])
        if "gains" in means:
            self.gains.copy_(means["gains"])
        if self.learns:
            self.memory["placement"]["loss"] = self.meter.loss()

    def _scores(self, means: dict[str, Tensor], training: Training) -> Tensor:
        """Return the scores of this epoch alone."""
        if self.rules.score == "norm":
            return scores.norm_share(self.tokens, self.blocks)
        if self.rules.score == "random":
            generator = stream(training.seed, f"random leavers, epoch {training.epoch}")
            return torch.rand(len(self.tokens), generator=generator).to(self.idle)
        return means[self.rules.score]

    def _needed(self, done: int, epochs: int) -> bool:
        """Say whether scores after `done` epochs can still move a token, or reward a move."""
        dates = [epoch for epoch in range(epochs) if self.rules.is_open(epoch, epochs)]
        return bool(dates) and done <= dates[-1] + self.learns

    def _listens(self, training: Training) -> bool:
        """Say whether the steps of this epoch are scored."""
        asked = self.rules.score_source == "train_steps" and self.moves > 0
        return asked and self._needed(training.epoch, training.epochs)

    def _reward(self, place: dict[str, Any]) -> None:
        """Tell a learning allocator what the move before the last epoch was worth."""
        pending, place["pending"] = place["pending"], None
        if pending is not None:
            worth = pending["score"] if self.rules.reward == "pruned" else float(self.idle.max())
            self.allocator.learn(pending["loss"] - place["loss"] - worth)

    def _blank_memory(self) -> dict[str, Any]:
        return {
            "rules": self.rules.to_json(),
            "distribution": [self.counts()],
            "decisions": [],
            "loss": None,
            "pending": None,
        }
