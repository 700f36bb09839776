"""Backbone: a frozen vision transformer cut into embed, blocks and pool; `walk` inserts prompts.

Whatever the model and whatever the placement, prompt tokens enter in this file and nowhere else.
"""

import abc
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from vprompt.core import fleet
from vprompt.core.errors import VPromptError
from vprompt.core.precision import among_many
from vprompt.core.types import (
    Features,
    Images,
    Present,
    PromptRows,
    ReadTokens,
    SamplePromptTokens,
    Tokens,
    Which,
)
from vprompt.data.inputs import normalise
from vprompt.data.preprocessing import DataConfig
from vprompt.models.attention import Attend
from vprompt.models.padding import PaddedRows
from vprompt.prompts.prompt import Prompt, PromptBatch


class Backbone(nn.Module, abc.ABC):
    """What a prompt needs to know about a model: three cuts and a few numbers.

    A subclass sets `name`, `dim` (width of a token), `feature_dim` (width of a pooled feature),
    `depth` (number of blocks), `prefix` (class and register tokens before the patches),
    `patch_size` and `data_config`, and is frozen and in evaluation mode for good.
    """

    name: str
    dim: int
    feature_dim: int
    depth: int
    prefix: int
    patch_size: tuple[int, int]
    data_config: DataConfig
    centres_tokens: bool = True  # LayerNorm does, RMSNorm does not
    pooled: int | None = None  # how many of the first tokens `pool` reads; None: all of them
    size_step: tuple[int, int] | None = None  # images of whole steps fit; None: of one size alone
    repository: str = ""  # of its weights on a hub, where that is known
    remark: str = ""  # what a person should know of how the weights were read

    @abc.abstractmethod
    def embed(self, images: Images) -> Tokens:
        """Cut images into tokens, prefix tokens first, position embeddings added."""

    @abc.abstractmethod
    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block on a sequence of any length."""

    def prompted_block(
        self,
        index: int,
        tokens: Tokens,
        prompt: PromptRows,
        attend: Attend | None = None,
        *,
        reads: int | None = None,
    ) -> ReadTokens:
        """Run one block in which prompt rows `[batch or 1, count, dim]` are keys and values only.

        Here the rows are joined and their outputs dropped, which is exact for every block that
        treats tokens alike. A subclass that can look inside its blocks saves the queries and the
        MLP of those rows, and lets `attend` say what queries make of the prompt's keys. Where only
        the first `reads` tokens are wanted, it may save those of all others and return no others.
        """
        if attend is not None:
            raise VPromptError(
                f"The attention of {self.name!r} cannot be reached, so its prompts can be neither "
                "gated nor searched. Use a model of timm's plain blocks, such as "
                "vit_base_patch16_224."
            )
        return _join(self, tokens, prompt, index)[1]

    def attend_each(self, index: int, which: Which, present: Present) -> Attend | None:
        """Return the attention in which image i sees the keys of prompt `which[i]`, none absent.

        None, as here, where the block cannot be looked into. See `attention.assigned`.
        """
        del index, which, present
        return None

    def attention_of(self, index: int, tokens: Tokens) -> Tensor:
        """Return how much each token looks at each in a block `[batch, heads, from, to]`."""
        del index, tokens
        raise VPromptError(
            f"The attention of {self.name!r} cannot be looked into. Use a model of timm's plain "
            "blocks, such as vit_base_patch16_224, or a CLIP of open_clip's."
        )

    def masked_block(self, index: int, tokens: Tokens, present: Present) -> Tokens:
        """Run one block in which nobody sees a token that is not `present` `[batch, sequence]`.

        What comes back in the place of such a token means nothing. Here images that have the same
        tokens are run together, without the absent ones, which is exact for every block. A subclass
        that can mask runs all images at once.
        """
        after = torch.zeros_like(tokens)
        for pattern in present.unique(dim=0):
            images = (present == pattern).all(1).nonzero()[:, :1]
            places = pattern.nonzero()[:, 0]
            after[images, places] = self.block(index, tokens[images, places]).to(after.dtype)
        return after

    def feed_forward(self, index: int) -> nn.Module:
        """Return the module whose output a block adds to its residual last; here there is none."""
        raise VPromptError(
            f"The blocks of {self.name!r} cannot be looked into, so nothing can be put after block "
            f"{index}'s feed-forward. Use a model of timm's plain blocks, such as "
            "vit_base_patch16_224."
        )

    @abc.abstractmethod
    def pool(self, tokens: Tokens) -> Features:
        """Apply the final norm and pool as the model was built to."""

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen backbone has no dropout, whatever its parent does."""
        del mode
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:` over the sorted parameter names with dtype, shape and bytes."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            )
        return f"sha256:{digest.hexdigest()}"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def ready(self, inputs: "Tensor | Entering") -> "Images | Entering":
        """Return what `walk` takes, on this model's device: images normalised, tokens alike."""
        if isinstance(inputs, Entering):
            return Entering(inputs.tokens.to(self.device), inputs.block)
        return self.normalise(inputs.to(self.device))

    def normalise(self, pixels: Tensor) -> Images:
        """Turn `uint8 [batch, height, width, 3]` into this model's input; writes into nothing."""
        return normalise(pixels, self.data_config)


@dataclass(frozen=True, eq=False)
class Entering:
    """Tokens `[batch, sequence, dim]` of images on their way into a block, no prompt among them.

    `walk` takes them in place of images, for prompts that enter no earlier.
    """

    tokens: Tokens
    block: int

    def __len__(self) -> int:
        """Count the images."""
        return len(self.tokens)


def enter(backbone: Backbone, images: Images, block: int) -> Entering:
    """Run the blocks before `block`, without a prompt."""
    _check_images(backbone, images)
    sequence = backbone.embed(images)
    for index in range(block):
        sequence = backbone.block(index, sequence)
    return Entering(sequence, block)


def walk(
    backbone: Backbone,
    images: Images | Entering,
    prompt: Prompt | PromptBatch | None = None,
    tokens: SamplePromptTokens | None = None,
    attend: Callable[[int], Attend | None] | None = None,
    *,
    pooled: bool = False,
    watch: Callable[[int, Tokens, PromptRows | None], None] | None = None,
) -> Iterator[tuple[int, Tokens]]:
    """Run the blocks one by one and yield `(block, sequence after it)`, without prompt rows.

    Prompt rows stand after the prefix tokens where a later block still needs them (VPT-Shallow),
    and are keys and values only where none does (VPT-Deep, and any prompt in its last block).
    `tokens` replaces the prompt's own tokens by a set per image (per-sample dropout, or another
    prompt for every image), at the same placement. `attend` names a block's attention over the
    prompt's keys; it needs a prompt that does not travel on. A `PromptBatch` gives every image a
    prompt of its own, whatever its length and placement, without `tokens` and `attend`. With
    `pooled`, the last block may leave out the tokens that `pool` does not read. For one prompt,
    `watch` is told what enters every block: the sequence, and the prompt rows beside it, if any.
    """
    begin = images if isinstance(images, Entering) else enter(backbone, images, 0)
    _check_not_late(begin, prompt)
    if isinstance(prompt, PromptBatch):
        yield from _walk_each(backbone, begin, prompt, pooled=pooled)
        return
    sequence = begin.tokens
    own: list[Tensor] = [sequence[:, :0]] * backbone.depth
    persist = prompt is not None and prompt.persist
    if prompt is not None:
        _check_fits(backbone, prompt)
        shared = prompt.tokens[None] if tokens is None else tokens
        own = list(shared.split(prompt.counts(backbone.depth), dim=1))
    rows: Tensor | None = None
    for index in range(begin.block, backbone.depth):
        if own[index].shape[1]:
            rows = own[index]
        if watch is not None:
            watch(index, sequence, rows)
        if rows is None:
            sequence = backbone.block(index, sequence)
        elif persist and index + 1 < backbone.depth and not own[index + 1].shape[1]:
            rows, sequence = _join(backbone, sequence, rows, index)
        else:
            chosen = None if attend is None else attend(index)
            reads = _reads(backbone, index, pooled=pooled)
            sequence = backbone.prompted_block(index, sequence, rows, chosen, reads=reads)
            rows = None
        yield index, sequence


def extract(
    backbone: Backbone,
    images: Images | Entering,
    prompt: Prompt | PromptBatch | None = None,
    tokens: SamplePromptTokens | None = None,
    attend: Callable[[int], Attend | None] | None = None,
) -> Features:
    """Return the pooled features `[batch, feature_dim]` under a prompt; its rows are not pooled.

    Without a prompt they are the features of the model's own code, to the bit. The other arguments
    are those of `walk`. In a fleet, images of several members may go through the model together.
    """
    mine = None if torch.compiler.is_compiling() else fleet.member()
    if attend is None and mine is not None and mine.extract is not None:
        found: Features = mine.extract(backbone, images, prompt, tokens)
        return found
    return extract_alone(backbone, images, prompt, tokens, attend)


def extract_alone(
    backbone: Backbone,
    images: Images | Entering,
    prompt: Prompt | PromptBatch | None = None,
    tokens: SamplePromptTokens | None = None,
    attend: Callable[[int], Attend | None] | None = None,
) -> Features:
    """Return what `extract` does, without asking whether there is company."""
    *_, (_, sequence) = walk(backbone, images, prompt, tokens, attend, pooled=True)
    prompts = prompt.prompts if isinstance(prompt, PromptBatch) else [prompt]
    if not any(each is not None and len(each.blocks) for each in prompts):
        return backbone.pool(sequence)
    return among_many(backbone.pool, sequence)


def _reads(backbone: Backbone, index: int, *, pooled: bool) -> int | None:
    """Return how many tokens are wanted of a block: all, or what is pooled of the last one."""
    return backbone.pooled if pooled and index + 1 == backbone.depth else None


def _join(
    backbone: Backbone, tokens: Tokens, rows: PromptRows, index: int
) -> tuple[Tensor, Tokens]:
    """Run one block with prompt rows after the prefix; return what became of them and the rest."""
    prefix, count = backbone.prefix, rows.shape[1]
    # `shape`, not `len`: an exported model then takes batches of any size.
    inside = rows.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
    joined = torch.cat([tokens[:, :prefix], inside, tokens[:, prefix:]], dim=1)
    after = backbone.block(index, joined)
    rest = torch.cat([after[:, :prefix], after[:, prefix + count :]], dim=1)
    return after[:, prefix : prefix + count], rest


def _walk_each(
    backbone: Backbone, begin: Entering, batch: PromptBatch, *, pooled: bool
) -> Iterator[tuple[int, Tokens]]:
    """Walk with a prompt per image."""
    for prompt in batch.prompts:
        _check_fits(backbone, prompt)
    counts = torch.tensor([prompt.counts(backbone.depth) for prompt in batch.prompts])
    own = [p.tokens.split(c) for p, c in zip(batch.prompts, counts.tolist(), strict=True)]
    # As in `walk`: rows travel on where the prompt persists and the next block brings none.
    persist = torch.tensor([prompt.persist for prompt in batch.prompts])[:, None]
    travels = functional.pad((counts[:, 1:] == 0) & persist, (0, 1))
    sequence, which, moving = begin.tokens, batch.which.cpu(), None
    for index in range(begin.block, backbone.depth):
        rows, owner = PaddedRows.padded([split[index] for split in own]), which
        if moving is not None:
            rows = rows.of(which).after(moving) if counts[:, index].any() else moving
            owner = torch.arange(len(which))
        there = rows.present.any(1)[owner]
        on = there & travels[which, index]
        attend = backbone.attend_each(index, owner, rows.present)
        moving = None
        if not there.any():
            sequence = backbone.block(index, sequence)
        elif attend is not None and not on.any():
            reads = _reads(backbone, index, pooled=pooled)
            sequence = backbone.prompted_block(index, sequence, rows.tokens, attend, reads=reads)
        else:
            rows = rows.of(owner)
            after, sequence = _join_each(backbone, sequence, rows, index)
            if on.any():
                moving = PaddedRows(after, rows.present & on[:, None])
        yield index, sequence


def _join_each(
    backbone: Backbone, tokens: Tokens, rows: PaddedRows, index: int
) -> tuple[Tensor, Tokens]:
    """Run one block as `_join` does, with rows that are not there seen by nobody."""
    if rows.present.all():
        return _join(backbone, tokens, rows.tokens, index)
    prefix, count = backbone.prefix, rows.present.shape[1]
    inside = rows.tokens.to(tokens.dtype)
    joined = torch.cat([tokens[:, :prefix], inside, tokens[:, prefix:]], dim=1)
    around = (prefix, tokens.shape[1] - prefix)
    present = functional.pad(rows.present, around, value=True)
    after = backbone.masked_block(index, joined, present)
    rest = torch.cat([after[:, :prefix], after[:, prefix + count :]], dim=1)
    return after[:, prefix : prefix + count], rest


def _check_not_late(begin: Entering, prompt: Prompt | PromptBatch | None) -> None:
    prompts = prompt.prompts if isinstance(prompt, PromptBatch) else [prompt]
    for each in prompts:
        if each is not None and each.places and each.places[0] < begin.block:
            raise VPromptError(
                f"The prompt enters at block {each.places[0]}, but the images were kept as "
                f"what enters block {begin.block}. Give the images themselves."
            )


def _check_images(backbone: Backbone, images: Images) -> None:
    """Raise VPromptError where a model would end in an assertion of its own."""
    size, shape = backbone.data_config.input_size, tuple(images.shape)
    fits = len(shape) == 4 and shape[1] == 3 and shape[2:] == size[1:]
    if not fits and len(shape) == 4 and shape[1] == 3 and backbone.size_step is not None:
        fits = not any(
            side % step for side, step in zip(shape[2:], backbone.size_step, strict=True)
        )
    if not fits or not images.is_floating_point():
        raise VPromptError(
            f"{backbone.name!r} takes normalised floats [batch, 3, {size[1]}, {size[2]}], but got "
            f"{list(shape)} of {images.dtype}. `artifact.preprocess(images)` makes them of images "
            "of any kind and size, `backbone.normalise` of uint8 [batch, height, width, 3]."
        )


def _check_fits(backbone: Backbone, prompt: Prompt) -> None:
    if prompt.dim != backbone.dim:
        raise VPromptError(
            f"The prompt's tokens have width {prompt.dim}, but {backbone.name!r} has width "
            f"{backbone.dim}. Load the backbone that the prompt was learned on."
        )
