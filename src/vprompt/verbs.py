"""Verbs: the settings of each verb, one object per verb; imports no torch.

Python, the command line, recipes and records all read these fields. A new setting is written here
(or where it belongs: training in `learning/train_config.py`, a sum in `pooling/settings.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import BeforeValidator, Field, SkipValidation

from vprompt.core import fleet
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.core.settings import OUTPUT, POOL, TRAINING, WHAT, Flag, Settings
from vprompt.data.preprocessing import ImageSize, read_size
from vprompt.learning.logs import read_kinds
from vprompt.learning.train_config import TrainConfig
from vprompt.pooling.settings import METHOD, Pooled, Sum

if TYPE_CHECKING:
    from vprompt.artifacts.artifact import Artifact
    from vprompt.models.backbone import Backbone
else:
    Artifact = Backbone = Any  # whose modules need torch

_MODELS = "demo, a timm name, hf-hub:org/name, a spec."
Model = Annotated[str | Backbone, Flag(_MODELS, WHAT, names=("--model", "--backbone"))]
ArtifactModel = Annotated[
    str | Backbone | None,
    Flag(_MODELS, WHAT, names=("--model", "--backbone"), shown="the artefact's"),
]
Device = Annotated[str, Flag("auto, cpu, cuda, mps.")]
Precision = Annotated[str, Flag("auto, bf16, fp32.")]
Force = Annotated[bool, Flag("Use prompts of another backbone or preprocessing.")]
_PLACE = Flag("Artefact folder, or hf-hub:user/name.", WHAT)
PoolModel = Annotated[
    str | Backbone | None,
    Flag(_MODELS, WHAT, names=("--model", "--backbone"), shown="the pool's"),
]


class Recorder(Protocol):
    """A published protocol. It says in which points a run departs from it."""

    def record(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return its name and the departures of a run."""


def _read_size(value: Any) -> Any:
    return read_size(value) if isinstance(value, str) else value


def _read_callbacks(value: Any) -> Any:
    found = (value,) if callable(value) else tuple(value)
    for each in found:
        if not callable(each):
            raise VPromptError(f"callbacks are functions of one argument, but got {each!r}.")
    return found


class Verb(Settings):
    """What every verb can be told: where it runs, who shows the progress, and what of bad images.

    `progress` is told how far the work is.
    """

    device: Device = "auto"
    skip_bad: Annotated[bool, Flag("Leave out unreadable images.")] = False
    progress: Annotated[Progress, SkipValidation] = SILENT


class OnTask(Verb):
    """What every verb can be told that reads a task's training images.

    `shots` draws that many images per class, with the seed `draw`. `split_seed` is the seed by
    which images without splits are cut. `target` is what the labels of a list are: `class`,
    `several` classes per image, or a `number`; the last two are for `learn` alone.
    """

    OLD: ClassVar[Mapping[str, str]] = {"pool_folder": "pool"}

    shots: Annotated[int | None, Field(ge=1), Flag("Images per class to draw.", WHAT)] = None
    draw: Annotated[int, Flag("Seed for drawing the shots.", WHAT)] = 0
    split_seed: Annotated[int | None, Flag("Seed of the splits.", WHAT, shown="0")] = None
    target: Annotated[
        str | None,
        Flag("What labels of a list are: class, several or number.", WHAT, shown="class"),
    ] = None
    allow_absent: Annotated[bool, Flag("Accept classes without images.")] = False

    def of_task(self) -> dict[str, Any]:
        """Return what opening a task is told."""
        names = ("allow_absent", "split_seed", "target")
        return {name: getattr(self, name) for name in names}


class Trained(OnTask):
    """What every verb that trains can be told.

    `config` is a whole `TrainConfig`, or a mapping of the settings that should differ from what the
    method works best with. `image_size` is the side of a square in pixels, or (height, width).
    `output` is the folder of the artefact, None to keep none. `test=False` leaves the test split
    closed. `keep_states` keeps the state of the finished training in the cache, so that the same
    training costs nothing the next time. `protocol` sets nothing: it is recorded, with every point
    in which the run departs from it. `callbacks` are functions that are told of every epoch
    (`vprompt.learning.following.Seen`). `log` writes the same into files, "tensorboard", "csv",
    "jsonl" or several, in a folder for each training below `log_dir`.
    """

    WITHIN: ClassVar[Mapping[str, type[Settings]]] = {"config": TrainConfig}

    image_size: Annotated[
        ImageSize | None,
        BeforeValidator(_read_size),
        Flag(
            "Pixels, or HEIGHTxWIDTH.",
            WHAT,
            names=("--image-size", "--img-size"),
            shown="the model's",
        ),
    ] = None
    config: Annotated[TrainConfig | Mapping[str, Any] | None, SkipValidation] = None
    output: Annotated[Path | str | None, Flag("Folder to write the artefact to.", OUTPUT)] = None
    overwrite: Annotated[bool, Flag("Replace what is there.", OUTPUT)] = False
    test: Annotated[bool, Flag("Measure on the test split.", OUTPUT)] = True
    keep_states: bool = False
    protocol: Annotated[
        Recorder | None,
        SkipValidation,
        Flag("Compare with one of `list protocols`.", OUTPUT),
    ] = None
    callbacks: Annotated[Sequence[Callable[[Any], None]], BeforeValidator(_read_callbacks)] = ()
    log: Annotated[
        Sequence[str],
        BeforeValidator(read_kinds),
        Flag("tensorboard, csv, jsonl; several.", OUTPUT),
    ] = ()
    log_dir: Annotated[Path | str | None, Flag("Folder of the logs.", OUTPUT, shown="logs")] = None

    @property
    def follows(self) -> Mapping[str, Any]:
        """Who is told of every epoch, for `Following.checked`."""
        return {"callbacks": self.callbacks, "kinds": self.log, "folder": self.log_dir}


