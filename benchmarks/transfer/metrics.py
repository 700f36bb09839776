"""Which metric would have chosen the right source? All metrics against accuracy after tuning.

    python -m benchmarks transfer.metrics collect --data DIR    # scores and accuracies, resumable
    python -m benchmarks transfer.metrics table                 # Markdown, of what is collected

Six targets, up to three draws of about 50 training images each, tuned as in
`recipes/ablation.yaml` (with `--images 200` as in `recipes/mini-vtab.yaml`, which takes four times
as long). Sources are the prompts of the other twelve sets (`pools/mini` at 70 px; at 112 px
`pools/demo` and `pools/extra`), never the target's own. Every metric sees the same features of the
same training images; then every source alone is tuned with the same budget, and all are measured on
the test split in one visit. What is in `results/metrics` is not run again; a target that was
stopped half-way continues with the source it was at.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, found_in, new_parser
from benchmarks.transfer.methods import FEW, SOURCES, TARGETS
from vprompt import stages
from vprompt.artifacts import artifact
from vprompt.artifacts.artifact import Artifact
from vprompt.cli import terminal
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.precision import resolve
from vprompt.learning import classifier
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.classifier import Candidate
from vprompt.learning.train_config import COMBINE, TrainConfig
from vprompt.models.heads import closed_form
from vprompt.opening import open_backbone, open_task
from vprompt.pooling import combining, comparing, scoring
from vprompt.pooling.mix import Plan
from vprompt.results import judging, measure, runs
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "metrics")
# By about how many training images a target has: shots of a class, and images of a batch.
SHOTS = {50: FEW, 200: TARGETS}
BATCHES = {50: 8, 200: 16}
EPOCHS = 5


def main() -> None:
    """Collect what is missing, one target and draw after the other, or print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("phase", choices=("collect", "table"))
    parser.add_argument("--data", type=Path, help="folder of image sets, for collect")
    parser.add_argument("--images", type=int, default=50, choices=list(SHOTS))
    parser.add_argument("--targets", nargs="+", help="names of targets; default: all six")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=70, choices=list(SOURCES))
    parser.add_argument("--sources", nargs="+", help="names of sources; default: all")
    parser.add_argument("--results", type=Records, default=RECORDS, help="folder of result files")
    options = parser.parse_args()
    if options.phase == "table":
        print(table(options.results), end="")
        return
    if options.data is None:
        parser.error("collect needs --data DIR")
    shots, size = SHOTS[options.images], options.image_size
    if unknown := sorted(set(options.targets or ()) - shots.keys()):
        parser.error(f"no target {unknown[0]!r} at {options.images} images: {', '.join(shots)}")
    for seed in options.seeds:
        for target in options.targets or shots:
            name = f"{target}_{options.images}images_{size}px_seed{seed}"
            if name in options.results:
                continue
            budget = {"epochs": EPOCHS, "batch_size": BATCHES[options.images]}
            config = TrainConfig.checked({**COMBINE, **budget, "seed": seed})
            found = collect(options.data, target, shots[target], config, size, options.sources)
            options.results.write(name, found)
            reached = {r["source"]: r["accuracy_after_tuning"] for r in found["records"]}
            print(name, json.dumps(reached), flush=True)


def table(results: Records = RECORDS) -> str:
    """Return the judgement of all metrics in Markdown; empty where nothing was collected."""
    found = found_in(results)
    records = [record for each in found for record in each["records"]]
    if not records:
        return ""
    budgets = {
        (
            each["image_size"],
            each["train"]["epochs"],
            each["train"]["batch_size"],
            each["train"]["lr"],
            each["machine"]["precision"],
        )
        for each in found
    }
    if len(budgets) > 1:
        raise VPromptError(f"{results.folder} holds results of several budgets: {sorted(budgets)}.")
    [(size, epochs, batch, rate, precision)] = budgets
    draws = len({each["seed"] for each in found})
    images = {len(each["task"]["facts"]["few_shot"]["train"]) for each in found}
    intro = (
        f"Backbone `demo` at {size} px, {precision}. Accuracy on the test split after tuning each "
        f"source alone ({epochs} epochs in batches of {batch} at rate {rate:g}); draws of "
        f"{' or '.join(map(str, sorted(images)))} training images of each target, n = {draws}, "
        "averaged within it.\n\n"
    )
    return intro + judging.markdown(judging.judge(records))


