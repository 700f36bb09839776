"""Classifier: an adapter and its linear head, where that head starts, and features of images."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.core import distributed
from vprompt.core.precision import autocast
from vprompt.core.progress import SILENT, Progress
from vprompt.core.randomness import stream
from vprompt.core.types import Features
from vprompt.data.targets import NUMBER
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter, FeatureAdapter
from vprompt.learning.ensemble import Ensemble, kept_features
from vprompt.learning.goals import Goal
from vprompt.learning.train_config import TrainConfig
from vprompt.models import company, features
from vprompt.models.backbone import Backbone, Entering
from vprompt.models.heads import Head
from vprompt.prompts.prompt import Prompt

Candidate = tuple[Prompt | Adapter | None, Head]  # what is compared: a prompt with its head

OWN = "own"  # the family of a head that its adapter brings


class Classifier(nn.Module):
    """An adapter and a linear head: what is trained.

    The head is trained in the coordinates of `whitening`. A closed-form head is large along
    directions in which features hardly vary, and one learning rate for all coordinates destroyed
    it within an epoch; after whitening one rate fits. Where the adapter brings a head of its own,
    there is none here to train.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, adapter: Adapter, head: Head, whitening: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.adapter, device = adapter, adapter.backbone.device
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if head.family == OWN:
            return
        mean, whiten = whitening
        self.register_buffer("mean", mean.to(device))
        self.register_buffer("whiten", whiten.to(device))
        weight = torch.linalg.solve(whiten.double(), head.weight.double().T).T.float()
        bias = head.bias.float() + head.weight.float() @ mean
        self.weight = nn.Parameter(weight.clone().contiguous().to(device))
        self.bias = nn.Parameter(bias.clone().to(device))

    def logits(self, features: Features, *, generator: torch.Generator | None = None) -> Tensor:
        """Return `[batch, classes]` in fp32; a `generator` is given in training."""
        if self.weight is None:
            own = self.adapter.own_head(generator=generator)
            assert own is not None
            seen = features.float()
            if self.adapter.cosine:
                seen = functional.normalize(seen, dim=1)
            return functional.linear(seen, own[0].float(), own[1].float())
        return functional.linear(
            (features.float() - self.mean) @ self.whiten, self.weight, self.bias
        )

    def head(self) -> Head:
        """Return the head as a plain linear layer on features."""
        if self.weight is None or self.bias is None:
            own = _own_head(self.adapter)
            assert own is not None
            return own
        weight = (self.weight.detach() @ self.whiten).cpu()
        return Head(weight, self.bias.detach().cpu() - weight @ self.mean.cpu())

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes, by name."""
        inner = {f"adapter.{name}": value for name, value in self.adapter.state().items()}
        if self.weight is None or self.bias is None:
            return inner
        return {"weight": self.weight.detach(), "bias": self.bias.detach(), **inner}


class FeatureExamples(Examples):
    """Examples of a method that never looks into the backbone: frozen features, fed as inputs."""

    frozen: Features

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(features, labels)` in the given order."""
        for rows in self.parts(size, order):
            yield self.frozen[rows], self.labels[rows]


def feature_examples(
    adapter: FeatureAdapter, examples: Examples | None, config: TrainConfig
) -> FeatureExamples | None:
    """Compute the frozen features of examples, once."""
    if examples is None:
        return None
    made = FeatureExamples(examples.pixels, examples.labels, examples.digest)
    frozen = features.features_of(
        adapter.backbone,
        None,
        examples,
        batch_size=config.batch_size,
        precision=config.precision,
    )
    object.__setattr__(made, "frozen", frozen)
    return made


def batch_features(
    adapter: Adapter,
    inputs: Tensor | Entering,
    config: TrainConfig,
    generator: torch.Generator | None,
) -> Features:
    """Return the features of a batch of pixels, or of what was computed from them once for all."""
    device = adapter.backbone.device
    if isinstance(adapter, FeatureAdapter) and isinstance(inputs, Tensor) and inputs.dim() == 2:
        return adapter.transform(inputs.to(device), generator=generator)
    images: Any = adapter.backbone.ready(inputs)
    with autocast(config.precision, device), company.shared(adapter.shares_passes):
        return adapter.features(images, generator=generator)


