"""Limits: how much a server takes before it says no."""

from dataclasses import dataclass

from vprompt.core.errors import VPromptError


@dataclass(frozen=True)
class Limits:
    """`body_mib` and `megapixels` bound one request and one image, `queue` the images that wait.

    A batch has at most `batch_size` images; one image waits at most `latency_ms` for others. A
    request that takes longer than `seconds` is given up.
    """

    body_mib: float = 32.0
    megapixels: float = 50.0
    queue: int = 256
    seconds: float = 30.0
    batch_size: int = 64
    latency_ms: float = 5.0

    def __post_init__(self) -> None:
        """Check that every limit lets something through."""
        for name, value in vars(self).items():
            if not value > 0 and not (name == "latency_ms" and value == 0):
                option = name.replace("_", "-")
                raise VPromptError(f"--{option} is a number above 0, but got {value}.")


class Refused(Exception):
    """What one image or request is answered with in place of a prediction."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
