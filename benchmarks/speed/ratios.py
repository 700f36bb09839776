"""Speed on one machine: each number is a ratio of two things that ran in turn in one process.

python -m benchmarks speed.ratios step       # a step of VPT-Deep against concatenation; memory
python -m benchmarks speed.ratios last_block # a step whose last block computes what is pooled alone
python -m benchmarks speed.ratios precision  # bf16 against fp32: training, features, attention
python -m benchmarks speed.ratios scores --data DIR --pool pools/demo  # HGPrompt from bf16 evidence
python -m benchmarks speed.ratios prefix     # epochs with prompts from block 6, cached or not
python -m benchmarks speed.ratios many       # 16 prompts in a batch of 64 against one
python -m benchmarks speed.ratios texts      # what text prompts add to a step of a CLIP
python -m benchmarks speed.ratios artefacts  # listing 1,000 artefacts, help, import
python -m benchmarks speed.ratios profile    # where the time goes, as a share of the matmul peak

Each prints how long it will take after a first round, and writes results/speed/PART.json. `--small`
is a trial of the script and not a measurement.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, ROOT, new_parser
from benchmarks.speed import profile as speed_profile
from benchmarks.speed import scores as speed_scores
from benchmarks.speed import steps as speed_steps
from benchmarks.speed import text_steps
from benchmarks.speed.timing import in_turn, machine, spread, summary
from vprompt.artifacts import artifact
from vprompt.artifacts.artifact import Artifact
from vprompt.core.files import write_json
from vprompt.core.precision import autocast
from vprompt.data.task import Examples
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import tune
from vprompt.models import prefix
from vprompt.models.backbone import Backbone, extract
from vprompt.models.heads import Head
from vprompt.opening import open_backbone
from vprompt.prompts.prompt import Prompt, PromptBatch, place

OUTPUT = RESULTS / "speed"
VIT_B = "timm_vit(model=vit_base_patch16_224, pretrained=False)"
TINY = "tiny(image_size=160)"


def main() -> None:
    """Run one part and write its record."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.variant:
        print(speed_steps.peak_memory(options.variant, options.model, options.batch))
        return
    began = time.perf_counter()
    found = PARTS[options.part](options)
    record = {
        "model": options.model,
        "batch": options.batch,
        **found,
        "minutes": (time.perf_counter() - began) / 60,
        "machine": machine(),
    }
    write_json(options.output / f"{options.part}.json", record)
    print({key: value for key, value in record.items() if key != "machine"})


