"""DPL: a search for the number of prompt tokens that each block needs, by gradient descent.

Every block runs all candidate lengths at once, weighted by a softmax over `alpha`. Before each
step of the prompts on training images, one step moves alpha on validation images.

Reference: Huang et al., "Differentiable Prompt Learning for Vision Language Models", IJCAI 2025,
arXiv 2501.00457.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.adapters._bilevel import PAPER_TRAINING, AlphaSettings, Bilevel, Searching
from vprompt.adapters._budget import priced
from vprompt.adapters._start import start_tokens
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.registry import suggest
from vprompt.core.settings import takes
from vprompt.core.types import Features, Images, PromptTokens
from vprompt.learning.adapter import Adapter, Training
from vprompt.models.attention import Attend, gated, mixture, survival
from vprompt.models.backbone import Backbone, extract
from vprompt.prompts.lengths import check_candidates, choose
from vprompt.prompts.prompt import Prompt, place

BRANCH = "image"
PRESETS: dict[str, dict[str, Any]] = {
    # The released code, faults that change a result included: `first` shows alpha the same images
    # at every step.
    "paper": {
        "lengths": list(range(7)),
        "prompt_init": "normal",
        "alpha_init": 1e-3,
        "alpha_lr": 0.0035,
        "alpha_order": "first",
        "alpha_warmup": 0.0,
        "patience": 0,
    },
    # Ours has far fewer and larger steps, so alpha takes longer ones.
    "robust": {
        "lengths": [0, 5, 10, 20],
        "prompt_init": "blank",
        "alpha_init": 0.0,
        "alpha_lr": 0.02,
        "alpha_order": "cycle",
        "alpha_warmup": 0.2,
        "patience": 10,
    },
}
TRAINING: dict[str, dict[str, Any]] = {
    "paper": PAPER_TRAINING,
    "robust": {"epochs": 30, "weight_decay": 0.0, "keep": "last"},
}


class DPL(Searching):
    """The settings. `alpha_lr` is the rate of alpha."""

    alpha_lr: float | None = None


@dataclass(frozen=True)
class SearchSettings(AlphaSettings):
    """The candidates, and what they cost; see `DPL`."""

    lengths: tuple[int, ...]
    max_prompts: int | None
    length_penalty: float


@takes(DPL)
def build(backbone: Backbone, settings: DPL) -> Adapter:
    """Start a search."""
    chosen = _chosen(settings)
    max_prompts = settings.max_prompts
    if settings.max_params is not None:
        if max_prompts is not None:
            raise VPromptError("Bound either the tokens (max_prompts) or the parameters, not both.")
        max_prompts = settings.max_params // backbone.dim
    candidates = check_candidates(chosen.pop("lengths"))
    choose([[0.0] * len(candidates)] * backbone.depth, candidates, max_prompts)
    bank, start, seed = settings.bank, chosen.pop("prompt_init"), settings.prompt_init_seed
    tokens = _bank(backbone, candidates, bank, start, seed)
    search = SearchSettings(
        lengths=tuple(candidates),
        bank=bank,
        alpha_batch=settings.alpha_batch,
        max_prompts=max_prompts,
        length_penalty=settings.length_penalty,
        **chosen,
    )
    return LengthSearch(backbone, tokens, search, seed)


@takes(DPL)
def training(settings: DPL) -> dict[str, Any]:
    """Return the training settings of a preset: the search keeps its last epoch."""
    return TRAINING.get(settings.preset, {})


class LengthSearch(Bilevel):
    """Prompts of every candidate length in every block, and the weights between them.

    Training sees the weighted mixture; without a generator, features are those of the choice that
    the search would end with now.
    """

    settings: SearchSettings
    blocks: Tensor

    def __init__(
        self, backbone: Backbone, tokens: PromptTokens, settings: SearchSettings, seed: int
    ) -> None:
        super().__init__()
        self.backbone, self.settings, device = backbone, settings, backbone.device
        self.sizes = list(settings.lengths)
        if settings.bank == "nested":
            self.sizes = [settings.lengths[-1]]
        self.tokens = nn.Parameter(tokens.clone().to(device))
        self.register_buffer("blocks", place(sum(self.sizes), backbone.depth, deep=True).to(device))
        shape = (backbone.depth, len(settings.lengths))
        alpha = settings.alpha_init * torch.randn(shape, generator=stream(seed, "alpha"))
        self.memory = {
            "branch": BRANCH,
            "candidates": list(settings.lengths),
            "bank": settings.bank,
        }
        self.hold_alpha(alpha)
        self.memory["prices"] = [self._prices()]

    def weights(self) -> Tensor:
        """Return the weight `[depth, candidates]` of every candidate in every block.

        Where a budget binds, the softmax is of alpha less the price of the candidate's tokens.
        """
        return self._weights_and_price()[0]

    def expected(self) -> Tensor:
        """Return the expected number of tokens of every block, `[depth]`."""
        return self.weights() @ self.alpha.new_tensor(self.settings.lengths)

    def found(self) -> list[int]:
        """Return the length of every block that the search would end with now."""
        return [self.settings.lengths[index] for index in self._choice()]

    def learns_as(self) -> str:
        """Return VPT with a count per block; the head alone where no block wants a token."""
        found = self.found()
        return f"vpt(num_virtual_tokens={found})" if sum(found) else "linear"

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features of the mixture in training, of the found lengths otherwise."""
        weights = self.weights()
        if generator is None:
            weights = torch.zeros_like(weights)
            weights[torch.arange(len(weights)), self._choice()] = 1
        prompt = Prompt(self.tokens, self.blocks, False)
        return extract(
            self.backbone, images, prompt, attend=lambda block: self._attend(weights[block])
        )

    def prompt(self) -> Prompt | None:
        """Return the tokens of the found lengths; None where no block wants any."""
        found, whole = self.found(), sum(self.sizes)
        if not sum(found):
            return None
        rows = []
        for block, index in enumerate(self._choice()):
            start = 0 if self.settings.bank == "nested" else sum(self.sizes[:index])
            rows.append(torch.arange(start, start + found[block]) + block * whole)
        tokens = self.tokens.detach().cpu()[torch.cat(rows)]
        return Prompt(tokens, place(found, self.backbone.depth, deep=True), False)

    def end_epoch(self, training: Training) -> None:
        """Remember the price of a token as well."""
        self.memory["prices"].append(self._prices())
        super().end_epoch(training)

    def identity(self) -> dict[str, Any]:
        """Add the settings of the search."""
        return {**super().identity(), **asdict(self.settings)}

    def _choice(self) -> list[int]:
        scores = self.alpha.double().log_softmax(1).tolist()
        return choose(scores, self.settings.lengths, self.settings.max_prompts)

    def _attend(self, weights: Tensor) -> Attend:
        if self.settings.bank == "nested":
            return gated(survival(weights, self.settings.lengths))
        return mixture(weights, self.settings.lengths)

    def _weights_and_price(self) -> tuple[Tensor, Tensor]:
        alpha, limit = self.current_alpha(), self.settings.max_prompts
        if limit is None:
            return alpha.softmax(1), alpha.new_zeros(())
        return priced(alpha, alpha.new_tensor(self.settings.lengths).expand_as(alpha), float(limit))

    def _prices(self) -> dict[str, float]:
        return {BRANCH: float(self._weights_and_price()[1])}

    def _penalty(self) -> Tensor:
        return self.settings.length_penalty * self.expected().sum()


