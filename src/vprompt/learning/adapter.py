"""Adapter: what a method trains beside the head; every method of `adapters/` returns one."""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.precision import among_many
from vprompt.core.types import Features, Images, Weights
from vprompt.data.task import Examples
from vprompt.learning.train_config import TrainConfig
from vprompt.models.backbone import Backbone, Entering, extract
from vprompt.models.prefix import first_block
from vprompt.models.two_tower import TextPrompt
from vprompt.prompts import compose
from vprompt.prompts.prompt import Prompt


def block_sizes(start: Prompt, backbone: Backbone) -> Tensor:
    """Return the root mean square `[depth]` of a start's tokens by block.

    It is at least that of the papers' random start, so that tokens near 0 can leave it. A block
    without a token gets the mean of the others.
    """
    least = math.sqrt(2 / (3 * math.prod(backbone.patch_size) + backbone.dim))
    squares = start.tokens.detach().float().cpu().square().mean(1)
    blocks = start.blocks.cpu()
    counts = torch.bincount(blocks, minlength=backbone.depth)
    sums = torch.zeros(backbone.depth).index_add_(0, blocks, squares)
    found = (sums / counts.clamp_min(1)).sqrt().clamp_min(least)
    return torch.where(counts > 0, found, found[counts > 0].mean())


@dataclass(eq=False)
class Training:
    """What an adapter may see of the loop that trains it, in its hooks.

    `loss(examples, rows, generator)` is the mean loss on some of the images, with its graph, and
    `logits` what it is computed from by `criterion`, with the labels; a generator switches on
    dropout and whatever else differs in training. `epoch` counts from 1 to `epochs`, `step` from 0
    over all epochs.
    """

    train: Examples
    val: Examples | None
    optimizer: torch.optim.Optimizer
    loss: Callable[[Examples, Tensor, torch.Generator | None], Tensor]
    logits: Callable[[Examples, Tensor, torch.Generator | None], tuple[Tensor, Tensor]]
    seed: int
    batch_size: int
    epochs: int
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    criterion: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


def count_frozen(model: nn.Module) -> int:
    """Return how many numbers of a model take no gradient."""
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


class Adapter(nn.Module, abc.ABC):
    """A frozen backbone together with the parameters that a method trains.

    A checkpoint holds all parameters that require a gradient, all buffers, and `memory`, plain
    values that a method keeps between epochs and that go into the record of the run. Whatever
    else an adapter changes while training is lost when a run is stopped. `opens_as` is the spec of
    `adapters/` that an artefact is opened by, where it is not the one that was typed.
    """

    backbone: Backbone
    shares_steps: bool = True  # nothing but its gradient is read of a step, so it can be shared out
    shares_passes: bool = False  # `extract` alone reaches the backbone, so it may be shared
    moves_tokens: bool = False  # the blocks of its tokens change while it is trained
    cosine: bool = False  # where true, the adapter's own head sees features at unit length
    sigmoid: bool = False  # where true, its logits are answers of yes or no, class by class
    of_prompt: bool = False  # where true, features outside training are those under `prompt()`
    opens_as: str | None = None
    classes_alone: bool = False  # where true, it learns one class an image and nothing else

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Any] = {}

    @abc.abstractmethod
    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return pooled features; `generator` is given in training and drives any dropout."""

    @abc.abstractmethod
    def prompt(self) -> Prompt | None:
        """Return the learned prompt as a value, or None where the method has none."""

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.backbone.feature_dim

    @property
    def num_frozen(self) -> int:
        """How many numbers of the model that makes the features stay as they were."""
        return count_frozen(self.backbone)

    @property
    def keeps_places(self) -> bool:
        """Whether every token still stands where its initialisation put it.

        Only then do the tokens of two prompts with one initialisation correspond.
        """
        return True

    @property
    def constant_blocks(self) -> int:
        """How many blocks training never reaches: what leaves them is the same in every epoch.

        Where it is positive, `features` also takes what enters the block after them.
        """
        return 0

    def started(self) -> Prompt | None:
        """Return what the tokens of `prompt()` were before training; None where that is unknown."""
        return None

    def merged(self) -> Backbone | None:
        """Return a backbone that has these features by itself, its weights alone changed.

        None, the default, where something is left beside the weights: tokens, layers, a pool.
        """
        return None

    def own_head(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor] | None:
        """Return weight `[classes, feature_dim]` and bias `[classes]`, with their graph.

        None, the default, leaves the head to the training loop. `generator` as in `features`.
        """
        del generator
        return None

    def name_classes(self, classes: Sequence[str], templates: Sequence[str]) -> None:
        """Learn the names of the task's classes, before training; for models that read."""
        del classes, templates

    def text(self) -> TextPrompt | None:
        """Return how class names are read, where the method has a text tower."""
        return None

    def extra_loss(self, logits: Tensor, rows: Tensor) -> Tensor | None:
        """Return what is added to the cross-entropy of the training images `rows`."""
        del logits, rows
        return None

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the trained parameters, each group with its multiple of the learning rate."""
        return [([p for p in self.parameters() if p.requires_grad], 1.0)]

    def step_sizes(self) -> dict[nn.Parameter, Tensor]:
        """Return what the steps of a parameter are multiplied by, where `lr_unit` is `start`.

        Empty, the default, where rates are plain numbers. It is asked at every step.
        """
        return {}

    def begin(self, train: Examples, config: TrainConfig) -> None:
        """See the training images once, before the head is fitted; for what depends on data."""

    def begin_epoch(self, training: Training) -> None:
        """Do what comes before the steps of an epoch."""

    def begin_step(self, training: Training) -> None:
        """Do what comes before the forward pass of a step."""

    def after_backward(self, training: Training) -> None:
        """Read gradients, before they are clipped and used."""

    def end_epoch(self, training: Training) -> None:
        """Do what comes after the steps of an epoch, before it is judged."""

    def end(self, training: Training) -> None:
        """Do what comes after the last epoch, whatever ended the training.

        A run that was stopped behind its last epoch does it again, so it must not add up.
        """

    def finished(self) -> bool:
        """Say whether training may end before its last epoch; asked between epochs."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return what determines training beside the parameters' values; JSON-able."""
        return {"adapter": type(self).__name__}

    def state(self) -> dict[str, Tensor]:
        """Return everything that training changes, by name; the backbone is not among it."""
        trained = {k: p for k, p in self.named_parameters() if p.requires_grad}
        buffers = {k: b for k, b in self.named_buffers() if not k.startswith("backbone.")}
        return {name: value.detach() for name, value in (trained | buffers).items()}