def parse() -> argparse.Namespace:
    """Read the command line; what `--small` means is decided here alone."""
    parser = new_parser(__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--small", action="store_true", help="a tiny model and two rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=16, help="images of a step; many takes 64")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default=VIT_B)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--data", type=Path, help="image sets, for scores")
    parser.add_argument("--target", default="dtd10", help="the set that is scored for")
    parser.add_argument("--pool", type=Path, default=Path("pools/demo"))
    parser.add_argument("--shots", type=int, default=20)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        options.model = TINY if options.model == VIT_B else options.model
        options.batch, options.repeats = min(options.batch, 4), 2
    return options


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Compare training steps, and the memory of each in a process of its own."""
    steps = speed_steps.variants(speed_steps.ALL, options.model, options.batch)
    ours = "ours fp32"
    found = summary(
        in_turn(steps, options.repeats),
        over_timm=("timm concatenation fp32", ours),
        over_classical=("classical fp32", ours),
        bf16_over_classical=("classical fp32", "ours bf16"),
        bf16_over_timm_bf16=("timm concatenation bf16", "ours bf16"),
    )
    memory = {}
    for name in steps:
        words = [
            sys.executable,
            "-m",
            "benchmarks",
            "speed.ratios",
            "step",
            "--variant",
            name,
            "--model",
            options.model,
        ]
        words += ["--batch", str(options.batch), "--threads", str(options.threads)]
        memory[name] = float(subprocess.check_output(words, text=True, cwd=ROOT.parent).split()[-1])
    return {
        "prompt_tokens": speed_steps.TOKENS,
        "arithmetic_limit": speed_steps.arithmetic_limit(open_backbone(options.model)),
        **found,
        "peak_memory_mb": memory,
    }


def last_block(options: argparse.Namespace) -> dict[str, Any]:
    """Compare training steps in fp32, with the last block cut to the pooled token and without."""
    names = (*speed_steps.FP32, speed_steps.WHOLE)
    steps = speed_steps.variants(names, options.model, options.batch)
    found = summary(
        in_turn(steps, options.repeats),
        over_whole=(speed_steps.WHOLE, "ours fp32"),
        over_timm=("timm concatenation fp32", "ours fp32"),
        over_classical=("classical fp32", "ours fp32"),
    )
    limit = speed_steps.arithmetic_limit(open_backbone(options.model))
    return {"prompt_tokens": speed_steps.TOKENS, "arithmetic_limit": limit, **found}


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """Compare bf16 with fp32 where nothing else differs."""
    steps = speed_steps.variants(speed_steps.ALL, options.model, options.batch)
    backbone = open_backbone(options.model)
    images = torch.randn(options.batch, *backbone.data_config.input_size)

    @torch.no_grad()
    def features(kind: str) -> None:
        with autocast(kind, backbone.device):
            extract(backbone, images)

    actions = {
        "train fp32": steps["ours fp32"],
        "train bf16": steps["ours bf16"],
        "features fp32": lambda: features("fp32"),
        "features bf16": lambda: features("bf16"),
        **speed_steps.attentions(options.batch, 49 if options.small else 197),
    }
    return summary(
        in_turn(actions, options.repeats),
        train=("train fp32", "train bf16"),
        features=("features fp32", "features bf16"),
        attention_bf16_fused_over_written_out=("fused bf16", "written out bf16"),
        attention_fp32_fused_over_written_out=("fused fp32", "written out fp32"),
    )


class Timed(PromptAdapter):
    """A prompt that notes when each epoch begins."""

    def begin_epoch(self, training: Any) -> None:
        """Note the time."""
        del training
        self.memory.setdefault("begun", []).append(time.perf_counter())


def prefix_cache(options: argparse.Namespace) -> dict[str, Any]:
    """Compare epochs of prompts that start halfway, with the cache and without."""
    backbone = open_backbone(options.model)
    half = backbone.depth // 2
    blocks = place([0] * half + [10] * (backbone.depth - half), backbone.depth, deep=True)
    prompt = Prompt(0.02 * torch.randn(len(blocks), backbone.dim), blocks, False)
    train, val = (noise(backbone, count * options.batch, 5) for count in (3, 1))
    epochs = 3 if options.small else 5

    def epoch_times(limit: float) -> list[float]:
        config = TrainConfig(
            epochs=epochs, batch_size=options.batch, prefix_cache=limit, precision="fp32"
        )
        adapter = Timed(backbone, prompt)
        tune(adapter, train, val, 5, config)
        begun = adapter.memory["begun"]
        return [b - a for a, b in itertools.pairwise(begun[1:])]  # from the second on

    seconds: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VPROMPT_CACHE"] = folder
        began = time.perf_counter()
        for turn in range(max(options.repeats // 2, 1)):
            for name, limit in (("without", 0.0), ("with", prefix.DEFAULT_LIMIT)):
                seconds[name] += epoch_times(limit)
            if not turn:
                each = (time.perf_counter() - began) / 60
                print(f"prefix: about {each * (options.repeats // 2 - 1):.1f} min", flush=True)
        size = sum(path.stat().st_size for path in Path(folder, "prefix").rglob("*.bin"))
    found = summary(seconds, with_the_cache=("without", "with"))
    images = len(train) + len(val)
    return {"first_block": half, **found, "mb_per_image": size / 2**20 / images, "images": images}


def noise(backbone: Backbone, count: int, classes: int) -> Examples:
    """Return images of noise with labels in turn."""
    height, width = backbone.data_config.input_size[1:]
    randomness = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, height, width, 3), generator=randomness)
    labels = torch.arange(count) % classes
    return Examples(pixels.byte().numpy(), labels, f"noise {count}")


def many(options: argparse.Namespace) -> dict[str, Any]:
    """Compare a batch of 64 with 16 prompts to one with a single prompt, and both for evidence."""
    backbone = open_backbone(options.model)
    size, kinds = (16, 4) if options.small else (64, 16)
    images = torch.randn(size, *backbone.data_config.input_size)
    which = torch.arange(size) % kinds

    def draw(count: int) -> Prompt:
        blocks = place(count, backbone.depth, deep=True)
        return Prompt(0.02 * torch.randn(len(blocks), backbone.dim), blocks, False)

    equal = [draw(10) for _ in range(kinds)]
    ragged = [draw(count) for count in torch.linspace(1, 19, kinds).round().int().tolist()]
    shallow = [Prompt(p.tokens[:10], torch.zeros(10, dtype=torch.long)) for p in equal]

    @torch.no_grad()
    def label(prompt: Prompt | PromptBatch) -> None:
        with autocast("fp32", backbone.device):
            extract(backbone, images, prompt)

    def slopes(together: bool) -> None:
        few, owner = images[: size // 4], which[: size // 4] % (kinds // 4)
        leaves = [p.with_tokens(p.tokens.clone().requires_grad_()) for p in equal[: kinds // 4]]
        if together:
            extract(backbone, few, PromptBatch(leaves, owner)).square().sum().backward()
            return
        for index, leaf in enumerate(leaves):
            extract(backbone, few[owner == index], leaf).square().sum().backward()

    actions = {
        "one": lambda: label(equal[0]),
        "many": lambda: label(PromptBatch(equal, which)),
        "many of 1 to 19 tokens": lambda: label(PromptBatch(ragged, which)),
        "one shallow": lambda: label(shallow[0]),
        "many shallow": lambda: label(PromptBatch(shallow, which)),
        "evidence, source by source": lambda: slopes(False),
        "evidence, one batch": lambda: slopes(True),
    }
    found = summary(
        in_turn(actions, max(options.repeats // 2, 2)),
        many_throughput=("one", "many"),
        ragged_throughput=("one", "many of 1 to 19 tokens"),
        shallow_throughput=("one shallow", "many shallow"),
        evidence_one_batch=("evidence, source by source", "evidence, one batch"),
    )
    return {"images": size, "prompts": kinds, **found}


def artefacts(options: argparse.Namespace) -> dict[str, Any]:
    """Time the commands that have to feel instant, each in a process of its own."""
    count = 20 if options.small else 1000
    run = [sys.executable, "-c", "from vprompt.cli import main; main()"]
    probe = "import vprompt, sys; sys.exit('torch' in sys.modules)"
    with tempfile.TemporaryDirectory() as folder:
        write_pool(Path(folder), count)
        commands = {
            "pool ls": [*run, "pool", "ls", folder],
            "help": [*run, "--help"],
            "import": [sys.executable, "-c", probe],
            "python alone": [sys.executable, "-c", ""],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        actions = {
            name: lambda words=words: subprocess.run(words, **quiet)  # type: ignore[misc]
            for name, words in commands.items()
        }
        seconds = in_turn(actions, options.repeats)
    return {
        "artefacts": count,
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "torch_is_imported_with_vprompt": False,  # or the command "import" would have failed
    }


def write_pool(folder: Path, count: int) -> None:
    """Write one artefact and copies of it."""
    backbone = open_backbone("tiny")
    blocks = place(10, backbone.depth, deep=True)
    prompt = Prompt(torch.randn(len(blocks), backbone.dim), blocks, False)
    classes = tuple(f"class {index}" for index in range(100))
    head = Head(torch.randn(100, backbone.feature_dim), torch.zeros(100))
    config = artifact.make_config(backbone, prompt, classes, task={"name": "noise"})
    made = Artifact(prompt, head, torch.zeros(backbone.feature_dim), config)
    artifact.save(made, folder / "0000")
    for index in range(1, count):
        copy = folder / f"{index:04}"
        copy.mkdir()
        for path in (folder / "0000").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())


PARTS = {
    "step": step,
    "last_block": last_block,
    "precision": precision,
    "scores": speed_scores.scores,
    "prefix": prefix_cache,
    "many": many,
    "texts": text_steps.texts,
    "artefacts": artefacts,
    "profile": speed_profile.profile,
}


if __name__ == "__main__":
    main()
