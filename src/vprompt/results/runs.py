"""Runs: one JSON-able record per result, with everything a sceptical reader would ask for."""

import datetime
import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vprompt.artifacts import hub
from vprompt.artifacts.artifact import Artifact, make_config
from vprompt.core import registry
from vprompt.core.files import digest
from vprompt.core.linalg import cosine_matrix, weighted_sum
from vprompt.core.precision import capabilities
from vprompt.core.types import Weights
from vprompt.data.targets import CLASS
from vprompt.data.task import Examples, Task
from vprompt.learning.classifier import OWN
from vprompt.learning.tune import Tuned
from vprompt.models.backbone import Backbone
from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix
from vprompt.pooling.settings import SUM
from vprompt.prompts.prompt import Prompt, prompt_digest

_PACKAGES = ("vprompt", "torch", "timm", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")


def describe_task(task: Task, examples: dict[str, Examples | None]) -> dict[str, Any]:
    """Return name, classes, sizes, draws, digests of pixels and labels, and the census."""
    splits = {
        name: {"images": len(part), "digest": f"sha256:{part.digest}"}
        for name, part in examples.items()
        if part is not None
    }
    if task.test is not None:
        splits["test"] = {"images": len(task.test)}
    counts = task.class_counts()
    return {
        "name": task.name,
        **({} if task.target == CLASS else {"target": task.target}),
        "num_classes": len(task.classes),
        "classes": list(task.classes),
        "train_images_per_class": counts,
        "splits": splits,
        "facts": task.facts,
        "census": task.census().to_json(),
        **_value_range(examples.get("train")),
    }


def _value_range(train: Examples | None) -> dict[str, Any]:
    """Return which values became black and white, where images have more than 8 bits."""
    found = None if train is None else train.values
    return {} if found is None else {"value_range": found.to_json()}


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """Return name, fingerprint, sizes and preprocessing."""
    config = make_config(backbone, None, ())
    return {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "token_dim": config["token_dim"],
        "num_layers": config["num_layers"],
        "data_config": config["data_config"],
        **({"weights": backbone.remark} if backbone.remark else {}),
    }


def describe_tuning(tuned: Tuned, selection: str) -> dict[str, Any]:
    """Return the training curve, which epoch was kept, by which rule, and the trainable sizes."""
    prompt, text = tuned.adapter.prompt(), tuned.adapter.text()
    return {
        "history": [record.to_json() for record in tuned.history],
        "kept_epoch": tuned.kept_epoch,
        "kept": tuned.sentence,
        "ended": tuned.ended,
        **({"refitted": True} if tuned.refitted else {}),
        "selection": selection,
        "start_head": {
            "family": tuned.start_head.family,
            "strength": _number(tuned.start_head.strength),
            "cv_accuracy": _number(tuned.start_head.cv_accuracy),
            "cv_loss": _number(tuned.start_head.cv_loss),
        },
        "parameters": describe_parameters(tuned),
        "trained": trained_tensors(tuned),
        "frozen": tuned.adapter.num_frozen,
        "memory": tuned.adapter.memory,
        "prompt_digest": prompt_digest(prompt),
        **({} if text is None else {"text_prompt_digest": prompt_digest(text.prompt)}),
    }


def describe_parameters(tuned: Tuned) -> dict[str, int]:
    """Count what was trained, from the tensors that took a gradient; the head apart."""
    trained = sum(math.prod(shape) for shape in trained_tensors(tuned).values())
    prompts = (tuned.adapter.prompt(), tuned.adapter.text())
    part = "adapter" if trained and prompts == (None, None) else "prompt"
    own = tuned.head.family == OWN  # then what is trained of it is the adapter's
    head = 0 if own else tuned.head.weight.numel() + tuned.head.bias.numel()
    return {part: trained, "head": head}


def trained_tensors(tuned: Tuned) -> dict[str, list[int]]:
    """Return the freeze report: the shape of every tensor of the adapter that took a gradient."""
    named = tuned.adapter.named_parameters()
    return {name: list(p.shape) for name, p in named if p.requires_grad}


def describe_machine(device: torch.device, precision: str) -> dict[str, Any]:
    """Return versions, processor, threads, precision and the time."""
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": f"sha256:{_code_digest()}",
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        **_processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "precision": precision,
    }


@functools.cache
def _processor() -> dict[str, Any]:
    """Return the processor's name, and whether it multiplies bf16 itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    found = capabilities()
    return {
        "processor": model or platform.processor(),
        "amx_bf16": bool(found.get("amx_bf16")),
        "avx512_bf16": bool(found.get("avx512_bf16")),
    }


@functools.cache
def _code_digest() -> str:
    """Return a digest of this package's own files: a version number changes less often."""
    root = Path(__file__).parents[1]
    return digest(*(path.read_bytes() for path in sorted(root.rglob("*.py"))))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _number(value: float) -> float | None:
    return None if value != value else value  # JSON has no NaN


def describe_transfer(
    sources: Sequence[Artifact],
    evidence: Evidence,
    mix: Mix,
    twins: Mapping[str, str],
    weights: Weights,
    start: Prompt,
) -> dict[str, Any]:
    """Return weight, score and origin of every source, and how far gradients agree."""
    hscore = registry.build("metrics", "hscore")
    fused = weighted_sum(weights.float(), evidence.features) if evidence.looked else None
    cosines = cosine_matrix(evidence.gradients) if evidence.gradients.numel() else None
    facts = dict(mix.facts)
    spans = dict(zip(facts.pop("weighed", ()), facts.pop("intervals", ()), strict=False))
    refined = not torch.equal(weights, mix.weights)
    described = []
    for row, (source, weight, solved, features) in enumerate(
        zip(sources, weights, mix.weights, evidence.features, strict=True)
    ):
        described.append(
            {
                "name": source.name,
                "weight": float(weight),
                "weight_before_refining": float(solved),
                "layer_weights": None if mix.layers is None else mix.layers[:, row].tolist(),
                "interval": None if refined else spans.get(source.name),
                "hscore": hscore(features, evidence.labels) if evidence.looked else None,
                "task": source.config.get("task", {}).get("name"),
                "digest": source.digest,
                "same_as": twins.get(source.name),
            }
        )
    return {
        "sources": described,
        "hscore_plain": hscore(evidence.plain, evidence.labels),
        "hscore_fused": None if fused is None else hscore(fused, evidence.labels),
        "gradient_cosines": None
        if cosines is None
        else [[round(float(v), 4) for v in row] for row in cosines],
        "simplex": mix.simplex,
        "solution": facts,
        "start_digest": prompt_digest(start),
    }


def replay(
    run: Mapping[str, Any],
    task: str | None,
    draw: Mapping[str, int | str | None],
    sources: Sequence[Artifact],
) -> dict[str, Any]:
    """Return the recipe from which `combine --recipe` makes the artefact of a run again.

    Paths stay as they were typed: a shared card should not tell where its author's files are. What
    came from a hub is named by its commit there.
    """
    places = [str(s.folder) if s.folder is None else hub.origin(s.folder) for s in sources]
    return {
        "merge_method": run["method"],
        "base_model": run["backbone"]["name"],
        "models": [
            {"model": place, "digest": source.digest}
            for place, source in zip(places, sources, strict=True)
        ],
        "target": {"data": task, **draw},
        "parameters": {key: run[key] for key in (*SUM, "include_self") if key in run},
        "train": run["train"],
    }
