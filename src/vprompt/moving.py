"""Moving: the stages of `combine` in move space: moves, scales, coefficients, and the form."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt import compose, ensemble, heldout, origin, scale_path
from vprompt.adapter import Adapter, PromptAdapter
from vprompt.artifact import Artifact
from vprompt.backbone import extract
from vprompt.distilling import Distilled
from vprompt.errors import VPromptError
from vprompt.features import features_of
from vprompt.heads import ABSENT, Span, closed_form, head_path
from vprompt.heldout import HeldOut
from vprompt.measure import Candidate
from vprompt.mix import Mix, Plan
from vprompt.moves import Moves
from vprompt.precision import autocast
from vprompt.progress import Progress
from vprompt.prompt import Prompt
from vprompt.scale_path import Gain, Point, ScalePath
from vprompt.stages import Setting
from vprompt.types import Features, Labels, LayerWeights, Weights

RATE, MEMORY = 0.3, (0.8, 0.95)  # of the coefficients' logarithms, and Adam's two averages
_BATCH = 128  # images per pass while coefficients climb


@dataclass(frozen=True, eq=False)
class Summed:
    """What a pool adds up to: its moves, the scales that were looked at, and what came of them.

    `adapter` is what tuning starts from; `untuned` is that, or nothing where no prompt was better.
    `gain` is over no prompt, cross-validated, before anything is tuned.
    """

    moves: Moves
    coefficients: Weights | LayerWeights
    path: ScalePath
    form: str
    adapter: Adapter
    untuned: Candidate
    held: HeldOut | None
    gain: Gain | None
    verdict: str
    facts: Mapping[str, Any]


def measure_moves(
    sources: Sequence[Artifact],
    setting: Setting,
    slots: Sequence[Prompt],
    progress: Progress,
) -> tuple[Moves, list[int]]:
    """Return the moves of the sources that moved at all, and their rows; say what was left out.

    Raises VPromptError where every prompt is its start: there is nothing to add up.
    """
    moves, origins = origin.moves_of(sources, setting.backbone, slots)
    for sentence in _about_starts(moves, origins):
        progress.say(sentence)
    still = moves.still()
    kept = [row for row, name in enumerate(moves.names) if name not in still]
    if not kept:
        raise VPromptError(
            f"Every prompt of the pool ({', '.join(still)}) is the start that it was learned from, "
            "so the pool holds nothing to add. Learn its prompts again with `--keep last` and more "
            "`--epochs`, or learn without it: `vprompt learn TASK`."
        )
    if still:
        verb = "is its start" if len(still) == 1 else "are their start"
        progress.say(f"left out {', '.join(still)}: {verb}, and nothing was learned")
    return moves.select(kept), kept


def add_up(
    setting: Setting,
    moves: Moves,
    mix: Mix,
    weights: Weights,
    plan: Plan,
    progress: Progress,
) -> Summed:
    """Walk along the moves in the direction of the weights, and put the sum into its form."""
    direction: Weights | LayerWeights = compose.layer_shares(mix.layers, weights, moves.start)
    scales = _scales(plan, len(moves.names))
    at = _sums(moves, direction, plan.form)
    labels, classes = setting.train.labels, len(setting.task.classes)
    path = scale_path.walk_scales(
        at,
        lambda prompt: _look(setting, prompt),
        labels,
        classes,
        scales=scales,
        refine=plan.move_scale == "auto" and plan.form in ("sum", "side_by_side"),
        seed=setting.config.seed,
    )
    if plan.move_scale != "auto":
        path = replace(path, chosen=_only(path), why="as it was asked for")
    coefficients = path.choice.scale * direction
    climbed: dict[str, Any] = {}
    if (
        plan.climb
        and plan.form == "sum"
        and path.choice.prompt is not None
        and path.dealt is not None
    ):
        coefficients, path, climbed = climb(setting, moves, direction, path, plan.climb)
    for sentence in scale_path.remarks(path):
        progress.say(sentence)
    made = _finish(setting, moves, path, direction, coefficients, plan)
    progress.say(made.verdict)
    return replace(made, facts={**made.facts, **climbed})


def climb(
    setting: Setting,
    moves: Moves,
    direction: Weights | LayerWeights,
    path: ScalePath,
    steps: int,
) -> tuple[Weights | LayerWeights, ScalePath, dict[str, Any]]:
    """Let the coefficients climb the true loss through the summed prompt, and keep them if clear.

    In each step every image is judged by a head that was fitted without its fold, and the
    logarithms of the coefficients follow the gradient: they stay positive, and their sum is free.
    What comes of it replaces the chosen point if its held-out loss, on folds dealt anew, is smaller
    by more than one standard error.
    """
    chosen = path.choice
    assert chosen.held is not None and path.dealt is not None
    if direction.ndim > 1 or bool((direction < 0).any()):
        raise VPromptError(
            "Coefficients climb from weights of at least 0, one per source. Use climb=0 with this "
            "method or solver."
        )
    logs = (chosen.scale * direction).clamp_min(1e-3).log().float().requires_grad_()
    optimizer = torch.optim.Adam([logs], lr=RATE, betas=MEMORY)
    labels, classes, losses = setting.train.labels, len(setting.task.classes), []
    with setting.progress.step("climb", steps) as step:
        for number in range(steps):
            optimizer.zero_grad()
            folds = path.dealt[number % len(path.dealt)]
            now = _features_at(setting, moves, logs.exp())
            loss = cross_fitted(now, labels, classes, chosen.held, folds, now.detach())
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step.advance(1)
    coefficients = logs.detach().exp().double()
    prompt = moves.sum(coefficients)
    features = _look(setting, prompt)
    anew = heldout.deals(labels, seed=setting.config.seed + 1)
    before = heldout.judge(chosen.features, labels, classes, anew)
    after = heldout.judge(features, labels, classes, anew)
    gain = before.losses - after.losses
    error = float(gain.std() / math.sqrt(len(gain)))
    facts = {
        "climb": {
            "losses": losses,
            "coefficients": coefficients.tolist(),
            "gain": float(gain.mean()),
            "error": error,
            "taken": float(gain.mean()) > error,
        }
    }
    if not facts["climb"]["taken"]:
        return chosen.scale * direction, path, facts
    held = heldout.judge(features, labels, classes, path.dealt)
    point = Point("climbed", float(coefficients.sum()), prompt, features, held, chosen.alike)
    points = (*path.points, point)
    why = "the coefficients climbed to a clearly smaller held-out loss"
    return coefficients, replace(path, points=points, chosen=len(points) - 1, why=why), facts


def describe(made: Summed) -> dict[str, Any]:
    """Return the record of the sum: plain values, for the run, the terminal and the report."""
    moves, path = made.moves, made.path
    coefficients = made.coefficients
    means = coefficients if coefficients.ndim == 1 else coefficients.mean(0)
    return {
        "form": made.form,
        "sizes": dict(zip(moves.names, moves.sizes.tolist(), strict=True)),
        "mean_cosine": _mean_cosine(moves),
        "centred": list(moves.centred),
        "starts": moves.starts,
        "coefficients": dict(zip(moves.names, means.tolist(), strict=True)),
        "path": [point.to_json() for point in path.points],
        "chosen": path.choice.name,
        "why": path.why,
        "held_out": None
        if made.held is None
        else {"loss": made.held.loss, "accuracy": made.held.accuracy},
        "gain": None if made.gain is None else made.gain.to_json(),
        "verdict": made.verdict,
        **made.facts,
    }


def candidates(
    setting: Setting, made: Summed, names: tuple[str, str, str]
) -> dict[str, tuple[Candidate, dict[str, Any]]]:
    """Return what is measured beside the tuned result: no prompt, the start, and the sum.

    `names` are what the three are called. Each has its closed-form head and what was held out.
    """
    labels, classes = setting.train.labels, len(setting.task.classes)
    found: dict[str, tuple[Candidate, dict[str, Any]]] = {}
    for name, point in zip(names, (made.path.plain, made.path.start), strict=False):
        head = closed_form(point.features, labels, classes)
        found[name] = ((point.prompt, head), _held_facts(point.held))
    found[names[2]] = (made.untuned, _held_facts(made.held))
    return found


def _finish(
    setting: Setting,
    moves: Moves,
    path: ScalePath,
    direction: Weights | LayerWeights,
    coefficients: Weights | LayerWeights,
    plan: Plan,
) -> Summed:
    """Put what was chosen into its form, with a closed-form head and its gain over no prompt."""
    labels, classes = setting.train.labels, len(setting.task.classes)
    images = int(path.plain.held.losses.numel()) if path.plain.held is not None else 0
    point = path.choice
    begin = point.prompt if point.prompt is not None else moves.start
    single = PromptAdapter(setting.backbone, begin)
    if plan.form in ("sum", "side_by_side"):
        head = closed_form(point.features, labels, classes)
        gain = scale_path.gain_of_choice(path, seed=setting.config.seed)
        said = scale_path.verdict(gain, images, unused=point.prompt is None)
        untuned: Candidate = (point.prompt, head)
        return Summed(
            moves, coefficients, path, plan.form, single, untuned, point.held, gain, said, {}
        )
    members = {"no prompt": (None, path.plain.features)}
    for name, prompt in group_sums(moves, direction, scale_of_members(path), plan.members).items():
        features = _look(setting, prompt)
        if bool(torch.isfinite(features).all()):
            members[name] = (prompt, features)
    if len(members) == 1:
        raise VPromptError(
            "No part of the sum gives finite features, so there is nothing to put side by side. "
            "Use --form sum with a smaller --move-scale."
        )
    adapter, joined = ensemble.of_members(setting.backbone, members)
    head = closed_form(joined, labels, classes)
    held = None if path.dealt is None else heldout.judge(joined, labels, classes, path.dealt)
    gain = scale_path.gain_over(path.plain.held, held)
    worse = held is not None and _clearly_worse(held, path.plain.held)
    said = scale_path.verdict(gain, images, unused=worse)
    untuned = (
        (None, closed_form(path.plain.features, labels, classes)) if worse else (adapter, head)
    )
    facts = {"members": [*members], "unused": worse, "member_scale": scale_of_members(path)}
    if plan.form == "ensemble":
        return Summed(
            moves, coefficients, path, plan.form, adapter, untuned, held, gain, said, facts
        )
    student = Distilled(single, head.logits(joined), plan.distillation, "kl", 2.0)
    return Summed(moves, coefficients, path, plan.form, student, untuned, held, gain, said, facts)


def _sums(moves: Moves, direction: Weights | LayerWeights, form: str) -> Callable[[float], Prompt]:
    """Return the prompt at a scale: the sum of moves, or all sources' tokens side by side."""
    if form == "side_by_side":
        return side_by_side(moves, direction if direction.ndim == 1 else direction.mean(0))
    return lambda scale: moves.sum(scale * direction)


