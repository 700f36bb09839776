"""Options: what the commands have in common, declared once, and how it is read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vprompt.core.errors import VPromptError

TaskArgument = Annotated[
    str,
    typer.Argument(
        help="A folder of class folders, a VTAB-1k folder (`DIR` or `DIR:prefix`), a .csv or "
        ".jsonl list, or a built-in task such as `elpv` or `digits`."
    ),
]
OptionalTaskArgument = Annotated[
    str | None, typer.Argument(help="As for `learn`; left out where a recipe names it.")
]
_POOLS = typer.Option("--pool", help="Folder of artefact folders, or one artefact; repeatable.")
PoolsOption = Annotated[list[Path] | None, _POOLS]
PoolRequired = Annotated[list[Path], _POOLS]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "--backbone",
        help="`demo`, a timm name, `hf-hub:org/name`, `local-dir:/path`, or a spec.",
    ),
]
PoolModelOption = Annotated[
    str | None,
    typer.Option("--model", "--backbone", help="Default: the backbone that the pool names."),
]
OutputOption = Annotated[Path | None, typer.Option(help="Folder to write the artefact to.")]
ReportOption = Annotated[Path | None, typer.Option(help="HTML file to write the report to.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
ShotsOption = Annotated[
    int | None, typer.Option(min=1, help="Draw this many images per class from train and from val.")
]
DrawOption = Annotated[int, typer.Option(help="Seed of the draw of shots.")]
SizeOption = Annotated[
    str | None,
    typer.Option(
        help="Pixels of a square, or HEIGHTxWIDTH; resamples the backbone's position embeddings."
    ),
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable images.")]
AbsentOption = Annotated[
    bool, typer.Option("--allow-absent-classes", help="Accept classes that training never shows.")
]
SafeguardOption = Annotated[
    bool | None,
    typer.Option(
        "--safeguard/--no-safeguard",
        help="Start from the average or best source if that looks safer. Default: as the method "
        "asks.",
    ),
]
MoveScaleOption = Annotated[
    str | None,
    typer.Option(
        help="How far to go along the pool's moves: auto, published (weights of sum 1), sources "
        "or a number. Default: as the method asks."
    ),
]
FormOption = Annotated[
    str | None,
    typer.Option(
        help="What the sum of moves becomes: sum, side_by_side, ensemble, distil, or auto: an "
        "ensemble, unless one sum is clearly better. Default: as the method asks."
    ),
]
ScalePathOption = Annotated[
    Path | None, typer.Option(help="SVG file to draw the scales in that were looked at.")
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="A name of `vprompt list protocols`. Sets nothing: the record then says in which "
        "points this run departs from it."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Use prompts of another backbone or preprocessing.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option(help="Leave out a source by name; may be repeated.")
]
_SCREEN = typer.Option(
    help="For pools of more than 100: auto (default), `auto(keep=16, images=400)`, or off."
)
ScreenOption = Annotated[str, _SCREEN]
OptionalScreenOption = Annotated[str | None, _SCREEN]
SourceDataOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the sources' own tasks, for metrics that need source data."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FreezeReportOption = Annotated[
    bool, typer.Option("--freeze-report", help="Print every tensor that was trained.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
EpochsOption = Annotated[int | None, typer.Option(help="Default: 10.")]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="Default: 64; combine: 16.")]
OptOption = Annotated[str | None, typer.Option(help="adamw (default) or sgd.")]
LrOption = Annotated[
    float | None, typer.Option(help="Peak rate of the prompt. Default: 0.005; combine: 0.001.")
]
HeadLrOption = Annotated[float | None, typer.Option(help="Peak rate of the head. Default: 0.001.")]
DecayOption = Annotated[
    float | None, typer.Option("--weight-decay", help="Of prompt and head, not of the head's bias.")
]
HeadOption = Annotated[str | None, typer.Option(help="closed_form (default), zero, kaiming.")]
KeepOption = Annotated[str | None, typer.Option(help="best (learn), least_loss (combine), last.")]
PatienceOption = Annotated[
    int | None,
    typer.Option(
        help="End training once its least validation loss is so many epochs old. Default: 0, never."
    ),
]
PrecisionOption = Annotated[str | None, typer.Option(help="auto (default), bf16, fp32.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of order and dropout.")]


PrefixOption = Annotated[
    float | None,
    typer.Option("--prefix-cache", help="GiB to keep what enters late prompts in. Default: 2."),
]
SchedOption = Annotated[
    str | None, typer.Option(help="cosine (default), cosine_by_epoch or constant.")
]
AugmentOption = Annotated[
    str | None,
    typer.Option(help="none (default) or crop_flip: another part of an image in every epoch."),
]
ClipOption = Annotated[
    float | None, typer.Option("--clip-grad", help="Largest norm of a step's gradient.")
]


def check_places(**places: Path | None) -> None:
    """Raise VPromptError for a place that cannot be written, by its option, before the work."""
    from vprompt.core.files import check_writable

    for name, place in places.items():
        if place is not None:
            if place.is_dir():
                raise VPromptError(f"--{name.replace('_', '-')} {place} is a folder; name a file.")
            check_writable(place, f"--{name.replace('_', '-')}")


def training(defaults: Mapping[str, Any], **given: Any) -> Any:
    """Return the training settings that a person gave, on top of the defaults of what is done."""
    from vprompt.learning.train_config import TrainConfig

    return TrainConfig.checked({**defaults, **typed(**given)})


def typed(**given: Any) -> dict[str, Any]:
    """Return what a person gave, without what was left out."""
    return {key: value for key, value in given.items() if value is not None}


def usual_combining(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training settings of a recipe, or else what its method works best with."""
    from vprompt.learning.train_config import combining_defaults
    from vprompt.pooling.mix import plan_of

    if "config" in arguments:
        return dict(arguments["config"])
    method = arguments.get("method", "moves")
    chosen = {key: arguments.get(key) for key in ("scale", "move_scale", "form")}
    return combining_defaults(method, plan_of(method, **chosen).form)


def number_or_word(text: str | None) -> str | float | None:
    """Read `4` as a number and `auto` as it is."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def with_settings(method: str, extra: dict[str, Any]) -> str:
    """Add what short flags say to a method's settings."""
    from vprompt.core import registry

    spec = registry.parse(method)
    given = {key: value for key, value in extra.items() if value is not None}
    return str(registry.Spec(spec.name, {**spec.settings, **given}))


def read_grid(entries: list[str]) -> dict[str, list[float]]:
    """Read `lr=0.01,0.03`."""
    grid = {}
    for entry in entries:
        name, _, values = entry.partition("=")
        try:
            grid[name.strip().replace("-", "_")] = [float(value) for value in values.split(",")]
        except ValueError:
            raise VPromptError(f"--grid reads `lr=0.01,0.03`, but got {entry!r}.") from None
    return grid


def at_home(word: str) -> str:
    """Return a word with the home folder for `~`, also in `--option=~/x`, as a shell does not."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = value == "~" or value.startswith("~/") or value.startswith("~\\")
    return option + equals + os.path.expanduser(value) if is_path else word
