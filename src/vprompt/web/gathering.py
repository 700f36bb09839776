"""Gathering: images of many requests become batches, in a few threads that share the model.

A batch holds images of one layout of prompts, so that an image has one answer whatever else is
asked for; prompts of many artefacts share it. While a batch is computed the next one gathers, so an
image waits for others only while nothing is computed.

On a CPU two batches are computed at once, each on half of the threads. Requests are read and
decoded on the same cores, and whenever that takes a core from one thread of a batch, the batch's
other threads wait for it; the fewer threads a batch has, the less is lost.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vprompt.core.errors import VPromptError
from vprompt.core.threads import Shares
from vprompt.inference.answers import Answered, answered
from vprompt.inference.serving import PromptServer
from vprompt.web.limits import Limits, Refused


@dataclass(frozen=True)
class Answer:
    """What an artefact says of one image."""

    artifact: str
    said: Answered

    def to_json(self) -> dict[str, Any]:
        """Return plain values: a label with probabilities, several labels, or a number."""
        return {"artifact": self.artifact, **self.said.to_json()}


@dataclass(eq=False)
class Job:
    """One image that waits."""

    pixels: NDArray[np.uint8]
    name: str
    future: "Future[Answer]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Gatherer:
    """Takes images in, answers through futures; `observe` is told of every batch."""

    def __init__(
        self,
        server: Callable[[], PromptServer],
        limits: Limits,
        *,
        precision: str = "auto",
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.server, self.limits, self.precision, self.observe = server, limits, precision, observe
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        shares = Shares(_workers(server().backbone.device))
        self._threads = [
            threading.Thread(
                target=self._work, args=(shares,), name=f"vprompt-batches-{row}", daemon=True
            )
            for row in range(shares.threads)
        ]
        for thread in self._threads:
            thread.start()
        shares.settle()

    def __len__(self) -> int:
        """Count the images that wait."""
        return len(self._waiting)

    def submit(self, pixels: NDArray[np.uint8], name: str) -> "Future[Answer]":
        """Queue one image; raises Refused where the queue is full or closed."""
        job = Job(pixels, name)
        with self._changed:
            if self._closed:
                raise Refused(503, "The server is stopping.", retry_after=1)
            if len(self._waiting) >= self.limits.queue:
                raise Refused(
                    429, f"{self.limits.queue} images wait already. Try again.", retry_after=1
                )
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Answer what waits, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, shares: Shares) -> None:
        shares.take()
        while batch := self._next():
            began = time.monotonic()
            try:
                answers: Sequence[Any] = self._answers(batch)
            except Exception as error:  # the thread has to go on whatever one batch does
                answers = [error] * len(batch)
            # Told before the answers are: whoever has one finds it counted.
            self.observe(len(batch), time.monotonic() - began)
            for job, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)

    def _next(self) -> list[Job]:
        """Return the next batch; nothing once all is answered and the gatherer is closed."""
        idle_since = time.monotonic()
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                # Also where the oldest has waited for a batch before it: whoever had an answer
                # from that batch is about to ask again.
                until = max(self._waiting[0].arrived, idle_since) + self.limits.latency_ms / 1000
                left = until - time.monotonic()
                if left > 0 and len(self._waiting) < self.limits.batch_size and not self._closed:
                    self._changed.wait(left)
                    continue
                # One that was cancelled has nobody to answer to.
                batch = [job for job in self._take() if job.future.set_running_or_notify_cancel()]
                if batch:
                    return batch

    def _take(self) -> list[Job]:
        """Take the oldest image out of the queue, and those that may share its batch."""
        server = self.server()
        layouts = {name: _layout(server, name) for name in {job.name for job in self._waiting}}
        wanted = layouts[self._waiting[0].name]
        batch: list[Job] = []
        left: deque[Job] = deque()
        for job in self._waiting:
            fits = layouts[job.name] == wanted and len(batch) < self.limits.batch_size
            (batch if fits else left).append(job)
        self._waiting = left
        return batch

    def _answers(self, batch: Sequence[Job]) -> list[Answer | Refused]:
        server = self.server()
        there = [job for job in batch if job.name in server.artifacts]
        found: dict[int, Answer] = {}
        if there:
            # Those of one artefact stand together, as `predict` has them.
            there.sort(key=lambda job: job.name)
            pixels = torch.from_numpy(np.stack([job.pixels for job in there]))
            images = server.backbone.normalise(pixels.to(server.backbone.device))
            names = [job.name for job in there]
            logits = server.logits(images, names, precision=self.precision)
            for job, each in zip(there, logits, strict=True):
                made = server.artifacts[job.name]
                outputs = each if made.head.numbers else made.head.probabilities(each)
                found[id(job)] = Answer(
                    job.name, answered(made.head, made.classes, outputs.tolist())
                )
        gone = "The artefact {!r} was removed while the image waited."
        return [found.get(id(job)) or Refused(404, gone.format(job.name)) for job in batch]


def _workers(device: torch.device) -> int:
    """Return how many batches are computed at once."""
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 else 1


def _layout(server: PromptServer, name: str) -> str:
    if name not in server.artifacts:
        return ""
    try:
        return server.layout(name)
    except VPromptError:
        return ""
