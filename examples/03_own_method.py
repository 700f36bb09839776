"""Weigh sources by a method of one's own: a function from Evidence to a Mix of weights."""

import torch

import vprompt
from vprompt.pooling.evidence import Evidence, gather
from vprompt.pooling.mix import Mix, Plan
from vprompt.prompts.prompt import Prompt, place, vpt_uniform

backbone = vprompt.open_backbone("tiny")
task = vprompt.open_task("digits").few_shot(10, seed=0)
examples = task.examples(task.train, backbone.data_config)

blocks = place(4, backbone.depth, deep=True)
sources = {
    f"source {seed}": Prompt(
        vpt_uniform(
            blocks,
            backbone.dim,
            backbone.patch_size,
            generator=torch.Generator().manual_seed(seed),
        ),
        blocks,
        persist=False,
    )
    for seed in range(3)
}


def flat_gradient(evidence: Evidence, *, sharpness: float = 10.0) -> Mix:
    """Prefer sources that the target has little reason to change."""
    norms = evidence.gradients.double().flatten(1).norm(dim=1)
    return Mix((-sharpness * norms / norms.mean()).softmax(0))


evidence = gather(backbone, sources, examples, len(task.classes), Plan(gradient_head="base"))
for name, weight in zip(evidence.names, flat_gradient(evidence).weights.tolist(), strict=True):
    print(f"{name}: {weight:.3f}")
