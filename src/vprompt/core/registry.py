"""Registry: plug-ins are files, their keyword-only parameters are their settings.

`find("transfer", "hgprompt")` is the function in `transfer/hgprompt.py`; a spec such as
`hgprompt(score=trace_ratio, lambda_=0.5)` is the same string on the command line, in a recipe
file and in a table. Other packages add plug-ins through entry points of the group
`vprompt.<kind>`.
"""

import ast
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import keyword
import pkgutil
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.core.renaming import respelled

VERBS = {
    "backbones": "load",
    "tasks": "load",
    "adapters": "build",
    "transfer": "weigh",
    "metrics": "score",
}
# Settings of an earlier release with their names of today, understood with a warning.
OLD = {"tasks": {"seed": "split_seed"}}
_SPEC = re.compile(r"^\s*(?P<name>[A-Za-z_][\w-]*)\s*(?:\((?P<settings>.*)\))?\s*$", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A plug-in's name and the settings a person gave for it."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the canonical text, settings sorted; `parse` reads it back."""
        if not self.settings:
            return self.name
        inside = ", ".join(f"{key}={_write(self.settings[key])}" for key in sorted(self.settings))
        return f"{self.name}({inside})"


def names(kind: str) -> list[str]:
    """Return the names of all plug-ins of a kind, sorted; imports none of them."""
    package = importlib.import_module(f"vprompt.{_check_kind(kind)}")
    files = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(files | {entry.name for entry in installed(kind)})


def find(kind: str, name: str) -> Callable[..., Any]:
    """Return the plug-in's function; an unknown name is answered with the nearest known ones."""
    known = names(kind)
    name = next((each for each in known if each.replace("-", "_") == name.replace("-", "_")), name)
    if name not in known:
        raise VPromptError(f"No {_singular(kind)} called {name!r}.{suggest(name, known)}")
    for entry in installed(kind):
        if entry.name == name:
            return entry.load()
    module = importlib.import_module(f"vprompt.{kind}.{name}")
    return getattr(module, VERBS[kind])


def settings(kind: str, name: str) -> dict[str, Any]:
    """Return the settings of a plug-in with their defaults (`inspect.Parameter.empty`: required).

    A keyword-only parameter is a setting, except `generator`, which is the caller's.
    """
    parameters = inspect.signature(find(kind, name)).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "generator"
    }


def complete(kind: str, text: str) -> dict[str, Any]:
    """Return all settings that a spec stands for, defaults included, for the record of a run."""
    spec = parse(text)
    build(kind, spec)  # refuses unknown settings
    return {**settings(kind, spec.name), **spec.settings}


def signature(kind: str, name: str) -> str:
    """Return the settings as a person types them: `(score=hscore, shrinkage=...)`."""
    shown = [
        f"{key}={'...' if value is inspect.Parameter.empty else _write(value)}"
        for key, value in settings(kind, name).items()
    ]
    return f"({', '.join(shown)})"


def is_spec(text: str) -> bool:
    """Say whether a text gives settings: `name(...)`."""
    return text.rstrip().endswith(")") and "(" in text


def parse(text: str) -> Spec:
    """Read `name(key=value, ...)`; values are Python literals or bare words."""
    match = _SPEC.match(text)
    if match is None:
        raise VPromptError(
            f"Cannot read {text!r}. Write a name and its settings: `name(key=value, other=value)`."
        )
    inside = match["settings"]
    if inside is None or not inside.strip():
        return Spec(match["name"].replace("-", "_"))
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
    except SyntaxError as error:
        raise VPromptError(
            f"Cannot read the settings of {text!r}: {error.msg}. Write `name(key=value)`, and put "
            "quotes around values that hold commas, spaces or slashes."
        ) from None
    plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "f"
    if not isinstance(call, ast.Call) or not plain:
        raise VPromptError(
            f"Cannot read {text!r}. Write one name and its settings: `name(key=value)`."
        )
    if call.args or any(pair.arg is None for pair in call.keywords):
        raise VPromptError(
            f"Every setting in {text!r} needs its name: `{match['name']}(key=value)`."
        )
    pairs = {str(pair.arg): _value(pair.value, text) for pair in call.keywords}
    for key, value in pairs.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise VPromptError(f"{key} of {match['name']!r} is a number of more than 64 bits.")
    if len(pairs) < len(call.keywords):
        raise VPromptError(f"A setting in {text!r} is given twice.")
    return Spec(match["name"].replace("-", "_"), pairs)


