"""Everything that is worth knowing of an accelerator, in one run of at most so many minutes.

    PYTHONPATH=src python -m benchmarks on_gpu --minutes 9
    PYTHONPATH=src python -m benchmarks on_gpu --small  # a trial of the script, on a CPU

In this order: the tests that are marked for devices; a training step of VPT-Deep beside timm's
concatenation (ViT-B/16 at 224 px, ViT-S/14 at 70 px, bf16); fleets of 1, 8, 32 and 64 prompts at
batch 16; and then, with --data, as many runs of `pools.few_shot` and `learning.curves` as
fit. It needs the working tree, torch and timm, and no network: weights are drawn where none are at
hand, which changes no time. Every part is written when it is done, to results/on_gpu; what is there
is not done again, so a run that was cut off goes on.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import RESULTS, ROOT, new_parser
from benchmarks.speed import fleet as fleets
from benchmarks.speed import steps as speed_steps
from benchmarks.speed.timing import in_turn, machine, matmul_peak, summary
from vprompt.core.files import write_json
from vprompt.opening import open_backbone, resolve_device

MODELS = {
    "ViT-B/16, 224 px": "timm_vit(model=vit_base_patch16_224, pretrained=False)",
    "ViT-S/14, 70 px": "timm_vit(model=vit_small_patch14_dinov2, pretrained=False, image_size=70)",
}
STEPS = ("ours bf16", "timm concatenation bf16")
FLEETS, BATCH = (1, 8, 32, 64), 16


def main() -> None:
    """Do every part that is not there yet, as long as there is time."""
    options = parse()
    ends = time.monotonic() + 60 * options.minutes
    device = resolve_device("auto")
    if options.small:
        torch.set_num_threads(1)
    print(f"on {_name(device)}, at most {options.minutes:g} minutes", flush=True)
    for name, part in _parts(options).items():
        path, left = options.output / f"{name}.json", ends - time.monotonic()
        if path.exists():
            print(f"{name}: there already, {path}")
        elif left < 20:
            print(f"{name}: no time is left; run the same command again")
        else:
            began = time.monotonic()
            found = part(left)
            whole = found.pop("whole", True)
            spent = time.monotonic() - began
            record = {**found, "device": _name(device), "seconds": spent, "machine": machine()}
            write_json(path if whole else path.with_suffix(".part.json"), record)
            print(f"{name}: {spent:.0f} s, {found}", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--small", action="store_true", help="tiny models and two rounds")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS / "on_gpu")
    parser.add_argument("--data", type=Path, help="image sets, for the runs at the end")
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="weight files, for pools.few_shot"
    )
    parser.add_argument(
        "--pools", type=Path, default=Path("pools"), help="pools, for pools.few_shot"
    )
    options = parser.parse_args()
    if options.small:
        options.rounds = 2
    return options


def _parts(options: argparse.Namespace) -> dict[str, Callable[[float], dict[str, Any]]]:
    models = {"tiny": "tiny"} if options.small else MODELS
    sizes, batch = ((1, 2), 2) if options.small else (FLEETS, BATCH)
    found: dict[str, Callable[[float], dict[str, Any]]] = {"tests": _tests}
    for name, model in models.items():
        short = name.split(",")[0].replace("/", "").lower()
        found[f"step-{short}"] = lambda left, m=model: _step(m, 2 * batch, options.rounds)  # type: ignore[misc]
        for size in sizes:
            found[f"fleet-{short}-{size}"] = lambda left, m=model, k=size: _fleet(  # type: ignore[misc]
                m, k, batch, max(1, options.rounds // 3)
            )
    if options.data is not None:
        words = ["run", "--data", str(options.data)]
        pools = [*words, "--models", str(options.models), "--pools", str(options.pools)]
        pools += ["--backbone", "vit_tiny"]
        found["few-shot-pools"] = lambda left: _script("pools.few_shot", pools, left / 2)
        curves = ["--data", str(options.data), "--models", str(options.models)]
        found["learning-curves"] = lambda left: _script("learning.curves", curves, left)
    return found


def _tests(left: float) -> dict[str, Any]:
    """Run the tests that are marked for devices."""
    words = [sys.executable, "-m", "pytest", "-o", "addopts=-q --strict-markers", "-m", "device"]
    words += ["-p", "no:cacheprovider", str(ROOT.parent / "tests" / "models")]
    words += [str(ROOT.parent / "tests" / "learning")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=left, cwd=ROOT.parent)
    return {"passed": done.returncode == 0, "said": done.stdout.splitlines()[-8:]}


def _step(model: str, batch: int, rounds: int) -> dict[str, Any]:
    """Compare training steps, and say which share of the device's product peak ours reaches."""
    steps = speed_steps.variants(STEPS, model, batch)
    seconds = in_turn(steps, rounds)
    found = summary(seconds, over_timm_concatenation=(STEPS[1], STEPS[0]))
    device = open_backbone(model).device
    with FlopCounterMode(display=False) as counter:
        steps[STEPS[0]]()
    operations = counter.get_total_flops()
    fastest = found["seconds"][STEPS[0]]["median"]
    peak = matmul_peak(torch.bfloat16, 2048 if device.type == "cpu" else 8192, device=device)
    return {
        "batch": batch,
        "images_per_second": batch / fastest,
        "operations_of_a_step": operations,
        "share_of_bf16_peak": operations / fastest / peak,
        "peak_of_products": peak,
        **found,
    }


def _fleet(model: str, members: int, batch: int, rounds: int) -> dict[str, Any]:
    """Compare a fleet with its members in turn."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    backbone = open_backbone(model)
    return fleets.compare(
        backbone, members=members, widths=[members], batch=batch, steps=4, rounds=rounds
    )


def _script(name: str, words: list[str], seconds: float) -> dict[str, Any]:
    """Run a resumable benchmark for so long; it keeps what it has finished."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks", name, *words], cwd=ROOT.parent)
    with suppress(subprocess.TimeoutExpired):
        return {"whole": process.wait(seconds) == 0, "ended": process.returncode}
    process.terminate()
    process.wait()
    return {"whole": False, "ended": "out of time"}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