def scale_of_members(path: ScalePath) -> float:
    """Return the scale of an ensemble's members: the chosen one, or the anchor where none was."""
    if path.choice.scale > 0:
        return path.choice.scale
    return path.points[scale_path.anchor_of(path.points)].scale or 1.0


def group_sums(
    moves: Moves, direction: Weights | LayerWeights, scale: float, members: int
) -> dict[str, Prompt]:
    """Return the prompts of an ensemble by name: sums of parts of the pool, each at the scale.

    The sources that have a weight are dealt over at most `members` groups, the heaviest first, and
    within a group they keep their proportions. Sources that differ show the images in different
    ways, which one sum of all of them averages out.
    """
    means = direction if direction.ndim == 1 else direction.mean(0)
    order = [row for row in means.argsort(descending=True, stable=True).tolist() if means[row] > 0]
    count = min(members, len(order))
    found = {}
    for number in range(count):
        rows = order[number::count]
        share = torch.zeros_like(direction)
        share[..., rows] = direction[..., rows]
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-12)
        name = " + ".join(moves.names[row] for row in rows)
        found[f"{name}, x{scale:g}"] = moves.sum(scale * share)
    return found


def side_by_side(moves: Moves, weights: Weights) -> Callable[[float], Prompt]:
    """Return the tokens of all sources that have a weight, each moved by a scale, as one prompt."""
    rows = torch.eye(len(weights), dtype=torch.float64)[weights > 0]

    def union(scale: float) -> Prompt:
        if not scale:
            return moves.start
        each = [moves.sum(scale * row) for row in rows]
        blocks = torch.cat([prompt.blocks for prompt in each])
        order = torch.argsort(blocks, stable=True)
        tokens = torch.cat([prompt.tokens for prompt in each])
        return Prompt(tokens[order], blocks[order], moves.start.persist)

    return union


