"""Caches: damage to one file of the cache, of every kind in turn, and everything computed anew."""

import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.faults.artefacts import damage
from benchmarks.faults.children import cache
from benchmarks.faults.outcomes import outcome
from vprompt.backbones import tiny
from vprompt.core import seals, shelves
from vprompt.data import images
from vprompt.data.task import Examples, Split, Task
from vprompt.learning.adapter import PromptAdapter
from vprompt.learning.train_config import TrainConfig
from vprompt.learning.tune import tune
from vprompt.models import features, prefix
from vprompt.pooling import evidence
from vprompt.pooling.mix import Plan
from vprompt.prompts.prompt import Prompt


class Cached:
    """Something of every kind in the cache, and how it is read again."""

    def __init__(self, folder: Path) -> None:
        self.backbone = tiny.load(image_size=32)
        draw = np.random.default_rng(0)
        pictures = folder / "pictures"
        pictures.mkdir(parents=True)
        self.paths = tuple(pictures / f"{number}.png" for number in range(12))
        for path in self.paths:
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        self.labels = tuple(number % 2 for number in range(len(self.paths)))
        late = torch.full((2,), 4)
        self.prompt = Prompt(torch.ones(2, self.backbone.dim), late, False)

    def examples(self) -> Examples:
        """Return the pictures, decoded, from the cache where it holds them."""
        split = Split("train", self.paths, self.labels)
        task = Task("pictures", ("a", "b"), split)
        return task.examples(split, self.backbone.data_config)

    def everything(self) -> list[torch.Tensor]:
        """Return what comes of images, features, gradients, prefixes and an interrupted run."""
        images._is_sound.cache_clear()
        prefix._checksum.cache_clear()
        seals._TOLD.clear()
        examples = self.examples()
        plan = Plan("base")
        gathered = evidence.gather(
            self.backbone, {"it": self.prompt}, examples, 2, plan, precision="fp32"
        )
        plain = features.features_of(self.backbone, None, examples, precision="fp32")
        config = TrainConfig(epochs=2, batch_size=6, precision="fp32", head="zero")
        tuned = tune(
            PromptAdapter(self.backbone, self.prompt),
            examples,
            None,
            2,
            config,
            checkpoint=shelves.cache_folder() / "checkpoints",
        )
        prompt = tuned.adapter.prompt()
        assert prompt is not None
        pixels = torch.from_numpy(np.array(examples.pixels))
        return [pixels, gathered.features, gathered.gradients, plain, prompt.tokens]


def damages(folder: Path, seed: int, count: int) -> Counter[str]:
    """Damage one file of the cache, of every kind in turn, and compute everything again."""
    chance, found = random.Random(seed), Counter[str]()
    cached = Cached(folder)
    with cache(folder / "cache"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = cached.everything()
        shutil.copytree(folder / "cache", folder / "whole")
        names = sorted(p.relative_to(folder / "whole") for p in (folder / "whole").rglob("*"))
        names = [name for name in names if (folder / "whole" / name).is_file()]
        kinds = {name.parts[0] for name in names}
        assert kinds >= {"images", "evidence", "prefix", "checkpoints"}, kinds
        for number in range(count):
            shutil.rmtree(folder / "cache")
            shutil.copytree(folder / "whole", folder / "cache")
            path = folder / "cache" / names[number % len(names)]
            path.write_bytes(damage(path.read_bytes(), chance))
            found[outcome(lambda: all(map(torch.equal, cached.everything(), truth)))] += 1
    return found
