"""HGPrompt from bf16 evidence: do scores and weights stay within the bootstrap of fp32?"""

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from vprompt.artifacts import pool
from vprompt.core import registry
from vprompt.opening import open_backbone, open_task
from vprompt.pooling.evidence import Evidence, gather
from vprompt.prompts import compose


def scores(options: argparse.Namespace) -> dict[str, Any]:
    """Compare HGPrompt's scores and weights from bf16 evidence with bootstrap intervals of fp32."""
    backbone = open_backbone("demo", image_size=56 if options.small else 112)
    task = open_task(str(options.data / options.target))
    task = task.few_shot(2 if options.small else options.shots, 0)
    examples = task.examples(task.train, backbone.data_config)
    sources = pool.load(options.pool, backbone, exclude=(options.target,), force=True)
    prompts = {s.name: s.prompt for s in sources[: 3 if options.small else None] if s.prompt}
    plan = registry.beside("transfer", "hgprompt", "plan")()
    weigh = registry.build("transfer", "hgprompt")
    uniform = torch.full((len(prompts),), 1 / len(prompts)).double()
    average = compose.combine(list(prompts.values()), uniform) if plan.reference else None
    seen: dict[str, Evidence] = {}
    for kind in ("fp32", "bf16"):
        seen[kind] = gather(
            backbone,
            prompts,
            examples,
            len(task.classes),
            plan,
            average=average,
            precision=kind,
            use_cache=False,
        )
    hscore = registry.build("metrics", "hscore")
    first, second = (weigh(seen[kind]) for kind in ("fp32", "bf16"))
    rows = {}
    spans = dict(zip(prompts, first.facts["intervals"], strict=True))
    for index, name in enumerate(seen["fp32"].names):
        values = [hscore(seen[kind].features[index], examples.labels) for kind in seen]
        low, high = resampled(seen["fp32"].features[index], examples.labels, hscore)
        rows[name] = {
            "score_fp32": values[0],
            "score_bf16": values[1],
            "score_interval": [low, high],
            "weight_fp32": float(first.weights[index]),
            "weight_bf16": float(second.weights[index]),
            "weight_interval": spans.get(name),
        }
    return {
        "target": options.target,
        "images": len(examples),
        "sources": rows,
        "scores_outside": count_outside(rows, "score"),
        "weights_outside": count_outside(rows, "weight"),
    }


def resampled(
    features: Tensor, labels: Tensor, score: Any, times: int = 100
) -> tuple[float, float]:
    """Return the score, less and more 1.96 deviations over images drawn again within each class.

    Not their central part: an image that is drawn twice makes every resample easier than the set.
    """
    randomness, values = torch.Generator().manual_seed(0), []
    for _ in range(times):
        rows = []
        for label in labels.unique():
            own = (labels == label).nonzero().flatten()
            rows.append(own[torch.randint(len(own), (len(own),), generator=randomness)])
        drawn = torch.cat(rows)
        values.append(score(features[drawn], labels[drawn]))
    centre, half = score(features, labels), 1.96 * statistics.stdev(values)
    return centre - half, centre + half


def count_outside(rows: dict[str, Any], what: str) -> int:
    """Count the sources whose bf16 value left the interval of fp32, widened to its fp32 value."""
    outside = 0
    for row in rows.values():
        span = row[f"{what}_interval"]
        if span is not None:
            low, high = min(span[0], row[f"{what}_fp32"]), max(span[1], row[f"{what}_fp32"])
            outside += not low - 1e-9 <= row[f"{what}_bf16"] <= high + 1e-9
    return outside
