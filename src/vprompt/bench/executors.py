"""Executors: where the calls of a benchmark happen: here, in processes of this machine, or on Ray.

An executor is given all calls at once, each with the keys of those that it needs, and yields what
comes back in whatever order it does. Leaving the loop, also by an error or Ctrl-C, stops the calls
that are under way: its own processes by their id, its own tasks by their reference, nothing else.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.bench.calls import (
    RETRIES,
    Answers,
    Call,
    Executor,
    Lost,
    available_cpus,
    silent,
    use_threads,
)
from vprompt.bench.processes import Processes
from vprompt.core import threads
from vprompt.core.errors import VPromptError

NAMES = ("local", "processes", "ray")


def build(
    name: str,
    *,
    workers: int | None = None,
    num_cpus: int | None = None,
    num_gpus: float | None = None,
    address: str | None = None,
) -> Executor:
    """Return an executor by name; a setting that it does not have is refused.

    `workers` is how many calls run at once on this machine; a cluster decides that itself.
    `num_cpus` are the threads of each call and `num_gpus` its share of a GPU.
    """
    if name not in NAMES:
        raise VPromptError(f"No executor called {name!r}. There are: {', '.join(NAMES)}.")
    for key, value, least in (
        ("workers", workers, 1),
        ("num-cpus", num_cpus, 1),
        ("num-gpus", num_gpus, 0),
    ):
        if value is not None and name == "local":
            raise VPromptError(f"--{key} is for --executor processes or ray.")
        if value is not None and value < least:
            raise VPromptError(f"--{key} is at least {least}, but got {value}.")
    if address is not None and name != "ray":
        raise VPromptError("--address is for --executor ray.")
    if name == "local":
        return Local()
    if name == "processes":
        return Processes(workers, num_cpus, num_gpus)
    return Ray(workers, num_cpus or 1, num_gpus, address)


@dataclass(frozen=True)
class Local:
    """One call after the other, in this process."""

    parallel = False

    def run(self, calls: Sequence[Call], started: Callable[[str], None] = silent) -> Answers:
        """Yield the answers in the given order."""
        answers: dict[str, Any] = {}
        for call in calls:
            started(call.key)
            answers[call.key] = call.run(*call.arguments, *(answers[need] for need in call.needs))
            yield call.key, answers[call.key]


@dataclass(frozen=True)
class Ray:
    """Tasks on a Ray cluster, or without an address on one that is started here and ended again.

    Answers are object references: Ray begins a task once those that it needs are there, and brings
    their answers to its host. Tasks of a host that died are tried again on others.
    """

    workers: int | None = None
    num_cpus: int = 1
    num_gpus: float | None = None
    address: str | None = None
    retries: int = RETRIES
    parallel = True

    def run(self, calls: Sequence[Call], started: Callable[[str], None] = silent) -> Answers:
        """Yield answers as they come."""
        del started  # the cluster does not tell
        ray, address = _import_ray(), self.address or os.environ.get("RAY_ADDRESS")
        with self._connected(ray, address):
            gpus = self._gpus(ray)
            task, options = ray.remote(_attend), {"num_cpus": self.num_cpus, "num_gpus": gpus}
            # A worker loads torch with its arguments, before any line of ours: what its threads
            # read goes before.
            environment = {"env_vars": {**threads.quiet(os.environ), **_threads(self.num_cpus)}}
            here = os.getcwd(), os.environ.get("VPROMPT_CACHE")
            references: dict[str, Any] = {}
            for call in calls:
                needed = [references[need] for need in call.needs]
                named = task.options(
                    name=call.key, max_retries=self.retries, runtime_env=environment, **options
                )
                references[call.key] = named.remote(
                    call.run, here, self.num_cpus, call.arguments, *needed
                )
            keys = {reference: key for key, reference in references.items()}
            left = list(references.values())
            try:
                while left:
                    try:
                        [done], left = ray.wait(left, num_returns=1)
                    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
                        # The head is gone, and with it everything that was under way.
                        lost, left = left, []
                        for each in lost:
                            yield keys[each], Lost(f"the cluster is gone: {_told(error)}")
                        break
                    try:
                        answer = ray.get(done)
                    except ray.exceptions.RayError as error:
                        answer = Lost(_told(error))
                    yield keys[done], answer
            finally:
                for reference in left:
                    with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
                        ray.cancel(reference, force=True)

    @contextlib.contextmanager
    def _connected(self, ray: Any, address: str | None) -> Iterator[None]:
        if ray.is_initialized():  # whoever connected also disconnects
            yield
            return
        if address == "auto":
            raise VPromptError(
                "--address auto would join any cluster of this host, perhaps another person's. "
                "Give the host and port, such as 10.0.0.1:6379."
            )
        if address is not None and self.workers is not None:
            raise VPromptError("--workers is for this machine; a cluster's size is its own.")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            cpus = (self.workers or max(1, available_cpus() // self.num_cpus)) * self.num_cpus
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise VPromptError(
                    f"No Ray cluster answers at {address} ({_told(error)}). Start one: `ray "
                    "start --head --port=6379`."
                ) from None
        try:
            yield
        finally:
            ray.shutdown()  # ends what was started here, and else only disconnects

    def _gpus(self, ray: Any) -> float:
        """Return the GPUs of a task, and refuse what no host has: it would wait forever."""
        hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max(host.get("GPU", 0.0) for host in hosts)
        gpus = min(1.0, most) if self.num_gpus is None else self.num_gpus
        fits = (h.get("CPU", 0.0) >= self.num_cpus and h.get("GPU", 0.0) >= gpus for h in hosts)
        if not any(fits):
            raise VPromptError(
                f"No host of the cluster has {self.num_cpus} CPUs and {gpus:g} GPUs for one run. "
                "Use a smaller --num-cpus or --num-gpus."
            )
        return gpus


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count)}


def _attend(
    run: Callable[..., Any],
    place: tuple[str, str | None],
    threads: int,
    arguments: tuple[Any, ...],
    *answers: Any,
) -> Any:
    """Run a call on a host of the cluster, in the folder and with the cache of who asks."""
    folder, cache = place
    with contextlib.suppress(FileNotFoundError):  # matters to relative paths alone
        os.chdir(folder)
    if cache is not None:
        os.environ["VPROMPT_CACHE"] = str(Path(folder) / cache)
    use_threads(threads)
    return run(*arguments, *answers)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise VPromptError(
            "--executor ray needs Ray. Install it: `pip install 'vprompt[ray]'`."
        ) from None


def _told(error: Exception) -> str:
    """Return what matters of Ray's errors: of a remote traceback its end, else the first line."""
    lines = str(error).strip().splitlines() or ["no message"]
    remote = type(error).__name__.startswith("RayTaskError")
    return lines[-1].strip() if remote else f"{type(error).__name__}: {lines[0].strip()}"