class FeatureAdapter(Adapter):
    """A method that never looks into the backbone, so its features are computed once."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @abc.abstractmethod
    def transform(
        self, features: Features, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return what the head sees of the frozen features; see `Adapter.features`."""

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the transformed features of the frozen backbone."""
        with torch.no_grad():
            frozen = extract(self.backbone, images).float()
        if generator is not None:
            return self.transform(frozen, generator=generator)
        return among_many(self.transform, frozen)

    def prompt(self) -> None:
        """Return nothing: no prompt is learned."""


class NoAdapter(FeatureAdapter):
    """Nothing is trained but the head."""

    shares_passes = True

    def merged(self) -> Backbone:
        """Return the backbone, which nothing changed."""
        return self.backbone

    def transform(
        self, features: Features, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the features as they are."""
        del generator
        return features


class WeightedSum(Adapter):
    """The weighted sum of prompts whose tokens correspond; trained are the weights alone.

    They are the softmax of the parameters, so they stay positive with sum 1.
    """

    of_prompt = True
    shares_passes = True

    def __init__(
        self, backbone: Backbone, prompts: Sequence[Prompt], weights: Weights, scale: str
    ) -> None:
        super().__init__()
        self.backbone, self.sources, self.scale = backbone, list(prompts), scale
        # A weight of exactly 0 could never grow again.
        start = weights.double().clamp_min(0.01 / len(prompts))
        self.logits = nn.Parameter(start.log().float().to(backbone.device))

    def weights(self) -> Weights:
        """Return the weights as they are now, with their gradient."""
        return self.logits.softmax(0)

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features under the sum."""
        del generator
        return extract(self.backbone, images, self._sum())

    def prompt(self) -> Prompt:
        """Return the sum, detached."""
        summed = self._sum()
        return Prompt(summed.tokens.detach().cpu(), summed.blocks.cpu(), summed.persist)

    def identity(self) -> dict[str, Any]:
        """Add the prompts and how they are scaled."""
        tokens = (prompt.tokens.cpu().contiguous().numpy().tobytes() for prompt in self.sources)
        return {**super().identity(), "prompts": digest(*tokens), "scale": self.scale}

    def _sum(self) -> Prompt:
        device = self.backbone.device
        moved = [Prompt(p.tokens.to(device), p.blocks.to(device), p.persist) for p in self.sources]
        return compose.combine(moved, self.weights(), scale=self.scale)


class PromptAdapter(Adapter):
    """A prompt whose tokens are trained in place."""

    of_prompt = True
    shares_passes = True
    blocks: Tensor

    def __init__(self, backbone: Backbone, start: Prompt, *, prompt_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= prompt_dropout < 1:
            raise VPromptError(f"prompt_dropout lies in [0, 1), but got {prompt_dropout}.")
        self.backbone, self.persist, self.prompt_dropout = backbone, start.persist, prompt_dropout
        device = backbone.device
        self.tokens = nn.Parameter(start.tokens.detach().clone().to(device))
        self.register_buffer("blocks", start.blocks.clone().to(device))
        self.start = start
        self.sizes = block_sizes(start, backbone).to(device)

    @property
    def constant_blocks(self) -> int:
        """The blocks before the first token."""
        return first_block([Prompt(self.tokens, self.blocks, self.persist)])

    def step_sizes(self) -> dict[nn.Parameter, Tensor]:
        """Return the size `[count, 1]` that tokens of their block had at the start."""
        return {self.tokens: self.sizes[self.blocks][:, None]}

    def features(
        self, images: Images | Entering, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the features under the prompt; dropout draws a mask for every image, as VPT."""
        prompt = Prompt(self.tokens, self.blocks, self.persist)
        rows = self.dropped(self.tokens, len(images), generator)
        return extract(self.backbone, images, prompt, rows)

    def dropped(
        self, tokens: Tensor, images: int, generator: torch.Generator | None
    ) -> Tensor | None:
        """Return tokens `[images, count, dim]` after dropout, or None where there is none."""
        if generator is None or not self.prompt_dropout:
            return None
        kept = torch.rand((images, *tokens.shape), generator=generator) >= self.prompt_dropout
        return tokens * kept.to(tokens) / (1 - self.prompt_dropout)

    def prompt(self) -> Prompt:
        """Return the tokens as they are now, detached."""
        return Prompt(self.tokens.detach().clone().cpu(), self.blocks.clone().cpu(), self.persist)

    def started(self) -> Prompt | None:
        """Return the tokens as they were given."""
        return self.start

    def identity(self) -> dict[str, Any]:
        """Add placement and dropout."""
        return {
            **super().identity(),
            "blocks": self.blocks.tolist(),
            "persist": self.persist,
            "prompt_dropout": self.prompt_dropout,
        }
