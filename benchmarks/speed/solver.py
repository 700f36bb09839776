"""Time of the solver, of the evidence pass, and of Algorithm 1 of the paper as written.

python -m benchmarks speed.solver solver     # random features of the sizes of VTAB-1k
python -m benchmarks speed.solver evidence   # against a bare timm forward and backward pass
python -m benchmarks speed.solver algorithm  # against features and gradients in every epoch
"""

import resource
import statistics
import time
from typing import Any

import torch

from benchmarks import RESULTS, new_parser
from benchmarks.speed.timing import median_seconds
from vprompt.core import registry
from vprompt.core.files import write_json
from vprompt.core.precision import autocast
from vprompt.learning.adapter import PromptAdapter
from vprompt.opening import open_backbone, open_task
from vprompt.pooling.evidence import Evidence, gather
from vprompt.pooling.mix import Plan
from vprompt.pooling.probe import base_head
from vprompt.pooling.scores import TraceRatio
from vprompt.pooling.simplex import maximise
from vprompt.prompts import compose
from vprompt.results import runs
from vprompt.transfer import _alignment, hgprompt

OUTPUT = RESULTS / "solver"


def main() -> None:
    """Run one part and write its record."""
    parser = new_parser(__doc__)
    parser.add_argument("part", choices=("solver", "evidence", "algorithm"))
    part = parser.parse_args().part
    found = {"solver": time_solver, "evidence": time_evidence, "algorithm": time_algorithm}[part]()
    record = {**found, "machine": runs.describe_machine(torch.device("cpu"), "auto")}
    write_json(OUTPUT / f"{part}.json", record)
    print(found)


def random_evidence(sources: int, images: int, width: int, classes: int) -> Evidence:
    """Return features with some class signal, and gradients of a shallow prompt of 50 tokens."""
    randomness = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, width, generator=randomness)
    own = torch.randn(sources, classes, width, generator=randomness)
    noise = torch.randn(sources, images, width, generator=randomness)
    strength = torch.linspace(0.1, 0.5, sources)[:, None, None]
    features = strength * (centres + 0.5 * own)[:, labels] + noise
    gradients = torch.randn(sources, 50, width, generator=randomness)
    names = tuple(f"source {index}" for index in range(sources))
    return Evidence(names, features, gradients, labels, noise[0])


def time_solver() -> dict[str, Any]:
    """Time one value with gradient, a whole robust solve, and the trace ratio of a large pool."""
    pool = random_evidence(13, 1000, 768, 100)
    uniform = torch.full((13,), 1 / 13, dtype=torch.float64)
    found: dict[str, Any] = {"sources": 13, "images": 1000, "width": 768, "classes": 100}
    for score in ("hscore_shrunk", "hscore_adjusted", "trace_ratio"):
        objective = hgprompt.build_objective(pool, score=score)
        found[f"value_and_gradient_{score}_s"] = median_seconds(lambda o=objective: o(uniform))  # type: ignore[misc]
    for name, settings in {
        "robust, no intervals": {"bootstrap": 0},
        "robust": {},
        "trace ratio": {"score": "trace_ratio", "bootstrap": 0},
    }.items():
        began = time.perf_counter()
        mix = hgprompt.weigh(pool, **settings)
        found[f"solve_{name}_s"] = time.perf_counter() - began
        found[f"steps_{name}"] = mix.facts["optima"][0]["steps"]
    large = random_evidence(1000, 200, 64, 10)
    ratio = TraceRatio.of(large.features, large.labels)
    start = torch.full((1000,), 1e-3, dtype=torch.float64)
    began = time.perf_counter()
    optimum = maximise(ratio, start, steps=500, tolerance=0.0)
    found["trace_ratio_1000_sources_s"] = time.perf_counter() - began
    found["trace_ratio_1000_sources_steps"] = optimum.steps
    return found


def sources_of(count: int, backbone: Any) -> dict[str, Any]:
    """Return prompts of ten tokens at every block, each from a seed of its own."""
    prompts = {}
    for seed in range(count):
        settings = {"prompt_init": "vpt_uniform", "prompt_init_seed": seed}
        build = registry.build("adapters", registry.Spec("vpt", settings))
        prompts[f"source {seed}"] = build(backbone).prompt()
    return prompts


