"""Precision: bf16 where the hardware multiplies it faster, fp32 elsewhere; parameters stay fp32."""

import contextlib
import functools
from typing import Any

import torch

from vprompt.errors import VPromptError


def resolve(precision: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`; `auto` asks the device."""
    if precision == "auto":
        return "bf16" if _has_fast_bf16(device) else "fp32"
    if precision not in ("bf16", "fp32"):
        raise VPromptError(f"No precision called {precision!r}. There are: auto, bf16, fp32.")
    return precision


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context in which matrix products run in the resolved precision."""
    enabled = resolve(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_amx() -> bool:
    """Say whether this machine's processor has AMX tiles for bf16."""
    return bool(_capabilities().get("amx_bf16"))


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (has_amx() or bool(_capabilities().get("avx512_bf16")))


@functools.cache
def _capabilities() -> dict[str, Any]:
    if not hasattr(torch.cpu, "get_capabilities"):
        return {}
    return dict(torch.cpu.get_capabilities())
