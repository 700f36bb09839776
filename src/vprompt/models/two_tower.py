"""Two towers: a backbone that reads texts as well as it sees images, and classifies by comparing.

The image tower is the backbone itself, so everything that works on images works on it unchanged.
The text tower is a second frozen transformer, causal in CLIP and not in SigLIP, that is pooled
where a text ends, or at the first, the last or an added token.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv 2103.00020.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vprompt.core.errors import VPromptError
from vprompt.core.types import (
    ClassFeatures,
    Features,
    PromptRows,
    ReadTokens,
    TextEnds,
    TextIds,
    Tokens,
    WordTokens,
)
from vprompt.data import sentences
from vprompt.models.attention import Attend
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.models.text_tree import TextTree, grow
from vprompt.prompts.prompt import Prompt


class TextTower(abc.ABC):
    """What a text prompt needs to know about a model: the cuts of a transformer.

    A subclass sets `name`, `dim` (width of a token), `feature_dim` (that of the image tower),
    `depth` (number of blocks), `context_length` (tokens of the longest text, start and end
    included), `start` (tokens before the first word) and `cuts` (whether nothing that stands behind
    a text is seen from it). It is a view of its backbone's weights and owns none.
    """

    name: str
    dim: int
    feature_dim: int
    depth: int
    context_length: int
    start: int = 1
    cuts: bool = True

    @abc.abstractmethod
    def tokenise(self, texts: Sequence[str], length: int) -> TextIds:
        """Return token numbers, padded or cut to `length`; a start token comes first."""

    @abc.abstractmethod
    def ends(self, ids: TextIds) -> TextEnds:
        """Return the position of every text's feature; its end token where the tower `cuts`."""

    @abc.abstractmethod
    def words(self, ids: TextIds) -> WordTokens:
        """Return the embeddings of tokens, without their positions; an added token comes last."""

    @abc.abstractmethod
    def mask(self, ids: TextIds) -> Tensor | None:
        """Return what is added to the logits of tokens for one another, or None for nothing."""

    @abc.abstractmethod
    def positions(self, length: int) -> Tensor:
        """Return the embeddings `[length, dim]` of the first positions."""

    @abc.abstractmethod
    def block(self, index: int, tokens: Tokens, mask: Tensor | None) -> Tokens:
        """Run one block under what `mask` returned."""

    @abc.abstractmethod
    def prompted_block(
        self,
        index: int,
        tokens: Tokens,
        prompt: PromptRows,
        mask: Tensor | None,
        attend: Attend | None = None,
        *,
        reads: int | None = None,
    ) -> ReadTokens:
        """Run one block in which prompt rows are keys and values, seen from every position.

        With `reads`, only so many first tokens come out; the others are keys and values.
        """

    @abc.abstractmethod
    def pool(self, tokens: Tokens, ends: TextEnds) -> Features:
        """Apply the final norm, read the end tokens, and project to the joint space."""


class TwoTower(Backbone):
    """A backbone whose features are compared with those of texts: `scale * cos(image, text)`."""

    text: TextTower

    @property
    @abc.abstractmethod
    def scale(self) -> Tensor:
        """The factor of the cosine in a logit, as the model was trained with; near 100 in CLIP."""

    @property
    def shift(self) -> Tensor | None:
        """The number added to every logit by a model that was trained to answer yes or no.

        Its probability of a class is the sigmoid of the logit, whatever the others. None in CLIP.
        """
        return None

    def enter(self, tokens: Tokens) -> Tokens:
        """Do to rows what the image tower does to its tokens after their positions: nothing."""
        return tokens

    @abc.abstractmethod
    def template_set(self, name: str) -> tuple[str, ...]:
        """Return a named set of templates; an unknown name is answered with those there are."""


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """The texts of some classes as token numbers, cut behind the longest.

    `ids [classes * templates, length]` stand class by class. Behind the end token nothing can be
    seen from it, so cutting changes no feature. `slots` counts the words before the class name,
    the fewest of all templates: what a prompt may overwrite.
    """

    ids: TextIds
    ends: TextEnds
    classes: int
    slots: int
    _grown: dict[int, list[TextTree]] = field(default_factory=dict, init=False)

    def to(self, device: torch.device) -> "ClassTexts":
        """Return the same texts on another device."""
        return ClassTexts(self.ids.to(device), self.ends.to(device), self.classes, self.slots)

    def trees(self, chunk: int) -> list[TextTree]:
        """Return the texts as trees of at most `chunk` texts each, grown once."""
        if chunk not in self._grown:
            parts = zip(self.ids.cpu().split(chunk), self.ends.cpu().split(chunk), strict=True)
            self._grown[chunk] = [grow(*part).to(self.ids.device) for part in parts]
        return self._grown[chunk]


@dataclass(frozen=True, eq=False)
class TextPrompt:
    """How class names are read: the sentences they stand in, and learned tokens among the words."""

    templates: tuple[str, ...]
    prompt: Prompt | None = None