def time_evidence() -> dict[str, Any]:
    """Compare the pass with timm's own blocks over as many tokens, forward and backward."""
    backbone = open_backbone("demo")
    task = open_task("elpv").few_shot(64, 0)
    examples = task.examples(task.train, backbone.data_config)
    images = backbone.normalise(torch.from_numpy(examples.pixels))
    prompts = sources_of(1, backbone)
    tokens = backbone.embed(images[:1]).shape[1] + 10
    start = torch.randn(64, tokens, backbone.dim)

    def bare() -> None:
        for batch in images.split(64):
            leaf = start[: len(batch)].clone().requires_grad_()
            with autocast("auto", backbone.device):
                sequence = leaf
                for block in backbone.vit.blocks:
                    sequence = block(sequence)
                pooled = backbone.vit.norm(sequence)[:, 0].float()
            pooled.square().sum().backward()

    def ours(count: int = 1) -> None:
        given = prompts if count == 1 else sources_of(count, backbone)
        gather(backbone, given, examples, len(task.classes), Plan("base"), use_cache=False)

    plain = median_seconds(
        lambda: gather(backbone, prompts, examples, len(task.classes), Plan(), use_cache=False), 1
    )
    both, alone = [], []
    for _ in range(5):  # one after the other, so that both see the machine in the same state
        alone.append(median_seconds(bare, 1))
        both.append(median_seconds(ours, 1))
    # Two passes without gradients cost `plain`; `ours` adds one of them to the pass with gradients.
    gradient_pass = statistics.median(both) - plain / 2
    one = peak_memory()
    ours(8)
    return {
        "images": len(examples),
        "tokens": tokens,
        "bare_images_per_s": len(examples) / statistics.median(alone),
        "evidence_images_per_s": len(examples) / gradient_pass,
        "ratio": statistics.median(alone) / gradient_pass,
        "peak_mib_1_source": one,
        "peak_mib_8_sources": peak_memory(),
        "features_mib_a_source": len(examples) * backbone.feature_dim * 4 / 2**20,
    }


def peak_memory() -> float:
    """Return the most memory that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_algorithm() -> dict[str, Any]:
    """Time `weigh` from cached evidence against Algorithm 1 as written, on the same inputs.

    Algorithm 1 computes features and gradients anew in every epoch, and takes one step. Both
    maximise the trace ratio less Eq. 10, since the raw H-score does not exist at this size. One
    epoch is timed over five; a hundred cost that much each.
    """
    backbone = open_backbone("demo")
    task = open_task("elpv").few_shot(25, 0)
    examples = task.examples(task.train, backbone.data_config)
    prompts = sources_of(6, backbone)
    classes = len(task.classes)
    evidence = gather(backbone, prompts, examples, classes, Plan("base"), use_cache=False)
    settings = {"score": "trace_ratio", "alignment": "uniform", "lambda_": 1.0, "bootstrap": 0}
    ours = median_seconds(lambda: hgprompt.weigh(evidence, **settings))
    images = backbone.normalise(torch.from_numpy(examples.pixels))
    head = base_head(evidence.plain, examples.labels, classes)

    def epoch(alpha: torch.Tensor, rate: float) -> torch.Tensor:
        features, gradients = [], []
        for prompt in prompts.values():
            adapter = PromptAdapter(backbone, prompt)
            with autocast("auto", backbone.device):
                found = adapter.features(images).float()
            torch.nn.functional.cross_entropy(head.logits(found), examples.labels).backward()
            features.append(found.detach())
            gradients.append(adapter.tokens.grad)
        gain = TraceRatio.of(torch.stack(features), examples.labels)
        loss = _alignment.UniformAlignment.of(torch.stack(gradients))
        slope = gain(alpha)[1] - loss(alpha)[1]
        alpha = alpha.clone()
        alpha[:-1] += rate * (slope[:-1] - slope[-1])
        alpha[-1] = 1 - alpha[:-1].sum()
        return alpha

    alpha, began = torch.full((6,), 1 / 6, dtype=torch.float64), time.perf_counter()
    for _ in range(5):
        alpha = epoch(alpha, 0.005)
    written = (time.perf_counter() - began) / 5
    # Features do not depend on the weights, so cached ones take the same steps; until they settle.
    mix = hgprompt.weigh(evidence, **settings)
    objective = hgprompt.build_objective(
        evidence, score="trace_ratio", alignment="uniform", lambda_=1.0
    )
    steps = hgprompt.SOLVERS["leave_one_out_sgd"](objective, torch.full((6,), 1 / 6).double())
    return {
        "sources": 6,
        "images": len(examples),
        "weigh_s": ours,
        "algorithm_1_epoch_s": written,
        "algorithm_1_100_epochs_s": 100 * written,
        "ratio": 100 * written / ours,
        "objective_ours": objective(mix.weights)[0],
        "objective_algorithm_1_1000_steps": steps.value,
        "lowest_weight_algorithm_1": float(steps.weights.min()),
        "tokens_moved": float((compose.combine(list(prompts.values()), alpha).tokens).norm()),
    }


if __name__ == "__main__":
    main()
