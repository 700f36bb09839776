"""Errors: the one class for mistakes of the caller, and two warnings; loads nothing heavy."""


class VPromptError(ValueError):
    """A mistake of the caller: says what it got, what it needed, and what to type next."""


class CacheWarning(UserWarning):
    """The cache cannot be written: the run goes on, and nothing is kept for the next."""


class Renamed(DeprecationWarning):
    """A name of an earlier release was used: it is understood until the next."""