def text_head(backbone: TwoTower, classes: Sequence[str], text: TextPrompt) -> Head:
    """Return the classifier that a text tower makes of class names, any that one likes.

    Its rows are `scale` times the classes' features, so texts are encoded here and never again.
    """
    device = backbone.device
    texts = class_texts(backbone.text, classes, text.templates).to(device)
    prompt = text.prompt
    if prompt is not None:
        prompt = Prompt(prompt.tokens.to(device), prompt.blocks.to(device), prompt.persist)
    with torch.no_grad():
        weight = (backbone.scale * class_features(backbone.text, texts, prompt)).cpu()
    shift = backbone.shift
    bias = torch.zeros(len(weight)) if shift is None else shift.detach().cpu().expand(len(weight))
    return Head(weight, bias.clone(), "text", cosine=True, sigmoid=shift is not None)


def class_texts(tower: TextTower, classes: Sequence[str], templates: Sequence[str]) -> ClassTexts:
    """Write every class into every template and tokenise; a text that is too long is refused."""
    if not classes:
        raise VPromptError("There are no class names to write texts for.")
    texts = sentences.fill(templates, classes)
    ids, ends = _tokenised(tower, texts)
    slots = [
        _slots(tower, template, ids[row :: len(templates)])
        for row, template in enumerate(templates)
    ]
    length = int(ends.max()) + 1 if tower.cuts else ids.shape[1]
    return ClassTexts(ids[:, :length], ends, len(classes), min(slots))


def _tokenised(tower: TextTower, texts: Sequence[str]) -> tuple[TextIds, TextEnds]:
    """Tokenise; a text that does not fit is refused, as its class name would be cut off."""
    # One position more than there is tells a text that just fits from one that was cut.
    length = tower.context_length
    longer = tower.tokenise(texts, length + 1)
    if tower.cuts:
        ids, ends = longer, tower.ends(longer)
        _check_ends(tower, texts, ids, ends)
        cut = ends >= length
    else:
        ids = tower.tokenise(texts, length)
        ends, padding = tower.ends(ids), tower.tokenise(["a"], length + 1)[0, -1]
        cut = (longer[:, :length] != ids).any(1) | (longer[:, length] != padding)
    if bool(cut.any()):
        raise VPromptError(
            f"{texts[int(cut.int().argmax())]!r} is longer than the {length} tokens that "
            f"{tower.name!r} reads, and would be cut off. Shorten the class name or the template."
        )
    return ids, ends


def _check_ends(tower: TextTower, texts: Sequence[str], ids: TextIds, ends: TextEnds) -> None:
    """Refuse a text whose feature would be read at another word than the one that ends it."""
    plain = tower.tokenise(["a"], ids.shape[1])
    end = plain[0, tower.ends(plain)[0]]
    other = ids.gather(1, ends[:, None])[:, 0] != end
    if bool(other.any()):
        raise VPromptError(
            f"{texts[int(other.int().argmax())]!r} holds a word that was added to the vocabulary "
            f"of {tower.name!r} behind the end's number, {int(end)}. The model takes the largest "
            "number for the end, and would read nothing of what follows. Write it in other words, "
            "or name the end in the model's config: `eos_token_id` of transformers, or "
            "`pool_type: eos` and `eos_id` of open_clip."
        )


def encode_texts(
    tower: TextTower,
    ids: TextIds,
    ends: TextEnds,
    prompt: Prompt | None = None,
    attend: Callable[[int], Attend | None] | None = None,
) -> Features:
    """Return the features of texts under a prompt, in the joint space, not normalised.

    Rows that are dropped (`persist=False`) are keys and values of their block, beside the words and
    visible from every position. Rows that travel on overwrite the words behind the start token: at
    block 0 as words, which get their positions (CoOp), later as they are (MaPLe, IVLP); where a
    block brings none, what stands there travels on. `attend` as in `backbone.walk`.
    """
    words = tower.words(ids)
    rows: Sequence[Tensor] = [words[0, :0]] * tower.depth
    if prompt is not None:
        _check_fits(tower, prompt)
        rows = prompt.tokens.split(prompt.counts(tower.depth))
    slots = prompt is not None and prompt.persist
    mask, start = tower.mask(ids), tower.start
    sequence = _overwrite(words, rows[0], start) if slots else words
    sequence = sequence + tower.positions(words.shape[1])
    for index in range(tower.depth):
        if slots and index:
            sequence = _overwrite(sequence, rows[index], start)
        if slots or not len(rows[index]):
            sequence = tower.block(index, sequence, mask)
        else:
            chosen = None if attend is None else attend(index)
            sequence = tower.prompted_block(index, sequence, rows[index][None], mask, chosen)
    return tower.pool(sequence, ends)


