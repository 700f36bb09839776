"""Bilevel search: before each step of the prompts on training images, alpha moves on other images.

First order, as in DARTS: alpha's step takes the prompts as they are.

Reference: Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055.
"""

import abc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vprompt.adapters._coop_family import PUBLISHED
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.registry import suggest
from vprompt.core.settings import Settings
from vprompt.learning.adapter import Adapter, Training

BANKS = ("separate", "nested")
ORDERS = ("cycle", "first")
# What the released code trains the prompts of a search with.
PAPER_TRAINING: dict[str, Any] = {
    **PUBLISHED,
    "epochs": 80,
    "batch_size": 4,
    "lr": 0.0035,
    "augment": "crop_flip",
    "keep": "last",
    "precision": "fp32",
}
_BETAS, _EPSILON = (0.5, 0.999), 1e-8  # of alpha's Adam


class Searching(Settings):
    """What a search for lengths can be told; `preset` sets whatever is None.

    `lengths` are the candidates of every block. `bank` gives each candidate tokens of its own
    (`separate`, the paper's) or the first tokens of the longest (`nested`, with survival gates).
    `max_prompts` bounds the tokens of all blocks together: a price per token, the same for every
    block, holds the expected number to it, and the final choice is the one of most probable alphas
    within it; `max_params` bounds the numbers in those tokens instead. `length_penalty` is what
    one expected token adds to alpha's loss. `alpha_init` is the standard deviation of alpha at the
    start, `alpha_batch` the number of validation images of its steps, `alpha_order` how those are
    drawn, `alpha_warmup` the share of the steps in which alpha rests. The search stops when no
    block's choice has changed for `patience` epochs (0: never).
    """

    preset: str = "robust"
    lengths: list[int] | None = None
    bank: str = "separate"
    max_prompts: int | None = None
    max_params: int | None = None
    length_penalty: float = 0.0
    prompt_init: str | None = None
    prompt_init_seed: int = 0
    alpha_init: float | None = None
    alpha_batch: int = 16
    alpha_order: str | None = None
    alpha_warmup: float | None = None
    patience: int | None = None


@dataclass(frozen=True)
class AlphaSettings:
    """How alpha moves: what it starts from, its rate, its images, when it rests and stops."""

    bank: str
    alpha_init: float
    alpha_lr: float
    alpha_batch: int
    alpha_order: str
    alpha_warmup: float
    patience: int

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.bank not in BANKS:
            raise VPromptError(f"dpl has no bank {self.bank!r}.{suggest(self.bank, BANKS)}")
        if self.alpha_order not in ORDERS:
            raise VPromptError(f"alpha_order is one of {ORDERS}, but got {self.alpha_order!r}.")
        if self.alpha_batch < 1 or self.alpha_lr <= 0 or not 0 <= self.alpha_warmup < 1:
            raise VPromptError(
                "alpha needs a batch of at least 1, a rate above 0 and a warm-up in [0, 1), but "
                f"got {self.alpha_batch}, {self.alpha_lr} and {self.alpha_warmup}."
            )


