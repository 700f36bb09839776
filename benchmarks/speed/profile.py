"""Where the time of learn, evidence, solve and tune goes, and its share of the matmul peak."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.speed.solver import random_evidence, sources_of
from benchmarks.speed.timing import matmul_peak
from vprompt.data.task import Examples
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.train_config import TrainConfig, combining_defaults
from vprompt.learning.tune import tune
from vprompt.models.backbone import Backbone
from vprompt.opening import open_backbone
from vprompt.pooling.evidence import gather
from vprompt.pooling.mix import Plan
from vprompt.transfer import hgprompt

GROUPS = {
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::mv",
        "aten::addmv",
        "aten::bmm",
        "aten::baddbmm",
        "aten::linear",
    ),
    "fused attention": ("aten::_scaled_dot", "aten::_flash", "aten::_fused_sdp"),
    "softmax": ("aten::_softmax",),
    "norm and activation": ("aten::native_layer_norm", "aten::gelu"),
    "patch embedding": ("aten::mkldnn_conv", "aten::convolution", "aten::_conv"),
    "decompositions": ("aten::linalg", "aten::_linalg", "aten::_cholesky", "aten::cholesky"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::index"),
}


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention.

    torch's own counter also follows modules, which fails where a frozen model meets a prompt that
    wants a gradient while none are taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and add its count."""
        del types
        found, packet = func(*args, **(kwargs or {})), func._overloadpacket
        if packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **(kwargs or {}), out_val=found))
        elif str(packet).startswith("aten._scaled_dot_product_flash_attention_for_cpu"):
            backward = str(packet).endswith("backward")
            query, key = (args[1], args[2]) if backward else (args[0], args[1])
            batch, heads, count, width = query.shape
            self.total += (10 if backward else 4) * batch * heads * count * key.shape[2] * width
        return found


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Profile every stage once: seconds, operations, their share of the peak, time by kind."""
    backbone = open_backbone(options.model)
    peaks = {
        "fp32": matmul_peak(torch.float32, 512 if options.small else 2048),
        "bf16": matmul_peak(torch.bfloat16, 512 if options.small else 2048),
        "fp64": matmul_peak(torch.float64, 512 if options.small else 2048),
    }
    found: dict[str, Any] = {"peak_flop_per_s": peaks}
    for name, (action, kind) in stages(backbone, options).items():
        action()
        print(f"{name} ...", flush=True)
        found[name] = {"precision": kind, **_examine(action, peaks[kind])}
    return found


def stages(
    backbone: Backbone, options: argparse.Namespace
) -> dict[str, tuple[Callable[[], Any], str]]:
    """Return what is profiled, with the precision of most of its matrix products."""
    count, classes = 2 * options.batch, 5
    height, width = backbone.data_config.input_size[1:]
    pixels = torch.randint(0, 256, (count, height, width, 3)).byte().numpy()
    examples = Examples(pixels, torch.arange(count) % classes, "noise")
    prompts = sources_of(2, backbone)
    first = next(iter(prompts.values()))
    solve = random_evidence(5, 100, 32, 5) if options.small else random_evidence(13, 1000, 768, 100)

    def training(settings: dict[str, Any], kind: str) -> None:
        config = TrainConfig.checked({**settings, "epochs": 1, "precision": kind})
        tune(PromptAdapter(backbone, first), examples, examples, classes, config)

    def evidence(kind: str) -> None:
        call: dict[str, Any] = {"precision": kind, "use_cache": False, "batch_size": options.batch}
        gather(backbone, prompts, examples, classes, Plan("base"), **call)

    learn, after = {"batch_size": options.batch}, combining_defaults("hgprompt")
    found: dict[str, tuple[Callable[[], Any], str]] = {}
    for kind in ("fp32", "bf16"):
        found[f"learn {kind}"] = (lambda k=kind: training(learn, k), kind)  # type: ignore[misc]
        found[f"evidence {kind}"] = (lambda k=kind: evidence(k), kind)  # type: ignore[misc]
    found["tune fp32"] = (lambda: training(after, "fp32"), "fp32")
    found["solve fp64"] = (lambda: hgprompt.weigh(solve, bootstrap=0), "fp64")
    return found


def _examine(action: Callable[[], Any], peak: float) -> dict[str, Any]:
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    with Operations() as counted:
        action()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        action()
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    shares = dict.fromkeys([*GROUPS, "other"], 0.0)
    for key, spent in own.items():
        group = next((g for g, starts in GROUPS.items() if key.startswith(starts)), "other")
        shares[group] += spent / sum(own.values())
    return {
        "seconds": seconds,
        "operations": counted.total,
        "share_of_peak": counted.total / seconds / peak,
        "share_of_time": shares,
    }
