"""Export: a prompted model is traced whole, for placement is known before it runs."""

import pytest
import torch
from torch import nn

PLACEMENTS = {"shallow": (2, True), "deep": (2, False), "ragged": ([0, 1, 0, 2], True)}


class Prompted(nn.Module):
    """Images in, logits out: what a person would export."""

    def __init__(self, backbone, prompt, head):
        super().__init__()
        self.backbone, self.placed, self.head = backbone, prompt, head
        self.tokens = nn.Parameter(prompt.tokens)

    def forward(self, images):
        from vprompt.models.backbone import extract

        prompt = self.placed.with_tokens(self.tokens)
        return extract(self.backbone, images, prompt) @ self.head.T


@pytest.fixture(params=PLACEMENTS)
def prompted(request, generator):
    """Return a function that makes a prompted model of a backbone."""
    from vprompt.prompts.prompt import Prompt, place

    def make(backbone):
        counts, persist = PLACEMENTS[request.param]
        if isinstance(counts, list):
            counts = [*counts, *[0] * backbone.depth][: backbone.depth]
        blocks = place(counts, backbone.depth, deep=not persist)
        tokens = torch.randn(len(blocks), backbone.dim, generator=generator)
        head = torch.randn(3, backbone.feature_dim, generator=generator)
        return Prompted(backbone, Prompt(tokens, blocks, persist), head).eval()

    return make


def opened_short(name):
    """Open a model and keep at most four of its blocks: tracing takes as long as it is deep."""
    from vprompt import open_backbone

    backbone = open_backbone(name)
    if hasattr(backbone, "vit"):
        backbone.vit.blocks = backbone.vit.blocks[:4]
        backbone.depth = len(backbone.vit.blocks)
    return backbone


@pytest.mark.parametrize("name", ["tiny", "tiny(model=test_vit3)", "tiny_clip"])
def test_an_exported_model_gives_the_same_outputs_for_batches_of_any_size(
    name, prompted, generator
):
    model = prompted(opened_short(name))
    images = torch.randn(2, 3, 32, 32, generator=generator)
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(
        model, (images,), dynamic_shapes=({0: batch},), strict=False
    ).module()
    for count in (2, 5):
        images = torch.randn(count, 3, 32, 32, generator=generator)
        torch.testing.assert_close(exported(images), model(images), atol=1e-5, rtol=1e-5)


def test_a_plain_backbone_exports_too(generator):
    from vprompt.backbones import tiny
    from vprompt.models.backbone import extract

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = tiny.load()

        def forward(self, images):
            return extract(self.backbone, images)

    model, images = Plain().eval(), torch.randn(2, 3, 32, 32, generator=generator)
    exported = torch.export.export(model, (images,), strict=False).module()
    torch.testing.assert_close(exported(images), model(images), atol=1e-6, rtol=1e-6)


def test_places_are_the_blocks_and_stay_with_a_prompt(generator):
    from vprompt.prompts.prompt import Prompt

    prompt = Prompt(torch.zeros(3, 4), torch.tensor([0, 2, 2]))
    assert prompt.places == (0, 2, 2) and prompt.counts(4) == [1, 0, 2, 0]
    other = prompt.with_tokens(torch.ones(3, 4)).to(torch.device("cpu"))
    assert other.places == prompt.places and torch.equal(other.tokens, torch.ones(3, 4))
    assert torch.equal(prompt.tokens, torch.zeros(3, 4))


def test_other_tokens_are_as_many(refused):
    from vprompt.prompts.prompt import Prompt

    prompt = Prompt(torch.zeros(3, 4), torch.tensor([0, 2, 2]))
    with refused("one block per token", "2 tokens and 3 blocks"):
        prompt.with_tokens(torch.ones(2, 4))


def test_a_learned_prompt_does_not_change_when_its_adapter_moves_on(tiny):
    from vprompt.learning.adapter import PromptAdapter
    from vprompt.prompts.prompt import Prompt

    adapter = PromptAdapter(tiny, Prompt(torch.zeros(2, 64), torch.tensor([0, 1])))
    before = adapter.prompt()
    with torch.no_grad():
        adapter.blocks[0] = 1
    assert before.blocks.tolist() == list(before.places) == [0, 1]
    assert adapter.prompt().places == (1, 1)
