"""DPL on a CLIP: how many prompt tokens each block of the image and of the text tower needs.

As `dpl`, with class names in place of a linear head: the text tower reads them in every step. The
method `dpl` on the same backbone searches the image tower under a linear head.

Reference: Huang et al., "Differentiable Prompt Learning for Vision Language Models", IJCAI 2025,
arXiv 2501.00457.
"""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vprompt.adapters._bank import CandidateBank, bank_size
from vprompt.adapters._bilevel import PAPER_TRAINING, AlphaSettings, Bilevel, Searching
from vprompt.adapters._budget import priced
from vprompt.adapters._clip_start import check_init, start_rows
from vprompt.core.errors import VPromptError
from vprompt.core.randomness import stream
from vprompt.core.registry import Spec, suggest
from vprompt.core.settings import takes
from vprompt.core.types import Features, Images
from vprompt.data.sentences import GENERIC
from vprompt.learning.adapter import Adapter, FeatureAdapter, Training
from vprompt.learning.text_adapter import Pair, ReadingAdapter, chosen_templates, two_towers
from vprompt.models.backbone import Backbone, extract
from vprompt.models.two_tower import TwoTower
from vprompt.prompts.configurations import swapped
from vprompt.prompts.lengths import check_candidates, choose

Towers = Literal["image", "text", "both"]
PRESETS: dict[str, dict[str, Any]] = {
    # The released code, faults that change a result included: `first` shows alpha the same images
    # at every step, and the tokens that are learned in the end start 50 times smaller.
    "paper": {
        "lengths": list(range(7)),
        "prompt_init": "normal",
        "text_prompt_init": "uniform",
        "train_init": "small",
        "alpha_init": 1e-3,
        "alpha_order": "first",
        "alpha_warmup": 0.0,
        "patience": 0,
    },
    "robust": {
        "lengths": [0, 2, 4, 6],
        "prompt_init": "unit",
        "text_prompt_init": "unit",
        "train_init": "unit",
        "alpha_init": 0.0,
        "alpha_order": "cycle",
        "alpha_warmup": 0.2,
        "patience": 10,
    },
}
TRAINING: dict[str, dict[str, Any]] = {
    "paper": PAPER_TRAINING,
    # Tokens of size 1 turn slowly at the usual 0.005 (docs/findings.md).
    "robust": {"epochs": 80, "batch_size": 4, "lr": 0.02, "weight_decay": 0.0, "keep": "last"},
}


class ClipDPL(Searching):
    """The settings.

    `lengths` are 0, 2, 4 and 6, or 0 to 6 as in the released code. `max_prompts` bounds the tokens
    of all blocks of both towers together, `max_params` their parameters: tokens of the two towers
    differ in width. `templates` is as for `zero_shot`, and `prompt_init` one of `unit`, `normal`,
    `uniform` and `small`. `alpha_lr` is the rate of alpha. `swap_branches`, `distill` and
    `temperature` are for the learning that follows: each tower gets the lengths of the other, as
    the released code's instructions had it, and see `clip_deep`.
    """

    towers: Towers = "both"
    templates: str | None = None
    alpha_lr: float = 0.0035
    swap_branches: bool = False
    distill: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class TowerSettings(AlphaSettings):
    """What the choice may cost, and how the found lengths are learned; see `ClipDPL`."""

    lengths: tuple[int, ...]
    max_prompts: int | None
    max_params: int | None
    length_penalty: float
    swap_branches: bool
    learned: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        """Check names and ranges, and that there is one limit."""
        super().__post_init__()
        if self.max_prompts is not None and self.max_params is not None:
            raise VPromptError("Bound either the tokens (max_prompts) or the parameters, not both.")

    @property
    def limit(self) -> int | None:
        """Return the bound on tokens or on parameters, if there is one."""
        return self.max_prompts if self.max_params is None else self.max_params


