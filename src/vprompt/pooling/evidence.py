"""Evidence: what the target's training images reveal about every source prompt of a pool.

One forward-backward pass per source: pooled features, and the gradient of the target's loss with
respect to the prompt. The network is never touched again while weights are found.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vprompt.core import files
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.core.types import (
    Features,
    Labels,
    SeenFeatures,
    SourceEmbeddings,
    SourceGradients,
    SourceProbabilities,
    SourceTokens,
    TargetTokens,
    ValFeatures,
    ValLabels,
)
from vprompt.data.task import Examples
from vprompt.models import features as cache
from vprompt.models import prefix
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.pooling import probe
from vprompt.pooling.mix import Plan
from vprompt.pooling.probe import Loss, Probe, Slopes
from vprompt.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Evidence:
    """Features and prompt gradients of every source on the same images.

    `gradients` are those of the mean loss over all images; they and `features` are empty where not
    asked for. `plain` are the prompt-free features. The rest is None unless a `Plan` asks for it:
    `half_gradients` over the first half of the images, and `reference`, the gradient at the
    sources' plain average over the second; `variances` of single images' gradients; `target`, the
    tokens learned briefly on the target itself, from `target_start`. `prompts` are the sources'
    own tokens, where all have as many. `probabilities` are what every source's own head says of
    the images. `layers` counts the backbone's blocks. `task_embeddings` are the mean prompt-free
    features of the sources' own images, and `val_features` and `val_labels` what the sources make
    of the target's validation images.
    """

    names: tuple[str, ...]
    features: SeenFeatures
    gradients: SourceGradients
    labels: Labels
    plain: Features
    half_gradients: SourceTokens | None = None
    reference: TargetTokens | None = None
    variances: SourceTokens | None = None
    prompts: SourceTokens | None = None
    target: TargetTokens | None = None
    target_start: TargetTokens | None = None
    probabilities: tuple[SourceProbabilities | None, ...] | None = None
    layers: int = 1
    task_embeddings: SourceEmbeddings | None = None
    val_features: ValFeatures | None = None
    val_labels: ValLabels | None = None

    def __len__(self) -> int:
        """Count the sources."""
        return len(self.names)

    @property
    def looked(self) -> bool:
        """Whether the sources were looked at: whether there are features of theirs."""
        return self.features.shape[1] > 0

    def select(self, rows: Sequence[int]) -> "Evidence":
        """Return the evidence on some of the sources, in this order."""
        index = torch.as_tensor(rows)

        def pick(each: Tensor | None) -> Tensor | None:
            return None if each is None else each[index]

        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            features=self.features[index],
            gradients=self.gradients[index],
            half_gradients=pick(self.half_gradients),
            variances=pick(self.variances),
            prompts=pick(self.prompts),
            task_embeddings=pick(self.task_embeddings),
            val_features=pick(self.val_features),
            probabilities=self.probabilities and tuple(self.probabilities[row] for row in rows),
        )


def without_looking(names: Sequence[str], examples: Examples, plain: Features) -> Evidence:
    """Return what is known before any source is looked at: the images' prompt-free features."""
    none = plain.new_zeros(len(names), 0, plain.shape[1])
    return Evidence(tuple(names), none, none, examples.labels, plain)


def gather(
    backbone: Backbone,
    sources: Mapping[str, Prompt],
    examples: Examples,
    num_classes: int,
    plan: Plan,
    *,
    average: Prompt | None = None,
    filled: Tensor | None = None,
    source_heads: Mapping[str, Head] | None = None,
    batch_size: int = 64,
    precision: str = "auto",
    use_cache: bool = True,
    prefix_cache: float = prefix.DEFAULT_LIMIT,
    progress: Progress = SILENT,
) -> Evidence:
    """Pass the images through every source prompt; what was computed before comes from the cache.

    The cache is keyed by content (images, labels, weights, tokens, precision), so a pool can grow
    without recomputing, and other settings of a transfer method cost nothing. `average` is the
    prompt at which a plan's reference gradient is taken; `source_heads` are for the plan's
    `gradient_head="source"`. `filled [sources, slots]` says which slots the tokens of prompts of
    different lengths stand in: a source has no gradient in a slot that it leaves empty. Where no
    source enters before some block, what enters that block is kept, in at most `prefix_cache` GiB.
    """
    if not sources:
        raise VPromptError("There is no source prompt to gather evidence on.")
    if use_cache:
        [kept_examples] = prefix.keep(
            backbone,
            [examples],
            prefix.first_block([*sources.values(), average]),
            precision=precision,
            limit=prefix_cache,
            batch_size=batch_size,
            progress=progress,
        )
        examples = kept_examples or examples
    passing = Probe(backbone, examples, num_classes, batch_size, precision)
    kept = _Kept(passing, use_cache)
    passes = len(sources) * (2 if plan.gradient_head in probe.NEEDS_FEATURES else 1)
    passes += 1 + (plan.reference and average is not None)
    with progress.step("evidence", passes * len(examples)) as step:
        plain = kept.features(None, step.advance)
        loss_of = _losses(kept, plan, plain, source_heads or {}, step.advance)
        features: list[Features] = []
        slopes: list[Slopes] = []
        for name, prompt in sources.items():
            advance = functools.partial(step.advance, note=name)
            if plan.gradient_head is None:
                features.append(kept.features(prompt, advance))
                continue
            own, found = kept.slopes(prompt, plan, loss_of(name, prompt), advance)
            features.append(own)
            slopes.append(found if filled is None else _on_slots(found, filled[len(slopes)]))
        _check_numbers(tuple(sources), features, slopes)
        reference = None
        if plan.reference and average is not None:
            halved = Plan("base", reference=True)
            loss = _losses(kept, halved, plain, {}, step.advance)("", average)
            reference = kept.slopes(average, halved, loss, step.advance)[1].halves[1]
    none = torch.zeros(len(sources), 0, backbone.dim)
    return Evidence(
        names=tuple(sources),
        features=torch.stack(features),
        gradients=torch.stack([s.halves.sum(0) for s in slopes]) if slopes else none,
        labels=examples.labels,
        plain=plain,
        half_gradients=torch.stack([s.halves[0] for s in slopes]) if plan.reference else None,
        reference=reference,
        variances=torch.stack([s.variance for s in slopes]) if plan.variances else None,
        prompts=_stacked(sources),
        layers=backbone.depth,
    )


