"""What prompts among words add to a training step of a CLIP, with class names that are fixed.

Without them the class names are read once, before the first step; with them in every step. The
seconds are the processor's, so that other work on the machine counts less.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.searching import words
from benchmarks.speed.timing import in_turn, summary
from vprompt.core import registry
from vprompt.core.precision import autocast, resolve
from vprompt.models.two_tower import TwoTower
from vprompt.opening import open_backbone

CLIP = "open_clip(model='ViT-B-16', pretrained=False)"
CLASSES, IMAGES = 49, 4  # as `clip_deep` trains; with more images, texts count for less
ALONE, BOTH, PADDED = "image prompts", "image and text prompts", "the same, every text by itself"


def texts(options: argparse.Namespace) -> dict[str, Any]:
    """Compare steps of `clip_deep` with and without text prompts, in turn in one process."""
    clip: Any = open_backbone("tiny_clip" if options.small else CLIP)
    steps = {name: step(clip, name) for name in (ALONE, BOTH, PADDED)}
    return {
        "clip": clip.name,
        "images": IMAGES,
        "classes": CLASSES,
        "precision": resolve("auto", clip.device),
        **summary(
            in_turn(steps, options.repeats, clock=time.process_time),
            text_prompts=(BOTH, ALONE),
            every_text_by_itself=(PADDED, ALONE),
        ),
    }


def step(clip: TwoTower, name: str) -> Callable[[], None]:
    """Return a step: forward, cross-entropy, backward, AdamW on the tokens."""
    method = "clip_deep(num_text_tokens=0)" if name == ALONE else "clip_deep"
    adapter: Any = registry.build("adapters", method)(clip)
    adapter.name_classes(words.thousand()[:CLASSES], ())
    randomness = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *clip.data_config.input_size, generator=randomness)
    labels = torch.arange(IMAGES) % CLASSES
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=1e-3)

    def run() -> None:
        # A tower that does not cut its texts reads each of them whole, by itself.
        before, clip.text.cuts = clip.text.cuts, name != PADDED
        with autocast("auto", clip.device):
            features = adapter.features(images, generator=randomness)
            weight, bias = adapter.own_head(generator=randomness)
        logits = functional.normalize(features.float(), dim=1) @ weight.T + bias
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        clip.text.cuts = before

    return run