@takes(ClipDPL)
def build(backbone: Backbone, settings: ClipDPL) -> Adapter:
    """Start a search in one tower or in both."""
    clip = two_towers(backbone, "clip_dpl")
    preset, templates, seed = settings.preset, settings.templates, settings.prompt_init_seed
    if preset not in PRESETS:
        raise VPromptError(f"clip_dpl has no preset {preset!r}.{suggest(preset, PRESETS)}")
    if preset == "paper" and templates is None:
        templates = GENERIC[0]  # for every data set
    given = settings.given()
    given.pop("prompt_init", None)  # of both towers, and of the learning that follows
    chosen = {name: given.get(name, usual) for name, usual in PRESETS[preset].items()}
    starts = {"image": chosen.pop("prompt_init"), "text": chosen.pop("text_prompt_init")}
    train_init = chosen.pop("train_init")
    if settings.prompt_init is not None:
        check_init(settings.prompt_init)
        train_init = settings.prompt_init
        starts = {"image": train_init, "text": train_init}
    learned = {"prompt_init": train_init, "prompt_init_seed": seed, "templates": templates}
    learned |= {"distill": settings.distill, "temperature": settings.temperature}
    search = TowerSettings(
        lengths=tuple(check_candidates(chosen.pop("lengths"))),
        bank=settings.bank,
        alpha_lr=settings.alpha_lr,
        alpha_batch=settings.alpha_batch,
        max_prompts=settings.max_prompts,
        max_params=settings.max_params,
        length_penalty=settings.length_penalty,
        swap_branches=settings.swap_branches,
        learned=tuple(learned.items()),
        **chosen,
    )
    towers = settings.towers
    banks = {
        tower: _bank(clip, tower, search, starts[tower], seed)
        for tower in (("image", "text") if towers == "both" else (towers,))
    }
    kind = TowerSearch if "image" in banks else TextSearch
    return kind(clip, banks, search, chosen_templates(clip, templates), seed)


@takes(ClipDPL)
def training(settings: ClipDPL) -> dict[str, Any]:
    """Return the training settings of a preset: the search keeps its last epoch."""
    return TRAINING.get(settings.preset, {})


@takes(ClipDPL)
def learned_by(settings: ClipDPL) -> str:
    """Return the method that learns what is found, as far as its training settings depend on it."""
    usual = PRESETS.get(settings.preset, {}).get("train_init", "unit")
    return (
        f"clip_deep(prompt_init={usual if settings.prompt_init is None else settings.prompt_init})"
    )


@takes(ClipDPL)
def alpha_data(settings: ClipDPL) -> str:
    """Return which images alpha moves on: validation images, or half of the training images."""
    return "half" if settings.preset == "robust" else "val"


