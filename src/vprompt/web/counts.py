"""Counts: what Prometheus asks of a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counts:
    """Counters of one server; two in one process do not share any."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "vprompt_requests", "Requests to /predict.", ["status"], registry=own
        )
        self.images = Counter(
            "vprompt_images", "Images by artefact and status.", ["artifact", "status"], registry=own
        )
        self.seconds = Histogram(
            "vprompt_request_seconds", "Time of a request.", buckets=_SECONDS, registry=own
        )
        self.batch = Histogram(
            "vprompt_batch_images", "Images in a batch.", buckets=_BATCHES, registry=own
        )
        self.forward = Histogram(
            "vprompt_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=own
        )
        self.waiting = Gauge("vprompt_waiting_images", "Images that wait.", registry=own)
        self.artifacts = Gauge("vprompt_artifacts", "Artefacts that are served.", registry=own)
        self.problems = Gauge("vprompt_artifact_problems", "Folders with a problem.", registry=own)

    def batched(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch.observe(images)
        self.forward.observe(seconds)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)