class LearnSettings(Trained):
    """What `learn` can be told.

    `method` is a plug-in of `adapters/` with its settings. `grid` gives several values for training
    settings, and the best is chosen on validation (ties: the smaller rate). `halving` drops worse
    points on the way, and `fleet` says how many are trained together. `train_on="trainval"` also
    trains on the validation images. Then nothing is left to choose by, and the last epoch is kept.
    `folds` also trains on them, and judges every epoch on all images: they are dealt into so many
    parts, and each part is judged by a training on the others.
    """

    model: Model = "demo"
    method: Annotated[str, Flag("One of `vprompt list adapters`.", WHAT)] = "vpt"
    train_on: Annotated[
        str, Flag("train, or trainval to use validation images, too.", TRAINING)
    ] = "train"
    folds: Annotated[
        int | None,
        Field(ge=2),
        Flag("Validate on every image once, in so many folds, not on one split.", TRAINING),
    ] = None
    grid: Annotated[Mapping[str, Sequence[float]] | None, SkipValidation] = None
    halving: Annotated[bool, Flag("Drop the worse points of the grid early.", TRAINING)] = False
    fleet: Annotated[
        str,
        BeforeValidator(lambda asked: str(fleet.checked(asked))),
        Flag("Grid points trained together: a number, auto, off.", TRAINING),
    ] = "auto"


class CombineSettings(Trained, Sum, Pooled):
    """What `combine` can be told.

    `method` is a plug-in of `transfer/`. Sources that were learned on the target itself (a task of
    its name and classes) are left out unless `include_self`. If `train_digest` is given, training
    images with another digest are refused.
    """

    method: Annotated[str, Flag("One of `vprompt list transfer`.", WHAT)] = METHOD
    model: PoolModel = None
    include_self: Annotated[
        bool,
        Flag(
            "Keep the target's own sources.",
            names=("--include-self/--exclude-self",),
        ),
    ] = False
    train_digest: str | None = None


class SearchSettings(Trained):
    """What `search` can be told.

    `method` is a search of `adapters/` with its settings. `search_config` says how the search is
    trained, and `config` how the prompt of the found lengths is, or what differs there from the
    usual. `alpha_data` are the images that choose the lengths: `val`, `half` (half of each class's
    training images, which all train in the second stage), or `auto`, which is what the method asks
    for: for `dpl` it is `val` if there is one.
    """

    model: Model = "demo"
    method: Annotated[str, Flag("A search (dpl, clip_dpl), with its settings.", WHAT)] = "dpl"
    search_config: Annotated[TrainConfig | Mapping[str, Any] | None, SkipValidation] = None
    alpha_data: Annotated[
        str, Flag("Images that choose: val, half (of train), auto.", TRAINING)
    ] = "auto"


class ScoreSettings(OnTask, Pooled):
    """What `score` can be told.

    `metric` is one of `metrics/`, or a list of several. `source_data` is a folder with the sources'
    own tasks, under the names that they were learned under. Metrics that match source with target
    need it.
    """

    metric: Annotated[str | Sequence[str], Flag("One of `vprompt list metrics`, or all.", WHAT)] = (
        "hscore"
    )
    model: PoolModel = None
    source_data: Annotated[
        Path | str | None, Flag("Folder of the sources' own tasks, for otce.", POOL)
    ] = None


class Using(Verb):
    """What every verb can be told that uses a finished artefact.

    The backbone is the one that the artefact names, unless `model` gives another; it is checked
    against the artefact's fingerprint, unless `force`.
    """

    model: ArtifactModel = None
    precision: Precision = "auto"
    force: Force = False


class TableSettings(Using):
    """What `predict_table` can be told. A batch has `batch_size` images at most."""

    batch_size: int = 64


class PredictSettings(TableSettings):
    """What `predict` can be told."""

    artifact: Annotated[Artifact | Path | str, _PLACE]


class EvaluateSettings(Using):
    """What `evaluate` can be told."""

    artifact: Annotated[Artifact | Path | str, _PLACE]
    allow_absent: Annotated[bool, Flag("Accept classes that training never shows.")] = False
