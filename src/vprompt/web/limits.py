"""Limits: what a server can be told, how much it takes before it says no, and how it says that.

The command line reads this, so it imports neither torch nor the extra `serve`.
"""

from typing import Annotated

from vprompt.core.errors import VPromptError
from vprompt.core.settings import WHAT, Flag, Settings
from vprompt.verbs import ArtifactModel, Device, Force, Precision


class Limits(Settings):
    """`body_mib` and `megapixels` bound one request and one image, `queue` the images that wait.

    A batch has at most `batch_size` images. Once there is an image and the model is free, it waits
    at most `latency_ms` for others. A request that takes longer than `seconds` is given up.
    """

    body_mib: Annotated[float, Flag("Largest request, MiB.")] = 32.0
    megapixels: Annotated[float, Flag("Largest image, millions of pixels.")] = 50.0
    queue: Annotated[int, Flag("Images that may wait; more are answered 429.")] = 256
    seconds: Annotated[float, Flag("Longest time of one request.")] = 30.0
    batch_size: Annotated[int, Flag("Most images in a batch.")] = 64
    latency_ms: Annotated[float, Flag("How long an image may wait for others.")] = 5.0

    def model_post_init(self, context: object) -> None:
        """Check that every limit lets something through."""
        del context
        for name in Limits.model_fields:
            value = getattr(self, name)
            if not value > 0 and not (name == "latency_ms" and value == 0):
                option = name.replace("_", "-")
                raise VPromptError(f"--{option} is a number above 0, but got {value}.")


class PageSettings(Settings):
    """What `vprompt ui` can be told: where it listens, and what it labels images with."""

    host: Annotated[str, Flag("Address to listen at; 0.0.0.0 lets other machines in.", WHAT)] = (
        "127.0.0.1"
    )
    port: Annotated[int, Flag("Port to listen at; 0 for any that is free.", WHAT)] = 8000
    model: ArtifactModel = None
    device: Device = "auto"
    precision: Precision = "auto"
    force: Force = False


class ServeSettings(PageSettings, Limits):
    """What `vprompt serve` can be told."""

    watch_seconds: Annotated[float, Flag("How often folders are looked at for changes.")] = 2.0


class Refused(Exception):
    """What one image or request is answered with in place of a prediction."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