def build(kind: str, spec: str | Spec) -> Callable[..., Any]:
    """Return the plug-in's function with its settings bound; unknown settings are errors."""
    spec = parse(spec) if isinstance(spec, str) else spec
    function = find(kind, spec.name)
    known = settings(kind, spec.name)
    old = {was: now for was, now in OLD.get(kind, {}).items() if was not in known and now in known}
    spec = Spec(spec.name, respelled(spec.settings, old))
    for key in spec.settings:
        if key not in known:
            listing = ", ".join(f"{k}={v!r}" for k, v in known.items()) or "no settings"
            raise VPromptError(
                f"{spec.name} has no setting {key!r}.{suggest(key, known, listed=False)} "
                f"It has: {listing}."
            )
    checked = {key: _check_type(spec, key, function) for key in spec.settings}
    return functools.partial(function, **checked)


def beside(kind: str, spec: str | Spec, name: str) -> Callable[..., Any] | None:
    """Return another function of a plug-in's file, with the same settings bound, if it has one."""
    spec = parse(spec) if isinstance(spec, str) else spec
    settings = build(kind, spec).keywords  # type: ignore[attr-defined]  # a partial, always
    module = importlib.import_module(find(kind, spec.name).__module__)
    function = getattr(module, name, None)
    return None if function is None else functools.partial(function, **settings)


def installed(kind: str) -> list[importlib.metadata.EntryPoint]:
    """Return what other packages bring of a kind, their entry points of `vprompt.<kind>`."""
    return _installed(importlib.metadata.entry_points, kind)


def require(kind: str, spec: Spec) -> None:
    """Raise VPromptError unless every setting without a default was given."""
    for key, default in settings(kind, spec.name).items():
        if default is inspect.Parameter.empty and key not in spec.settings:
            raise VPromptError(
                f"{spec.name} needs the setting {key!r}: write `{spec.name}({key}=...)`, with "
                "quotes around a path."
            )


def reference(kind: str, name: str) -> str | None:
    """Return the `Reference:` line of the plug-in's module, the paper behind it."""
    module = importlib.import_module(find(kind, name).__module__)
    match = re.search(r"^Reference:\s*(.+?)(?:\n\s*\n|\Z)", module.__doc__ or "", re.M | re.S)
    return " ".join(match[1].split()) if match else None


def summary(kind: str, name: str) -> str:
    """Return the first sentence of the plug-in's module, what it is."""
    module = importlib.import_module(find(kind, name).__module__)
    return (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def entries(kind: str) -> list[dict[str, str | None]]:
    """Return what `vprompt list` shows of every plug-in of a kind."""
    return [
        {
            "kind": kind,
            "name": name,
            "settings": signature(kind, name),
            "summary": summary(kind, name),
            "reference": reference(kind, name),
        }
        for name in names(kind)
    ]


def suggest(word: str, known: Iterable[str], *, listed: bool = True) -> str:
    """Return ` Did you mean 'x'?` where a known word is near, and the list of all."""
    known = sorted(known)
    plain = {_plain(each): each for each in reversed(known)}
    near = difflib.get_close_matches(_plain(word), plain, n=1)
    text = f" Did you mean {plain[near[0]]!r}?" if near else ""
    return text + (f" There are: {', '.join(known)}." if listed else "")


def _plain(word: str) -> str:
    """Return a name without what programs spell differently: case, hyphens, underscores."""
    return word.lower().replace("-", "").replace("_", "")


def _check_type(spec: Spec, key: str, function: Callable[..., Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    wanted = typing.get_type_hints(function)[key]
    try:
        return TypeAdapter(wanted).validate_python(spec.settings[key])
    except ValidationError as error:
        name = getattr(wanted, "__name__", None) if not typing.get_args(wanted) else None
        raise VPromptError(
            f"{spec.name} takes {key} as {name or wanted}, but got {spec.settings[key]!r}: "
            f"{error.errors()[0]['msg'].lower()}."
        ) from None


def _check_kind(kind: str) -> str:
    if kind not in VERBS:
        raise VPromptError(f"No kind of plug-in called {kind!r}.{suggest(kind, VERBS)}")
    return kind


@functools.cache
def _installed(
    read: Callable[..., Iterable[importlib.metadata.EntryPoint]], kind: str
) -> list[importlib.metadata.EntryPoint]:
    # Reading what is installed takes milliseconds, and a benchmark looks plug-ins up a thousand
    # times.
    return list(read(group=f"vprompt.{kind}"))


def _singular(kind: str) -> str:
    return {"transfer": "transfer method", "adapters": "method"}.get(kind, kind.removesuffix("s"))


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise VPromptError(
            f"Cannot read the value {ast.unparse(node)!r} in {text!r}. Put quotes around it."
        ) from None


def _write(value: Any) -> str:
    bare = isinstance(value, str) and value.isascii() and value.isidentifier()
    return value if bare and not keyword.iskeyword(value) else repr(value)