class TowerSearch(ReadingAdapter, Bilevel):
    """Prompts of every candidate length in every block of the towers, and the weights between them.

    Training sees the weighted mixture; without a generator, features and texts are those of the
    choice that the search would end with now. A row of alpha is a block, the image tower's first.
    """

    settings: TowerSettings

    def __init__(
        self,
        backbone: TwoTower,
        banks: Mapping[str, CandidateBank],
        settings: TowerSettings,
        templates: tuple[str, ...] | None,
        seed: int,
    ) -> None:
        Adapter.__init__(self)
        self.backbone, self.settings, self.asked = backbone, settings, templates
        self.banks = nn.ModuleDict(banks).to(backbone.device)
        shapes = {tower: (bank.depth, len(settings.lengths)) for tower, bank in banks.items()}
        drawn = [torch.randn(s, generator=stream(seed, f"alpha, {t}")) for t, s in shapes.items()]
        self.memory = {
            "branches": list(banks),
            "candidates": list(settings.lengths),
            "bank": settings.bank,
        }
        self.hold_alpha(settings.alpha_init * torch.cat(drawn))
        self.memory["prices"] = [self._prices()]

    def searched(self) -> dict[str, CandidateBank]:
        """Return the prompts of the towers that are searched."""
        return {t: bank for t, bank in self.banks.items() if isinstance(bank, CandidateBank)}

    def by_tower(self, alpha: Tensor) -> dict[str, Tensor]:
        """Return the rows of alpha, `[depth, candidates]` for each tower."""
        depths = {tower: bank.depth for tower, bank in self.searched().items()}
        return dict(zip(depths, alpha.split(list(depths.values())), strict=True))

    def weights(self) -> dict[str, Tensor]:
        """Return the weight `[depth, candidates]` of every candidate in every block, by tower.

        Where a bound holds, the softmax is of alpha less the price of the candidate's tokens.
        """
        return self.by_tower(self._weights_and_price()[0])

    def expected(self) -> dict[str, Tensor]:
        """Return the expected number of tokens of every block, `[depth]`, by tower."""
        lengths = self.alpha.new_tensor(self.settings.lengths)
        return {tower: rows @ lengths for tower, rows in self.weights().items()}

    def found(self) -> dict[str, list[int]]:
        """Return the length of every block, by tower, that the search would end with now."""
        choice = self._choice()
        return {tower: bank.counts(choice[tower]) for tower, bank in self.searched().items()}

    def shown_alpha(self) -> dict[str, list[list[float]]]:
        """Return alpha by tower."""
        return {tower: rows.tolist() for tower, rows in self.by_tower(self.alpha).items()}

    def learns_as(self) -> str:
        """Return deep prompts of the found lengths; zero-shot where no block wants a token."""
        found, settings = self.found(), dict(self.settings.learned)
        if not any(sum(counts) for counts in found.values()):
            return str(Spec("zero_shot", _given({"templates": settings["templates"]})))
        if self.settings.swap_branches:
            found = swapped(found)
        counts = {f"num_{tower}_tokens": found.get(tower, 0) for tower in ("image", "text")}
        return str(Spec("clip_deep", {**counts, **_given(settings)}))

    def prompts(self) -> Pair:
        """Return the prompts of the found lengths."""
        choice = self._choice()
        made = {tower: bank.chosen(choice[tower]) for tower, bank in self.searched().items()}
        return made.get("image"), made.get("text")

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features of the mixture in training, of the found lengths otherwise."""
        bank, weights = self._now("image", generator)
        return extract(self.backbone, images, bank.whole(), attend=bank.attend(weights))

    def own_head(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the classes' features, of the mixture in training, and a bias of zeros."""
        if "text" not in self.banks:
            return self.head_of(None)
        bank, weights = self._now("text", generator)
        return self.head_of(bank.whole(), bank.attend(weights))

    def end_epoch(self, training: Training) -> None:
        """Remember the price of a token as well."""
        self.memory["prices"].append(self._prices())
        super().end_epoch(training)

    def identity(self) -> dict[str, Any]:
        """Add the settings of the search."""
        settings = asdict(self.settings)
        del settings["learned"], settings["swap_branches"]  # of what follows
        return {**super().identity(), **settings, "branches": list(self.banks)}

    def _now(self, tower: str, generator: torch.Generator | None) -> tuple[CandidateBank, Tensor]:
        """Return a tower's prompts and their weights, all on one candidate outside training."""
        bank, weights = self.searched()[tower], self.weights()[tower]
        return bank, bank.alone(self._choice()[tower], weights) if generator is None else weights

    def _widths(self) -> dict[str, int]:
        """Return what a token of each tower costs, in the unit of the limit."""
        if self.settings.max_params is None:
            return dict.fromkeys(self.banks, 1)
        widths = {"image": self.backbone.dim, "text": self.backbone.text.dim}
        return {tower: widths[tower] for tower in self.banks}

    def _costs(self) -> list[int]:
        """Return what a token of every block costs, in the order of alpha's rows."""
        widths, banks = self._widths(), self.searched()
        return [widths[tower] for tower, bank in banks.items() for _ in range(bank.depth)]

    def _weights_and_price(self) -> tuple[Tensor, Tensor]:
        alpha, limit = self.current_alpha(), self.settings.limit
        if limit is None:
            return alpha.softmax(1), alpha.new_zeros(())
        costs = torch.outer(*map(alpha.new_tensor, (self._costs(), self.settings.lengths)))
        return priced(alpha, costs, float(limit))

    def _prices(self) -> dict[str, float]:
        """Return the price of a token of each tower."""
        price = float(self._weights_and_price()[1])
        return {tower: price * width for tower, width in self._widths().items()}

    def _choice(self) -> dict[str, list[int]]:
        scores, limit = self.alpha.double().log_softmax(1).tolist(), self.settings.limit
        chosen = iter(choose(scores, self.settings.lengths, limit, widths=self._costs()))
        banks = self.searched()
        return {t: list(itertools.islice(chosen, bank.depth)) for t, bank in banks.items()}

    def _penalty(self) -> Tensor:
        totals = [rows.sum() for rows in self.expected().values()]
        return self.settings.length_penalty * torch.stack(totals).sum()


class TextSearch(TowerSearch, FeatureAdapter):
    """A search in the text tower alone: image features are computed once."""

    def prompt(self) -> None:
        """Return nothing: images are seen as they are."""

    def transform(
        self, features: Features, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the features as they are."""
        del generator
        return features

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features of the frozen image tower."""
        return FeatureAdapter.features(self, images, generator=generator)


def _bank(
    clip: TwoTower, tower: str, settings: TowerSettings, kind: str, seed: int
) -> CandidateBank:
    """Return a tower's prompts of all candidates as they start."""
    part, nested = clip if tower == "image" else clip.text, settings.bank == "nested"
    count = part.depth * bank_size(settings.lengths, nested=nested)
    rows = start_rows(kind, count, part.dim, stream(seed, f"prompt_init, {tower}"))
    return CandidateBank(settings.lengths, part.depth, rows, nested=nested)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None."""
    return {key: value for key, value in settings.items() if value is not None}
