"""Stopping: a training run that is interrupted after so many steps."""

import contextlib


class StopAfter:
    """A Progress that raises KeyboardInterrupt after so many steps of tuning, as Ctrl-C would."""

    def __init__(self, steps):
        self.left = steps

    @contextlib.contextmanager
    def step(self, description, total):
        self.counting = description == "tune"
        yield self

    def advance(self, amount=1, note=""):
        self.left -= amount * self.counting
        if self.left < 0:
            raise KeyboardInterrupt

    def say(self, text):
        pass