def encode_tree(
    tower: TextTower,
    tree: TextTree,
    prompt: Prompt,
    attend: Callable[[int], Attend | None] | None = None,
) -> Features:
    """Return what `encode_texts` returns for the texts of a tree, every shared beginning read once.

    Of the last block only the nodes where texts end come out. The tower `cuts`.
    """
    _check_fits(tower, prompt)
    rows = prompt.tokens.split(prompt.counts(tower.depth))
    slots, last = prompt.persist, tower.depth - 1
    sequence = tower.words(tree.ids)
    none = sequence[:, :0]
    if slots:
        sequence = _overwrite_nodes(sequence, rows[0], tower.start, tree.positions)
    sequence = sequence + tower.positions(int(tree.positions.max()) + 1)[tree.positions]
    for index in range(tower.depth):
        if slots and index:
            sequence = _overwrite_nodes(sequence, rows[index], tower.start, tree.positions)
        inside = none if slots else rows[index][None]
        if index < last and not inside.shape[1]:
            sequence = tower.block(index, sequence, tree.mask)
        else:
            chosen = attend(index) if attend is not None and inside.shape[1] else None
            reads = tree.ends if index == last else None
            sequence = tower.prompted_block(index, sequence, inside, tree.mask, chosen, reads=reads)
    found = tower.pool(sequence[0][:, None], torch.zeros_like(tree.of_text[: tree.ends]))
    return found[tree.of_text]


def class_features(
    tower: TextTower,
    texts: ClassTexts,
    prompt: Prompt | None = None,
    attend: Callable[[int], Attend | None] | None = None,
    *,
    chunk: int = 256,
) -> ClassFeatures:
    """Return one unit vector per class: the mean of its texts' unit vectors, normalised again.

    At most `chunk` texts are in memory at once; in training each chunk is computed a second time
    for its gradient.
    """
    if prompt is not None and prompt.persist:
        _check_slots(tower, texts, prompt)

    def unit(features: Features) -> Features:
        at_least_single = torch.promote_types(features.dtype, torch.float32)
        return functional.normalize(features.to(at_least_single), dim=1)

    def read(ids: TextIds, ends: TextEnds) -> Features:
        return unit(encode_texts(tower, ids, ends, prompt, attend))

    def climb(tree: TextTree) -> Features:
        assert prompt is not None
        return unit(encode_tree(tower, tree, prompt, attend))

    again = torch.is_grad_enabled() and len(texts.ids) > chunk
    encode: Callable[..., Features] = read
    given: list[tuple[Any, ...]] = list(
        zip(texts.ids.split(chunk), texts.ends.split(chunk), strict=True)
    )
    if tower.cuts and prompt is not None and len(prompt.blocks):
        encode, given = climb, [(tree,) for tree in texts.trees(chunk)]
    parts = [
        checkpoint(encode, *part, use_reentrant=False) if again else encode(*part) for part in given
    ]
    grouped = torch.cat(parts).unflatten(0, (texts.classes, -1))
    return functional.normalize(grouped.mean(1), dim=1)


def _slots(tower: TextTower, template: str, ids: TextIds) -> int:
    """Count the words before the class name that all texts of one template have in common.

    Where the last word and the class name are one token, as in `anti{}`, that one is no slot.
    """
    before = template.partition("{}")[0].strip()
    alone = tower.tokenise([before], tower.context_length + 1)[:, : ids.shape[1]]
    same = (ids == alone[:, : ids.shape[1]]).all(0)
    return max(int(same.int().cumprod(0).sum()) - tower.start, 0)


def _overwrite(sequence: Tokens, rows: Tensor, start: int) -> Tokens:
    if not len(rows):
        return sequence
    new = rows.to(sequence.dtype).expand(sequence.shape[0], -1, -1)
    return torch.cat([sequence[:, :start], new, sequence[:, start + len(rows) :]], dim=1)


def _overwrite_nodes(sequence: Tokens, rows: Tensor, start: int, positions: Tensor) -> Tokens:
    """Put rows into the slots behind the start, wherever a node stands in one."""
    if not len(rows):
        return sequence
    slot = positions - start
    inside = (slot >= 0) & (slot < len(rows))
    new = rows.to(sequence.dtype)[slot.clamp(0, len(rows) - 1)]
    return torch.where(inside[:, None], new, sequence)


def _check_slots(tower: TextTower, texts: ClassTexts, prompt: Prompt) -> None:
    most = max(prompt.counts(tower.depth))
    if most > texts.slots:
        raise VPromptError(
            f"A prompt of {most} tokens in word slots needs {most} words before the class name, "
            f"but the template leaves {texts.slots}; more would overwrite the name itself. Use "
            "fewer tokens, or a template such as 'a photo of a {}.'."
        )


def _check_fits(tower: TextTower, prompt: Prompt) -> None:
    if prompt.dim != tower.dim:
        raise VPromptError(
            f"The text prompt's tokens have width {prompt.dim}, but the text tower of "
            f"{tower.name!r} has width {tower.dim}. Load the backbone it was learned on."
        )