class Bilevel(Adapter):
    """A search whose alpha is a buffer, so that the prompts' step cannot reach it.

    A subclass reads `current_alpha()` in its features, gives a penalty, and says what it would end
    with. Adam's state is in buffers, and so in every checkpoint.
    """

    classes_alone = True
    settings: AlphaSettings
    alpha: Tensor
    alpha_mean: Tensor
    alpha_square: Tensor
    alpha_steps: Tensor
    _leaf: Tensor | None = None  # alpha with a gradient, within its own step

    def hold_alpha(self, alpha: Tensor) -> None:
        """Keep alpha and the state of its optimiser, and begin the story of the search."""
        device = self.backbone.device
        self.register_buffer("alpha", alpha.to(device))
        self.register_buffer("alpha_mean", torch.zeros(alpha.shape, device=device))
        self.register_buffer("alpha_square", torch.zeros(alpha.shape, device=device))
        self.register_buffer("alpha_steps", torch.zeros((), dtype=torch.long, device=device))
        self.memory |= {"alpha": [self.shown_alpha()], "found": [self.found()], "stopped": None}

    def current_alpha(self) -> Tensor:
        """Return alpha, with a gradient within its own step."""
        return self.alpha if self._leaf is None else self._leaf

    def shown_alpha(self) -> Any:
        """Return alpha as plain values, for the record."""
        return self.alpha.tolist()

    @abc.abstractmethod
    def found(self) -> Any:
        """Return what the search would end with now, as plain values."""

    @abc.abstractmethod
    def learns_as(self) -> str:
        """Return the method, with its settings, that learns anew what the search has found."""

    @abc.abstractmethod
    def _penalty(self) -> Tensor:
        """Return what alpha's step adds to the loss."""

    def begin_step(self, training: Training) -> None:
        """Move alpha by one step of Adam on validation images; nothing else sees a gradient."""
        if training.val is None or not len(training.val):
            raise VPromptError(
                "DPL moves its lengths on validation images, but this task has none. Use "
                "`vprompt search`, which sets half of the training images aside."
            )
        if training.step < self.settings.alpha_warmup * training.epochs * training.steps_per_epoch:
            return
        rows = self.alpha_rows(len(training.val), training.seed)
        self._leaf = self.alpha.clone().requires_grad_()
        try:
            loss = training.loss(training.val, rows, stream(training.seed, "alpha, dropout"))
            (gradient,) = torch.autograd.grad(loss + self._penalty(), self._leaf)
        finally:
            self._leaf = None
        self._move(gradient)

    def alpha_rows(self, count: int, seed: int) -> Tensor:
        """Return which of `count` validation images alpha's next step sees.

        `cycle` goes through all of them in a new order before it sees one again.
        """
        size = min(self.settings.alpha_batch, count)
        if self.settings.alpha_order == "first":
            return torch.arange(size)
        begin, rows = int(self.alpha_steps) * size, []
        for cycle in range(begin // count, (begin + size - 1) // count + 1):
            order = torch.randperm(count, generator=stream(seed, f"alpha order, cycle {cycle}"))
            rows.append(order[max(begin - cycle * count, 0) : begin + size - cycle * count])
        return torch.cat(rows)

    def end_epoch(self, training: Training) -> None:
        """Remember alpha and its choice, and see whether the choice has settled."""
        self.memory["alpha"].append(self.shown_alpha())
        self.memory["found"].append(self.found())
        patience = self.settings.patience
        resting = self.settings.alpha_warmup * training.epochs
        recent = self.memory["found"][-patience - 1 :]
        settled = training.epoch - patience >= resting and all(f == recent[0] for f in recent)
        if patience and settled:
            self.memory["stopped"] = training.epoch

    def end(self, training: Training) -> None:
        """Remember what is lost from the mixture to the choice."""
        if training.epoch:
            self.memory["gap"] = self._gap(training)

    def finished(self) -> bool:
        """Say whether no block's choice has changed for long enough."""
        return self.memory["stopped"] is not None

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        """Take one step of Adam."""
        self.alpha_steps += 1
        steps = int(self.alpha_steps)
        self.alpha_mean.lerp_(gradient, 1 - _BETAS[0])
        self.alpha_square.lerp_(gradient.square(), 1 - _BETAS[1])
        mean = self.alpha_mean / (1 - _BETAS[0] ** steps)
        square = self.alpha_square / (1 - _BETAS[1] ** steps)
        self.alpha -= self.settings.alpha_lr * mean / (square.sqrt() + _EPSILON)

    @torch.no_grad()
    def _gap(self, training: Training) -> dict[str, float]:
        """Return how much validation accuracy is lost from the mixture to the found lengths."""
        assert training.val is not None
        accuracy = {}
        for name, generator in (("mixture", stream(0, "gap")), ("found", None)):
            right = 0
            for rows in torch.arange(len(training.val)).split(training.batch_size):
                logits, labels = training.logits(training.val, rows, generator)
                right += int((logits.argmax(1) == labels).sum())
            accuracy[name] = right / len(training.val)
        return {**accuracy, "gap": accuracy["mixture"] - accuracy["found"]}