def _chosen(settings: DPL) -> dict[str, Any]:
    """Return the preset's settings with what was given in their place."""
    preset = settings.preset
    if preset not in PRESETS:
        raise VPromptError(f"dpl has no preset {preset!r}.{suggest(preset, PRESETS)}")
    given = settings.given()
    return {name: given.get(name, usual) for name, usual in PRESETS[preset].items()}


def _bank(
    backbone: Backbone, lengths: Sequence[int], bank: str, prompt_init: str, seed: int
) -> PromptTokens:
    """Return the tokens of all candidates, block by block, each candidate spread over the image."""
    depth, longest = backbone.depth, lengths[-1]
    sizes = [longest] if bank == "nested" else list(lengths)
    whole = place(sum(sizes), depth, deep=True)
    if prompt_init == "normal":
        return torch.randn(len(whole), backbone.dim, generator=stream(seed, "prompt_init"))
    if prompt_init != "blank":
        return start_tokens(backbone, whole, prompt_init, seed)
    parts = []
    for size in sizes:
        if size:
            made = start_tokens(backbone, place(size, depth, deep=True), "blank", seed)
            parts.append(made.unflatten(0, (depth, size)))
    tokens = torch.cat(parts, dim=1)
    if bank == "nested":  # the first few shall be spread over the image as well
        tokens = tokens[:, torch.randperm(longest, generator=stream(seed, "nested order"))]
    return tokens.flatten(0, 1)