def collect(
    data: Path,
    target: str,
    shots: int,
    config: TrainConfig,
    image_size: int,
    only: list[str] | None,
) -> dict[str, Any]:
    """Return the scores of every source on one target and draw, and what it reaches when tuned."""
    seed = config.seed
    backbone = open_backbone("demo", image_size=image_size)
    whole = open_task(str(data / target))
    with terminal.progress(quiet=True) as progress:
        setting = stages.prepare(
            backbone, whole, config, shots, seed, skip_bad=False, progress=progress
        )
    sources = load_sources(target, image_size, only)
    scores = score_all(setting, sources, data)
    reached = tune_all(setting, sources, whole)
    records = [
        {
            "target": target,
            "seed": seed,
            "source": source.name,
            "scores": {name: dict(s.ranked).get(source.name) for name, s in scores.items()},
            "missing": {
                name: s.missing[source.name]
                for name, s in scores.items()
                if source.name in s.missing
            },
            "seconds": {name: s.seconds / len(s.ranked) for name, s in scores.items() if s.ranked},
            **reached[source.name],
        }
        for source in sources
    ]
    splits = {"train": setting.train, "val": setting.val}
    return {
        "target": target,
        "seed": seed,
        "shots": shots,
        "image_size": image_size,
        "train": config.model_dump(),
        "metrics": {name: registry.complete("metrics", name) for name in scores},
        "no prompt": reached["no prompt"],
        "records": records,
        "seconds": setting.clock.seconds,
        "task": runs.describe_task(setting.task, splits),
        "backbone": runs.describe_backbone(backbone),
        "machine": runs.describe_machine(backbone.device, resolve("auto", backbone.device)),
    }


def load_sources(target: str, image_size: int, only: list[str] | None) -> list[Artifact]:
    """Return the prompts of all other sets, or of those that were named."""
    folders = [
        f for pool in SOURCES[image_size] for f in sorted(pool.iterdir()) if f.name != target
    ]
    return [artifact.load(f) for f in folders if only is None or f.name in only]


def score_all(
    setting: stages.Setting, sources: list[Artifact], data: Path
) -> dict[str, scoring.Scores]:
    """Return every metric's scores of the sources, from one pass of the training images."""
    names = registry.names("metrics")
    prompts = [source.prompt for source in sources if source.prompt is not None]
    with setting.clock.stage("evidence"):
        combining.gather_evidence(setting, sources, prompts, Plan())
    with setting.clock.stage("target prompt and source images"):
        known = comparing.inputs_of_all(setting, sources, scoring.plan_of(names), data)
    known.pop("(no prompt)")
    with setting.clock.stage("scores"):
        return {name: scoring.rank(name, known) for name in names}


def tune_all(
    setting: stages.Setting, sources: list[Artifact], whole: Any
) -> dict[str, dict[str, Any]]:
    """Tune every source alike and measure all of them, validation and test, at the end."""
    backbone, classes = setting.backbone, len(whole.classes)
    plain = classifier.features_of(backbone, None, setting.train)
    head = closed_form(plain, setting.train.labels, classes)
    candidates: dict[str, Candidate] = {"no prompt": (None, head)}
    facts: dict[str, dict[str, Any]] = {"no prompt": {}}
    with setting.clock.stage("tune"):
        for source in sources:
            assert source.prompt is not None
            adapter = PromptAdapter(backbone, source.prompt)
            tuned = stages.run_tuning(setting, adapter, setting.config)
            candidates[source.name] = (tuned.adapter.prompt(), tuned.head)
            facts[source.name] = {"kept_epoch": tuned.kept_epoch}
    val = whole.examples(whole.val, backbone.data_config)
    for name, (prompt, fitted) in candidates.items():
        logits = fitted.logits(classifier.features_of(backbone, prompt, val))
        facts[name]["val_accuracy"] = measure.judge(logits, val.labels).acc1
    for name, found in measure.test_accuracy(backbone, whole, candidates).items():
        facts[name]["accuracy_after_tuning"] = found.acc1
        facts[name]["test"] = found.to_json()
    setting.forget_checkpoints()
    return facts


if __name__ == "__main__":
    main()
