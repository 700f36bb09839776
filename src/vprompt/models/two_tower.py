"""Two towers: a backbone that reads texts as well as it sees images, and classifies by comparing.

The image tower is the backbone itself, so everything that works on images works on it unchanged.
The text tower is a second frozen transformer, causal, that is pooled where a text ends.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv 2103.00020.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vprompt.core.errors import VPromptError
from vprompt.core.types import ClassFeatures, Features, PromptRows, TextEnds, TextIds, Tokens
from vprompt.data import sentences
from vprompt.models.attention import Attend
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.prompts.prompt import Prompt


class TextTower(abc.ABC):
    """What a text prompt needs to know about a model: the cuts of a causal transformer.

    A subclass sets `name`, `dim` (width of a token), `feature_dim` (that of the image tower),
    `depth` (number of blocks) and `context_length` (tokens of the longest text, start and end
    included). It is a view of its backbone's weights and owns none.
    """

    name: str
    dim: int
    feature_dim: int
    depth: int
    context_length: int

    @abc.abstractmethod
    def tokenise(self, texts: Sequence[str], length: int) -> TextIds:
        """Return token numbers, padded or cut to `length`; the start token comes first."""

    @abc.abstractmethod
    def ends(self, ids: TextIds) -> TextEnds:
        """Return the position of every text's end token, where its feature is read."""

    @abc.abstractmethod
    def words(self, ids: TextIds) -> Tokens:
        """Return the embeddings of tokens, without their positions."""

    @abc.abstractmethod
    def positions(self, length: int) -> Tensor:
        """Return the embeddings `[length, dim]` of the first positions."""

    @abc.abstractmethod
    def block(self, index: int, tokens: Tokens) -> Tokens:
        """Run one block on a sequence of any length, each token seeing those up to itself."""

    @abc.abstractmethod
    def prompted_block(
        self, index: int, tokens: Tokens, prompt: PromptRows, attend: Attend | None = None
    ) -> Tokens:
        """Run one block in which prompt rows are keys and values, seen from every position."""

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

    def to(self, device: torch.device) -> "ClassTexts":
        """Return the same texts on another device."""
        return ClassTexts(self.ids.to(device), self.ends.to(device), self.classes, self.slots)


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
    return Head(weight, torch.zeros(len(weight)), "text", cosine=True)


def class_texts(tower: TextTower, classes: Sequence[str], templates: Sequence[str]) -> ClassTexts:
    """Write every class into every template and tokenise; a text that is too long is refused."""
    if not classes:
        raise VPromptError("There are no class names to write texts for.")
    texts = sentences.fill(templates, classes)
    # One position more than there is tells a text that just fits from one that was cut.
    ids = tower.tokenise(texts, tower.context_length + 1)
    ends = tower.ends(ids)
    if int(ends.max()) >= tower.context_length:
        longest = texts[int(ends.argmax())]
        raise VPromptError(
            f"{longest!r} is longer than the {tower.context_length} tokens that {tower.name!r} "
            "reads. Shorten the class name or the template."
        )
    slots = [
        _slots(tower, template, ids[row :: len(templates)])
        for row, template in enumerate(templates)
    ]
    return ClassTexts(ids[:, : int(ends.max()) + 1], ends, len(classes), min(slots))


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
    sequence = (_overwrite(words, rows[0]) if slots else words) + tower.positions(ids.shape[1])
    for index in range(tower.depth):
        if slots and index:
            sequence = _overwrite(sequence, rows[index])
        if slots or not len(rows[index]):
            sequence = tower.block(index, sequence)
        else:
            chosen = None if attend is None else attend(index)
            sequence = tower.prompted_block(index, sequence, rows[index][None], chosen)
    return tower.pool(sequence, ends)


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

    def encode(ids: TextIds, ends: TextEnds) -> Features:
        features = encode_texts(tower, ids, ends, prompt, attend)
        at_least_single = torch.promote_types(features.dtype, torch.float32)
        return functional.normalize(features.to(at_least_single), dim=1)

    again = torch.is_grad_enabled() and len(texts.ids) > chunk
    parts = [
        checkpoint(encode, ids, ends, use_reentrant=False) if again else encode(ids, ends)
        for ids, ends in zip(texts.ids.split(chunk), texts.ends.split(chunk), strict=True)
    ]
    grouped = torch.cat(parts).unflatten(0, (texts.classes, -1))
    return functional.normalize(grouped.mean(1), dim=1)


def _slots(tower: TextTower, template: str, ids: TextIds) -> int:
    """Count the tokens between the start token and the class name of one template's texts."""
    before = template.partition("{}")[0].strip()
    alone = tower.tokenise([before], tower.context_length + 1)
    count = int(tower.ends(alone)[0]) - 1
    # Where the last word and the class name are one token, as in `anti{}`, no slot is sure.
    whole = bool((ids[:, : 1 + count] == alone[:, : 1 + count]).all())
    return count if whole else 0


def _overwrite(sequence: Tokens, rows: Tensor) -> Tokens:
    if not len(rows):
        return sequence
    new = rows.to(sequence.dtype).expand(sequence.shape[0], -1, -1)
    return torch.cat([sequence[:, :1], new, sequence[:, 1 + len(rows) :]], dim=1)


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
