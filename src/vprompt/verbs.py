"""Verbs: what each verb can be told, one settings object per verb; imports no torch.

Python, the command line, recipes and records all read these fields. A new setting is written here
(or where it belongs: training in `learning/train_config.py`, a sum in `pooling/settings.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import BeforeValidator, Field, SkipValidation

from vprompt.core import fleet
from vprompt.core.progress import SILENT, Progress
from vprompt.core.settings import OUTPUT, POOL, TRAINING, WHAT, Flag, Settings
from vprompt.data.preprocessing import ImageSize, read_size
from vprompt.learning.train_config import TrainConfig
from vprompt.pooling.settings import METHOD, Pooled, Sum

if TYPE_CHECKING:
    from vprompt.models.backbone import Backbone
else:
    Backbone = Any  # whose module needs torch

_MODELS = "demo, a timm name, hf-hub:org/name, a spec."
Model = Annotated[str | Backbone, Flag(_MODELS, WHAT, names=("--model", "--backbone"))]
PoolModel = Annotated[
    str | Backbone | None,
    Flag(_MODELS, WHAT, names=("--model", "--backbone"), shown="the pool's"),
]


class Recorder(Protocol):
    """A published protocol, which says of a run in which points it departs from it."""

    def record(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return its name and the departures of a run."""


def _read_size(value: Any) -> Any:
    return read_size(value) if isinstance(value, str) else value


class Verb(Settings):
    """What every verb can be told about the images, where it runs and whom it tells.

    `shots` draws that many images per class with the seed `draw`; `split_seed` is that of how
    images without splits are cut. `target` is what a list's labels are: `class`, `several` classes
    an image, or a `number`; the last two are for `learn`. `progress` is whoever shows how far it
    is.
    """

    OLD: ClassVar[Mapping[str, str]] = {"pool_folder": "pool"}

    shots: Annotated[int | None, Field(ge=1), Flag("Images per class to draw.", WHAT)] = None
    draw: Annotated[int, Flag("Seed of the draw of shots.", WHAT)] = 0
    split_seed: Annotated[int | None, Flag("Seed of the cut into splits.", WHAT, shown="0")] = None
    target: Annotated[
        str | None,
        Flag("What labels of a list are: class, several or number.", WHAT, shown="class"),
    ] = None
    device: Annotated[str, Flag("auto, cpu, cuda, mps.")] = "auto"
    skip_bad: Annotated[bool, Flag("Leave out unreadable images.")] = False
    allow_absent: Annotated[bool, Flag("Accept classes without training images.")] = False
    progress: Annotated[Progress, SkipValidation] = SILENT

    def of_task(self) -> dict[str, Any]:
        """Return what opening a task is told."""
        names = ("allow_absent", "split_seed", "target")
        return {name: getattr(self, name) for name in names}


class Trained(Verb):
    """What every verb that trains can be told.

    `config` is a whole `TrainConfig`, or a mapping of what differs from what the method works best
    with. `image_size` is the side of a square in pixels, or (height, width). `test=False` leaves
    the test split closed. `keep_states` keeps the state of the finished training in the cache, so
    that an equal one costs nothing. `protocol` sets nothing: it is recorded, with every point in
    which the run departs from it.
    """

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
        Flag("One of `list protocols`, to compare with.", OUTPUT),
    ] = None


class LearnSettings(Trained):
    """What `learn` can be told.

    `method` is a plug-in of `adapters/` with its settings, `grid` names values of the training
    settings to choose from on validation (ties: the smaller rate); `halving` drops points that lie
    behind on the way, and `fleet` says how many advance together. `train_on="trainval"` adds the
    validation images, so nothing is left to choose by and the last epoch is kept; `folds` adds
    them, too, and judges every epoch on images dealt into so many parts, each by a training on the
    others.
    """

    model: Model = "demo"
    method: Annotated[str, Flag("One of `vprompt list adapters`.", WHAT)] = "vpt"
    train_on: Annotated[str, Flag("train, or trainval: nothing left to choose by.", TRAINING)] = (
        "train"
    )
    folds: Annotated[
        int | None,
        Field(ge=2),
        Flag("Validate on every image once, in so many folds, not on one split.", TRAINING),
    ] = None
    grid: Annotated[Mapping[str, Sequence[float]] | None, SkipValidation] = None
    halving: Annotated[bool, Flag("Drop points of the grid that lie behind.", TRAINING)] = False
    fleet: Annotated[
        str,
        BeforeValidator(lambda asked: str(fleet.checked(asked))),
        Flag("Points of the grid in one pass: a number, auto, off.", TRAINING),
    ] = "auto"


class CombineSettings(Trained, Sum, Pooled):
    """What `combine` can be told.

    `method` is a plug-in of `transfer/`. Sources that were learned on the target itself, a task of
    its name and classes, are left out unless `include_self`. Training images of another digest than
    `train_digest` are refused.
    """

    method: Annotated[str, Flag("One of `vprompt list transfer`.", WHAT)] = METHOD
    model: PoolModel = None
    include_self: Annotated[
        bool,
        Flag("Keep sources learned on the target.", names=("--include-self/--exclude-self",)),
    ] = False
    train_digest: str | None = None


class SearchSettings(Trained):
    """What `search` can be told.

    `method` is a search of `adapters/` with its settings, `search_config` how it is trained and
    `config` how the found prompt is, or what differs there from the usual. `alpha_data` is `val`,
    `half` (half of each class's training images, which then train in the second stage), or `auto`:
    as the method asks, which is `val` where there is one for `dpl`.
    """

    model: Model = "demo"
    method: Annotated[str, Flag("A search, with its settings.", WHAT)] = "dpl"
    search_config: Annotated[TrainConfig | Mapping[str, Any] | None, SkipValidation] = None
    alpha_data: Annotated[str, Flag("val, half (of the training images), or auto.", TRAINING)] = (
        "auto"
    )


class ScoreSettings(Verb, Pooled):
    """What `score` can be told.

    `metric` is one of `metrics/`, or several. `source_data` is a folder of the sources' own tasks,
    by the names they were learned under, for metrics that match source with target.
    """

    metric: Annotated[str | Sequence[str], Flag("One of `vprompt list metrics`, or all.", WHAT)] = (
        "hscore"
    )
    model: PoolModel = None
    source_data: Annotated[
        Path | str | None, Flag("Folder of the sources' own tasks, where needed.", POOL)
    ] = None
