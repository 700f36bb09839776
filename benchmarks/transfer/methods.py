"""Does combining prompts win? Methods of `transfer/` against one another and against no pool.

    python -m benchmarks transfer.methods choose --data DIR    # scores, on validation images alone
    python -m benchmarks transfer.methods settle --data DIR    # alignment, refining, safeguard
    python -m benchmarks transfer.methods guard --data DIR --image-size 70
                                                       # the safeguard with 50 images, likewise
    python -m benchmarks transfer.methods soften --data DIR --image-size 70 --epochs 5
                                                       # soft weights, after tuning, likewise
    python -m benchmarks transfer.methods compare --data DIR   # methods, on the test split

Six targets, three draws of about 200 training images each. Sources are the prompts of the other
twelve sets (`pools/demo` and `pools/extra`, at 70 px `pools/mini`), never the target's own.
`choose`, `settle` and `guard` fit a closed-form head on the untuned start of every setting and read
its accuracy on val200; `soften` tunes every start first and reads the kept epoch; `compare` tunes
every method's start with the same budget. What is in `results/transfer` is not run again.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import POOLS, new_parser
from benchmarks.transfer.tables import RECORDS
from vprompt import stages
from vprompt.artifacts import artifact
from vprompt.cli import terminal
from vprompt.core import registry
from vprompt.core.precision import resolve
from vprompt.learning import classifier
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.classifier import Candidate
from vprompt.learning.train_config import COMBINE, TrainConfig
from vprompt.models.heads import Head, closed_form
from vprompt.opening import open_backbone, open_task
from vprompt.pooling import combining
from vprompt.pooling.mix import Plan
from vprompt.prompts import compose
from vprompt.prompts.prompt import Prompt, prompt_digest
from vprompt.results import measure, runs

SOURCES = {112: (POOLS / "demo", POOLS / "extra"), 70: (POOLS / "mini",)}
TARGETS = {
    "cifar100": 2,
    "dtd10": 20,
    "oxford_flowers17": 12,
    "rsscn7": 28,
    "elpv4": 50,
    "coil20": 11,
}
# About 50 training images, where `TARGETS` has 200.
FEW = {
    "dtd10": 5,
    "oxford_flowers17": 3,
    "rsscn7": 7,
    "elpv4": 12,
    "coil20": 3,
    "bbbc039_count": 5,
}

ALIGNED = "hgprompt(score=hscore_adjusted, bootstrap=0, alignment={}, lambda_={})"
CHOICES = {
    "uniform": "uniform",
    "best": "best",
    "hscore_shrunk": "hgprompt(score=hscore_shrunk, bootstrap=0)",
    "hscore_adjusted": "hgprompt(score=hscore_adjusted, bootstrap=0)",
    "trace_ratio": "hgprompt(score=trace_ratio, bootstrap=0)",
    "adjusted, Eq. 10 x 0.1": ALIGNED.format("uniform", 0.1),
    "adjusted, Eq. 10 x 1": ALIGNED.format("uniform", 1.0),
    "adjusted, reference x 1": ALIGNED.format("reference", 1.0),
}
SHRUNK = "hgprompt(bootstrap=0, alignment={}, lambda_={})"
SETTLED = {
    "uniform": "uniform",
    "best": "best",
    "shrunk": "hgprompt(bootstrap=0)",
    "shrunk, Eq. 10 x 0.1": SHRUNK.format("uniform", 0.1),
    "shrunk, Eq. 10 x 1": SHRUNK.format("uniform", 1.0),
    "shrunk, reference x 0.1": SHRUNK.format("reference", 0.1),
    "shrunk, reference x 1": SHRUNK.format("reference", 1.0),
    "shrunk, refined": "hgprompt(bootstrap=0, refine=3)",
}
SOFTENED = {
    "uniform": "uniform",
    "shrunk": "hgprompt(bootstrap=0)",
    "shrunk, half uniform": "hgprompt(bootstrap=0, soften=0.5)",
    "shrunk, bagged": "hgprompt(soften=bagged)",
    "shrunk, spread": "hgprompt(soften=spread)",
    "trace ratio": "hgprompt(bootstrap=0, score=trace_ratio)",
    "trace ratio, spread": "hgprompt(score=trace_ratio, soften=spread)",
    "paper (trace ratio)": "hgprompt(preset=paper, score=trace_ratio)",
}
GUARDED = {"uniform": "uniform", "best": "best", "shrunk": "hgprompt"}
SETTINGS = {"choose": CHOICES, "settle": SETTLED, "guard": GUARDED}
METHODS = {
    "uniform": "uniform",
    "best single": "best",
    "SPoT": "spot",
    "HGPrompt paper (trace ratio)": "hgprompt(preset=paper, score=trace_ratio)",
    "HGPrompt robust, no safeguard": "hgprompt",
}


def main() -> None:
    """Run what is missing, one target and draw after the other."""
    parser = new_parser(__doc__)
    parser.add_argument("phase", choices=("choose", "settle", "guard", "soften", "compare"))
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--targets", nargs="+", choices=sorted({*TARGETS, *FEW}))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=112, choices=list(SOURCES))
    options = parser.parse_args()
    shots = FEW if options.phase == "guard" else TARGETS
    for seed in options.seeds:
        for target in options.targets or shots:
            epochs = f"_epochs{options.epochs}" if options.phase in ("soften", "compare") else ""
            size = "" if options.image_size == 112 else f"_{options.image_size}px"
            name = f"{options.phase}_{target}{size}{epochs}_seed{seed}"
            before = RECORDS.read(name) if name in RECORDS else {}
            if before and (options.phase != "soften" or before["methods"] == SOFTENED):
                continue
            with terminal.progress(quiet=True) as progress:
                config = TrainConfig.checked({**COMBINE, "epochs": options.epochs, "seed": seed})
                bench = Bench(
                    options.data / target, shots[target], config, options.image_size, progress
                )
                if options.phase in SETTINGS:
                    found = bench.choose(SETTINGS[options.phase])
                else:
                    found = (
                        bench.compare()
                        if options.phase == "compare"
                        else bench.soften(before.get("found", {}))
                    )
            RECORDS.write(name, found)
            print(name, json.dumps(found["summary"]), flush=True)


class Bench:
    """One target and one draw of its images, with the evidence on all other sets' prompts."""

    def __init__(
        self, folder: Path, shots: int, config: TrainConfig, image_size: int, progress: Any
    ) -> None:
        self.seed, self.target, self.shots, self.config = config.seed, folder.name, shots, config
        backbone = open_backbone("demo", image_size=image_size)
        self.whole = open_task(str(folder))
        self.setting = stages.prepare(
            backbone,
            self.whole,
            self.config,
            shots,
            self.seed,
            skip_bad=False,
            progress=progress,
        )
        folders = [
            f
            for pool in SOURCES[image_size]
            for f in sorted(pool.iterdir())
            if f.name != self.target
        ]
        self.sources = [artifact.load(folder) for folder in folders]
        self.evidence: dict[Plan, Any] = {}

    def mixed(self, method: str) -> tuple[Prompt, list[float]]:
        """Return a method's untuned sum and its weights."""
        plan = combining.plan_of(method, align=None, scale=None, safeguard=False)
        prompts, slots, _ = combining.align_sources(self.sources, plan.align)
        if plan.gradient_head is not None:  # one pass serves every alignment
            plan = replace(plan, reference=True)
        evidence = combining.gather_evidence(self.setting, self.sources, prompts, plan, slots)
        weigh = registry.build("transfer", method)
        mix, twins = combining.weigh_sources(weigh, method, evidence)
        weights = mix.weights
        if plan.refine:
            kept = combining.kept_rows(evidence, twins)
            weights = combining.refine(self.setting, slots, mix, kept, plan.scale, plan.refine)
        return compose.combine(slots, weights, scale=plan.scale), weights.tolist()

    def choose(self, settings: dict[str, str]) -> dict[str, Any]:
        """Return the accuracy of every setting's start on all of val200."""
        backbone = self.setting.backbone
        val = self.whole.examples(self.whole.val, backbone.data_config)
        found: dict[str, Any] = {}
        options: dict[str, tuple[Prompt | None, list[float] | None]] = {"no prompt": (None, None)}
        options |= {name: self.mixed(method) for name, method in settings.items()}
        mixed = self.head(options[next(n for n in settings if "shrunk" in n)][0])
        for name, (prompt, weights) in options.items():
            head = self.head(prompt)
            logits = head.logits(classifier.features_of(backbone, prompt, val))
            loss = torch.nn.functional.cross_entropy(logits.double(), val.labels)
            found[name] = {
                "val_accuracy": measure.judge(logits, val.labels).acc1,
                "val_loss": loss.item(),
                "cv_loss": head.cv_loss,
                "cv_gain_over_shrunk": [
                    combining.clear_gain(mixed.cv_losses, head.cv_losses, errors)
                    for errors in (0.0, 1.0)
                ],
                "weights": weights,
            }
        return self.record(found, {k: v["val_accuracy"] for k, v in found.items()}, settings)

    def soften(self, found: dict[str, Any]) -> dict[str, Any]:
        """Tune every missing setting alike, and read validation images at the kept epoch."""
        for name, method in SOFTENED.items():
            if name in found:
                continue
            prompt, weights = self.mixed(method)
            adapter = PromptAdapter(self.setting.backbone, prompt)
            tuned = stages.run_tuning(self.setting, adapter, self.config)
            before, kept = tuned.record(0), tuned.record(tuned.kept_epoch)
            found[name] = {
                "val_accuracy": kept.val_accuracy,
                "val_loss": kept.val_loss,
                "untuned": {"val_accuracy": before.val_accuracy, "val_loss": before.val_loss},
                "kept_epoch": tuned.kept_epoch,
                "weights": weights,
            }
        self.setting.forget_checkpoints()
        return self.record(found, {k: v["val_accuracy"] for k, v in found.items()}, SOFTENED)

    def compare(self) -> dict[str, Any]:
        """Tune every method's start alike, and measure starts and results on the test split."""
        starts: dict[str, Prompt] = {"random": self.fresh("vpt_uniform")}
        weights: dict[str, list[float]] = {}
        for name, method in METHODS.items():
            starts[name], weights[name] = self.mixed(method)
        starts["HGPrompt robust"], guarded = self.safest(starts)
        candidates: dict[str, Candidate] = {"no prompt": (None, self.head(None))}
        kept: dict[str, Any] = {}
        done: dict[str, Any] = {}  # one prompt may be the start of two methods
        for name, prompt in starts.items():
            candidates[f"{name}, untuned"] = (prompt, self.head(prompt))
            adapter, digest = PromptAdapter(self.setting.backbone, prompt), prompt_digest(prompt)
            if digest not in done:
                done[digest] = stages.run_tuning(self.setting, adapter, self.config)
            tuned = done[digest]
            candidates[f"{name}, tuned"] = (tuned.adapter.prompt(), tuned.head)
            kept[name] = {
                "kept_epoch": tuned.kept_epoch,
                "val": [record.val_accuracy for record in tuned.history],
            }
        self.setting.forget_checkpoints()
        measured = measure.test_accuracy(self.setting.backbone, self.whole, candidates)
        found = {name: value.to_json() for name, value in measured.items()}
        summary = {name: round(value.acc1, 4) for name, value in measured.items()}
        found = {"test": found, "weights": weights, "kept": kept, "safeguard": guarded}
        return self.record(found, summary, METHODS)

    def safest(self, starts: dict[str, Prompt]) -> tuple[Prompt, dict[str, float]]:
        """Return the start that `combine` would choose of three, and their cross-validated loss."""
        names = {"HGPrompt robust, no safeguard": combining.MIXED, "uniform": "", "best single": ""}
        named = {names[name] or name: (starts[name], self.head(starts[name])) for name in names}
        safest = combining.safest_start({key: (each, {}) for key, each in named.items()})
        losses = {name: named[key or name][1].cv_loss for name, key in names.items()}
        return named[safest][0], losses

    def fresh(self, kind: str) -> Prompt:
        """Return an initialisation as `learn` would start from, another for every seed."""
        spec = registry.Spec("vpt", {"prompt_init": kind, "prompt_init_seed": self.seed})
        prompt = registry.build("adapters", spec)(self.setting.backbone).prompt()
        return replace(prompt)

    def head(self, prompt: Prompt | None) -> Head:
        """Fit the closed-form head of a start."""
        features = classifier.features_of(self.setting.backbone, prompt, self.setting.train)
        return closed_form(features, self.setting.train.labels, len(self.whole.classes))

    def record(self, found: Any, summary: Any, methods: dict[str, str]) -> dict[str, Any]:
        """Add what a sceptical reader would ask for."""
        setting = self.setting
        splits = {"train": setting.train, "val": setting.val}
        return {
            "target": self.target,
            "seed": self.seed,
            "shots": self.shots,
            "sources": [source.name for source in self.sources],
            "methods": methods,
            "train": self.config.model_dump(),
            "task": runs.describe_task(setting.task, splits),
            "backbone": runs.describe_backbone(setting.backbone),
            "machine": runs.describe_machine(
                setting.backbone.device, resolve("auto", setting.backbone.device)
            ),
            "summary": summary,
            "found": found,
        }


if __name__ == "__main__":
    main()
