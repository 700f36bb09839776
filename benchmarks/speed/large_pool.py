"""A pool of 1,000 prompts: time, memory, and whether planted sources are found again.

python -m benchmarks speed.large_pool            # both parts, about ten minutes on one core
python -m benchmarks speed.large_pool recovery   # one part alone; the other keeps its numbers

`commands` writes 1,000 artefacts of random prompts for the backbone `tiny` and runs `pool ls`,
`combine` (fp32) and `score` (in the precision it chooses, so neither finds the other's features in
the cache) on them, each in a process of its own. The labels of its images depend on the features
under three of the prompts. A random network sees nearly the same under all prompts, so little can
be recovered there; `recovery` therefore plants three sources among 1,000 sets of synthetic features
and passes them through the same functions, for ten seeds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import new_parser
from benchmarks.speed.large_pool_table import NAME, RECORDS
from benchmarks.speed.timing import machine
from vprompt.artifacts.artifact import Artifact, make_config, save
from vprompt.backbones import tiny
from vprompt.core import registry
from vprompt.data.task import split_by_sizes
from vprompt.models.backbone import Backbone, extract
from vprompt.models.heads import Head
from vprompt.pooling import shortlist
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.screening import Screen
from vprompt.pooling.statistics import mapped_trace_ratio
from vprompt.prompts.prompt import Prompt, place
from vprompt.transfer import hgprompt

SOURCES, SEEDS, COPIES = 1000, 10, 30
WIDTH, IMAGES, CLASSES = 64, 800, 10
PLANTED = (137, 503, 871)  # sources on which the labels of the commands' images depend


def main() -> None:
    """Run the parts and write the record."""
    parser = new_parser(__doc__)
    parser.add_argument("part", nargs="*", default=["recovery", "commands"])
    record = RECORDS.read(NAME) if NAME in RECORDS else {}
    for part in parser.parse_args().part:
        found = {"recovery": measure_recovery, "commands": measure_commands}[part]()
        record[part] = {**found, "machine": machine()}
        RECORDS.write(NAME, record)


def planted_pool(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """Return features, labels, three planted sources, and which source each is a copy of.

    All sources share half of their standard deviation. A label is the largest of ten random
    projections of the sum of the planted sources' own parts. Thirty sources are near-copies of
    others, ten of them of a planted one.
    """
    randomness = torch.Generator().manual_seed(seed)
    order = torch.randperm(SOURCES, generator=randomness)
    planted, copies, models = order[:3].tolist(), order[3 : 3 + COPIES], order[33 : 33 + COPIES]
    models[:10] = planted[0]
    features = torch.randn(SOURCES, IMAGES, WIDTH, generator=randomness)
    directions = torch.randn(WIDTH, CLASSES, generator=randomness)
    labels = (features[planted].sum(0) @ directions).argmax(1)
    origin = torch.arange(SOURCES)
    for copy, model in zip(copies.tolist(), models.tolist(), strict=True):
        noise = torch.randn(IMAGES, WIDTH, generator=randomness)
        features[copy], origin[copy] = features[model] + 0.01 * noise, model
    features += 0.5 * torch.randn(IMAGES, WIDTH, generator=randomness)
    return features, labels, planted, origin


def measure_recovery() -> dict[str, Any]:
    """Screen and weigh planted pools as `combine` does, features given."""
    found = [recover(seed) for seed in range(SEEDS)]
    for values in found:
        print(values, flush=True)
    times = {key: max(v[key] for v in found) for key in found[0] if key.endswith("_s")}
    return {
        "sources": SOURCES,
        "images": IMAGES,
        "width": WIDTH,
        "classes": CLASSES,
        "near_copies": COPIES,
        "seeds": SEEDS,
        "planted_passed_the_screen": sum(v["passed"] for v in found),
        "planted_have_the_three_largest_weights": sum(v["recovered"] for v in found),
        "least_weight_on_planted": min(v["planted_weight"] for v in found),
        "longest": times,
        "by_seed": found,
    }


def recover(seed: int) -> dict[str, Any]:
    """Return what became of one planted pool; seconds are the processor's."""
    features, labels, planted, origin = planted_pool(seed)
    screen = Screen()
    rows = split_by_sizes(labels.tolist(), [screen.images], 0, "screening")[0]
    metric = registry.build("metrics", "trace_ratio")
    began = time.process_time()
    own = torch.tensor([metric(each[rows], labels[rows]) for each in features])
    order = own.argsort(descending=True)[: screen.candidates]
    ratio = mapped_trace_ratio(features[order][:, rows].numpy(), labels[rows])
    statistics_s = time.process_time() - began
    began = time.process_time()
    twins = shortlist.near_duplicates(ratio, screen.duplicate)
    different = [row for row in range(len(order)) if row not in twins]
    ranked, _, _ = shortlist.by_marginal_gain(ratio.select(different), screen.support)
    sparse_s = time.process_time() - began
    kept = sorted(int(order[different[row]]) for row in ranked[: screen.keep])
    began = time.process_time()
    none = torch.zeros(len(kept), 0, WIDTH)
    evidence = Evidence(tuple(map(str, kept)), features[kept], none, labels, features[0])
    weights = hgprompt.weigh(evidence, bootstrap=0).weights
    weigh_s = time.process_time() - began
    origins = origin[kept]
    top = {int(origins[row]) for row in weights.argsort(descending=True)[:3]}
    on_planted = sum(float(weights[origins == source].sum()) for source in planted)
    return {
        "seed": seed,
        "passed": set(planted) <= set(origins.tolist()),
        "recovered": top == set(planted),
        "planted_weight": round(on_planted, 4),
        "own_rank_of_planted": [int((own > own[source]).sum()) + 1 for source in planted],
        "near_copies_left_out": len(twins),
        "statistics_s": round(statistics_s, 3),
        "sparse_solver_s": round(sparse_s, 3),
        "weigh_s": round(weigh_s, 3),
    }


