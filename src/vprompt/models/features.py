"""Features: what a frozen model makes of images under a prompt, computed once and kept on disk.

The cache is keyed by content: pixels and labels, weights, preprocessing, tokens, precision. Methods
that share a backbone and a task share one extraction, and a pool can grow without any other.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from vprompt.core import distributed, files
from vprompt.core.precision import autocast, resolve
from vprompt.core.types import Features
from vprompt.data.task import Examples
from vprompt.models import company, prefix
from vprompt.models.backbone import Backbone, extract
from vprompt.prompts.prompt import Prompt, prompt_digest

BATCH_SIZE = 64
_VERSION = "4"


def features_of(
    backbone: Backbone,
    prompt: Prompt | None,
    examples: Examples,
    *,
    batch_size: int = BATCH_SIZE,
    precision: str = "auto",
    use_cache: bool = True,
) -> Features:
    """Return the features of all examples under a prompt, fp32, without gradients."""
    known = kept(backbone, prompt, examples, precision) if use_cache else None
    if known is not None:
        return known
    device, parts, moved = backbone.device, [], None
    if prompt is not None:
        moved = prompt.to(device)
    own = distributed.own_rows(len(examples), batch_size)
    given = prefix.reuse(backbone, examples, prompt, precision) if use_cache else examples
    with torch.no_grad(), autocast(precision, device), company.shared():
        for inputs, _ in given.batches(batch_size, own):
            parts.append(extract(backbone, backbone.ready(inputs), moved).float().cpu())
    features = distributed.assemble(parts, own, len(examples), backbone.feature_dim)
    if use_cache and not distributed.local_rank():
        path = cache_path(backbone, prompt, examples, precision)
        with files.optional():
            files.write_tensors(path, {"features": features})
    return features


def kept(
    backbone: Backbone, prompt: Prompt | None, examples: Examples, precision: str
) -> Features | None:
    """Return the features if an earlier pass left them with every process; nothing is computed."""
    known = read(cache_path(backbone, prompt, examples, precision))
    return known["features"] if distributed.all_have("features" in known) else None


def cache_path(
    backbone: Backbone, prompt: Prompt | None, examples: Examples, precision: str, what: str = ""
) -> Path:
    """Return where the features are kept, or `what` else was computed under the same prompt."""
    key = files.digest(
        _VERSION,
        examples.digest,
        backbone.fingerprint,
        json.dumps(backbone.data_config.to_json(), sort_keys=True),
        prompt_digest(prompt),
        resolve(precision, backbone.device),
        what,
    )
    return files.cache_folder() / "evidence" / f"{key[:32]}.safetensors"


def read(path: Path) -> dict[str, Tensor]:
    """Return what is kept there; nothing where it is absent or damaged."""
    found = files.kept_tensors(path)
    return {} if found is None else found[0]
