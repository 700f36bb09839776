"""Climbing: coefficients of a sum of moves that follow the true loss through the summed prompt."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.artifacts.moves import Moves
from vprompt.core.errors import VPromptError
from vprompt.core.precision import autocast
from vprompt.core.types import Features, Labels, LayerWeights, Weights
from vprompt.models import heldout
from vprompt.models.backbone import extract
from vprompt.models.features import features_of
from vprompt.models.heads import ABSENT, Span, head_path
from vprompt.models.heldout import HeldOut
from vprompt.pooling.scale_path import Point, ScalePath
from vprompt.prompts.prompt import Prompt
from vprompt.stages import Setting

RATE, MEMORY = 0.3, (0.8, 0.95)  # of the coefficients' logarithms, and Adam's two averages
_BATCH = 128  # images per pass


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
    features = look(setting, prompt)
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


def look(setting: Setting, prompt: Prompt | None) -> Features:
    """Return the features of the training images under a prompt, kept for whoever asks again."""
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
