"""PRO-VPT: deep tokens that move to the blocks where they help, while they are trained.

The number of tokens never changes. Again and again the token that helps least where it stands is
taken out, and set in where it would lower the loss most. What can be switched, and what is wrong
with the published method, is in docs/placement.md.

Reference: Shang et al., "PRO-VPT: Distribution-Adaptive Visual Prompt Tuning via Prompt
Relocation", ICCV 2025, arXiv 2503.06901.
"""

from collections.abc import Callable
from typing import Any

import torch

from vprompt.adapters._placement.allocators import Allocator, Gain, Random, Stay, Thompson
from vprompt.adapters._placement.moving import MovingPrompt
from vprompt.adapters._placement.ppo import PPO
from vprompt.adapters._placement.probe import check_reachable
from vprompt.adapters._placement.rules import Rules
from vprompt.adapters._start import TRAINING, start_tokens
from vprompt.core.settings import Settings, takes
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, place

# Tokens per block: the released run has 20.
LENGTHS = {"paper": 20, "robust": 10}
# The recipe of the released run: its rate is 10 per 256 images at batch 64.
PAPER_TRAINING = {
    "opt": "sgd",
    "lr": 2.5,
    "head_lr": 2.5,
    "weight_decay": 1e-4,
    "sched": "constant",
    "clip_grad": 0.25,
    "head": "kaiming",
    "keep": "last",
    "epochs": 100,
    "batch_size": 64,
    "decay_bias": True,
}


class ProVPT(Settings):
    """The settings; None means: as `preset` says, `robust` or `paper`.

    `num_virtual_tokens` are those of a block, 10, or 20 as in the released run; a list is the count
    of every block.

    `score` is `mask` (slope of removing a key), `taylor` (slope along the vector, as published),
    `taylor_norm` (the same without the LayerNorm's factor), `norm` (smallest share of the norms in
    its block) or `random`. It is read from every `score_every`-th training step (`train_steps`) or
    from a pass over all images before every epoch (`extra_pass`), with gradients clipped to
    `score_clip` (0: not), and averaged over epochs with the factor `score_ema`. `exact` replaces
    the weight A of a key by A / (1 - A) in mask scores, and by A / (1 + A) in gains: then only the
    rest of the network is linearised.

    `alloc` is `grad` (block of the largest insertion gain), `ppo` (as published), `thompson`,
    `random` or `none` (the token starts afresh where it is). The two that learn are rewarded by
    the fall of the training loss (`reward_loss`: its `mean`, or as `coded`) less the score of the
    `pruned` token, or as `coded` less the highest score one epoch later. `accept=gain` moves a
    token only if its score and the gain sum to more than `tau`.

    A moved token starts from a vector `fresh` for its new block (with `grad`, from the best of
    `candidates`, all but one of which are random with `explore`), from its own (`keep`), or from
    its own times `move_scale` (`scale`); the optimiser's row is reset (`reset_row`) or not
    (`keep`). Tokens move after the first epoch, within the `window` of shares of the epochs, at
    most `moves_per_epoch` (below 1: a share of all tokens; 0: never), rest for `cooldown` epochs,
    and leave `min_per_block` to `max_per_block` behind. `self_move` says what a learned choice of
    the same block does: nothing, as in the released file for supervised models, or `scale`, as in
    those for MAE and MoCo-v3.
    """

    preset: str = "robust"
    num_virtual_tokens: int | list[int] | None = None
    score: str | None = None
    score_source: str | None = None
    score_clip: float | None = None
    score_ema: float | None = None
    score_every: int | None = None
    exact: bool | None = None
    alloc: str | None = None
    reward: str | None = None
    reward_loss: str | None = None
    accept: str | None = None
    tau: float = 0.0
    move_init: str | None = None
    move_scale: float = 1e-3
    explore: bool | None = None
    move_optim: str | None = None
    candidates: int = 4
    window: list[float] | None = None
    moves_per_epoch: int | float | None = None
    cooldown: int | None = None
    min_per_block: int = 0
    max_per_block: int | None = None
    self_move: str = "noop"
    prompt_dropout: float | None = None
    prompt_init: str | None = None
    prompt_init_seed: int = 0


@takes(ProVPT)
def build(backbone: Backbone, settings: ProVPT) -> Adapter:
    """Start a deep prompt whose tokens move."""
    beside = {"num_virtual_tokens", "prompt_init_seed"}
    rules = Rules.of(**settings.model_dump(exclude=beside))
    if rules.gates:
        size = backbone.data_config.input_size
        with torch.no_grad():
            check_reachable(backbone, torch.zeros(1, *size).to(backbone.device))
    given, seed = settings.num_virtual_tokens, settings.prompt_init_seed
    counts = LENGTHS[rules.preset] if given is None else given
    blocks = place(counts, backbone.depth, deep=True)
    tokens = start_tokens(backbone, blocks, rules.prompt_init, seed)
    allocators: dict[str, Callable[[], Allocator]] = {
        "grad": Gain,
        "ppo": lambda: PPO(backbone.depth, seed),
        "thompson": lambda: Thompson(backbone.depth),
        "random": Random,
        "none": Stay,
    }
    start = Prompt(tokens, blocks, persist=False)
    return MovingPrompt(backbone, start, rules, allocators[rules.alloc]())


@takes(ProVPT)
def training(settings: ProVPT) -> dict[str, Any]:
    """Return the training settings that belong to a preset; those of `robust` are VPT's."""
    return dict(PAPER_TRAINING if settings.preset == "paper" else TRAINING)
