"""Company: what the members of a fleet ask of one frozen model, in one pass for all of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vprompt.core import fleet
from vprompt.core.types import Features, Images, SamplePromptTokens
from vprompt.models.backbone import Backbone, Entering, enter, extract_alone
from vprompt.prompts.prompt import Prompt, PromptBatch

_FIXED = "fixed"  # prompts that are dropped after their block, and do not move


@dataclass(frozen=True, eq=False)
class Pass:
    """What `extract` is asked for."""

    backbone: Backbone
    images: Images | Entering
    prompt: Prompt | PromptBatch | None = None
    tokens: SamplePromptTokens | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What passes have in common that may go through the model together."""
        entering = isinstance(self.images, Entering)
        inputs = _tensor(self.images)
        kind = inputs.device.type
        return (
            id(self.backbone),
            self.images.block if isinstance(self.images, Entering) else entering,
            tuple(inputs.shape[1:]),
            inputs.dtype,
            self.layout(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
        )

    def layout(self) -> tuple[object, ...]:
        """Return what prompts of one pass have in common, so that none changes another's bits.

        Rows that travel on stand in the sequence, blocks without a prompt are other operations, and
        tokens that move are more in a block today than tomorrow: the rounding of whoever shares a
        pass with such would depend on them.
        """
        mine = fleet.member()
        if self.prompt is None:
            return ("plain",)
        if mine is not None and mine.moves:
            return ("moving",)
        each = self.prompt.prompts if isinstance(self.prompt, PromptBatch) else [self.prompt]
        travelling = {prompt.places for prompt in each if prompt.persist}
        if travelling:
            return ("travelling", *sorted(travelling))
        return (_FIXED, *sorted({place for prompt in each for place in prompt.places}))

    def prompts(self) -> PromptBatch:
        """Return the prompts of the pass and whose each image is."""
        count = len(self.images)
        assert self.prompt is not None
        if isinstance(self.prompt, PromptBatch):
            return self.prompt
        if self.tokens is None:
            return PromptBatch([self.prompt], torch.zeros(count, dtype=torch.int64))
        rows = self.tokens.expand(count, -1, -1)
        return PromptBatch([self.prompt.with_tokens(row) for row in rows], torch.arange(count))

    def alone(self) -> Features:
        """Return the features as they are without company."""
        return extract_alone(self.backbone, self.images, self.prompt, self.tokens)


def join(backbone: Backbone, prompt: Prompt | None, *, moves: bool) -> None:
    """Tell the other members of a fleet with which prompt this one will train.

    Passes are then as wide as the longest prompts of all members need, whoever is in them, so that
    bits do not depend on it, and a fleet that was stopped goes on with those that it had.
    """
    mine = fleet.member()
    if mine is None:
        return
    mine.moves = moves
    common = mine.common

    def answer(asked: Sequence[Prompt | None]) -> Sequence[None]:
        for each in asked:
            if each is not None:
                same = (id(backbone), (_FIXED, *sorted({*each.places})))
                common.setdefault(same, []).append(each.counts(backbone.depth))
        return [None] * len(asked)

    fixed = prompt is not None and not prompt.persist and not moves
    mine.ask(fleet.JOIN, id(backbone), prompt if fixed else None, answer)


def _extract(
    backbone: Backbone,
    images: Images | Entering,
    prompt: Prompt | PromptBatch | None,
    tokens: SamplePromptTokens | None,
) -> Features:
    """Return the features of a member's pass, together with those of others where that can be.

    Passes are shared within `shared` alone, and those with a graph within `steps` as well: their
    backward pass needs all members at once.
    """
    mine, own = fleet.member(), Pass(backbone, images, prompt, tokens)
    assert mine is not None
    graph = torch.is_grad_enabled()
    if graph and not mine.stepping:
        return own.alone()
    mine.joined |= graph
    kind = _tensor(own.images).device.type
    ghosts = _ghosts(own, mine.common)
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def answer(passes: Sequence[Pass]) -> Sequence[Features]:
        with torch.set_grad_enabled(graph), torch.autocast(kind, dtype=dtype, enabled=enabled):
            return _together(passes, ghosts)

    order = fleet.FORWARD if graph else fleet.LOOK
    # Without a prompt several may ask for the same, which is computed once.
    divides = prompt is not None and kind == "cpu"
    found: Features = mine.ask(order, own.key, own, answer, divides=divides)
    return found


@contextmanager
def shared(allowed: bool = True) -> Iterator[None]:
    """Let forward passes of the block be those of other members as well."""
    mine = fleet.member()
    if mine is None:
        yield
        return
    before, mine.extract = mine.extract, _extract if allowed else None
    try:
        yield
    finally:
        mine.extract = before


@contextmanager
def steps() -> Iterator[None]:
    """Say that the forward passes of the block are followed by `backward` and by no other one."""
    mine = fleet.member()
    if mine is None:
        yield
        return
    mine.stepping, mine.joined = True, False
    try:
        yield
    finally:
        mine.stepping = False


def backward(loss: Tensor) -> None:
    """Leave gradients at whatever a loss depends on, in one pass for all members of a fleet."""
    mine = fleet.member()
    if mine is None or not mine.joined:
        loss.backward()
        return
    mine.joined = False
    divides = loss.device.type == "cpu"
    mine.ask(fleet.BACKWARD, "backward", loss, _backward, divides=divides)


def _backward(losses: Sequence[Tensor]) -> Sequence[None]:
    torch.autograd.backward(list(losses))
    return [None] * len(losses)


def _ghosts(own: Pass, common: dict[Any, list[list[int]]]) -> list[Prompt]:
    """Return prompts that no image sees: one as long as any of the same blocks, one of no tokens.

    The second only where members differ in length, so that lengths are always masked or never.
    """
    counts = common.get((id(own.backbone), own.layout()), [])
    if not counts or own.prompt is None:
        return []
    like = own.prompts().prompts[0].tokens.detach()
    most = torch.tensor(counts).amax(0)
    tokens = like.new_zeros(int(most.sum()), own.backbone.dim)
    blocks = torch.repeat_interleave(torch.arange(len(most)), most)
    longest = Prompt(tokens, blocks, persist=False)
    if all(each == counts[0] for each in counts):
        return [longest]
    return [longest, Prompt(tokens[:0], blocks[:0], persist=False)]


def _together(passes: Sequence[Pass], ghosts: Sequence[Prompt]) -> Sequence[Features]:
    """Return the features of every pass; what several ask for is computed once."""
    which, different = _different(passes)
    summed_alike = passes[0].prompt is None or not torch.is_grad_enabled()
    if len(different) == 1 and not ghosts and summed_alike:
        found = [different[0].alone()]
    else:
        sizes = [len(each.images) for each in different]
        found = list(_one_pass(different, ghosts).split(sizes))
    return [found[index] for index in which]


def _one_pass(passes: Sequence[Pass], ghosts: Sequence[Prompt]) -> Features:
    backbone = passes[0].backbone
    inputs = _joined(backbone, [each.images for each in passes])
    if passes[0].prompt is None:
        return extract_alone(backbone, inputs)
    prompts: list[Prompt] = []
    which: list[Tensor] = []
    for each in passes:
        own = each.prompts()
        which.append(own.which.cpu() + len(prompts))
        prompts += own.prompts
    return extract_alone(backbone, inputs, PromptBatch([*prompts, *ghosts], torch.cat(which)))


def _joined(backbone: Backbone, images: Sequence[Images | Entering]) -> Images | Entering:
    """Return all images behind one another; if all members see the same, they are embedded once."""
    first = images[0]
    if all(_tensor(each).equal(_tensor(first)) for each in images[1:]):
        begin = first if isinstance(first, Entering) else enter(backbone, first, 0)
        return Entering(begin.tokens.repeat(len(images), 1, 1), begin.block)
    if isinstance(first, Entering):
        return Entering(torch.cat([_tensor(each) for each in images]), first.block)
    return torch.cat([_tensor(each) for each in images])


def _different(passes: Sequence[Pass]) -> tuple[list[int], list[Pass]]:
    """Return the passes that differ, and for every pass which of those it is."""
    which: list[int] = []
    found: list[Pass] = []
    for each in passes:
        same = (row for row, other in enumerate(found) if _same(each, other))
        row = next(same, None)
        if row is None:
            found.append(each)
            row = len(found) - 1
        which.append(row)
    return which, found


def _same(one: Pass, other: Pass) -> bool:
    """Say whether two passes without a graph are one."""
    if torch.is_grad_enabled() or one.tokens is not None or other.tokens is not None:
        return False
    a, b = one.prompt, other.prompt
    if isinstance(a, PromptBatch) or isinstance(b, PromptBatch):
        return False
    if a is not None and b is not None:
        placed = a.places == b.places and a.persist == b.persist
        if not placed or not torch.equal(a.tokens, b.tokens):
            return False
    return torch.equal(_tensor(one.images), _tensor(other.images))


def _tensor(images: Images | Entering) -> Tensor:
    return images.tokens if isinstance(images, Entering) else images
