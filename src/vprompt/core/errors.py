"""Errors: the one class for mistakes of the caller, and one warning; loads nothing heavy."""


class VPromptError(ValueError):
    """A mistake of the caller: says what it got, what it needed, and what to type next."""


class CacheWarning(UserWarning):
    """The cache cannot be written: the run goes on, and nothing is kept for the next."""
