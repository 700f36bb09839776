"""Errors: the one class for mistakes of the caller; importing it loads nothing heavy."""


class VPromptError(ValueError):
    """A mistake of the caller: says what it got, what it needed, and what to type next."""