def measure_commands() -> dict[str, Any]:
    """Write the pool and run the commands on it."""
    backbone = tiny.load()
    with tempfile.TemporaryDirectory() as place_:
        folder = Path(place_)
        prompts = [write_source(backbone, folder / "pool", index) for index in range(SOURCES)]
        images = write_images(backbone, folder / "images", [prompts[row] for row in PLANTED])
        pool = ("--pool", str(folder / "pool"))
        task = str(folder / "images")
        found: dict[str, Any] = {
            "sources": SOURCES,
            "training_images": images,
            "backbone": "tiny",
            "pool ls": run(folder, "pool", "ls", pool[1]),
        }
        made = str(folder / "made")
        common = ("--quiet", "--precision", "fp32")
        found["combine"] = run(folder, "combine", task, *pool, "--output", made, *common)
        found["score"] = run(folder, "score", task, *pool, "--quiet")
        record = json.loads((Path(made) / "run.json").read_text())
    screening = record["screening"]
    found["combine"]["seconds_by_stage"] = record["seconds"]
    found["combine"]["sparse_solver_s"] = screening["solution"]["seconds"]
    found["combine"]["stages"] = [
        {"stage": s["name"], "kept": s["kept"], "left_out": len(s["left_out"])}
        for s in screening["stages"]
    ]
    planted = {f"source-{row:04d}" for row in PLANTED}
    found["combine"]["planted_kept"] = len(planted & set(screening["kept"]))
    print(found, flush=True)
    return found


def write_source(backbone: Backbone, pool: Path, index: int) -> Prompt:
    """Write an artefact of two shallow random tokens."""
    randomness = torch.Generator().manual_seed(index)
    tokens = 10 * torch.randn(2, backbone.dim, generator=randomness)
    prompt = Prompt(tokens, place(2, backbone.depth, deep=False))
    names = tuple(f"class {label}" for label in range(CLASSES))
    start = {"kind": "vpt_uniform", "seed": 0}
    task = {"name": f"task {index}"}
    config = make_config(backbone, prompt, names, task=task, prompt_init=start)
    head = Head(torch.zeros(CLASSES, backbone.feature_dim), torch.zeros(CLASSES))
    made = Artifact(prompt, head, torch.zeros(backbone.feature_dim), config, "# Synthetic\n")
    save(made, pool / f"source-{index:04d}")
    return prompt


def write_images(backbone: Backbone, folder: Path, planted: list[Prompt], count: int = 400) -> int:
    """Write random images in class folders, named by what the planted prompts make of them.

    The class is the largest of the leading axes of the sum of the planted sources' features.
    """
    randomness = np.random.default_rng(0)
    coarse = randomness.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, 1).repeat(16, 2)
    with torch.no_grad():
        normalised = backbone.normalise(torch.from_numpy(pixels))
        features = sum(extract(backbone, normalised, prompt).double() for prompt in planted)
    assert isinstance(features, torch.Tensor)
    axes, _, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    labels = axes[:, :5].argmax(1).tolist()
    for index, label in enumerate(labels):
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(folder / f"class {label}" / f"{index:04d}.png")
    return round(0.64 * count)


def run(folder: Path, *words: str) -> dict[str, float]:
    """Run a command in a process of its own; its seconds and the memory that it took at most."""
    environment = {**os.environ, "VPROMPT_CACHE": str(folder / "cache")}
    environment["PEAK"] = str(folder / "peak")
    # What wait4 says of memory counts that of this process, from before the command took its place.
    code = (
        "import atexit, os, pathlib; atexit.register(lambda: pathlib.Path(os.environ['PEAK'])"
        ".write_text(pathlib.Path('/proc/self/status').read_text())); "
        "from vprompt.cli import main; main()"
    )
    began = time.perf_counter()
    with (folder / "out").open("w") as out:
        child = subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"vprompt {' '.join(words)} failed with {status}.")
    status_lines = (folder / "peak").read_text().splitlines()
    peak = next(line for line in status_lines if line.startswith("VmHWM"))
    return {
        "wall_s": round(time.perf_counter() - began, 2),
        "processor_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(int(peak.split()[1]) / 1024, 1),
    }


if __name__ == "__main__":
    main()
