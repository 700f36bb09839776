"""Ensemble: the features of several prompts side by side under one head, in one artefact.

Each member shows the images in another way, and one linear head reads all of them. Members that
disagree about scale are centred and brought to one size first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.registry import Spec
from vprompt.core.types import Features, Images, JoinedFeatures
from vprompt.data.task import Examples
from vprompt.learning.adapter import Adapter
from vprompt.models.backbone import Backbone, Entering, enter, extract
from vprompt.models.features import BATCH_SIZE, features_of
from vprompt.prompts.prompt import Prompt, PromptBatch


class Ensemble(Adapter):
    """Prompts of one placement, and with `plain` the frozen features, as one wide feature.

    The feature of an image is `[members * feature_dim]`: those without a prompt first, where there
    are any, then those under each prompt, every part less its `centre` and divided by its `size`.
    All prompts pass in one batch. Trained are the tokens.
    """

    blocks: Tensor
    centre: Tensor
    size: Tensor

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt], *, plain: bool) -> None:
        super().__init__()
        first = prompts[0]
        for prompt in prompts:
            if not torch.equal(prompt.blocks, first.blocks) or prompt.persist != first.persist:
                raise VPromptError("The prompts of an ensemble have one placement.")
        self.backbone, self.persist, self.plain = backbone, first.persist, plain
        device, members = backbone.device, len(prompts) + plain
        self.tokens = nn.Parameter(torch.stack([p.tokens.detach() for p in prompts]).to(device))
        self.register_buffer("blocks", first.blocks.clone().to(device))
        self.register_buffer("centre", torch.zeros(members, backbone.feature_dim, device=device))
        self.register_buffer("size", torch.ones(members, device=device))
        settings = {
            "prompts": len(prompts),
            "num_virtual_tokens": first.counts(backbone.depth),
            "persist": first.persist,
            "plain": plain,
        }
        self.opens_as = str(Spec("ensemble", settings))

    @property
    def feature_dim(self) -> int:
        """Width of the features of all members together."""
        return self.centre.numel()

    def members(self) -> list[Prompt | None]:
        """Return the prompts as they are now, detached; None stands for the frozen features."""
        rows, blocks = self.tokens.detach().cpu(), self.blocks.cpu()
        prompts = [Prompt(tokens, blocks, self.persist) for tokens in rows]
        return [None, *prompts] if self.plain else [*prompts]

    def calibrate(self, parts: Sequence[Features]) -> None:
        """Take centre and size of every member from its features of the training images."""
        for member, features in enumerate(parts):
            mean = features.float().mean(0)
            self.centre[member] = mean.to(self.centre)
            length = (features.float() - mean).norm(dim=1).mean()
            self.size[member] = float(length.clamp_min(1e-12))

    def join(self, parts: Sequence[Features]) -> JoinedFeatures:
        """Return the members' features side by side, `[batch, members * feature_dim]`."""
        moved = [
            (part - self.centre[member].to(part)) / self.size[member].to(part)
            for member, part in enumerate(parts)
        ]
        return torch.cat(moved, 1)

    def features(
        self, images: Images | Entering, *, generator: torch.Generator | None = None
    ) -> JoinedFeatures:
        """Return the joined features; the images are embedded once for all members."""
        del generator
        begin = images if isinstance(images, Entering) else enter(self.backbone, images, 0)
        batch, count = len(begin), len(self.tokens)
        prompts = [Prompt(tokens, self.blocks, self.persist) for tokens in self.tokens]
        which = torch.arange(count).repeat_interleave(batch)
        several = Entering(begin.tokens.repeat(count, 1, 1), begin.block)
        found = extract(self.backbone, several, PromptBatch(prompts, which)).float().split(batch)
        parts = [extract(self.backbone, begin).float(), *found] if self.plain else [*found]
        return self.join(parts)

    def prompt(self) -> None:
        """Return nothing: there is no one prompt."""

    def identity(self) -> dict[str, Any]:
        """Add what no trained tensor holds."""
        fixed = digest(*(b.cpu().contiguous().numpy().tobytes() for b in (self.centre, self.size)))
        return {**super().identity(), "persist": self.persist, "plain": self.plain, "fixed": fixed}


def kept_features(
    adapter: Ensemble,
    examples: Examples,
    *,
    batch_size: int = BATCH_SIZE,
    precision: str = "auto",
    use_cache: bool = True,
) -> JoinedFeatures:
    """Return the joined features of all examples, those of each member from where they are kept."""
    parts = [
        features_of(
            adapter.backbone,
            member,
            examples,
            batch_size=batch_size,
            precision=precision,
            use_cache=use_cache,
        )
        for member in adapter.members()
    ]
    return adapter.join(parts)


def of_members(
    backbone: Backbone, members: Mapping[str, tuple[Prompt | None, Features]]
) -> tuple[Ensemble, JoinedFeatures]:
    """Return an ensemble of prompts with their features of the training images, and those joined.

    A member without a prompt comes first.
    """
    prompts = [prompt for prompt, _ in members.values() if prompt is not None]
    plain = [features for prompt, features in members.values() if prompt is None]
    parts = plain + [features for prompt, features in members.values() if prompt is not None]
    made = Ensemble(backbone, prompts, plain=bool(plain))
    made.calibrate(parts)
    return made, made.join(parts)
