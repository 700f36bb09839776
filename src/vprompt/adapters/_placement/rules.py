"""Rules: every switch of prompt relocation, what the two presets say, and what is refused.

`paper` is the released code of PRO-VPT with those of its faults that change a result; `robust` is
ours. docs/placement.md names the faults and gives the reasons.
"""

from dataclasses import dataclass, fields
from typing import Any

from vprompt.core.errors import VPromptError
from vprompt.core.registry import suggest

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "score": "taylor",
        "score_source": "extra_pass",
        "score_clip": 0.25,
        "score_ema": 0.0,
        "score_every": 1,
        "exact": False,
        "alloc": "ppo",
        "reward": "coded",
        "reward_loss": "coded",
        "accept": "always",
        "move_init": "scale",
        "explore": False,
        "move_optim": "keep",
        "window": [0.0, 1.0],
        "moves_per_epoch": 1,
        "cooldown": 0,
        "prompt_dropout": 0.1,
        "prompt_init": "vpt_uniform",
    },
    "robust": {
        "score": "mask",
        "score_source": "train_steps",
        "score_clip": 0.0,
        "score_ema": 0.9,
        "score_every": 5,
        "exact": True,
        "alloc": "grad",
        "reward": "pruned",
        "reward_loss": "mean",
        "accept": "gain",
        "move_init": "fresh",
        "explore": False,
        "move_optim": "reset_row",
        "window": [0.1, 0.75],
        "moves_per_epoch": 1,
        "cooldown": 3,
        "prompt_dropout": 0.0,
        "prompt_init": "blank",
    },
}
WORDS = {
    "score": ("mask", "taylor", "taylor_norm", "norm", "random"),
    "score_source": ("train_steps", "extra_pass"),
    "alloc": ("grad", "ppo", "thompson", "random", "none"),
    "reward": ("coded", "pruned"),
    "reward_loss": ("coded", "mean"),
    "accept": ("gain", "always"),
    "move_init": ("fresh", "keep", "scale"),
    "move_optim": ("reset_row", "keep"),
    "self_move": ("noop", "scale"),
}
# Numbers with their lowest and highest value.
RANGES = {
    "score_clip": (0, float("inf")),
    "score_ema": (0, 1),
    "score_every": (1, float("inf")),
    "move_scale": (0, 1),
    "candidates": (1, 64),
    "moves_per_epoch": (0, float("inf")),
    "cooldown": (0, float("inf")),
    "min_per_block": (0, float("inf")),
}
LEARNERS = ("ppo", "thompson")
SIGNED = ("mask", "taylor", "taylor_norm")  # positive: the token is idle


@dataclass(frozen=True)
class Rules:
    """The settings of `pro_vpt.build` with a preset's values in place of None."""

    preset: str
    score: str
    score_source: str
    score_clip: float
    score_ema: float
    score_every: int
    exact: bool
    alloc: str
    reward: str
    reward_loss: str
    accept: str
    tau: float
    move_init: str
    move_scale: float
    explore: bool
    move_optim: str
    candidates: int
    window: list[float]
    moves_per_epoch: int | float
    cooldown: int
    min_per_block: int
    max_per_block: int | None
    self_move: str
    prompt_dropout: float
    prompt_init: str

    @classmethod
    def of(cls, preset: str, **given: Any) -> "Rules":
        """Fill what was left out from the preset, and refuse what cannot be."""
        if preset not in PRESETS:
            raise VPromptError(f"No preset called {preset!r}.{suggest(preset, PRESETS)}")
        chosen = {key: value for key, value in given.items() if value is not None}
        start = dict(PRESETS[preset])
        alloc = chosen.get("alloc", start["alloc"])
        if alloc != "grad":
            start["accept"] = "always"  # without gains there is nothing to accept by
        rules = cls(**{"preset": preset, "max_per_block": None, **start, **chosen})
        rules.check()
        return rules

    def check(self) -> None:
        """Raise VPromptError that names the setting which is wrong, and what it may be."""
        for name, known in WORDS.items():
            value = getattr(self, name)
            if value not in known:
                raise VPromptError(f"No {name} called {value!r}.{suggest(value, known)}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise VPromptError(f"{name} lies between {low} and {high}, but got {value}.")
        if len(self.window) != 2 or not 0 <= self.window[0] <= self.window[1] <= 1:
            raise VPromptError(
                f"window is two rising shares of the epochs, such as [0.1, 0.75], but got "
                f"{self.window}."
            )
        if self.max_per_block is not None and self.max_per_block < max(1, self.min_per_block):
            raise VPromptError(
                f"max_per_block is at least 1 and min_per_block, but got {self.max_per_block}."
            )
        if self.accept == "gain" and self.alloc != "grad":
            raise VPromptError(
                f"accept=gain weighs the gain of the new place, which alloc={self.alloc} does not "
                "measure. Use alloc=grad or accept=always."
            )
        if self.alloc in LEARNERS and self.moves_per_epoch > 1:
            raise VPromptError(
                f"alloc={self.alloc} learns from the loss after one move, so it needs "
                f"moves_per_epoch=1, but got {self.moves_per_epoch}."
            )

    def moves(self, tokens: int) -> int:
        """Return how many tokens may move at a time; a share of all is rounded, and at least 1."""
        if isinstance(self.moves_per_epoch, float) and self.moves_per_epoch < 1:
            return max(1, round(self.moves_per_epoch * tokens)) if self.moves_per_epoch else 0
        return int(self.moves_per_epoch)

    def is_open(self, done: int, epochs: int) -> bool:
        """Say whether tokens may move once so many of the epochs are done."""
        low, high = self.window
        share = done / epochs
        return 0 < done < epochs and low - 1e-9 <= share <= high + 1e-9

    @property
    def gates(self) -> bool:
        """Whether scores or gains are read from gates on the prompt's keys."""
        return self.score in ("mask", "taylor_norm") or self.alloc == "grad"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for the record and the name of a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
