"""Settings: values that a person may choose, declared once and checked when they are typed.

A class of settings is what Python, the command line, recipes and records share. A function that
`takes` one is called with its fields by name, so a new setting is a new field and nothing else.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

from pydantic import BaseModel, ConfigDict, ValidationError

from vprompt.core.errors import VPromptError
from vprompt.core.renaming import respelled

WHAT, TRAINING, POOL, OUTPUT, ADVANCED = "What", "Training", "Pool", "Output", "Advanced"
GROUPS = (WHAT, POOL, TRAINING, OUTPUT, ADVANCED)  # in the order of `--help`

P = ParamSpec("P")
S = TypeVar("S", bound="Settings")
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")


@dataclass(frozen=True)
class Flag:
    """How a setting is typed on the command line; one without is for Python and recipes alone.

    `names` are its spellings where it is not `--name`; `shown` is the default in words, where the
    value says too little.
    """

    help: str
    group: str = ADVANCED
    names: tuple[str, ...] = ()
    shown: str = ""


class Settings(BaseModel):
    """Named values, checked and then fixed.

    `OLD` are spellings of an earlier release with those of today, which are understood with a note.
    `WITHIN` names fields that hold settings of another class.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True
    )
    OLD: ClassVar[Mapping[str, str]] = {}
    CALLED: ClassVar[str] = "setting"
    WITHIN: ClassVar[Mapping[str, type["Settings"]]] = {}

    @classmethod
    def checked(cls: type[S], values: Mapping[str, Any]) -> S:
        """Return the settings, or raise VPromptError that names the one which is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
        own = first.get("ctx", {}).get("error")
        if isinstance(own, VPromptError):
            raise own
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.model_fields)
            raise VPromptError(f"There is no {cls.CALLED} {name!r}. There are: {known}.")
        typed = name if cls.flag(name) is None else "--" + name.replace("_", "-")
        raise VPromptError(f"{typed}: {first['msg']}, but got {first['input']!r}.")

    @classmethod
    def flag(cls, name: str) -> Flag | None:
        """Return how a setting is typed on the command line, or None."""
        found = cls.model_fields[name].metadata if name in cls.model_fields else []
        return next((each for each in found if isinstance(each, Flag)), None)

    def given(self) -> dict[str, Any]:
        """Return the settings that are not None, by name."""
        return {name: value for name, value in self if value is not None}


class takes(Generic[P, S]):  # a decorator
    """Let a function whose last parameter is a settings object be called with its fields by name.

    `@takes(Sum) def add(prompts, settings)` is called as `add(prompts, scale=2)`, or with a `Sum`.
    """

    def __init__(self, settings: Callable[P, S]) -> None:
        self.settings: Any = settings

    @overload
    def __call__(self, function: Callable[[S], R]) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Callable[[A, S], R]) -> Callable[Concatenate[A, P], R]: ...
    @overload
    def __call__(self, function: Callable[[A, B, S], R]) -> Callable[Concatenate[A, B, P], R]: ...
    def __call__(self, function: Callable[..., R]) -> Callable[..., R]:
        """Return the function as it is called."""
        settings: type[Settings] = self.settings
        own = inspect.signature(function)
        *leading, last = own.parameters.values()
        fields = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=field.annotation,
            )
            for name, field in settings.model_fields.items()
        ]
        signature = own.replace(parameters=[*leading, *fields])

        @functools.wraps(function)
        def called(*arguments: Any, **given: Any) -> R:
            if len(arguments) > len(leading) and isinstance(arguments[len(leading)], settings):
                return function(*arguments, **given)
            today = respelled(given, settings.OLD)
            for name in today:
                if name not in signature.parameters:
                    raise TypeError(f"got an unexpected keyword argument {_hint(settings, name)}")
            bound = signature.bind(*arguments, **today).arguments
            before = [bound.pop(parameter.name) for parameter in leading]
            return function(*before, settings.checked(bound))

        told = [kind for kind in settings.__mro__ if issubclass(kind, Settings)]
        texts = [inspect.getdoc(each) or "" for each in (function, *told[:-1])]
        called.__doc__ = "\n\n".join(texts)
        called.__dict__["__signature__"] = signature
        called.__annotations__ = {
            name: kind for name, kind in function.__annotations__.items() if name != last.name
        } | {name: _kind(field) for name, field in settings.model_fields.items()}
        return called


def _hint(settings: type[Settings], name: str) -> str:
    """Return a name that is no setting, and what to write in its place where that can be told."""
    for field, kind in settings.WITHIN.items():
        if name in kind.model_fields:
            return f"{name!r}: write {field}={{{name!r}: ...}}"
    near = difflib.get_close_matches(name, settings.model_fields, n=1)
    return f"{name!r}" + (f": did you mean {near[0]!r}?" if near else "")


def _kind(field: Any) -> Any:
    """Return the type of a field, with what is checked of its value."""
    return field.rebuild_annotation() if field.metadata else field.annotation
