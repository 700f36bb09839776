"""Text tree: texts that begin alike are read once up to where they part, with the same features."""

import pytest
import torch
from exact import awake, relative

CLASSES = ("cat", "caterpillar", "t-shirt", "forest path at night", "forest")
TEMPLATES = ("a photo of a {}.", "a photo of many {}.")
TEXTS = [[9, 1, 2, 5, 3, 0, 0], [9, 1, 2, 6, 7, 3, 0], [9, 1, 2, 5, 3, 0, 0], [9, 8, 3, 0, 0, 0, 0]]
ENDS = [4, 5, 4, 2]


@pytest.fixture(scope="module")
def exact():
    from vprompt.backbones import tiny_clip

    return awake(tiny_clip.load())


@pytest.fixture(scope="module")
def texts(exact):
    from vprompt.models.two_tower import class_texts

    return class_texts(exact.text, CLASSES, TEMPLATES)


@pytest.fixture
def draw(exact, generator):
    """Return a function that draws a text prompt with these counts per block."""
    from vprompt.prompts.prompt import Prompt, place

    def make(counts, persist):
        blocks = place(counts, exact.text.depth, deep=True)
        rows = torch.randn(len(blocks), exact.text.dim, generator=generator).double()
        return Prompt(rows.requires_grad_(), blocks, persist)

    return make


def test_a_tree_has_every_beginning_once_and_the_ends_first():
    from vprompt.models.text_tree import grow

    tree = grow(torch.tensor(TEXTS), torch.tensor(ENDS))
    assert tree.ids.tolist() == [[3, 3, 3, 9, 1, 2, 5, 6, 7, 8]]
    assert tree.positions.tolist() == [4, 5, 2, 0, 1, 2, 3, 3, 4, 1]
    assert tree.ends == 3 and tree.of_text.tolist() == [0, 1, 0, 2]


def test_a_node_sees_itself_and_what_stands_before_it():
    from vprompt.models.text_tree import grow

    tree = grow(torch.tensor(TEXTS), torch.tensor(ENDS))
    for text, end in zip(TEXTS, tree.of_text.tolist(), strict=True):
        seen = (tree.mask[end] == 0).nonzero().flatten()
        read = tree.ids[0, seen][tree.positions[seen].argsort()].tolist()
        assert read == text[: len(read)] and read[-1] == 3
    assert torch.isneginf(tree.mask[tree.mask != 0]).all()


PROMPTS = {
    "keys in every block": ((2, 3, 1), False),
    "keys, none in the last block": ((1, 2, 0), False),
    "keys in the last block alone": ((0, 0, 2), False),
    "words in every block": ((2, 2, 2), True),
    "words that travel on": ((3, 0, 0), True),
}


@pytest.mark.parametrize("counts, persist", PROMPTS.values(), ids=PROMPTS)
def test_features_and_gradients_are_those_of_the_texts_one_by_one(
    exact, texts, draw, counts, persist
):
    from vprompt.models.two_tower import encode_texts, encode_tree

    prompt, [tree] = draw(counts, persist), texts.trees(256)
    found = encode_tree(exact.text, tree, prompt)
    expected = encode_texts(exact.text, texts.ids, texts.ends, prompt)
    assert relative(found, expected) < 1e-12
    weight = torch.arange(found.numel()).view_as(found).double().sin()
    slopes = [
        torch.autograd.grad((each * weight).sum(), prompt.tokens)[0] for each in (found, expected)
    ]
    assert relative(*slopes) < 1e-11


def test_a_mixture_of_lengths_is_the_same_on_a_tree(exact, texts, draw):
    from vprompt.models.attention import mixture
    from vprompt.models.two_tower import encode_texts, encode_tree

    prompt, [tree] = draw((6, 6, 6), persist=False), texts.trees(256)
    weights = torch.tensor([0.2, 0.3, 0.5]).double()

    def attend(index):
        return mixture(weights, (0, 2, 4))

    found = encode_tree(exact.text, tree, prompt, attend)
    assert relative(found, encode_texts(exact.text, texts.ids, texts.ends, prompt, attend)) < 1e-12


def test_prompted_texts_are_read_as_a_tree_and_plain_ones_as_open_clip_reads_them(
    exact, texts, draw, monkeypatch
):
    from vprompt.models.two_tower import class_features

    read, words = [], exact.text.words
    monkeypatch.setattr(exact.text, "words", lambda ids: read.append(ids.shape) or words(ids))
    class_features(exact.text, texts)
    class_features(exact.text, texts, draw((2, 2, 2), persist=False))
    rectangle, tree = read
    assert rectangle == texts.ids.shape and tree[0] == 1
    assert tree.numel() < 0.5 * rectangle.numel()


def test_a_tree_is_grown_once(texts):
    assert texts.trees(3)[0] is texts.trees(3)[0]
    assert [len(tree.of_text) for tree in texts.trees(3)] == [3, 3, 3, 1]


def test_no_more_of_the_last_block_is_computed_than_the_ends(exact, texts, draw, monkeypatch):
    from vprompt.models.two_tower import encode_tree

    [tree], kept = texts.trees(256), []
    block = exact.text.prompted_block

    def noted(*given, **named):
        out = block(*given, **named)
        kept.append(out.shape[1])
        return out

    monkeypatch.setattr(exact.text, "prompted_block", noted)
    encode_tree(exact.text, tree, draw((2, 2, 2), persist=False))
    nodes = tree.ids.shape[1]
    assert kept == [nodes, nodes, tree.ends]
