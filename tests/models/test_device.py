"""Devices: what an accelerator computes is what the CPU does; without one, the CPU is tried."""

import pytest
import torch
from exact import relative

pytestmark = pytest.mark.device


@pytest.fixture
def there():
    """The accelerator, or the CPU."""
    from vprompt.opening import resolve_device

    return resolve_device("auto")


@pytest.fixture
def two():
    """One small model, here and there."""
    from vprompt.backbones import tiny

    return lambda device: tiny.load(image_size=32).to(device)


def prompts(backbone, generator):
    from vprompt.prompts.prompt import Prompt, place

    found = []
    for count, deep in ((2, True), (3, False), ([0] * (backbone.depth - 1) + [2], True)):
        blocks = place(count, backbone.depth, deep=deep)
        tokens = torch.randn(len(blocks), backbone.dim, generator=generator)
        found.append(Prompt(tokens, blocks, persist=not deep))
    return found


def gradients(backbone, images, each, which):
    """Return features and the gradient of every prompt's tokens, on the CPU."""
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import Prompt, PromptBatch

    device = backbone.device
    tokens = [p.tokens.clone().to(device).requires_grad_() for p in each]
    moved = [
        Prompt(rows, p.blocks.to(device), p.persist) for rows, p in zip(tokens, each, strict=True)
    ]
    features = extract(backbone, images.to(device), PromptBatch(moved, which))
    features.float().square().sum().backward()
    return features.detach().float().cpu(), torch.cat([t.grad.float().cpu() for t in tokens])


def test_features_and_gradients_of_many_prompts_are_those_of_the_cpu(two, there, generator):
    here = two("cpu")
    each = prompts(here, generator)
    images, which = torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = gradients(here, images, each, which)
    found = gradients(two(there), images, each, which)
    for mine, theirs in zip(found, expected, strict=True):
        assert relative(mine, theirs) < 1e-3


def test_bf16_is_near_fp32(two, there, generator):
    from vprompt.core.precision import autocast

    model = two(there)
    each = prompts(model, generator)
    images, which = torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    expected, _ = gradients(model, images, each, which)
    with autocast("bf16", there):
        found, _ = gradients(model, images, each, which)
    assert relative(found, expected) < 0.1
