"""Checks of annotations that cost a suite less: made at the first call, once for equal closures.

`--jaxtyping-packages` puts `jaxtyping.jaxtyped` around every function and dataclass. Left alone, it
makes two checks of each as a module is read, whether it is ever called or not, and again for every
closure; and at every call it binds the arguments and checks them twice. What stands here in its
place makes one check of the arguments and one of what is returned, when a function is first called.
Every call is held to the same annotations, and an axis has one length within a call, as before.

The import hook gives the bytecode of what it reads a name of its own, and it does so until a module
has been executed, whatever that imports: torch, timm and a thousand modules more were compiled anew
in every process. Here that name is in use only while the code of a module is looked for.

The name of this module begins like that of what it stands for: `Task` looks through such frames.
"""

import dataclasses
import functools
import inspect
import typing
from importlib.machinery import SourceFileLoader
from unittest.mock import patch

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import _import_hook

_jaxtyped = jaxtyping.jaxtyped
_made = {}  # by the identity of a code: the code, the annotations of its function, the checks


def install():
    """Let all that is read from here on be checked in this way."""
    jaxtyping.jaxtyped = lambda typechecker: checked
    _import_hook._JaxtypingLoader.get_code = _code
    _import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module


def _code(loader, name):
    """Return the code of a module, whose bytecode is kept under the name that the hook gives it."""
    named = functools.partial(
        _import_hook._optimized_cache_from_source, loader._typechecker.get_hash()
    )
    with patch("importlib._bootstrap_external.cache_from_source", named):
        return SourceFileLoader.get_code(loader, name)


def checked(thing):
    """Put checks around a function, or around the making of a dataclass."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = checked(thing.__init__)
        return thing
    if not thing.__annotations__ or hasattr(thing, "is_checked"):
        return thing
    checks = None

    @functools.wraps(thing)
    def called(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal checks
        if checks is None:
            checks = _checks_of(thing)
        if not checks.axes:
            return checks.run(thing, args, kwargs)
        with _jaxtyped("context"):
            return checks.run(thing, args, kwargs)

    called.is_checked = True
    return called


def _checks_of(function):
    """Make the checks of a function, or take those of another closure of the same code."""
    code = function.__code__
    _, annotations, checks = _made.get(id(code), (None, None, None))
    if annotations != function.__annotations__:
        annotations = dict(function.__annotations__)
        checks = _make(
            function, {name: _read(function, hint) for name, hint in annotations.items()}
        )
        _made[id(code)] = (code, annotations, checks)
    return checks


def _read(function, hint):
    """Read an annotation that is text; one that only type checkers can read allows anything."""

    def only(value: hint):
        del value

    try:
        return typing.get_type_hints(only, function.__globals__, include_extras=True)["value"]
    except Exception:
        return typing.Any


class _Checks:
    """Two stubs that beartype has put its checks into: of the arguments, of what is returned."""

    def __init__(self, arguments, returned, axes):
        self.arguments, self.returned, self.axes = beartype(arguments), beartype(returned), axes

    def run(self, function, args, kwargs):
        """Call a function between its checks."""
        __tracebackhide__ = True
        try:
            self.arguments(*args, **kwargs)
        except BeartypeCallHintViolation as wrong:
            raise jaxtyping.TypeCheckError(str(wrong)) from None
        out = function(*args, **kwargs)
        try:
            return self.returned(out)
        except BeartypeCallHintViolation as wrong:
            raise jaxtyping.TypeCheckError(str(wrong)) from None


def _make(function, hints):
    """Make the checks of a function from its annotations, read."""
    signature = inspect.signature(function)
    bare = [
        each.replace(
            annotation=each.empty, default=each.empty if each.default is each.empty else None
        )
        for each in signature.parameters.values()
    ]
    written = {}
    exec(f"def {function.__name__}{inspect.Signature(bare)}: pass", written)
    arguments = written[function.__name__]
    arguments.__defaults__, arguments.__kwdefaults__ = (
        function.__defaults__,
        function.__kwdefaults__,
    )

    def returned(out):
        return out

    for check in (arguments, returned):
        check.__module__, check.__qualname__ = function.__module__, function.__qualname__
    arguments.__annotations__ = {name: hint for name, hint in hints.items() if name != "return"}
    returned.__annotations__ = {name: hint for name, hint in hints.items() if name == "return"}
    return _Checks(arguments, returned, any(map(_names_axes, hints.values())))


def _names_axes(hint):
    """Say whether an annotation is an array's, or holds one."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(_names_axes, parts))
