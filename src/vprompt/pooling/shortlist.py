"""Shortlist: what few images say of many sources, without the features of all in memory at once.

A source's own figure is one number; what is compared with one another lies in a file that is read
in pieces.
"""

from collections.abc import Sequence

import numpy as np
import torch

from vprompt.artifacts import artifact
from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.catalogue import Entry
from vprompt.core import files, registry
from vprompt.core.errors import VPromptError
from vprompt.data.task import Examples, split_by_sizes
from vprompt.models.features import features_of
from vprompt.pooling.scores import TraceRatio
from vprompt.pooling.simplex import Optimum
from vprompt.pooling.solvers import pairwise_frank_wolfe
from vprompt.pooling.statistics import mapped_trace_ratio
from vprompt.stages import Setting

_STARTS = 32  # single sources that the sparse solution is looked for from


def own_ratios(
    entries: Sequence[Entry], setting: Setting, few: Examples
) -> tuple[dict[str, float], dict[str, str]]:
    """Return every source's own trace ratio, or why it has none; one source in memory at a time."""
    metric = registry.build("metrics", "trace_ratio")
    ratios: dict[str, float] = {}
    reasons: dict[str, str] = {}
    seen: dict[str, str] = {}
    with setting.progress.step("screen", len(entries) * len(few)) as step:
        for entry in entries:
            step.advance(len(few), entry.name)
            try:
                source = artifact.load(entry.folder)
            except VPromptError as error:
                reasons[entry.name] = str(error)
                continue
            twin = seen.setdefault(source.digest, entry.name)
            if twin != entry.name:
                reasons[entry.name] = f"has the tokens of {twin}"
                continue
            features = _features(source, setting, few)
            if bool(torch.isfinite(features).all()):
                ratios[entry.name] = metric(features, few.labels)
            else:
                reasons[entry.name] = "its features are not finite numbers"
    return ratios, reasons


def compare(entries: Sequence[Entry], setting: Setting, few: Examples) -> TraceRatio:
    """Return the trace ratio of all sums of sources, their features in a file."""
    width = setting.backbone.feature_dim
    with files.scratch_folder() as folder:
        path = folder / "features"
        with path.open("wb") as file:
            for entry in entries:
                features = _features(artifact.load(entry.folder), setting, few)
                file.write(features.float().contiguous().numpy().tobytes())
        mapped = np.memmap(path, np.float32, "r", shape=(len(entries), len(few), width))
        ratio = mapped_trace_ratio(mapped, few.labels)
        del mapped  # some systems do not remove a file that is mapped
    return ratio


def _features(source: Artifact, setting: Setting, few: Examples) -> torch.Tensor:
    precision = setting.config.precision
    return features_of(setting.backbone, source.prompt, few, precision=precision)


def near_duplicates(ratio: TraceRatio, cosine: float) -> dict[int, int]:
    """Return, for each source that is nearly an earlier one that stays, that one.

    The cosine is between the centred features, all images and axes in one vector.
    """
    lengths = ratio.total.diagonal().clamp_min(1e-300).sqrt()
    near = ratio.total / lengths / lengths[:, None] >= cosine
    found: dict[int, int] = {}
    stays = torch.ones(len(near), dtype=torch.bool)
    for row in range(1, len(near)):
        first = (near[row, :row] & stays[:row]).nonzero()
        if len(first):
            found[row], stays[row] = int(first[0]), False
    return found


def by_marginal_gain(ratio: TraceRatio, support: int) -> tuple[list[int], list[float], Optimum]:
    """Rank sources for a sum: those of a sparse solution by weight, then all others by gain.

    The solution has `support` sources at most. A source that shares little with the others is a
    local optimum by itself, so it is the best of those from each of the best single sources. The
    gain `[sources]` is the slope of the trace ratio there towards each source.
    """
    singles = ratio.between.diagonal() / ratio.total.diagonal().clamp_min(1e-300)
    vertices = torch.eye(len(singles), dtype=torch.float64)
    best = singles.argsort(descending=True, stable=True)[:_STARTS].tolist()
    found = [pairwise_frank_wolfe(ratio, vertices[row], support=support) for row in best]
    optimum = max(found, key=lambda each: each.value)
    gains = ratio(optimum.weights)[1].tolist()
    weights = optimum.weights.tolist()
    order = sorted(range(len(gains)), key=lambda row: (-weights[row], -gains[row]))
    return order, gains, optimum


def few_images(train: Examples, images: int) -> Examples:
    """Return so many of the training images, every class in proportion; the same at every call."""
    if len(train) <= images:
        return train
    rows = split_by_sizes(train.labels.tolist(), [images], 0, "screening")[0]
    return Examples(train.pixels[rows], train.labels[rows], files.digest(train.digest, str(rows)))
