"""Moving: the stages of `combine` in move space: moves, scales, coefficients, and the form."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vprompt.artifacts import origin
from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.moves import Moves
from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress
from vprompt.core.types import Features, LayerWeights, Weights
from vprompt.learning import ensemble
from vprompt.learning.adapter import Adapter, PromptAdapter
from vprompt.learning.classifier import Candidate
from vprompt.learning.distilling import Distilled
from vprompt.models import heldout
from vprompt.models.heads import closed_form
from vprompt.models.heldout import HeldOut
from vprompt.pooling import climbing, scale_path
from vprompt.pooling.mix import Mix, Plan
from vprompt.pooling.scale_path import Gain, ScalePath
from vprompt.prompts import compose
from vprompt.prompts.prompt import Prompt
from vprompt.stages import Setting

TWIN = 1e-3  # distance of two moves, in lengths of theirs, below which they are one


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

    @property
    def unused(self) -> bool:
        """Whether no prompt was better than what the pool adds up to."""
        return self.untuned[0] is None


def measure_moves(
    sources: Sequence[Artifact],
    setting: Setting,
    slots: Sequence[Prompt],
    progress: Progress,
) -> tuple[Moves, list[int]] | None:
    """Return the moves of the sources that moved at all, and their rows; say what was left out.

    None where every prompt is its start: there is nothing to add up.
    """
    moves, origins = origin.moves_of(sources, setting.backbone, slots)
    for sentence in _about_starts(moves, origins):
        progress.say(sentence)
    still = moves.still()
    kept = [row for row, name in enumerate(moves.names) if name not in still]
    if not kept:
        progress.say(
            f"every prompt of the pool ({', '.join(still)}) is the start that it was learned from: "
            "the pool holds nothing to add, and this run is one without it. Learn its prompts "
            "again with `--keep last` and more `--epochs`"
        )
        return None
    twins = _twins(moves.select(kept))
    if twins:
        named = ", ".join(f"{name} (that of {other})" for name, other in twins.items())
        progress.say(f"moves that are in the pool twice count once: left out {named}")
        kept = [row for row in kept if moves.names[row] not in twins]
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
        lambda prompt: climbing.look(setting, prompt),
        labels,
        classes,
        scales=scales,
        descend=plan.move_scale == "auto",
        refine=plan.move_scale == "auto" and plan.form in ("sum", "side_by_side"),
        seed=setting.config.seed,
    )
    if plan.move_scale != "auto":
        path = replace(path, chosen=_only(path), why="as it was asked for")
    coefficients = path.choice.scale * direction
    climbed: dict[str, Any] = {}
    if (
        plan.climb
        and plan.form in ("auto", "sum")
        and path.choice.prompt is not None
        and path.dealt is not None
    ):
        coefficients, path, climbed = climbing.climb(setting, moves, direction, path, plan.climb)
    for sentence in scale_path.remarks(path):
        progress.say(sentence)
    made = _finish(setting, moves, path, direction, coefficients, plan)
    progress.say(made.verdict)
    return replace(made, facts={**made.facts, **climbed})


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
    counts = setting.train.labels.bincount()
    images = counts[counts > 1].tolist()  # of each class; an only image cannot be held out
    if plan.form in ("sum", "side_by_side"):
        return _one_prompt(setting, moves, path, coefficients, plan.form, images)
    joined = _several_prompts(setting, moves, path, direction, coefficients, plan, images)
    if plan.form != "auto":
        return joined
    single = _one_prompt(setting, moves, path, coefficients, "sum", images)
    forms = {made.form: made.held and made.held.loss for made in (joined, single)}
    better = single.held is not None and clearly_less(single.held, joined.held)
    made = single if better else joined
    return replace(made, facts={**made.facts, "forms": forms})


def _one_prompt(
    setting: Setting,
    moves: Moves,
    path: ScalePath,
    coefficients: Weights | LayerWeights,
    form: str,
    images: Sequence[int],
) -> Summed:
    """Return the prompt at the chosen scale, with its head."""
    point = path.choice
    begin = point.prompt if point.prompt is not None else moves.start
    head = closed_form(point.features, setting.train.labels, len(setting.task.classes))
    gain = scale_path.gain_of_choice(path, seed=setting.config.seed)
    said = scale_path.verdict(gain, images, unused=point.prompt is None)
    adapter, untuned = PromptAdapter(setting.backbone, begin), (point.prompt, head)
    return Summed(moves, coefficients, path, form, adapter, untuned, point.held, gain, said, {})


def _several_prompts(
    setting: Setting,
    moves: Moves,
    path: ScalePath,
    direction: Weights | LayerWeights,
    coefficients: Weights | LayerWeights,
    plan: Plan,
    images: Sequence[int],
) -> Summed:
    """Return no prompt and the sums of parts of the pool side by side, or one that learns of it."""
    labels, classes = setting.train.labels, len(setting.task.classes)
    members: dict[str, tuple[Prompt | None, Features]] = {"no prompt": (None, path.plain.features)}
    scale = scale_of_members(path)
    for name, prompt in group_sums(moves, direction, scale, plan.members).items():
        features = climbing.look(setting, prompt)
        if bool(torch.isfinite(features).all()):
            members[name] = (prompt, features)
    if len(members) == 1:
        raise VPromptError(
            "No part of the sum gives finite features, so there is nothing to put side by side. "
            "Use --form sum with a smaller --move-scale."
        )
    adapter, joined = ensemble.of_members(setting.backbone, members)
    made: Adapter = ensemble.of_members(setting.backbone, members)[0]  # training changes it
    head = closed_form(joined, labels, classes)
    held = None if path.dealt is None else heldout.judge(joined, labels, classes, path.dealt)
    gain = scale_path.gain_over(path.plain.held, held)
    worse = path.plain.held is not None and clearly_less(path.plain.held, held)
    said = scale_path.verdict(gain, images, unused=worse)
    facts = {"members": [*members], "unused": worse, "member_scale": scale}
    if plan.form == "distil":
        begin = path.choice.prompt if path.choice.prompt is not None else moves.start
        single = PromptAdapter(setting.backbone, begin)
        made = Distilled(single, head.logits(joined), plan.distillation, "kl", 2.0)
    untuned: Candidate = (adapter, head)
    if worse:
        untuned = (None, closed_form(path.plain.features, labels, classes))
    form = "distil" if plan.form == "distil" else "ensemble"
    return Summed(moves, coefficients, path, form, made, untuned, held, gain, said, facts)


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


def _scales(plan: Plan, sources: int) -> tuple[float, ...]:
    if plan.move_scale == "auto":
        return scale_path.LADDER
    return (float(sources if plan.move_scale == "sources" else plan.move_scale),)


def _only(path: ScalePath) -> int:
    """Return the one scale that was asked for, or the start where its features are unusable."""
    sound = [row for row, p in enumerate(path.points) if p.scale > 0 and p.problem is None]
    return sound[-1] if sound else 1


def clearly_less(held: HeldOut, other: HeldOut | None) -> bool:
    """Say whether the held-out loss is less than another's by over one standard error of it."""
    if other is None:
        return False
    gain = other.losses - held.losses
    return len(gain) > 1 and float(gain.mean()) > float(gain.std() / math.sqrt(len(gain)))


def _held_facts(held: HeldOut | None) -> dict[str, Any]:
    if held is None:
        return {"cv_loss": None, "cv_accuracy": None}
    return {"cv_loss": held.loss, "cv_accuracy": held.accuracy}


def _mean_cosine(moves: Moves) -> float | None:
    count = len(moves.names)
    if count < 2:
        return None
    return float((moves.cosines().sum() - count) / (count * (count - 1)))


def _twins(moves: Moves) -> dict[str, str]:
    """Return the sources whose move is that of an earlier one, with the earlier one's name."""
    near = torch.cdist(moves.vectors.flatten(1), moves.vectors.flatten(1))
    found: dict[str, str] = {}
    for row, length in enumerate(moves.vectors.flatten(1).norm(dim=1).tolist()):
        for other in range(row):
            if moves.names[other] not in found and near[row, other] < TWIN * length:
                found[moves.names[row]] = moves.names[other]
                break
    return found


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
