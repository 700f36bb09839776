"""HGPrompt: weights under which the fused features separate the target's classes best.

Maximises a score of the weighted sum of the sources' features, minus `lambda_` times the
misalignment of their gradients. `preset=paper` is the published method, faults included (see
docs/hgprompt.md); `preset=robust` is what we found to work.

Reference: Zhang et al., "Learning Optimal Prompt Ensemble for Multi-source Visual Prompt
Transfer", AAAI 2026, arXiv 2504.12311.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vprompt.core.errors import VPromptError
from vprompt.core.linalg import check_shrinkage
from vprompt.core.registry import suggest
from vprompt.core.settings import Settings, takes
from vprompt.core.types import Labels, SourceFeatures, Weights
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import PUBLISHED, Mix, Plan
from vprompt.pooling.scores import AdjustedHScore, HScore, Times, TraceRatio
from vprompt.pooling.simplex import Objective, Optimum, distinct, maximise, starts
from vprompt.pooling.solvers import SOLVERS
from vprompt.transfer import _alignment, _bootstrap, _softening

PRESETS: dict[str, dict[str, Any]] = {
    "robust": {
        "score": "hscore_shrunk",
        "alignment": "none",
        "lambda_": 1.0,
        "solver": "exponentiated",
        "bootstrap": 100,
        "refine": 0,
        "soften": "spread",
        "climb": 0,
    },
    "paper": {
        "score": "hscore_raw",
        "alignment": "uniform",
        "lambda_": 1.0,
        "solver": "leave_one_out_sgd",
        "bootstrap": 0,
        "refine": 0,
        "soften": "none",
        "climb": 0,
    },
}
SCORES = ("hscore_adjusted", "hscore_shrunk", "hscore_raw", "trace_ratio")
_POLISHED = 8  # optima of the smaller problem that the full objective is climbed from, at most
ALIGNMENTS = ("none", "uniform", "reference", "variance")


class HGPrompt(Settings):
    """The settings; `preset` sets whatever is None.

    `score` is `hscore_shrunk`, `hscore_adjusted` (the same above what shuffled labels would reach),
    `hscore_raw` (the paper's, from 0 to classes - 1) or `trace_ratio`; all but the raw one have 1
    as their maximum. `shrinkage` is `ledoit_wolf`, `oas` or a number; `class_balanced` gives every
    class the same say. `standardise` gives every feature of every source unit variance first, which
    no summed prompt can do. `alignment` subtracts `lambda_` times `uniform` (the paper's Eq. 10,
    which pulls towards uniform weights), `reference` or `variance`. `solver` is `exponentiated`
    from several starts, or one of `projected`, `frank_wolfe`, `softmax_adam`, `leave_one_out_sgd`
    from uniform weights. `gradient_head` is the head that gradients are taken under.
    `bootstrap` is the number of resamples behind the intervals. `refine` is for how many epochs
    the weights then climb the true objective through the summed prompt. `soften` moves the optimum
    back towards uniform weights: `bagged` takes the mean of the resampled optima, `spread` pulls
    that mean by as much as they differ, a number from 0 to 1 is the share of uniform weights.
    Without a bootstrap nothing is softened unless it says so. `climb` is for how many steps the
    coefficients of a sum of moves then climb the true loss, and `members` how many parts of the
    pool an ensemble has at most (docs/moves.md).
    """

    preset: str = "robust"
    score: str | None = None
    alignment: str | None = None
    lambda_: float | None = None
    shrinkage: float | str | None = None
    solver: str | None = None
    class_balanced: bool = False
    standardise: bool = False
    gradient_head: str | None = None
    bootstrap: int | None = None
    refine: int | None = None
    soften: str | float | None = None
    climb: int | None = None
    members: int = 4


@takes(HGPrompt)
def plan(settings: HGPrompt) -> Plan:
    """Ask for gradients where something uses them, and for the sum that the preset makes.

    The paper's preset and every alignment take them under the base head, unless `gradient_head`
    names another; `robust` does without.
    """
    chosen, gradient_head = _chosen(settings), settings.gradient_head
    check_shrinkage(settings.shrinkage)
    paper = settings.preset == "paper"
    if gradient_head is None and (paper or chosen["alignment"] != "none"):
        gradient_head = "base"
    if chosen["alignment"] == "reference" and gradient_head != "base":
        raise VPromptError(
            "alignment=reference compares gradients of one loss, so it needs gradient_head=base."
        )
    free = not paper and not chosen["refine"]
    return Plan(
        gradient_head=gradient_head,
        reference=chosen["alignment"] == "reference",
        variances=chosen["alignment"] == "variance",
        refine=chosen["refine"],
        align="none" if paper else "auto",
        scale="none" if paper else "auto",
        safeguard=not paper,
        move_scale="auto" if free else PUBLISHED,
        form="ensemble" if free else "sum",
        members=settings.members,
        climb=chosen["climb"],
    )


@takes(HGPrompt)
def weigh(evidence: Evidence, settings: HGPrompt) -> Mix:
    """Return the best of all optima found, with the others, intervals and the noise floor."""
    chosen = _chosen(settings)
    if len(evidence) == 1:
        return Mix(torch.ones(1, dtype=torch.float64), facts={"chosen": chosen})
    if settings.standardise:
        evidence = replace(evidence, features=_standardised(evidence.features))

    def objective_of(features: SourceFeatures, labels: Labels) -> Objective:
        return _objective(
            features,
            labels,
            evidence=evidence,
            shrinkage=settings.shrinkage,
            class_balanced=settings.class_balanced,
            **{key: chosen[key] for key in ("score", "alignment", "lambda_")},
        )

    objective = objective_of(evidence.features, evidence.labels)
    found = _solve(objective, evidence, objective_of, chosen["solver"])
    optimum = found[0].weights / found[0].weights.sum()
    samples = None
    if chosen["bootstrap"] > 0:
        samples = _resample(evidence, objective_of, optimum, chosen["bootstrap"])
    weights = _softening.soften_weights(optimum, chosen["soften"], samples)
    facts: dict[str, Any] = {
        "chosen": chosen,
        "optima": [_describe(optimum) for optimum in found],
        **_noise(evidence, weights, settings.shrinkage),
        "without_gradient": _silent(evidence),
    }
    if samples is not None:
        softened = _softening.soften_samples(samples, chosen["soften"])
        facts["intervals"] = _bootstrap.intervals(softened)
    return Mix(weights, chosen["solver"] != "leave_one_out_sgd", facts)


def build_objective(
    evidence: Evidence,
    *,
    score: str = "hscore_shrunk",
    alignment: str = "none",
    lambda_: float = 1.0,
    shrinkage: float | str | None = None,
) -> Objective:
    """Return `alpha -> (score - lambda_ * misalignment, gradient)`."""
    return _objective(
        evidence.features,
        evidence.labels,
        evidence=evidence,
        score=score,
        alignment=alignment,
        lambda_=lambda_,
        shrinkage=shrinkage,
    )


def _standardised(features: SourceFeatures) -> SourceFeatures:
    """Return features of unit variance over the images, each source by itself, as H-ensemble."""
    spread = features.double().std(1, keepdim=True)
    centred = features.double() - features.double().mean(1, keepdim=True)
    return torch.where(spread > 0, centred / spread, 0.0).float()


def _chosen(settings: HGPrompt) -> dict[str, Any]:
    """Return the preset's settings with what was given in their place, each one checked."""
    preset, given = settings.preset, settings.given()
    if preset not in PRESETS:
        raise VPromptError(f"hgprompt has no preset {preset!r}.{suggest(preset, PRESETS)}")
    chosen = {key: given.get(key, value) for key, value in PRESETS[preset].items()}
    if chosen["bootstrap"] == 0 and "soften" not in given:
        chosen["soften"] = "none"  # nothing was resampled, so there is nothing to average
    known = {"score": SCORES, "alignment": ALIGNMENTS, "solver": ("exponentiated", *SOLVERS)}
    for key, values in known.items():
        if chosen[key] not in values:
            raise VPromptError(
                f"hgprompt has no {key} {chosen[key]!r}.{suggest(chosen[key], values)}"
            )
    for key in ("bootstrap", "refine", "climb"):
        if chosen[key] < 0:
            raise VPromptError(f"{key} is a number from 0 upwards, but got {chosen[key]}.")
    _softening.check(chosen["soften"])
    if chosen["soften"] in ("bagged", "spread") and not chosen["bootstrap"]:
        raise VPromptError(
            f"soften={chosen['soften']} averages resampled weights. Use bootstrap=100, or a number."
        )
    if chosen["bootstrap"] and chosen["solver"] != "exponentiated":
        raise VPromptError(
            "Intervals come from solver=exponentiated on the simplex, which says nothing about "
            f"solver={chosen['solver']}. Add bootstrap=0."
        )
    return chosen


def _objective(
    features: SourceFeatures,
    labels: Labels,
    *,
    evidence: Evidence,
    score: str,
    alignment: str,
    lambda_: float,
    shrinkage: float | str | None,
    class_balanced: bool = False,
) -> Objective:
    gain = _score(features, labels, score, shrinkage, class_balanced)
    if alignment == "none" or lambda_ == 0:
        return gain
    loss = _loss(evidence, alignment)

    def objective(alpha: torch.Tensor) -> tuple[float, torch.Tensor]:
        value, gradient = gain(alpha)
        cost, slope = loss(alpha)
        return value - lambda_ * cost, gradient - lambda_ * slope

    return objective


def _score(
    features: SourceFeatures,
    labels: Labels,
    score: str,
    shrinkage: float | str | None,
    class_balanced: bool,
) -> Objective:
    if score == "trace_ratio":
        return TraceRatio.of(features, labels, class_balanced=class_balanced)
    if score == "hscore_raw":
        raw = HScore.of(features, labels, 0.0, class_balanced=class_balanced)
        return Times(raw, float(raw.most))
    plain = HScore.of(features, labels, shrinkage, class_balanced=class_balanced)
    return plain if score == "hscore_shrunk" else AdjustedHScore(plain)


def _loss(evidence: Evidence, alignment: str) -> Objective:
    if alignment == "uniform":
        return _alignment.UniformAlignment.of(evidence.gradients)
    if alignment == "variance" and evidence.variances is not None:
        return _alignment.VarianceAlignment.of(evidence.variances)
    if evidence.half_gradients is None or evidence.reference is None:
        raise VPromptError(f"alignment={alignment} needs gradients that the evidence lacks.")
    return _alignment.ReferenceAlignment.of(evidence.half_gradients, evidence.reference)


def _solve(
    objective: Objective,
    evidence: Evidence,
    objective_of: Callable[[SourceFeatures, Labels], Objective],
    solver: str,
) -> list[Optimum]:
    """Return the different optima found, best first."""
    sources, width = len(evidence), evidence.features.shape[2]
    uniform = torch.full((sources,), 1 / sources, dtype=torch.float64)
    if solver != "exponentiated":
        return [SOLVERS[solver](objective, uniform)]
    if width <= 2 * _bootstrap.WIDTH or len(evidence.labels) <= 2 * _bootstrap.WIDTH:
        return _climb(objective, evidence)
    # On the main axes of the plain average a step costs a tenth, and there are as many climbs as
    # sources. The full objective is then climbed from every different end, and from uniform.
    small = _bootstrap.project(evidence.features, _bootstrap.WIDTH)
    ends = _climb(objective_of(small, evidence.labels), evidence, tolerance=1e-5)
    near = [0.99 * end.weights + 0.01 * uniform for end in ends[:_POLISHED]]
    return distinct([maximise(objective, start) for start in [uniform, *near]])


def _climb(objective: Objective, evidence: Evidence, *, tolerance: float = 1e-6) -> list[Optimum]:
    """Climb from uniform weights and every softened vertex, for large pools from the best few."""
    sources = len(evidence)
    singles = [objective(row)[0] for row in torch.eye(sources, dtype=torch.float64)]
    best_single = max(range(sources), key=singles.__getitem__)
    first = starts(sources, best_single)
    if sources > len(first):  # a large pool: what the cheapest score finds is one more start
        cheap = TraceRatio.of(evidence.features, evidence.labels)
        first.append(0.99 * maximise(cheap, first[0]).weights + 0.01 * first[0])
    return distinct([maximise(objective, start, tolerance=tolerance) for start in first])


def _describe(optimum: Optimum) -> dict[str, Any]:
    return {
        "value": optimum.value,
        "weights": optimum.weights.tolist(),
        "gap": optimum.gap,
        "steps": optimum.steps,
    }


def _noise(evidence: Evidence, weights: Weights, shrinkage: float | str | None) -> dict[str, float]:
    """Return what the fused features score, and what shuffled labels would reach of it."""
    rule = None if shrinkage == 0 else shrinkage  # the raw score may be a constant here
    plain = HScore.of(evidence.features, evidence.labels, rule)
    adjusted = AdjustedHScore(plain)
    return {
        "hscore": plain(weights)[0],
        "noise_floor": adjusted.floor(weights)[0],
        "hscore_adjusted": adjusted(weights)[0],
        "shrinkage": plain.rho,
    }


def _silent(evidence: Evidence) -> list[str]:
    """Return the sources whose gradient is zero, which alignment leaves out."""
    if not evidence.gradients.numel():
        return []
    lengths = evidence.gradients.flatten(1).norm(dim=1)
    return [name for name, length in zip(evidence.names, lengths, strict=True) if not length]


def _resample(
    evidence: Evidence,
    objective_of: Callable[[SourceFeatures, Labels], Objective],
    weights: Weights,
    resamples: int,
) -> torch.Tensor:
    return _bootstrap.resampled_weights(
        evidence.features, evidence.labels, objective_of, weights, resamples=resamples
    )
