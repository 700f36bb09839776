"""Checkpoint: the whole state of a training run in one file, written atomically, no pickle."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.core import distributed
from vprompt.core.files import digest, optional, whole_tensors, write_json, write_tensors
from vprompt.core.shelves import PROMISE


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch; epoch 0 is the start, before any step.

    `val_measure` names the `val_score` by which epochs are compared where that is not accuracy.
    """

    epoch: int
    lr: float
    train_loss: float | None
    val_accuracy: float | None
    val_loss: float | None
    val_score: float | None = None
    val_measure: str = ""

    @property
    def quality(self) -> float | None:
        """What of a larger one an epoch is better; None where nothing was judged."""
        return self.val_score if self.val_measure else self.val_accuracy

    @property
    def shown(self) -> str:
        """The quality in words; nothing where nothing was judged."""
        if self.quality is None:
            return "" if self.val_loss is None else f"loss {self.val_loss:.4g}"
        if self.val_measure == "R2":
            return f"R2 {self.quality:.3f}"
        return f"{self.val_measure} {100 * self.quality:.1f} %".strip()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without what this kind of task does not have."""
        found = asdict(self)
        if not self.val_measure:
            del found["val_score"], found["val_measure"]
        return found


class Checkpoint:
    """Where a run saves itself after every epoch; does nothing without a folder that takes it.

    The file is named after everything that determines the run, so a run finds its own state and
    never another's.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.name = digest(json.dumps(identity, sort_keys=True))[:32]
        self.path = None if folder is None else Path(folder) / f"{self.name}.safetensors"

    def save(self, loop: Any) -> None:
        """Write parameters, optimiser state, the best parameters so far and the history."""
        if self.path is None or not distributed.is_first():
            return
        tensors = {f"now.{name}": value for name, value in loop.state().items()}
        tensors |= {f"best.{name}": value for name, value in loop.best.items()}
        for index, state in loop.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        text = {
            "history": json.dumps([record.to_json() for record in loop.history]),
            "best_epoch": str(loop.best_epoch),
            "memory": json.dumps(loop.classifier.adapter.memory),
        }
        with optional():
            write_tensors(self.path, tensors, text)

    def promise(self, result: Path) -> None:
        """Note where the result will be: once it is there, nobody needs the state any more.

        A process that ends between the two leaves the state to the next command to remove.
        """
        if self.path is not None and self.path.exists() and distributed.is_first():
            with optional():
                write_json(self.path.with_suffix(PROMISE), {"result": str(result.absolute())})

    def finish(self) -> None:
        """Note that the run is over, and its state there for equal runs alone."""
        if self.path is not None and self.path.exists() and distributed.is_first():
            with optional():
                write_json(self.path.with_suffix(PROMISE), {"result": None})

    def remove(self) -> None:
        """Forget the state of a run that is finished."""
        if self.path is not None and distributed.is_first():
            with optional():
                self.path.unlink(missing_ok=True)
                self.path.with_suffix(PROMISE).unlink(missing_ok=True)

    def load(self, loop: Any) -> bool:
        """Continue from the file if there is one, and say whether there was."""
        if self.path is None:
            return False
        kept = None
        with contextlib.suppress(OSError):  # absent, or in a cache that may not be entered
            kept = self.path.read_bytes()
        kept = distributed.bytes_of_first(kept)
        if kept is None:
            return False
        found = whole_tensors(kept, self.path)
        if found is None:  # damaged: the run begins afresh
            return False
        tensors, text = found
        loop.history = [EpochRecord(**record) for record in json.loads(text["history"])]
        loop.best_epoch = int(text["best_epoch"])
        loop.best = _part(tensors, "best.")
        loop.classifier.adapter.memory = json.loads(text["memory"])
        restore(loop.classifier, _part(tensors, "now."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        whole = loop.optimizer.state_dict()
        loop.optimizer.load_state_dict({**whole, "state": states})
        return True


def restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of their names."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