@torch.no_grad()
def compute_features(
    adapter: Adapter, examples: Examples, config: TrainConfig, *, progress: Progress = SILENT
) -> Features:
    """Return the features of all examples in fp32, without gradients."""
    parts, own = [], distributed.own_rows(len(examples), config.batch_size)
    with progress.step("features", len(own)) as step:
        for inputs, _ in examples.batches(config.batch_size, own):
            parts.append(batch_features(adapter, inputs, config, None).float().cpu())
            step.advance(len(inputs))
    return distributed.assemble(parts, own, len(examples), adapter.feature_dim)


def start_features(adapter: Adapter, examples: Examples, config: TrainConfig) -> Features:
    """Return the features of all examples before training, as `compute_features` does.

    Those under a prompt are read where an earlier pass left them; whether it did changes no bit,
    because batches have the size that such passes have.
    """
    if isinstance(adapter, Ensemble):
        return kept_features(adapter, examples, precision=config.precision)
    if not adapter.of_prompt:
        return compute_features(adapter, examples, config)
    known = features.kept(adapter.backbone, adapter.prompt(), examples, config.precision)
    if known is not None:
        return known
    like_theirs = config.model_copy(update={"batch_size": features.BATCH_SIZE})
    return compute_features(adapter, examples, like_theirs)


def start_head(
    adapter: Adapter, train: Examples, goal: Goal, config: TrainConfig
) -> tuple[Head, tuple[Tensor, Tensor]]:
    """Return the head at the start, and the mean and whitening map of its coordinates."""
    width = adapter.feature_dim
    plain = (torch.zeros(width), torch.eye(width))
    own = _own_head(adapter)
    if own is not None:
        return own, plain
    if config.head in ("closed_form", "refitted"):
        found = start_features(adapter, train, config)
        # Only a head that is trained has coordinates: a second of work at an ensemble's width.
        return goal.closed_form(found, train.labels), _whitening(found) if config.epochs else plain
    weight = torch.zeros(goal.outputs, width)
    if config.head == "kaiming":
        nn.init.kaiming_normal_(weight, a=0, mode="fan_out", generator=stream(config.seed, "head"))
        if goal.target == NUMBER:
            return Head(weight, torch.zeros(1), "kaiming"), plain
        # The VPT code's prior: every class starts at probability 0.01.
        return Head(weight, torch.full((goal.outputs,), -math.log(99)), "kaiming"), plain
    return Head(weight, torch.zeros(goal.outputs), "zero"), plain


def _whitening(features: Features, shrinkage: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse square root of the shrunk covariance of features."""
    data = features.double()
    centred = data - data.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(data))
    shrunk = (1 - shrinkage) * values.clamp_min(0) + shrinkage * values.mean().clamp_min(1e-12)
    return data.mean(0).float(), ((vectors * shrunk.rsqrt()) @ vectors.T).float()


@torch.no_grad()
def _own_head(adapter: Adapter) -> Head | None:
    own = adapter.own_head()
    if own is None:
        return None
    weight, bias = (part.detach().clone().float().cpu() for part in own)
    return Head(weight, bias, OWN, cosine=adapter.cosine, sigmoid=adapter.sigmoid)


def features_of(
    backbone: Backbone,
    adapted: Prompt | Adapter | None,
    examples: Examples,
    *,
    batch_size: int = 64,
    precision: str = "auto",
    use_cache: bool = True,
) -> Features:
    """Return the features of all examples under a prompt or an adapter, fp32, without gradients.

    Those under a prompt, or under none, are kept: many runs ask for the same. Those under an
    adapter are not; one that trained in vain is a prompt that has been measured before, and one
    that never looks into the backbone transforms what is kept of it.
    """
    if isinstance(adapted, Ensemble):
        return kept_features(
            adapted, examples, batch_size=batch_size, precision=precision, use_cache=use_cache
        )
    if isinstance(adapted, FeatureAdapter):
        frozen = features_of(
            adapted.backbone,
            None,
            examples,
            batch_size=batch_size,
            precision=precision,
            use_cache=use_cache,
        )
        with torch.no_grad():
            return adapted.transform(frozen.to(adapted.backbone.device)).float().cpu()
    if not isinstance(adapted, Adapter):
        return features.features_of(
            backbone,
            adapted,
            examples,
            batch_size=batch_size,
            precision=precision,
            use_cache=use_cache,
        )
    if use_cache and adapted.of_prompt:
        known = features.kept(backbone, adapted.prompt(), examples, precision)
        if known is not None:
            return known
    config = TrainConfig.checked({"batch_size": batch_size, "precision": precision})
    return compute_features(adapted, examples, config)
