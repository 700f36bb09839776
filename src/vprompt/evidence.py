"""Evidence: what the target's training images reveal about every source prompt of a pool.

One forward-backward pass per source: pooled features, and the gradient of the target's loss with
respect to the prompt. The network is never touched again while weights are found.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from vprompt import files
from vprompt.artifact import prompt_digest
from vprompt.backbone import Backbone, extract
from vprompt.errors import VPromptError
from vprompt.heads import Head, shrinkage_lda
from vprompt.linalg import ledoit_wolf_intensity
from vprompt.precision import autocast, resolve
from vprompt.progress import SILENT, Progress
from vprompt.prompt import Prompt
from vprompt.task import Examples
from vprompt.types import Features, Labels, SourceFeatures, SourceGradients

_CACHE_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Features and prompt gradients of every source on the same images.

    `gradients` are those of the mean cross-entropy over all images, under one head that is fitted
    in closed form on prompt-free features and shared by all sources; empty where not asked for.
    `plain` are the prompt-free features.
    """

    names: tuple[str, ...]
    features: SourceFeatures
    gradients: SourceGradients
    labels: Labels
    plain: Features

    def __len__(self) -> int:
        """Count the sources."""
        return len(self.names)

    def permuted(self, permutations: list[Tensor]) -> "Evidence":
        """Return the gradients with their tokens in another order, as the prompts they belong to.

        Features do not change: tokens have no position.
        """
        if not self.gradients.numel():
            return self
        moved = [g[order] for g, order in zip(self.gradients, permutations, strict=True)]
        return replace(self, gradients=torch.stack(moved))


def gather(
    backbone: Backbone,
    sources: Mapping[str, Prompt],
    examples: Examples,
    num_classes: int,
    *,
    gradients: bool = True,
    batch_size: int = 64,
    precision: str = "auto",
    use_cache: bool = True,
    progress: Progress = SILENT,
) -> Evidence:
    """Pass the images through every source prompt; what was computed before comes from the cache.

    The cache is keyed by content (images, labels, weights, tokens, precision), one file a source,
    so a pool can grow without recomputing, and other settings of a transfer method cost nothing.
    """
    if not sources:
        raise VPromptError("There is no source prompt to gather evidence on.")
    probe = _Probe(backbone, examples, num_classes, batch_size, precision, use_cache)
    with progress.step("evidence", (len(sources) + 1) * len(examples)) as step:
        plain, _ = probe.measure(None, None, step.advance)
        head = _base_head(plain, examples.labels, num_classes) if gradients else None
        found = []
        for name, prompt in sources.items():
            advance = functools.partial(step.advance, note=name)
            found.append(probe.measure(prompt, head, advance))
    stacked = [g for _, g in found if g is not None]
    count = next(iter(sources.values())).tokens.shape
    return Evidence(
        names=tuple(sources),
        features=torch.stack([features for features, _ in found]),
        gradients=torch.stack(stacked) if stacked else torch.zeros(len(sources), 0, count[1]),
        labels=examples.labels,
        plain=plain,
    )


def _base_head(plain: Features, labels: Labels, num_classes: int) -> Head:
    """Fit the one head under which all sources' gradients are taken."""
    data = plain.double()
    means = torch.stack([data[labels == c].mean(0) for c in labels.unique()])
    _, index = labels.unique(return_inverse=True)
    return shrinkage_lda(plain, labels, num_classes, ledoit_wolf_intensity(data - means[index]))


@dataclass(frozen=True, eq=False)
class _Probe:
    """The pass over the images, once per prompt."""

    backbone: Backbone
    examples: Examples
    num_classes: int
    batch_size: int
    precision: str
    use_cache: bool

    def measure(
        self, prompt: Prompt | None, head: Head | None, advance: Callable[[int], None]
    ) -> tuple[Features, Tensor | None]:
        """Return features, and gradients if a head is given."""
        path = self._path(prompt)
        known = _read(path) if self.use_cache else {}
        if "features" in known and (head is None or "gradient" in known):
            advance(len(self.examples))
            return known["features"], known["gradient"] if head is not None else None
        features, gradient = self._pass(prompt, head, advance)
        if self.use_cache:
            tensors = {"features": features}
            if gradient is not None:
                tensors["gradient"] = gradient
            files.write_tensors(path, tensors)
        return features, gradient

    def _pass(
        self, prompt: Prompt | None, head: Head | None, advance: Callable[[int], None]
    ) -> tuple[Features, Tensor | None]:
        device, parts = self.backbone.device, []
        leaf = prompt
        if prompt is not None:
            tokens = prompt.tokens.detach().to(device).requires_grad_(head is not None)
            leaf = replace(prompt, tokens=tokens, blocks=prompt.blocks.to(device))
        for pixels, labels in self.examples.batches(self.batch_size):
            images = self.backbone.normalise(pixels.to(device))
            with torch.set_grad_enabled(head is not None), autocast(self.precision, device):
                features = extract(self.backbone, images, leaf).float()
            if head is not None:
                logits = head.logits(features)
                loss = functional.cross_entropy(logits, labels.to(device), reduction="sum")
                (loss / len(self.examples)).backward()
            parts.append(features.detach().cpu())
            advance(len(pixels))
        gradient = None
        if head is not None and leaf is not None and leaf.tokens.grad is not None:
            gradient = leaf.tokens.grad.detach().cpu()
        return torch.cat(parts), gradient

    def _path(self, prompt: Prompt | None) -> Path:
        config = json.dumps(self.backbone.data_config.to_json(), sort_keys=True)
        key = files.digest(
            _CACHE_VERSION,
            self.examples.digest,
            str(self.num_classes),
            self.backbone.fingerprint,
            config,
            prompt_digest(prompt),
            resolve(self.precision, self.backbone.device),
        )
        return files.cache_folder() / "evidence" / f"{key[:32]}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}  # absent, or damaged by another hand: compute it again
