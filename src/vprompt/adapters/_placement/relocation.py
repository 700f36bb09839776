"""Relocation: which token leaves, where it goes, whether that is accepted, and what is written."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vprompt.adapters._placement.allocators import Situation
from vprompt.adapters._placement.moves import forget_row
from vprompt.adapters._placement.rules import SIGNED
from vprompt.adapters._placement.scored import ScoredPrompt
from vprompt.core.randomness import stream
from vprompt.learning.adapter import Training


def relocate(prompt: ScoredPrompt, training: Training, place: dict[str, Any]) -> None:
    """Move the most idle tokens of a prompt, as many as its rules allow, and write it down."""
    tried: list[int] = []
    spent = torch.zeros_like(prompt.gains, dtype=torch.bool)
    for number in range(prompt.moves):
        row = most_idle(prompt, training.epoch, tried)
        if row is None:
            return
        tried.append(row)
        if prompt.learns:
            place["pending"] = {"loss": place["loss"], "score": float(prompt.idle[row])}
        place["decisions"].append(_decide(prompt, row, number, training, spent))


def most_idle(prompt: ScoredPrompt, epoch: int, tried: Sequence[int] = ()) -> int | None:
    """Return the token with the highest score among those that may leave, if it is idle."""
    rules = prompt.rules
    rested = (prompt.moved_at == 0) | (epoch - prompt.moved_at > rules.cooldown)
    free = rested & (prompt.measured > 0)
    if rules.alloc != "none":
        counts = torch.bincount(prompt.blocks, minlength=prompt.depth)
        free &= counts[prompt.blocks] > rules.min_per_block
    free[list(tried)] = False
    values = prompt.idle.masked_fill(~free, -torch.inf)
    row = int(values.argmax())
    least = 0.0 if rules.score in SIGNED else -torch.inf
    return row if float(values[row]) > least else None


def _decide(
    prompt: ScoredPrompt, row: int, number: int, training: Training, spent: Tensor
) -> dict[str, Any]:
    """Choose a block for a token, move it if that is accepted, and return what to write down."""
    rules, origin = prompt.rules, int(prompt.blocks[row])
    score, removal = float(prompt.idle[row]), float(prompt.removal[row])
    gains = prompt.gains.masked_fill(spent, -torch.inf)
    if rules.alloc == "grad" and prompt.fresh is None:
        removal, gains = _gains_of(prompt, row, training)
    purpose = f"move {number}, epoch {training.epoch}"
    target = prompt.allocator.choose(_situation(prompt, origin, gains), training.seed, purpose)
    best = gains.amax(0).tolist() if len(gains) else None
    why = _refusal(prompt, origin, target, removal, best)
    if not why:
        assert target is not None
        candidate = int(gains[:, target].argmax()) if best else number
        if len(spent):
            spent[candidate, target] = True
        _move(prompt, row, target, candidate, training)
    elif target == origin and rules.self_move == "scale":
        prompt.tokens.data[row] *= rules.move_scale
    return {
        "epoch": training.epoch,
        "token": row,
        "from": origin,
        "to": target,
        "score": _short(score),
        "removal": _short(removal) if rules.gates else None,
        "gains": best and [_short(value) for value in best],
        "moved": not why,
        "why": why,
        "counts": prompt.counts(),
    }


def _refusal(
    prompt: ScoredPrompt, origin: int, target: int | None, removal: float, best: list[float] | None
) -> str:
    """Say why a token does not move, or nothing."""
    if target is None:
        return "no room"
    if target == origin and prompt.rules.alloc != "none":
        return "same block"
    accepts = prompt.rules.accept == "gain"
    if accepts and best is not None and not removal + best[target] > prompt.rules.tau:
        return "no gain"
    return ""


def _situation(prompt: ScoredPrompt, origin: int, gains: Tensor) -> Situation:
    counts = torch.bincount(prompt.blocks, minlength=prompt.depth)
    limit = prompt.rules.max_per_block
    room = torch.ones_like(counts, dtype=torch.bool) if limit is None else counts < limit
    room[origin] = True
    sums = prompt.idle.new_zeros(prompt.depth).index_add(0, prompt.blocks, prompt.idle)
    return Situation(origin, sums, counts, room, gains if len(gains) else None)


def _gains_of(prompt: ScoredPrompt, row: int, training: Training) -> tuple[float, Tensor]:
    """Measure on one batch what removing a token loses, and its vector gains in every block."""
    drawn = stream(training.seed, f"gains of {row}, epoch {training.epoch}")
    rows = torch.randperm(len(training.train), generator=drawn)[: training.batch_size]
    vector = prompt.tokens.detach()[row]
    if prompt.rules.move_init == "scale":
        vector = vector * prompt.rules.move_scale
    probe = prompt.new_probe(vector.expand(1, prompt.depth, -1))
    _, _, slopes, _ = prompt.slopes(training, rows, probe)
    return float(slopes["gates"][row]), -slopes["inserted"]


@torch.no_grad()
def _move(prompt: ScoredPrompt, row: int, target: int, candidate: int, training: Training) -> None:
    """Change one integer, and with it the vector and what the optimiser holds, as ruled."""
    rules = prompt.rules
    if prompt.fresh is not None:
        late = rules.score_source == "train_steps"  # the epoch before has measured its own draws
        epoch = training.epoch - 1 if late else training.epoch
        scored = len(prompt.gains)
        drawn = prompt.fresh.vectors(
            scored or candidate + 1, training.seed, epoch, explore=scored > 0 and rules.explore
        )
        prompt.tokens[row] = drawn[candidate, target].to(prompt.tokens)
        prompt.born[row] = prompt.tokens[row]
    elif rules.move_init == "scale":
        prompt.tokens[row] *= rules.move_scale
        prompt.born[row] = prompt.tokens[row]
    prompt.blocks[row] = target
    prompt.moved_at[row] = training.epoch
    prompt.idle[row] = 0
    prompt.measured[row] = 0
    if rules.move_optim == "reset_row":
        forget_row(training.optimizer, prompt.tokens, row, prompt.blocks)


def _short(value: float) -> float | None:
    """Return a number to six digits, for the record; None where there is none."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
