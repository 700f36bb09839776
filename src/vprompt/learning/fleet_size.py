"""Fleet size: how many trainings of one frozen network advance together, and whether they fit."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vprompt.core import distributed, fleet
from vprompt.core.errors import VPromptError
from vprompt.core.precision import autocast
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter
from vprompt.learning.train_config import TrainConfig

# Images in one pass from which on more of them make it no faster.
_ENOUGH = {"cpu": 128, "cuda": 2048}
_SHARE = 0.8  # of the free memory that a fleet may take
_TRIAL = 4  # images
_GROUPS = (  # what a container may use, and does
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def width(
    asked: str | int,
    build: Callable[[], Adapter],
    train: Examples,
    points: Sequence[TrainConfig],
) -> int:
    """Return how many trainings at these settings are in one pass; 1 where they do not share.

    Raises VPromptError where more are asked for than there is memory for.
    """
    fleet.checked(asked)
    members, config = len(points), max(points, key=lambda config: config.batch_size)
    if asked == fleet.OFF or members < 2 or distributed.size() > 1:
        return 1
    adapter = build()
    if not adapter.shares_passes:
        return 1
    device, batch = adapter.backbone.device, min(config.batch_size, len(train))
    wanted = min(members, int(asked) if asked != fleet.AUTO else enough(batch, device))
    free = free_bytes(device)
    if free is None or wanted < 2:
        return wanted
    own = batch * bytes_per_image(adapter, train, config)
    most = max(1, int(_SHARE * free // max(own, 1)))
    if wanted <= most:
        return wanted
    if asked == fleet.AUTO:
        return most
    raise VPromptError(
        f"A fleet of {wanted} at batch size {batch} keeps about {wanted * own / 1e9:.1f} GB for "
        f"its backward pass, and {free / 1e9:.1f} GB are free. The largest that fits is {most}: "
        f"--fleet {most}, or --fleet auto."
    )


def enough(batch: int, device: torch.device) -> int:
    """Return how many batches of a size keep a device busy."""
    return max(1, -(-_ENOUGH.get(device.type, _ENOUGH["cuda"]) // batch))


def bytes_per_image(adapter: Adapter, train: Examples, config: TrainConfig) -> float:
    """Return what a forward pass keeps of an image for the backward one."""
    inputs, _ = next(train.batches(min(_TRIAL, len(train))))
    own = {p.untyped_storage().data_ptr() for p in adapter.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = adapter.backbone.ready(inputs)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(config.precision, adapter.backbone.device):
        features = adapter.features(images)  # type: ignore[arg-type]
        # Held until here, so that addresses stay apart.
        needed = sum(kept.values()) / len(images)
    del features
    return needed


def free_bytes(device: torch.device) -> float | None:
    """Return the memory that is free on a device; None where it cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024.0 * int(next(s for s in lines if "MemAvailable" in s).split()[1]))
    for limit, used in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
            found.append(float(int(Path(limit).read_text()) - int(Path(used).read_text())))
    return min(found, default=None)
