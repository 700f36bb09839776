"""Commands: a verb's options made from the settings it takes, in the groups of its help."""

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from vprompt.core.settings import ADVANCED, GROUPS, Flag, Settings
from vprompt.learning.train_config import TrainConfig

NOT_HERE = (
    "Some options are deliberately not here. Settings of a method are written with its name: "
    "`'vpt(deep=false)'`. Workers are not needed, since images are decoded once. Resuming is "
    "running the same command again. {fields} can be set in Python and in a recipe's `train`."
)

METAVARS = {bool: "", int: "N", float: "X", Path: "PATH", list[Path]: "PATH"}


def of_verb(
    settings: type[Settings],
    *,
    usual: Mapping[str, Any] | None = None,
    optional: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a settings class, which arrive as the mapping `given`.

    It holds what was typed and nothing else. With `usual`, training has its options too, which
    stand in `given["config"]`; `usual` is what the verb changes of their defaults. `optional` are
    settings that the verb needs and something else may say.
    """
    own = dict(_options(settings, {}, optional))
    training = {} if usual is None else dict(_options(TrainConfig, usual))

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        declared = dict(inspect.signature(function).parameters)
        del declared["given"]

        @functools.wraps(function)
        def command(**typed: Any) -> None:
            given = _take(typed, own)
            config = _take(typed, training)
            if config:
                given["config"] = config
            if "model" in given:
                from vprompt.backbones import _asking

                _asking.ahead(given["model"])
            if "protocol" in given:
                from vprompt.results import protocols

                given["protocol"] = protocols.find(given["protocol"])
            function(given=given, **typed)

        every = [*declared.values(), *own.values(), *training.values()]
        ordered = sorted(every, key=_place)  # stable: as declared within a group
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in ordered]
        command.__dict__["__signature__"] = inspect.Signature(keywords)
        command.__annotations__ = {each.name: each.annotation for each in keywords}
        return command

    return decorate


def not_here() -> str:
    """Return the line of a training verb's help on what was left out of it on purpose."""
    fields = [name for name in TrainConfig.model_fields if TrainConfig.flag(name) is None]
    return NOT_HERE.format(fields=", ".join(fields))


def _take(typed: dict[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Move the options that were typed out of all values."""
    found = {name: typed.pop(name) for name in options}
    return {name: value for name, value in found.items() if value not in (None, [])}


def _place(parameter: inspect.Parameter) -> int:
    """Return where a parameter stands in the help: arguments, then the groups in order."""
    info = next(each for each in get_args(parameter.annotation) if hasattr(each, "help"))
    if isinstance(info, typer.models.ArgumentInfo):
        return -1
    return GROUPS.index(info.rich_help_panel or ADVANCED)


def _options(
    settings: type[Settings], usual: Mapping[str, Any], optional: Sequence[str] = ()
) -> Iterable[tuple[str, inspect.Parameter]]:
    for name, field in settings.model_fields.items():
        flag = settings.flag(name)
        if flag is None:
            continue
        kind = _kind(field.annotation)
        default = usual.get(name, None if field.is_required() else field.default)
        names = flag.names or (_spelled(name, kind, default),)
        option = typer.Option(
            *names,
            help=_help(flag, field.annotation, default),
            rich_help_panel=flag.group,
            metavar=METAVARS.get(kind, "TEXT"),
        )
        needed = field.is_required() and name not in optional
        yield (
            name,
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if needed else None,
                annotation=Annotated[kind if needed else kind | None, option],
            ),
        )


def _spelled(name: str, kind: Any, default: Any) -> str:
    """Return `--name`, and `--name/--no-name` for what is not off by itself."""
    dashed = name.replace("_", "-")
    return f"--{dashed}/--no-{dashed}" if kind is bool and default is not False else f"--{dashed}"


def _kind(annotation: Any) -> Any:
    """Return the type that the command line reads, of all those that a setting may have."""
    union = get_origin(annotation) in (Union, types.UnionType)
    parts = [each for each in (get_args(annotation) if union else (annotation,))]
    parts = [each for each in parts if each is not type(None)]
    if any(get_origin(each) not in (None, Literal) for each in parts) and int not in parts:
        return list[Path] if Path in parts else str if str in parts else list[str]
    for kind in (bool, Path):
        if kind in parts:
            return kind
    return parts[0] if parts in ([int], [float]) else str


def _help(flag: Flag, annotation: Any, default: Any) -> str:
    """Return the help with the words that are understood, and the default where it says much."""
    if get_origin(annotation) is Literal:
        words = [f"{each} (default)" if each == default else each for each in get_args(annotation)]
        return f"{flag.help.rstrip('.')}: {', '.join(words)}."
    plain = default is None or isinstance(default, bool | tuple)
    value = f"{default:g}" if isinstance(default, float) else str(default)
    shown = flag.shown or ("" if plain else value)
    return flag.help + (f" Default: {shown}." if shown else "")