def _look(setting: Setting, prompt: Prompt | None) -> Features:
    return features_of(setting.backbone, prompt, setting.train, precision=setting.config.precision)


def _features_at(setting: Setting, moves: Moves, coefficients: Tensor) -> Features:
    """Return the features of the training images under the sum, with their graph, float64."""
    device = setting.backbone.device
    summed = torch.einsum("s,scd->cd", coefficients, moves.vectors.float())
    prompt = moves.start.with_tokens(moves.start.tokens + summed).to(device)
    parts = []
    for images, _ in setting.train.batches(_BATCH):
        with autocast(setting.config.precision, device):
            parts.append(extract(setting.backbone, setting.backbone.ready(images), prompt).float())
    return torch.cat(parts).cpu().double()


def cross_fitted(
    features: Features,
    labels: Labels,
    num_classes: int,
    head: HeldOut,
    folds: Tensor,
    fitted_on: Features,
) -> Tensor:
    """Return the mean log-loss of every image under a head fitted without its fold.

    Heads are fitted on `fitted_on`, which has no graph: family, strength and scale are those of
    `head`, and the gradient sees the features of the held-out images alone.
    """
    span = Span.of(fitted_on)
    total, count = features.new_zeros(()), 0
    for fold in folds.unique():
        fit = folds != fold
        test = ~fit & torch.isin(labels, labels[fit])
        if not test.any():
            continue
        [(_, fitted)] = head_path(
            head.family, span.data[fit], labels[fit], num_classes, span.width, (head.strength,)
        )
        logits = span.lift(fitted).logits(features[test]) * head.scale
        logits = torch.where(logits.isinf(), logits.new_tensor(ABSENT), logits)
        total = total + functional.cross_entropy(logits, labels[test], reduction="sum")
        count += int(test.sum())
    return total / count


