"""Protocol: how numbers are made, as a value that a result carries and that settings follow from.

`None` stands for what a project's code or paper leaves open, or keeps in a file per task. A
protocol is written into a result together with every point in which the run departs from it.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vprompt.core.errors import VPromptError
from vprompt.models.backbone import Backbone

Normalisation = Literal["imagenet", "half", "none", "model"]
STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
TFDS = "TFDS arrays"
_SHARED_RATE = ("lr", "head_lr")  # prompt and head have one rate in all of them


@dataclass(frozen=True)
class Protocol:
    """One published way to train and to judge on VTAB-1k.

    Images: `backbone` in timm's words, `image_size`, `interpolation` (with or without
    `antialias`), `normalisation` with exceptions by method, and `images` (where they come from).
    Splits: hyper-parameters are chosen on `select_on` after the last epoch, ties to the smaller
    rate; the final run trains on `final_on`, once per seed. `averaging` says what is reported.
    Optimisation: `lrs` are multiplied by batch size / 256 if `lr_per_256`; `warmup_epochs` of
    `epochs` rise linearly; `per_epoch` steps the rate once per epoch, from 0; `end_lr` is where
    the cosine ends. `large_batch` is used below 100 prompt tokens.
    """

    name: str
    summary: str
    reference: str
    backbone: str = "vit_base_patch16_224.orig_in21k"
    image_size: int = 224
    interpolation: Literal["bilinear", "bicubic"] | None = None
    antialias: bool | None = None
    normalisation: Normalisation | None = None
    normalisation_of: Mapping[str, Normalisation] = field(default_factory=dict)
    images: str = "JPEG copy of VTAB-1k"
    select_on: str | None = None
    final_on: str = "train800val200"
    seeds: tuple[int, ...] | None = None
    averaging: str = "mean of the last epoch's test accuracy over the seeds"
    opt: Literal["sgd", "adamw"] | None = None
    lrs: tuple[float, ...] | None = None
    lr_per_256: bool = False
    weight_decays: tuple[float, ...] | None = None
    epochs: int | None = None
    warmup_epochs: int | None = None
    per_epoch: bool = False
    end_lr: float | None = None
    batch_size: int | None = None
    large_batch: int | None = None
    precision: Literal["fp32", "bf16"] | None = None
    prompt_lengths: tuple[int, ...] | None = None
    deep_dropout: float | None = None
    others: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return all settings as plain values, for a record."""
        values = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    def departures(self, run: Mapping[str, Any]) -> list[str]:
        """Say in what a run's record differs from the protocol, one sentence per point."""
        return [
            f"{what}: {_shown(got)} in place of {' or '.join(map(_shown, wanted))}"
            for what, got, wanted in _compared(self, run)
            if not any(_equal(got, want) for want in wanted)
        ]

    def record(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a result says of its protocol."""
        return {**self.settings(), "departures": self.departures(run)}


@dataclass(frozen=True)
class Plan:
    """A protocol in the words of this library.

    `points` are values of `TrainConfig` to choose from on `select_on`, one after the other;
    `method` are settings of the `vpt` adapter, `data_config` replaces values of the backbone's.
    `cannot` names what this trainer does otherwise or cannot do, and what the protocol leaves open.
    """

    points: tuple[dict[str, Any], ...]
    method: dict[str, Any]
    data_config: dict[str, Any]
    seeds: tuple[int, ...]
    select_on: str | None
    final_on: str
    cannot: tuple[str, ...]

    def preprocess(self, backbone: Backbone) -> Backbone:
        """Return the backbone with the protocol's preprocessing; weights are shared."""
        size = self.data_config["input_size"]
        if backbone.data_config.input_size != size:
            raise VPromptError(
                f"The protocol has images of {size[1]} pixels, but {backbone.name!r} was opened "
                f"for {backbone.data_config.shown_size}. Add --image-size {size[1]}."
            )
        changed = copy.copy(backbone)
        changed.data_config = replace(backbone.data_config, **self.data_config)
        return changed


def plan(
    protocol: Protocol, *, method: str = "vpt", num_virtual_tokens: int = 10, deep: bool = True
) -> Plan:
    """Turn a protocol into settings of this library, and say what they leave out."""
    cannot = [*protocol.others, *_left_open(protocol)]
    batch = protocol.batch_size
    if protocol.large_batch and num_virtual_tokens < 100:
        batch = protocol.large_batch
    fixed: dict[str, Any] = {"opt": protocol.opt, "epochs": protocol.epochs, "batch_size": batch}
    fixed |= {"head": "kaiming", "keep": "last", "precision": protocol.precision}
    if protocol.warmup_epochs is not None and protocol.epochs:
        fixed["warmup"] = protocol.warmup_epochs / protocol.epochs
    fixed = {key: value for key, value in fixed.items() if value is not None}
    scale = batch / 256 if protocol.lr_per_256 and batch else 1.0
    points = [
        fixed
        | _rates(lr, scale, protocol.end_lr)
        | ({} if decay is None else {"weight_decay": decay})
        for lr, decay in itertools.product(
            protocol.lrs or (None,), protocol.weight_decays or (None,)
        )
    ]
    dropout = protocol.deep_dropout if deep else 0.0
    adapter = {"num_virtual_tokens": num_virtual_tokens, "deep": deep, "prompt_init": "vpt_uniform"}
    return Plan(
        points=tuple(points),
        method=adapter | ({} if dropout is None else {"prompt_dropout": dropout}),
        data_config=_data_config(protocol, method),
        seeds=protocol.seeds or (0,),
        select_on=protocol.select_on,
        final_on=protocol.final_on,
        cannot=tuple(cannot),
    )


def _rates(lr: float | None, scale: float, end: float | None) -> dict[str, float]:
    if lr is None:
        return {}
    peak = lr * scale
    return dict.fromkeys(_SHARED_RATE, peak) | (
        {} if end is None else {"min_lr": min(end / peak, 1.0)}
    )


def _data_config(protocol: Protocol, method: str) -> dict[str, Any]:
    size = protocol.image_size
    changed: dict[str, Any] = {"input_size": (3, size, size), "crop_mode": "squash"}
    if protocol.interpolation:
        changed["interpolation"] = protocol.interpolation
    kind = protocol.normalisation_of.get(method, protocol.normalisation)
    if kind is not None and kind != "model":
        changed["mean"], changed["std"] = STATISTICS[kind]
    return changed


def _left_open(protocol: Protocol) -> list[str]:
    """Name what the trainer does otherwise, and what would be guessed."""
    found = []
    if protocol.per_epoch:
        found.append(
            "the protocol sets the rate once per epoch and trains the first one at rate 0; here "
            "it changes with every step and begins above 0"
        )
    if protocol.antialias is False:
        found.append(
            "images are resized by Pillow, which smooths when it shrinks; TensorFlow's "
            "bilinear resize does not"
        )
    wanted = {
        "interpolation": protocol.interpolation,
        "normalisation": protocol.normalisation,
        "optimiser": protocol.opt,
        "learning rate": protocol.lrs,
        "weight decay": protocol.weight_decays,
        "epochs": protocol.epochs,
        "warm-up": protocol.warmup_epochs,
        "batch size": protocol.batch_size,
        "seeds": protocol.seeds,
        "precision": protocol.precision,
        "prompt dropout": protocol.deep_dropout,
    }
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        found.append(f"not known of the protocol, so this library's own: {', '.join(missing)}")
    return found


def _compared(protocol: Protocol, run: Mapping[str, Any]) -> list[tuple[str, Any, list[Any]]]:
    """Return what, the run's value, and the values that agree, where the protocol has any."""
    train, data = run["train"], run["backbone"]["data_config"]
    batches = [b for b in (protocol.batch_size, protocol.large_batch) if b is not None]
    scales = [b / 256 for b in batches] if protocol.lr_per_256 else [1.0]
    lrs = [lr * scale for lr in protocol.lrs or () for scale in scales]
    end = None if protocol.end_lr is None else protocol.end_lr / train["lr"]
    warmup = None
    if protocol.warmup_epochs is not None and protocol.epochs:
        warmup = protocol.warmup_epochs / protocol.epochs
    changed = _data_config(protocol, str(run["method"]).partition("(")[0])
    copied = "warning" in run["task"]["facts"] and protocol.images == TFDS
    given = run.get("settings", {})
    wanted: list[tuple[str, Any, Any]] = [
        ("backbone", run["backbone"]["name"], protocol.backbone),
        *((key, data[key], changed.get(key)) for key in data if key != "crop_pct"),
        ("images", "a JPEG copy", protocol.images if copied else None),
        ("training images", run["task"]["splits"]["train"]["images"], 1_000),
        ("train_on", run.get("train_on", "train"), "trainval"),
        ("batch_size", train["batch_size"], batches),
        *((key, train[key], lrs) for key in _SHARED_RATE),
        ("min_lr", train["min_lr"], end),
        ("warmup", train["warmup"], warmup),
        ("weight_decay", train["weight_decay"], list(protocol.weight_decays or ())),
        ("opt", train["opt"], protocol.opt),
        ("epochs", train["epochs"], protocol.epochs),
        ("precision", train["precision"], protocol.precision),
        ("head", train["head"], "kaiming"),
        ("keep", train["keep"], "last"),
        ("patience", train.get("patience", 0), 0),
        ("seed", train["seed"], list(protocol.seeds or ())),
    ]
    dropout = protocol.deep_dropout if given.get("deep") else 0.0
    for name, value in (
        ("num_virtual_tokens", list(protocol.prompt_lengths or ())),
        ("prompt_dropout", dropout),
        ("prompt_init", "vpt_uniform"),
    ):
        if given.get(name) is not None:  # None: as a preset of the method says
            wanted.append((name, given[name], value))
    listed = [(w, g, v if isinstance(v, list) else [v]) for w, g, v in wanted if v is not None]
    return [(what, got, values) for what, got, values in listed if values]


def _equal(got: Any, want: Any) -> bool:
    if isinstance(want, float) or isinstance(got, float):
        return math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-12)
    return (list(got) if isinstance(got, list | tuple) else got) == (
        list(want) if isinstance(want, tuple) else want
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
