"""Precision: bf16 where the hardware multiplies it faster, fp32 elsewhere; parameters stay fp32."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vprompt.core.errors import VPromptError


def resolve(precision: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`; `auto` asks the device."""
    if precision == "auto":
        return "bf16" if _has_fast_bf16(device) else "fp32"
    if precision not in ("bf16", "fp32"):
        raise VPromptError(f"No precision called {precision!r}. There are: auto, bf16, fp32.")
    return precision


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context in which matrix products run in the resolved precision.

    A program that is exported has none where it would change nothing: torch 2.14 refuses some.
    """
    enabled = resolve(precision, device) == "bf16"
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    if not enabled and exporting():
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


_ROWS_OF_A_THREAD = 8


def steady_rows(device: torch.device) -> int:
    """Return how many rows a matrix product needs for a row not to depend on their number.

    On a CPU, products of fewer than 4 rows for each thread are summed in another order, so the
    last bit of a row differs from what it is among many; 8 leave room for an uneven share. On other
    devices no number is known to be enough, and 1 is returned, as in a model that is traced, which
    must not depend on the batch that it is traced with.
    """
    if device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return 1
    return _ROWS_OF_A_THREAD * max(2, torch.get_num_threads())


def steady(rows: Tensor) -> Tensor:
    """Return `[count, ...]` with zeros behind, as many as `steady_rows` asks for."""
    least = steady_rows(rows.device)
    if least == 1 or len(rows) >= least:
        return rows
    return torch.cat([rows, rows.new_zeros(least - len(rows), *rows.shape[1:])])


def among_many(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return what a function makes of every row when there are enough of them to be steady."""
    filled = steady(rows)
    made = function(filled)
    return made if filled is rows else made[: len(rows)]


def steady_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear layer of `[batch, ..., dim]`, a row of which knows nothing of how many.

    See `steady_rows` for where that holds.
    """
    least = steady_rows(rows.device)
    if least == 1 or rows.shape[:-1].numel() >= least:
        return functional.linear(rows, weight, bias)
    flat = rows.flatten(0, -2)
    made = among_many(lambda many: functional.linear(many, weight, bias), flat)
    return made.unflatten(0, rows.shape[:-1])


def has_amx() -> bool:
    """Say whether this machine's processor has AMX tiles for bf16."""
    return bool(capabilities().get("amx_bf16"))


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (has_amx() or bool(capabilities().get("avx512_bf16")))


@functools.cache
def capabilities() -> dict[str, Any]:
    """Return what this machine's processor can do, as far as torch tells."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return {}
    return dict(torch.cpu.get_capabilities())
