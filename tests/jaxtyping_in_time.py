"""Checks of annotations that cost a suite less: made at the first call, once for equal closures.

`--jaxtyping-packages` puts `jaxtyping.jaxtyped` around every function and dataclass. Left alone, it
makes two checks of each as a module is read, whether it is ever called or not, and again for every
closure; and at every call it binds the arguments and checks them twice. What stands here in its
place makes one check of the arguments and one of what is returned, when a function is first called.
Every call is held to the same annotations, and an axis has one length within a call, as before.

The name of this module begins like that of what it stands for: `Task` looks through such frames.
"""

import contextlib
import dataclasses
import functools
import inspect
import typing

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

NOTHING = contextlib.nullcontext()
_made = {}  # by the identity of a code: the code, the annotations of its function, the checks


def install():
    """Let all that is read from here on be checked in this way."""
    jaxtyping.jaxtyped = lambda typechecker: checked


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
        check_arguments, check_returned, axes = checks
        with axes():
            try:
                check_arguments(*args, **kwargs)
            except BeartypeCallHintViolation as wrong:
                raise jaxtyping.TypeCheckError(str(wrong)) from None
            out = thing(*args, **kwargs)
            try:
                return check_returned(out)
            except BeartypeCallHintViolation as wrong:
                raise jaxtyping.TypeCheckError(str(wrong)) from None

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


def _make(function, hints):
    """Return a check of the arguments, one of what is returned, and a context for the axes."""
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
    axes = any(map(_names_axes, hints.values()))
    context = functools.partial(_jaxtyped, "context") if axes else (lambda: NOTHING)
    return beartype(arguments), beartype(returned), context


_jaxtyped = jaxtyping.jaxtyped


def _names_axes(hint):
    """Say whether an annotation is an array's, or holds one."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(_names_axes, parts))
