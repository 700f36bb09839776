"""Learning: what `learning.curves` and `learning.places` have in common.

Six tasks on which prompts learn much, three seeds. A seed draws the training and validation images
(800 and 200 of the 1,000 that every set has beside its test split, every class in proportion),
their order and the start of a prompt; the test images are the same. Every run trains for at most so
many epochs and ends early by its validation loss, keeps the epoch of best validation accuracy, as
`vprompt learn` does, and opens the test split once, at its end. One record per run, written whole
or not at all; what is there is not run again, and a run that was stopped goes on from its last
epoch.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vprompt import stages
from vprompt.cli import terminal
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.files import read_json, write_json
from vprompt.core.precision import resolve
from vprompt.data.task import Task, split_by_sizes
from vprompt.learning import classifier
from vprompt.learning.adapter import Adapter
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import Tuned
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head, closed_form
from vprompt.opening import open_backbone, open_task
from vprompt.results import measure, runs

RESULTS = Path(__file__).parents[1] / "results" / "learning"
RUNS = RESULTS / "runs"  # one record each, not committed; `learning.tables` collects them
MODEL = "vit_tiny_patch16_224"
# The two processes of a run on two cores share these out in turn.
TARGETS = {
    "dsprites_location": "dsprites(target=location)",
    "dsprites_orientation": "dsprites(target=orientation)",
    "gtsrb": "{data}/gtsrb",
    "bbbc039_count": "{data}/bbbc039_count",
    "coil20": "{data}/coil20",
    "omniglot100": "{data}/omniglot100",
}
TOKENS = 10  # of VPT-Deep in every block, so 120 in all on twelve blocks


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return the options that all scripts share."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of image sets")
    made.add_argument("--models", type=Path, default=Path("models"), help=f"holds {MODEL}/")
    made.add_argument("--model", help=f"another backbone than {MODEL}, such as `tiny`")
    made.add_argument("--size", type=int, default=64, help="pixels")
    made.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--train", type=int, default=800, help="training images")
    made.add_argument("--val", type=int, default=200, help="validation images")
    made.add_argument("--epochs", type=int, default=40, help="at most")
    made.add_argument("--patience", type=int, default=10, help="epochs")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--part", default="0/1", help="0/2 and 1/2: every second task each")
    made.add_argument("--runs", type=Path, default=RUNS, help="folder of the records")
    return made


def targets_of(options: argparse.Namespace) -> list[str]:
    """Return the tasks of this process: all runs of a task need its rates, so it stays whole."""
    number, parts = (int(each) for each in options.part.split("/"))
    if not 0 <= number < parts:
        raise SystemExit(f"--part is 0/2 or 1/2, for example, but got {options.part!r}.")
    return list(options.targets[number::parts])


@dataclass(frozen=True, eq=False)
class Learned:
    """A training that is over: what it took, and the heads that its features may get.

    `heads` are the trained one and, unless it was a search, one fitted anew in closed form on the
    features it ended with; `val` is what each reaches on the validation images.
    """

    method: str
    config: TrainConfig
    tuned: Tuned
    heads: dict[str, Head]
    val: dict[str, dict[str, float]]
    seconds: dict[str, float]

    @property
    def chosen(self) -> str:
        """The better head on validation, by accuracy and then by loss; in a tie the trained one."""
        return max(self.val, key=lambda name: (self.val[name]["accuracy"], -self.val[name]["loss"]))

    @property
    def rank(self) -> tuple[float, float]:
        """What rates are chosen by: validation accuracy of the kept epoch, then its loss."""
        kept = self.tuned.record(self.tuned.kept_epoch)
        assert kept.val_accuracy is not None and kept.val_loss is not None
        return kept.val_accuracy, -kept.val_loss


class Case:
    """One task and one draw of its images; the test split is closed until `finish`."""

    def __init__(
        self, options: argparse.Namespace, backbone: Backbone, target: str, seed: int
    ) -> None:
        self.options, self.backbone, self.target, self.seed = options, backbone, target, seed
        self.config = TrainConfig(
            epochs=options.epochs, batch_size=options.batch, patience=options.patience, seed=seed
        )

    @cached_property
    def setting(self) -> stages.Setting:
        """The images, decoded when the first run wants them."""
        whole = open_task(TARGETS[self.target].format(data=self.options.data))
        drawn = draw(whole, self.options.train, self.options.val, self.seed)
        with terminal.progress(quiet=True) as progress:
            return stages.prepare(
                self.backbone, drawn, self.config, None, 0, skip_bad=False, progress=progress
            )

    def path(self, arm: str) -> Path:
        """Return where the record of a run is."""
        return Path(self.options.runs) / f"{self.target}_{arm}_seed{self.seed}.json"

    def known(self, arm: str) -> dict[str, Any] | None:
        """Return the record of a run that is finished, or None; refuse one of other settings."""
        path = self.path(arm)
        if not path.is_file():
            return None
        found: dict[str, Any] = read_json(path)
        if found["setup"] != self.setup:
            raise SystemExit(f"{path} was made with other settings. Use another --runs.")
        return found

    @property
    def setup(self) -> dict[str, Any]:
        """What all runs of a benchmark have in common."""
        names = ("size", "train", "val", "epochs", "patience", "batch")
        values = {name: getattr(self.options, name) for name in names}
        return {"model": self.options.model or MODEL, **values}

    def train(self, method: str, *, refit: bool = True, **changes: Any) -> Learned:
        """Train a method, and fit its head anew; what `changes` says differs from the others."""
        config = TrainConfig.checked({**self.config.model_dump(), **changes})
        began, worked = time.perf_counter(), time.process_time()
        tuned = stages.run_tuning(self.setting, self.build(method), config)
        seconds = {
            "wall": round(time.perf_counter() - began, 1),
            "processor": round(time.process_time() - worked, 1),
        }
        heads = {"trained": tuned.head, **({"refitted": self._refit(tuned)} if refit else {})}
        val = {name: self._validate(tuned, head) for name, head in heads.items()}
        return Learned(method, config, tuned, heads, val, seconds)

    def build(self, method: str) -> Adapter:
        """Build a method, its start drawn from this seed."""
        spec = registry.parse(method)
        if "prompt_init_seed" in registry.settings("adapters", spec.name):
            spec = registry.Spec(spec.name, {"prompt_init_seed": self.seed, **spec.settings})
        made: Adapter = registry.build("adapters", spec)(self.backbone)
        return made

    def finish(self, arm: str, learned: Learned, **facts: Any) -> dict[str, Any]:
        """Open the test split for a finished run, and write its record."""
        ready = adapted(learned.tuned)
        measured = measure.test_accuracy(
            self.backbone,
            self.setting.task,
            {name: (ready, head) for name, head in learned.heads.items()},
        )
        heads = {
            name: {
                **learned.val[name],
                "acc1": measured[name].acc1,
                "mean_per_class_recall": measured[name].mean_per_class_recall,
            }
            for name in learned.heads
        }
        made = {
            **described(learned),
            "heads": heads,
            "chosen_head": learned.chosen,
            "test_images": measured["trained"].images,
            "trained_numbers": runs.describe_parameters(learned.tuned),
            **facts,
        }
        return self.write(arm, made)

    def write(self, arm: str, found: dict[str, Any]) -> dict[str, Any]:
        """Write a record with what a sceptical reader would ask for, and forget the states."""
        setting, device = self.setting, self.backbone.device
        splits = {"train": setting.train, "val": setting.val}
        task = runs.describe_task(setting.task, splits)
        machine = runs.describe_machine(device, resolve("auto", device))
        made = {
            "target": self.target,
            "seed": self.seed,
            "arm": arm,
            "setup": self.setup,
            **found,
            "classes": task["num_classes"],
            "splits": task["splits"],
            "backbone": {
                "fingerprint": self.backbone.fingerprint,
                "data_config": self.backbone.data_config.to_json(),
            },
            "machine": machine,
        }
        write_json(self.path(arm), made)
        setting.forget_checkpoints()
        setting.checkpoints.clear()
        return made

    def _refit(self, tuned: Tuned) -> Head:
        train = self.setting.train
        seen = classifier.features_of(self.backbone, adapted(tuned), train)
        return closed_form(seen, train.labels, len(self.setting.task.classes))

    def _validate(self, tuned: Tuned, head: Head) -> dict[str, float]:
        val = self.setting.val
        assert val is not None
        logits = head.logits(classifier.features_of(self.backbone, adapted(tuned), val))
        loss = torch.nn.functional.cross_entropy(logits.double(), val.labels)
        return {"accuracy": measure.judge(logits, val.labels).acc1, "loss": round(loss.item(), 5)}


def adapted(tuned: Tuned) -> Any:
    """Return what makes the features: the prompt where there is one, so that they are kept."""
    return tuned.adapter.prompt() if tuned.adapter.of_prompt else tuned.adapter


def described(learned: Learned) -> dict[str, Any]:
    """Return what a training was and how it went, in few characters."""
    tuned = learned.tuned
    return {
        "method": learned.method,
        "train_config": learned.config.model_dump(),
        "kept_epoch": tuned.kept_epoch,
        "ended": tuned.ended,
        "history": [
            {
                key: round(value, 5) if isinstance(value, float) else value
                for key, value in asdict(record).items()
            }
            for record in tuned.history
        ],
        "seconds": learned.seconds,
    }


def draw(whole: Task, train: int, val: int, seed: int) -> Task:
    """Draw training and validation images from those of a task together, classes in proportion."""
    assert whole.val is not None
    both = whole.train + whole.val
    parts = split_by_sizes(both.labels, [train, val], seed, f"learning, {whole.name}")
    chosen, held = (
        both.subset(rows, f"{name}_draw{seed}")
        for name, rows in zip(("train", "val"), parts, strict=False)  # the rest is not used
    )
    facts = {**whole.facts, "drawn": {"seed": seed, "train": train, "val": val}}
    return replace(whole, train=chosen, val=held, facts=facts)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of this process: every task at the first seed, then at the next."""
    torch.set_num_threads(1)
    backbone = open_model(options)
    for seed in options.seeds:
        for target in targets_of(options):
            yield Case(options, backbone, target, seed)


