"""Text adapter: methods whose head is what a text tower makes of the class names.

The logits are `scale * cos(image, text)`, so nothing is trained but tokens: in the text tower, in
the image tower, or in both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.core.errors import VPromptError
from vprompt.core.types import Features, Images
from vprompt.data import sentences
from vprompt.learning.adapter import Adapter, FeatureAdapter
from vprompt.models.attention import Attend
from vprompt.models.backbone import Backbone, extract
from vprompt.models.two_tower import ClassTexts, TextPrompt, TwoTower, class_features, class_texts
from vprompt.prompts.prompt import Prompt

Pair = tuple[Prompt | None, Prompt | None]


class ReadingAdapter(Adapter):
    """An adapter of a backbone with two towers; subclasses say what is learned in each.

    `asked` are templates that a person chose; otherwise they are the task's.
    """

    classes_alone = True
    backbone: TwoTower
    cosine = True
    asked: tuple[str, ...] | None = None
    read: tuple[str, ...] = sentences.GENERIC
    classes: tuple[str, ...] = ()
    texts: ClassTexts | None = None
    _plain: Tensor | None = None  # the classes' features, where nothing of them is trained

    def prompts(self) -> Pair:
        """Return the prompts of the image and of the text tower, with their graph."""
        raise NotImplementedError

    def name_classes(self, classes: Sequence[str], templates: Sequence[str]) -> None:
        """Write the class names into the templates and tokenise them, once."""
        self.classes = tuple(classes)
        self.read = self.asked or tuple(templates) or sentences.GENERIC
        self.texts = class_texts(self.backbone.text, classes, self.read).to(self.backbone.device)
        self._plain = None

    def own_head(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return `scale` times the classes' features, and the model's bias or zeros."""
        del generator
        return self.head_of(self.prompts()[1])

    def head_of(
        self, prompt: Prompt | None, attend: Callable[[int], Attend | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the head that the classes' texts make under a prompt of the text tower."""
        if self.texts is None:
            raise VPromptError(
                "This method reads class names and was given none. Call "
                "`adapter.name_classes(task.classes, task.templates)` before training."
            )
        weight = self._plain if prompt is None else None
        if weight is None:
            made = class_features(self.backbone.text, self.texts, prompt, attend)
            weight = self.backbone.scale * made
            if prompt is None:
                self._plain = weight
        shift = self.backbone.shift
        return weight, weight.new_zeros(len(weight)) + (0.0 if shift is None else shift)

    @property
    def sigmoid(self) -> bool:  # type: ignore[override]
        """Say whether probabilities are a SigLIP's own, which training by classes would move."""
        return self.backbone.shift is not None and all(each is None for each in self.prompts())

    def prompt(self) -> Prompt | None:
        """Return the image tower's prompt, detached."""
        return _detached(self.prompts()[0])

    def text(self) -> TextPrompt:
        """Return the templates and the text tower's prompt, detached."""
        return TextPrompt(self.read, _detached(self.prompts()[1]))

    def identity(self) -> dict[str, Any]:
        """Add what is read, and where tokens enter."""
        image, text = self.prompts()
        return {
            **super().identity(),
            "classes": self.classes,
            "templates": self.read,
            "image": _place(image),
            "text": _place(text),
        }


class TextAdapter(ReadingAdapter, FeatureAdapter):
    """Tokens in the text tower alone, or none at all: image features are computed once."""

    def __init__(
        self, backbone: TwoTower, text: Prompt | None, templates: tuple[str, ...] | None
    ) -> None:
        super().__init__(backbone)
        self.asked = templates
        _hold(self, "text", text)

    def prompts(self) -> Pair:
        """Return the text prompt."""
        return None, _held(self, "text")

    def prompt(self) -> None:
        """Return nothing: images are seen as they are."""

    def transform(
        self, features: Features, *, generator: torch.Generator | None = None
    ) -> Features:
        """Return the features as they are."""
        del generator
        return features


class TowersAdapter(ReadingAdapter):
    """Tokens in the image tower, and perhaps in the text tower.

    With `embedded`, the image tokens of block 0 are learned in front of what the image tower does
    to its own tokens after their positions (CLIP's first norm), as MaPLe's code has it. The prompt
    as a value holds them as they come out.
    """

    def __init__(
        self,
        backbone: TwoTower,
        image: Prompt | None,
        text: Prompt | None,
        templates: tuple[str, ...] | None,
        *,
        embedded: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.asked, self.embedded = backbone, templates, embedded
        _hold(self, "image", image)
        _hold(self, "text", text)

    def prompts(self) -> Pair:
        """Return both prompts."""
        image = _held(self, "image")
        return self.entered(image) if image is not None else None, _held(self, "text")

    def entered(self, image: Prompt) -> Prompt:
        """Return the image prompt as it enters block 0."""
        if not self.embedded:
            return image
        first = int((image.blocks == 0).sum())
        rows = self.backbone.enter(image.tokens[None, :first])[0]
        return image.with_tokens(torch.cat([rows, image.tokens[first:]]))

    def features(self, images: Images, *, generator: torch.Generator | None = None) -> Features:
        """Return the features of images under the image prompt."""
        del generator
        return extract(self.backbone, images, self.prompts()[0])


def of_towers(
    backbone: TwoTower,
    image: Prompt | None,
    text: Prompt | None,
    templates: tuple[str, ...] | None,
    *,
    embedded: bool = False,
) -> ReadingAdapter:
    """Return the adapter of these prompts: without one for images, they are seen only once."""
    if image is None:
        return TextAdapter(backbone, text, templates)
    return TowersAdapter(backbone, image, text, templates, embedded=embedded)


def two_towers(backbone: Backbone, method: str) -> TwoTower:
    """Return the backbone, or raise VPromptError where it has no text tower."""
    if not isinstance(backbone, TwoTower):
        raise VPromptError(
            f"The method {method!r} reads class names and needs a text tower, which "
            f"{backbone.name!r} lacks. Use a CLIP, such as --model ViT-B-16,openai."
        )
    return backbone


def chosen_templates(backbone: TwoTower, text: str | None) -> tuple[str, ...] | None:
    """Return what a person asks for: a sentence with {}, a named set, a file, or nothing."""
    if text is None:
        return None
    if "{}" in text:
        return (text,)
    if "/" in text or "." in text:
        return sentences.read_templates(text)
    return backbone.template_set(text)


def normal_rows(count: int, dim: int, std: float, generator: torch.Generator) -> Tensor:
    """Return `[count, dim]` from N(0, std^2)."""
    return std * torch.randn(count, dim, generator=generator)


def word_rows(backbone: TwoTower, words: str) -> Tensor:
    """Return the embeddings of some words, `[count, dim]`: tokens that start as a sentence."""
    tower = backbone.text
    alone, longer = tower.tokenise([words, f"{words} a"], tower.context_length)
    count = int((alone == longer).int().cumprod(0).sum())  # up to where a further word would stand
    ids = alone[None, tower.start : count].to(backbone.device)
    return tower.words(ids)[0, : count - tower.start].detach().float().cpu()


def _hold(adapter: ReadingAdapter, name: str, start: Prompt | None) -> None:
    """Register a prompt's tokens as a parameter and its blocks as a buffer, if there is one."""
    adapter.register_parameter(f"{name}_tokens", None)
    if start is None:
        return
    device = adapter.backbone.device
    adapter.register_parameter(
        f"{name}_tokens", nn.Parameter(start.tokens.detach().clone().to(device))
    )
    adapter.register_buffer(f"{name}_blocks", start.blocks.clone().to(device))
    setattr(adapter, f"{name}_persist", start.persist)


def _held(adapter: ReadingAdapter, name: str) -> Prompt | None:
    tokens = getattr(adapter, f"{name}_tokens")
    if tokens is None:
        return None
    return Prompt(tokens, getattr(adapter, f"{name}_blocks"), getattr(adapter, f"{name}_persist"))


def _detached(prompt: Prompt | None) -> Prompt | None:
    if prompt is None:
        return None
    return Prompt(prompt.tokens.detach().clone().cpu(), prompt.blocks.cpu(), prompt.persist)


def _place(prompt: Prompt | None) -> Any:
    return None if prompt is None else [prompt.blocks.tolist(), prompt.persist]
