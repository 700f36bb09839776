"""Scores of tokens against taking every token out: the measurements of `placing.moves scores`."""

from typing import Any

import torch
from scipy.stats import spearmanr

from vprompt.adapters._placement import scores as formulas
from vprompt.adapters._placement.probe import Probe
from vprompt.adapters._placement.scored import ScoredPrompt
from vprompt.learning.adapter import Training


def look(adapter: ScoredPrompt, training: Training, images: int) -> dict[str, Any]:
    """Return how well each score ranks the tokens by what removing them really does.

    `spearman` is the rank correlation with exact ablation on the same images, `captured` the share
    of the best single removal that the highest score obtains. `elsewhere` are mask scores on other
    images, as training steps would see them; `gains` are insertions of four new vectors a block.
    """
    order = torch.randperm(len(training.train), generator=torch.Generator().manual_seed(0))
    rows, others = order[:images], order[images : 2 * images]
    truth = _ablations(adapter, training, rows)
    found = _all_scores(adapter, training, rows)
    found["mask, other images"] = _all_scores(adapter, training, others)["mask"]
    noise = torch.Generator().manual_seed(training.epoch)
    found["random"] = torch.rand(len(truth), generator=noise)
    result: dict[str, Any] = {
        "spearman": {name: _rank(values, truth) for name, values in found.items()},
        "captured": {name: _captured(values, truth) for name, values in found.items()},
        "idle": float((truth > 0).float().mean()),
        "best_removal": float(truth.max()),
        "scale": {name: float(values.abs().median()) for name, values in found.items()},
        "ablation_scale": float(truth.abs().median()),
    }
    result["gains"] = _insertions(adapter, training, rows)
    return result


def _all_scores(
    adapter: ScoredPrompt, training: Training, rows: torch.Tensor
) -> dict[str, torch.Tensor]:
    found = {"norm": formulas.norm_share(adapter.tokens, adapter.blocks)}
    for name, exact in (("mask", False), ("mask, exact", True)):
        probe = Probe(adapter.blocks, adapter.depth, scaled=True, exact=exact)
        _, gradient, slopes, _ = adapter.slopes(training, rows, probe)
        found[name] = slopes["gates"]
        if not exact:
            found["taylor_norm"] = slopes["scales"]
            found["taylor"] = formulas.taylor(adapter.tokens, gradient)
    return {name: value.detach().cpu() for name, value in found.items()}


@torch.no_grad()
def _loss(adapter: ScoredPrompt, training: Training, rows: torch.Tensor, probe: Probe) -> float:
    adapter.probe = probe
    loss = float(training.loss(training.train, rows, None))
    adapter.probe = None
    return loss


def _ablations(adapter: ScoredPrompt, training: Training, rows: torch.Tensor) -> torch.Tensor:
    """Return the fall of the loss when each token is taken out, one after the other."""
    probe, falls = Probe(adapter.blocks, adapter.depth), []
    before = _loss(adapter, training, rows, probe)
    for token in range(len(adapter.tokens)):
        probe.gates = torch.ones_like(probe.gates).detach()
        probe.gates[token] = 0
        falls.append(before - _loss(adapter, training, rows, probe))
    return torch.tensor(falls)


def _insertions(adapter: ScoredPrompt, training: Training, rows: torch.Tensor) -> dict[str, Any]:
    """Compare insertion gains with real insertions, by rank and by what the best one obtains."""
    assert adapter.fresh is not None
    vectors = adapter.fresh.vectors(4, training.seed, training.epoch, explore=True)
    result = {}
    truth = torch.zeros(vectors.shape[:2])
    probe = Probe(adapter.blocks, adapter.depth, candidates=vectors)
    before = _loss(adapter, training, rows, probe)
    for one in range(len(vectors)):
        for block in range(adapter.depth):
            probe.inserted = torch.zeros_like(probe.inserted).detach()
            probe.inserted[one, block] = 1
            truth[one, block] = before - _loss(adapter, training, rows, probe)
    for name, exact in (("gain", False), ("gain, exact", True)):
        probe = Probe(adapter.blocks, adapter.depth, candidates=vectors, exact=exact)
        gains = -adapter.slopes(training, rows, probe)[2]["inserted"]
        result[name] = {
            "spearman": _rank(gains.flatten(), truth.flatten()),
            "captured": _captured(gains.flatten(), truth.flatten()),
        }
    return {**result, "helpful": float((truth > 0).float().mean()), "best": float(truth.max())}


def _rank(values: torch.Tensor, truth: torch.Tensor) -> float | None:
    found = float(spearmanr(values.numpy(), truth.numpy()).statistic)
    return found if found == found else None


def _captured(values: torch.Tensor, truth: torch.Tensor) -> float | None:
    best = float(truth.max())
    return float(truth[int(values.argmax())]) / best if best > 0 else None
