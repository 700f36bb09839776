"""Artefacts of two towers: both prompts, the templates and a head of directions in one folder."""

import json

import pytest
import torch

CLASSES = ("cat", "dog", "möwe")
TEMPLATES = ("a photo of a {}.", "{} at night.")
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def clip():
    from vprompt.backbones import tiny_clip

    return tiny_clip.load()


@pytest.fixture
def make(clip, generator):
    """Return a function that makes an artefact with so many tokens in the blocks of each tower."""
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.two_tower import TextPrompt, text_head
    from vprompt.prompts.prompt import Prompt

    def draw(counts, dim, persist):
        if not sum(counts):
            return None
        blocks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return Prompt(torch.randn(len(blocks), dim, generator=generator), blocks, persist)

    def build(image=(2, 0, 1, 0), text=(0, 3, 1), persist=False):
        seen = draw(image, clip.dim, persist)
        read = TextPrompt(TEMPLATES[:1], draw(text, clip.text.dim, persist))
        head = text_head(clip, CLASSES, read)
        config = make_config(clip, seen, CLASSES, read, head)
        return Artifact(seen, head, torch.zeros(clip.feature_dim), config, text=read)

    return build


@pytest.fixture
def saved(make, tmp_path):
    from vprompt import save_artifact

    save_artifact(make(), tmp_path / "it")
    return tmp_path / "it"


PLACEMENTS = {
    "both towers, keys": ((2, 0, 1, 0), (0, 3, 1), False),
    "both towers, slots": ((2, 2, 0, 0), (2, 2, 0), True),
    "image alone": ((2, 2, 2, 2), (0, 0, 0), False),
    "text alone, context": ((0, 0, 0, 0), (4, 0, 0), True),
    "neither": ((0, 0, 0, 0), (0, 0, 0), False),
}


@pytest.mark.parametrize("image, text, persist", PLACEMENTS.values(), ids=PLACEMENTS)
def test_both_prompts_come_back_bit_for_bit(make, clip, images, tmp_path, image, text, persist):
    from vprompt import extract, load_artifact, save_artifact
    from vprompt.models.two_tower import text_head

    made = make(image, text, persist)
    save_artifact(made, tmp_path / "it")
    found = load_artifact(tmp_path / "it")
    assert found.config == made.config and found.text.templates == TEMPLATES[:1]
    for one, other in ((found.prompt, made.prompt), (found.text.prompt, made.text.prompt)):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one.tokens, other.tokens) and torch.equal(one.blocks, other.blocks)
            assert one.persist == other.persist
    assert found.head.cosine
    logits = [a.head.logits(extract(clip, images, a.prompt)) for a in (made, found)]
    assert torch.equal(*logits)
    # What was stored suffices to make the head again, for these classes and for others.
    again = text_head(clip, CLASSES, found.text)
    assert torch.equal(again.weight, found.head.weight)
    assert text_head(clip, ["horse", "cow"], found.text).weight.shape == (2, clip.feature_dim)


def test_the_towers_keep_apart_in_one_file(saved):
    from safetensors.torch import load_file

    shapes = {k: tuple(v.shape) for k, v in load_file(saved / "adapter_model.safetensors").items()}
    assert shapes == {
        "head.weight": (3, 24),
        "head.bias": (3,),
        "task_embedding": (24,),
        "prompt_embeddings.0": (2, 32),
        "prompt_embeddings.2": (1, 32),
        "text_prompt_embeddings.1": (3, 48),
        "text_prompt_embeddings.2": (1, 48),
    }
    config = json.loads((saved / CONFIG).read_text())
    assert config["format_version"] == 2 and config["head_type"] == "cosine"
    assert config["num_virtual_tokens"] == [2, 0, 1, 0]
    assert config["text"] == {
        "templates": ["a photo of a {}."],
        "num_virtual_tokens": [0, 3, 1],
        "token_dim": 48,
        "num_layers": 3,
        "persist": False,
    }


def test_a_cosine_head_compares_directions(generator):
    from vprompt.models.heads import Head

    weight = torch.randn(3, 5, generator=generator)
    features = torch.randn(4, 5, generator=generator)
    head = Head(weight, torch.zeros(3), cosine=True)
    expected = features @ weight.T / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head.logits(features), expected)
    torch.testing.assert_close(head.logits(7 * features), expected)


def test_a_text_head_is_scaled_cosines(clip, images, generator):
    from vprompt import extract
    from vprompt.models.two_tower import TextPrompt, text_head

    head = text_head(clip, CLASSES, TextPrompt(TEMPLATES[:1]))
    texts = clip.text.tokenise([f"a photo of a {name}." for name in CLASSES], 32)
    theirs, _ = clip.clip.get_logits(images, texts)
    torch.testing.assert_close(head.logits(extract(clip, images)), theirs, rtol=1e-4, atol=1e-4)


def test_a_foreign_text_part_is_checked_as_everything_else(saved, refused):
    from vprompt import load_artifact

    good = json.loads((saved / CONFIG).read_text())
    del good["digests"]  # of an older release, or made to deceive
    for wrong, words in (
        ("yes", ("text lacks 'templates'",)),
        ({**good["text"], "persist": 1}, ("text lacks 'persist'",)),
        ({**good["text"], "templates": [3]}, ("not all texts",)),
        ({**good["text"], "templates": ["a photo"]}, ("holds {} once",)),
        ({**good["text"], "num_virtual_tokens": [0, 3]}, ("of text needs one count",)),
        ({**good["text"], "num_virtual_tokens": [1, 3, 1]}, ("text_prompt_embeddings.0",)),
        ({**good["text"], "num_virtual_tokens": [0, 3, 0]}, ("does not announce",)),
        ({**good["text"], "token_dim": 32}, ("text_prompt_embeddings.1", "shape")),
    ):
        (saved / CONFIG).write_text(json.dumps({**good, "text": wrong}))
        with refused(*words):
            load_artifact(saved)
    (saved / CONFIG).write_text(json.dumps({**good, "head_type": "mlp"}))
    with refused("head_type is 'mlp'", "linear and cosine"):
        load_artifact(saved)


def test_an_artefact_without_text_is_written_as_before(clip):
    from vprompt.artifacts.artifact import make_config

    config = make_config(clip, None, CLASSES)
    assert config["format_version"] == 1 and "text" not in config
    assert config["head_type"] == "linear"
