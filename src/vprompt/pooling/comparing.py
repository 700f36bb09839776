"""Comparing: what the metrics of a pool's sources are computed from, from one pass."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vprompt.artifacts.artifact import Artifact
from vprompt.models.features import features_of
from vprompt.opening import open_task
from vprompt.pooling import scoring
from vprompt.pooling.combining import gather_evidence
from vprompt.pooling.mix import Plan
from vprompt.stages import Setting


def inputs_of_all(
    setting: Setting, sources: Sequence[Artifact], plan: Plan, source_data: Path | str | None
) -> dict[str, dict[str, Tensor]]:
    """Return what metrics are computed from, by name, for every source and for no prompt."""
    prompts = [source.prompt for source in sources if source.prompt is not None]
    evidence = gather_evidence(setting, sources, prompts, plan)
    candidates = {}
    for row, (source, prompt) in enumerate(zip(sources, prompts, strict=True)):
        own = {} if source_data is None else own_images(setting, source, Path(source_data))
        known = scoring.inputs_of(evidence, row)
        candidates[source.name] = {**known, "tokens": prompt.tokens, **own}
    candidates[scoring.PLAIN] = scoring.inputs_of(evidence, None)
    return candidates


def own_images(setting: Setting, source: Artifact, folder: Path) -> dict[str, Tensor]:
    """Return features and labels of the source's own training images under its prompt.

    They are looked for in `folder`, under the name of the task that the source was learned on;
    where there is none, nothing is returned, and the metrics that need them say so.
    """
    name = (source.config.get("task") or {}).get("name") or source.name
    place = name.partition(":")[0]
    # The name comes from a stranger's file, and must not lead out of the folder.
    if place in ("", "..") or Path(place).name != place or not (folder / place).is_dir():
        return {}
    task = open_task(str(folder / name), allow_absent=True)
    examples = task.examples(
        task.train,
        setting.backbone.data_config,
        skip_bad=setting.skip_bad,
        progress=setting.progress,
    )
    features = features_of(
        setting.backbone, source.prompt, examples, precision=setting.config.precision
    )
    return {"source_features": features, "source_labels": examples.labels}
