"""Distributed: one run that several processes, started by `torchrun`, go through together.

Each holds the whole model and takes the same steps. Of every batch it computes its own part; the
gradients are added up with the parts' shares, so that a step is that of the whole batch, up to
rounding. Features are computed batch by batch, each by one of them. In one process nothing differs.

The functions are called by all processes, in the same order, or by none.
"""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as group

from vprompt.core.errors import VPromptError

_ASKED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def asked() -> bool:
    """Say whether this process is one of several that torchrun started."""
    return all(name in os.environ for name in _ASKED) and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def joined(timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Join the other processes for the block, by gloo on CPU and NCCL on GPUs; alone, do nothing.

    Each process takes the GPU of its local rank.
    """
    if not asked() or group.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group.init_process_group(backend, timeout=timeout)
    try:
        yield
    finally:
        group.destroy_process_group()


def size() -> int:
    """Return the number of processes of the run."""
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return group.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Say whether this process is the one that prints and writes results."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this process on its host, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0


@contextlib.contextmanager
def one_at_first() -> Iterator[None]:
    """Let the first process of every host go through the block before the others do."""
    if size() > 1 and local_rank():
        group.barrier()
    yield
    if size() > 1 and not local_rank():
        group.barrier()


def part(rows: Tensor) -> tuple[Tensor, float]:
    """Return this process's part of a batch, and which share of the batch that is.

    A process for which nothing is left computes one row, and its share is 0.
    """
    own = rows.tensor_split(size())[rank()]
    return (own, len(own) / len(rows)) if len(own) else (rows[:1], 0.0)


def own_rows(count: int, batch_size: int) -> Tensor:
    """Return the rows of those batches that this process computes; the last may be empty."""
    mine = torch.arange(count).split(batch_size)[rank() :: size()]
    return torch.cat(mine) if mine else torch.arange(0)


def assemble(values: Sequence[Tensor], rows: Tensor, count: int, width: int) -> Tensor:
    """Return `[count, width]`, fp32, of the batches that all processes computed of their rows."""
    if size() == 1:
        return torch.cat(list(values))
    whole = torch.zeros(count, width)
    if values:
        whole[rows] = torch.cat(list(values))
    group.all_reduce(whole)
    return whole


def all_have(found: bool) -> bool:
    """Say whether every process has found something, such as a file of its own host's cache."""
    if size() == 1:
        return found
    missing = torch.tensor([0 if found else 1])
    group.all_reduce(missing)
    return not int(missing)


def add_up(value: Tensor, parameters: Iterable[Tensor]) -> float:
    """Add up the gradients of all processes in place, and return the sum of a single value."""
    if size() == 1:
        return value.item()
    trained = list(parameters)
    kind = functools.reduce(torch.promote_types, (p.dtype for p in trained), torch.float32)
    device = trained[0].device
    there = torch.tensor([p.grad is not None for p in trained], dtype=kind, device=device)
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in trained)
    packed = [value.detach().reshape(1).to(device, kind), there]
    packed += [each.reshape(-1).to(device, kind) for each in gradients]
    total = torch.cat(packed)
    group.all_reduce(total)
    head, there, rest = total.split([1, len(trained), len(total) - 1 - len(trained)])
    for p, held, own in zip(trained, there, rest.split([p.numel() for p in trained]), strict=True):
        # One that no process has stays without, or weight decay would begin to move it.
        p.grad = own.reshape(p.shape).to(p) if held else None
    return head.item()


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if size() > 1:
        for tensor in tensors:
            group.broadcast(tensor, src=0)


def bytes_of_first(data: bytes | None) -> bytes | None:
    """Return the first process's bytes, such as a file that other hosts may not see."""
    if size() == 1:
        return data
    length = torch.tensor([-1 if data is None else len(data)])
    group.broadcast(length, src=0)
    if int(length) < 0:
        return None
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if is_first() and data is not None:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    group.broadcast(buffer, src=0)
    return buffer.numpy().tobytes()


def check_no_draw(before: Tensor, generator: torch.Generator) -> None:
    """Refuse a step that drew random numbers for the images of this process's part."""
    if size() > 1 and not torch.equal(before, generator.get_state()):
        raise VPromptError(
            "The method draws random numbers for every image (dropout), which several processes "
            "would draw differently from one. Set its dropout to 0, or do without torchrun."
        )