def open_model(options: argparse.Namespace) -> Backbone:
    """Return the backbone at the asked size."""
    if options.model:
        return open_backbone(options.model)
    weights = options.models / MODEL / "model.safetensors"
    if not weights.is_file():
        raise SystemExit(f"No weights at {weights}. Name the folder of {MODEL}/ with --models.")
    spec = registry.Spec("timm_vit", {"model": MODEL, "checkpoint": str(weights)})
    return open_backbone(str(spec), image_size=options.size)


def run_missing(case: Case, arms: Mapping[str, Callable[[Case], dict[str, Any]]]) -> None:
    """Run every arm of a case that has no record yet, in order, and say what it reached.

    One that fails, such as by a loss that is no number, is told and left out.
    """
    for arm, run in arms.items():
        if case.known(arm) is not None:
            continue
        try:
            found = run(case)
        except VPromptError as error:
            print(case.path(arm).stem, f"failed: {error}", flush=True)
        else:
            print(case.path(arm).stem, told(found), flush=True)


def told(found: Mapping[str, Any]) -> str:
    """Say in a line what a run reached."""
    if "heads" not in found:
        return f"found {found['found']}, {found['seconds']}"
    reached = " ".join(f"{name} {100 * h['acc1']:.1f}" for name, h in found["heads"].items())
    last = found["history"][-1]["epoch"]
    return f"{reached}, kept {found['kept_epoch']} of {last} epochs, {found['seconds']}"


if __name__ == "__main__":
    sys.exit("Run learning_curves.py, then learning_places.py, then learning_tables.py.")