def _check_numbers(
    names: Sequence[str], features: Sequence[Features], slopes: Sequence[Slopes]
) -> None:
    """Refuse a source whose tokens are so large that nothing can be computed with them."""
    for row, name in enumerate(names):
        found = [features[row], *([slopes[row].halves] if slopes else [])]
        if not all(bool(torch.isfinite(each).all()) for each in found):
            raise VPromptError(
                f"The source {name!r} gives features that are no numbers (NaN or infinity): its "
                f"tokens are too large for the backbone. Leave it out: --exclude {name!r}."
            )


def _stacked(sources: Mapping[str, Prompt]) -> SourceTokens | None:
    tokens = [prompt.tokens for prompt in sources.values()]
    return torch.stack(tokens) if len({t.shape for t in tokens}) == 1 else None


def _on_slots(slopes: Slopes, filled: Tensor) -> Slopes:
    def spread(rows: Tensor) -> Tensor:
        if not rows.numel():
            return rows
        full = rows.new_zeros(*rows.shape[:-2], len(filled), rows.shape[-1])
        full[..., filled, :] = rows
        return full

    return Slopes(spread(slopes.halves), spread(slopes.variance))


def _losses(
    kept: "_Kept",
    plan: Plan,
    plain: Features,
    source_heads: Mapping[str, Head],
    advance: Callable[[int], None],
) -> Callable[[str, Prompt], Loss]:
    """Return, for a source, the loss whose gradient the plan asks for."""
    labels, classes = kept.probe.examples.labels, kept.probe.num_classes
    shared: Loss | None = None
    if plan.gradient_head == "base":
        shared = probe.head_loss(probe.base_head(plain, labels, classes))
    elif plan.gradient_head == "random":
        shared = probe.head_loss(probe.random_head(plain.shape[1], classes))

    def loss_of(name: str, prompt: Prompt) -> Loss:
        if shared is not None:
            return shared
        if plan.gradient_head == "source":
            return probe.head_loss(_own_head(name, source_heads, classes))
        features = kept.features(prompt, advance)
        if plan.gradient_head == "hscore":
            return probe.hscore_loss(features, labels)
        fit = probe.base_head if plan.gradient_head == "own" else probe.nearest_mean_head
        return probe.head_loss(fit(features, labels, classes))

    return loss_of


def _own_head(name: str, source_heads: Mapping[str, Head], classes: int) -> Head:
    head = source_heads.get(name)
    if head is None or len(head.weight) != classes:
        raise VPromptError(
            f"gradient_head=source needs sources with the target's own classes, but {name!r} was "
            "learned for others. Use gradient_head=base."
        )
    return head


@dataclass(frozen=True, eq=False)
class _Kept:
    """The passes of a probe, each looked up in the cache first."""

    probe: Probe
    use_cache: bool

    def features(self, prompt: Prompt | None, advance: Callable[[int], None]) -> Features:
        """Return features without gradients."""
        path = self._path(prompt)
        known = self._read(path)
        if "features" in known:
            advance(len(self.probe.examples))
            return known["features"]
        features = self.probe.features(prompt, advance)
        self._write(path, {"features": features})
        return features

    def slopes(
        self, prompt: Prompt, plan: Plan, loss: Loss, advance: Callable[[int], None]
    ) -> tuple[Features, Slopes]:
        """Return features and gradients under the plan's head."""
        head = f"{plan.gradient_head}{', halves' if plan.reference else ''}"
        path, beside = self._path(prompt), self._path(prompt, head)
        known, slopes = self._read(path), self._read(beside)
        complete = slopes.get("variance", torch.empty(0)).numel() or not plan.variances
        # A source's own head is not part of the key: what it says is never taken from the cache.
        usable = plan.gradient_head != "source" and "features" in known and "halves" in slopes
        if usable and complete:
            advance(len(self.probe.examples))
            return known["features"], Slopes(slopes["halves"], slopes["variance"])
        features, found = self.probe.slopes(
            prompt, loss, advance, halved=plan.reference, variances=plan.variances
        )
        self._write(path, {"features": features})
        self._write(beside, {"halves": found.halves, "variance": found.variance})
        return features, found

    def _read(self, path: Path) -> dict[str, Tensor]:
        return cache.read(path) if self.use_cache else {}

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if self.use_cache:
            with files.optional():
                files.write_tensors(path, tensors)

    def _path(self, prompt: Prompt | None, head: str = "") -> Path:
        what = f"{head}, {self.probe.num_classes} classes" if head else ""
        passing = self.probe
        return cache.cache_path(passing.backbone, prompt, passing.examples, passing.precision, what)
