"""Starting: what `combine` trains in the end: the summed prompt, or what a method puts in place."""

from collections.abc import Sequence

import torch

from vprompt.artifacts.artifact import Artifact
from vprompt.core import registry
from vprompt.core.types import Weights
from vprompt.learning.adapter import Adapter, PromptAdapter
from vprompt.learning.tune import Tuned
from vprompt.pooling.mix import Mix, TuningStart
from vprompt.prompts.prompt import Prompt
from vprompt.stages import Setting, run_tuning


def fresh_adapter(setting: Setting, first: Artifact, placed: Prompt) -> Adapter:
    """Return a prompt placed as `placed` is, at the start that the pool's `first` grew from."""
    counts = placed.counts(setting.backbone.depth)
    init = first.config.get("prompt_init") or {}
    settings = {"prompt_init": init.get("kind", "blank"), "prompt_init_seed": init.get("seed", 0)}
    if placed.persist:
        settings |= {"num_virtual_tokens": sum(counts), "deep": False}
    else:
        settings |= {"num_virtual_tokens": counts, "deep": True}
    return registry.build("adapters", registry.Spec("vpt", settings))(setting.backbone)


def adapter_of(
    setting: Setting,
    method: str,
    sources: Sequence[Artifact],
    prompts: Sequence[Prompt],
    prompt: Prompt,
    mix: Mix,
) -> tuple[Adapter, Mix, bool]:
    """Return what is trained, the mix that led to it, and whether the method chose it itself.

    A transfer method's file may hold `adapter(start, mix, *, settings) -> (Adapter, Mix) | None`;
    without one, and where it returns None, the tokens of `prompt` are tuned.
    """
    ask = registry.beside("transfer", method, "adapter")
    start = TuningStart(
        backbone=setting.backbone,
        names=tuple(source.name for source in sources),
        prompts=tuple(prompts),
        prompt=prompt,
        train=setting.train,
        val=setting.val,
        precision=setting.config.precision,
        fresh=lambda: fresh_adapter(setting, sources[0], prompt),
        tune=lambda adapter: run_tuning(setting, adapter, setting.config, called=["trial"]),
    )
    own = None if ask is None else ask(start, mix)
    return (PromptAdapter(setting.backbone, prompt), mix, False) if own is None else (*own, True)


def final_weights(tuned: Tuned, weights: Weights) -> Weights:
    """Return the weights as the kept epoch left them, where the adapter keeps account of them.

    It does in `memory["weights"]`, a list per epoch, the start included.
    """
    kept = tuned.adapter.memory.get("weights")
    return weights if kept is None else torch.tensor(kept[tuned.kept_epoch], dtype=torch.float64)
