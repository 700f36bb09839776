"""Import: a checkpoint of another program becomes an artefact, its pickle read as mere data.

What the file lacks, its backbone and the names of its classes, is asked for and recorded. Where a
text learner kept the embeddings of its class names, those of the names given are compared.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.artifacts import artifact as artifacts
from vprompt.artifacts.artifact import Artifact, make_config
from vprompt.artifacts.cards import tagged
from vprompt.backbones import _checkpoints
from vprompt.core.errors import VPromptError
from vprompt.core.progress import SILENT, Progress
from vprompt.data.preprocessing import ImageSize
from vprompt.exchange import layouts, peft_folders
from vprompt.exchange.layouts import Found
from vprompt.models.backbone import Backbone
from vprompt.models.heads import Head
from vprompt.models.two_tower import TextPrompt, TwoTower, class_texts, text_head
from vprompt.opening import open_backbone
from vprompt.prompts.prompt import Prompt

PROGRAMS = tuple(layouts.READERS)
_DEEPEST = 6  # dictionaries and lists within one another
_NEAR = 2e-3  # between embeddings in half precision


@dataclass(frozen=True)
class Imported:
    """The artefact that was made, and sentences on what was found and what was not."""

    artifact: Artifact
    said: tuple[str, ...]


def import_file(
    file: Path,
    *,
    program: str,
    output: Path,
    model: str | Backbone | None = None,
    classes: Sequence[str] | None = None,
    template: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: ImageSize | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Imported:
    """Write the artefact of a checkpoint and return it; where anything is wrong, write nothing.

    `program` is one of `PROGRAMS`. `mean` and `std` are what the original normalised by, as shares
    of white: they have to be the backbone's own.
    """
    file = Path(file).expanduser()
    if program not in PROGRAMS:
        raise VPromptError(f"--from is one of {', '.join(PROGRAMS)}, but got {program!r}.")
    if not file.exists():
        raise VPromptError(f"No checkpoint at {file}.")
    if program == "peft":
        file, facts = peft_folders.find(file)
    else:
        facts = {}
    tensors = flat(_checkpoints.read(file, arrays=True))
    lora = peft_folders.is_lora(facts)
    found = Found("peft lora") if lora else layouts.read(program, tensors, str(file))
    if model is None:
        raise VPromptError(
            f"{file} does not hold the backbone that its prompt was learned on. Name it: --model, "
            "such as vit_base_patch16_224.orig_in21k, or 'ViT-B-16,openai' for CoOp, MaPLe and DPL."
        )
    if not classes:
        count = _classes_in(found)
        raise VPromptError(
            f"{file} does not hold the names of its classes{count}. Give them in the order of "
            "training: --classes 'cat,dog', or a text file with a name on each line."
        )
    artifacts.check_replaceable(Path(output).expanduser())
    backbone = open_backbone(model, image_size=image_size, device="cpu", progress=progress)
    _check_normalisation(backbone, mean, std)
    said = [f"{file}: read as {found.layout}"]
    if lora:
        artifact = peft_folders.lora(tensors, facts, backbone, list(classes))
    else:
        artifact = _built(found, backbone, list(classes), template, said)
        aside = len(tensors) - len(found.used)
        if aside:
            said.append(f"left {aside} other tensors aside: the backbone is the one you named")
    given = {"model": str(backbone.name), "classes": len(classes), "template": template}
    given |= {"mean": list(mean or ()) or None, "std": list(std or ()) or None}
    origin = {
        "from": program,
        "layout": found.layout,
        "file": file.name,
        "sha256": _digest(file),
        "given": {key: value for key, value in given.items() if value is not None},
        "remarks": said[1:],
    }
    config = {**artifact.config, "imported": origin}
    made = Artifact(
        artifact.prompt,
        artifact.head,
        artifact.task_embedding,
        config,
        card=_card(config),
        state=artifact.state,
        text=artifact.text,
    )
    artifacts.save(made, output, overwrite=overwrite)
    return Imported(made, tuple(said))


def flat(held: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Return all tensors and arrays of nested dictionaries and lists, by their path."""
    if isinstance(held, Tensor):
        return {prefix: held}
    if type(held).__module__ == "numpy" and hasattr(held, "dtype"):
        try:
            return {prefix: torch.as_tensor(held)}
        except (TypeError, ValueError):  # an array of texts or objects
            return {}
    found: dict[str, Tensor] = {}
    pairs: Any = ()
    if isinstance(held, Mapping):
        pairs = held.items()
    elif isinstance(held, list | tuple):
        pairs = enumerate(held)
    for key, value in pairs:
        # Optimisers hold tensors too, of the same shapes as what they train.
        if depth < _DEEPEST and str(key) not in ("optimizer", "scheduler", "optim"):
            found |= flat(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    return found


def _built(
    found: Found, backbone: Backbone, classes: list[str], template: str | None, said: list[str]
) -> Artifact:
    """Return the artefact of a prompt, checked against its backbone and its classes."""
    image = _prompt(found.image, found.persist, backbone.dim, backbone.depth, "image")
    if found.early and image is not None and isinstance(backbone, TwoTower):
        first = image.blocks == 0
        with torch.no_grad():
            entered = backbone.enter(image.tokens[None, first])[0]
        image = image.with_tokens(torch.cat([entered, image.tokens[~first]]))
    text = None
    if found.text or found.words is not None:
        text = _text(found, backbone, classes, template, said)
        assert isinstance(backbone, TwoTower)
        head = text_head(backbone, classes, text)
    elif found.head is None:
        said.append(
            "the file holds no head: it is all zeros here, so that predictions mean nothing"
        )
        head = Head(torch.zeros(len(classes), backbone.feature_dim), torch.zeros(len(classes)))
    else:
        head = Head(*found.head)
    wanted = (len(classes), backbone.feature_dim)
    if tuple(head.weight.shape) != wanted or tuple(head.bias.shape) != wanted[:1]:
        raise VPromptError(
            f"The head in the file is for {head.weight.shape[0]} classes on features of width "
            f"{head.weight.shape[1]}, but you gave {len(classes)} class names and a backbone of "
            f"width {backbone.feature_dim}."
        )
    config = make_config(backbone, image, tuple(classes), text, head)
    return Artifact(image, head, torch.zeros(backbone.feature_dim), config, text=text)


def _prompt(
    rows: dict[int, Tensor], persist: bool, dim: int, depth: int, tower: str
) -> Prompt | None:
    rows = {block: each for block, each in sorted(rows.items()) if len(each)}
    if not rows:
        return None
    width, last = next(iter(rows.values())).shape[-1], max(rows)
    if width != dim or last >= depth:
        raise VPromptError(
            f"The file's {tower} tokens have width {width} and reach block {last}, but the "
            f"backbone has width {dim} and {depth} blocks, from 0. Name the backbone that they "
            "were learned on."
        )
    blocks = torch.cat([torch.full((len(each),), block) for block, each in rows.items()])
    return Prompt(torch.cat(list(rows.values())), blocks, persist)


def _text(
    found: Found, backbone: Backbone, classes: list[str], template: str | None, said: list[str]
) -> TextPrompt:
    """Return how classes are read, once their embeddings were compared with those in the file."""
    if not isinstance(backbone, TwoTower):
        raise VPromptError(
            f"{found.layout} reads class names and needs a text tower, which {backbone.name!r} "
            "lacks. Name its CLIP: --model 'ViT-B-16,openai'."
        )
    rows = _prompt(found.text, found.persist, backbone.text.dim, backbone.text.depth, "text")
    slots = len(found.text[0]) if found.persist and 0 in found.text else 0
    if template is None:
        # Words in slots are overwritten, so that any that many will do.
        template = f"{' '.join(['X'] * slots)} {{}}." if slots else "a photo of a {}."
        if not slots:
            said.append(f"the file does not say in which sentence: taken is {template!r}")
    text = TextPrompt((template,), rows)
    _check_words(found, backbone, classes, text, slots, said)
    return text


def _check_words(
    found: Found,
    backbone: TwoTower,
    classes: list[str],
    text: TextPrompt,
    slots: int,
    said: list[str],
) -> None:
    """Compare the embeddings in the file with those of the backbone and the class names given."""
    if found.words is None or found.suffix is None:
        return
    tower = backbone.text
    if len(found.suffix) != len(classes):
        raise VPromptError(
            f"The file was trained on {len(found.suffix)} classes, but you gave {len(classes)}."
        )
    texts = class_texts(tower, classes, text.templates)
    with torch.no_grad():
        own = tower.words(texts.ids.to(backbone.device)).float().cpu()
    start = found.words.reshape(-1, found.words.shape[-1])[0]
    if start.shape != own[0, 0].shape or (start - own[0, 0]).abs().max() > _NEAR:
        raise VPromptError(
            f"The start token in the file is not that of {backbone.name!r}: it was trained on "
            "another CLIP. Name that one: --model."
        )
    shared = min(own.shape[1] - 1 - slots, found.suffix.shape[1])
    apart = (own[:, 1 + slots : 1 + slots + shared] - found.suffix[:, :shared]).abs().amax((1, 2))
    wrong = (apart > _NEAR).nonzero().flatten().tolist()
    if wrong:
        raise VPromptError(
            f"The names of {len(wrong)} classes are not those in the file, first "
            f"{classes[wrong[0]]!r}, number {wrong[0] + 1}. Give them in the order and spelling of "
            "training, spaces in place of underscores."
        )
    said.append("class names and start token are those in the file")


def _check_normalisation(
    backbone: Backbone, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    own = backbone.data_config
    for name, given, mine in (("mean", mean, own.mean), ("std", std, own.std)):
        if given is not None and max(abs(a - b) for a, b in zip(given, mine, strict=True)) > 1e-3:
            raise VPromptError(
                f"The original normalised with the {name} {list(given)}, and {backbone.name!r} "
                f"does with {list(mine)}. A prompt is valid only for its own preprocessing, and a "
                "backbone has one: name a backbone whose preprocessing is that of the original, or "
                f"leave --{name} out to use the prompt all the same."
            )


def _classes_in(found: Found) -> str:
    """Say how many classes a file was trained on, where it shows."""
    count = len(found.suffix) if found.suffix is not None else 0
    count = count or (len(found.head[0]) if found.head is not None else 0)
    return f", which are {count}" if count else ""


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _card(config: dict[str, Any]) -> str:
    origin = config["imported"]
    body = (
        f"# Imported from {origin['from']}\n\n"
        f"A prompt for the frozen backbone `{config['base_model_name_or_path']}`, read from "
        f"`{origin['file']}` (SHA-256 `{origin['sha256'][:19]}`) in the layout of "
        f"{origin['layout']}. Nothing was learned or measured here.\n\n"
    )
    return tagged(body + "".join(f"- {remark}\n" for remark in origin["remarks"]), config)