def _scales(plan: Plan, sources: int) -> tuple[float, ...]:
    if plan.move_scale == "auto":
        return scale_path.LADDER
    return (float(sources if plan.move_scale == "sources" else plan.move_scale),)


def _only(path: ScalePath) -> int:
    """Return the one scale that was asked for, or the start where its features are unusable."""
    sound = [row for row, p in enumerate(path.points) if p.scale > 0 and p.problem is None]
    return sound[-1] if sound else 1


def _clearly_worse(held: HeldOut, plain: HeldOut | None) -> bool:
    if plain is None:
        return False
    gain = held.losses - plain.losses
    return float(gain.mean()) > float(gain.std() / math.sqrt(len(gain)))


def _held_facts(held: HeldOut | None) -> dict[str, Any]:
    if held is None:
        return {"cv_loss": None, "cv_accuracy": None}
    return {"cv_loss": held.loss, "cv_accuracy": held.accuracy}


def _mean_cosine(moves: Moves) -> float | None:
    count = len(moves.names)
    if count < 2:
        return None
    return float((moves.cosines().sum() - count) / (count * (count - 1)))


def _about_starts(moves: Moves, origins: Sequence[origin.Origin]) -> list[str]:
    said = []
    if moves.centred:
        names = ", ".join(moves.centred)
        reasons = sorted({o.how for o in origins if o.start is None})
        said.append(
            f"start not known of {names} ({'; '.join(reasons)}): moves are measured from the "
            "mean of the pool"
        )
        if len(moves.centred) == len(moves.names):
            said.append(
                "no source says where it began, so an even sum of all moves is zero: only what "
                "sources differ in can be used"
            )
    if moves.starts > 1:
        said.append(
            f"the sources grew from {moves.starts} different starts: their moves are added to the "
            "mean of these"
        )
    return said
