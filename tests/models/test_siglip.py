"""Text towers of other kinds: no start token, no causal mask, one token read, sigmoid answers."""

import pytest
import torch
from exact import awake, relative

TEXT = {
    **{"layers": 3, "width": 48, "heads": 4, "context_length": 12, "vocab_size": 64},
    **{"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}
CONFIG = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -3.0,
    "vision_cfg": {
        **{"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token"},
        "timm_proj": "none",
    },
    "text_cfg": TEXT,
}


def words(texts, context_length):
    """Number words, end with 1 and fill up with 1, as SigLIP's tokeniser does; cut ends with 1."""
    rows = []
    for text in [texts] if isinstance(texts, str) else texts:
        row = [2 + sum(map(ord, word)) % 60 for word in text.rstrip(".").split()]
        row = [*row[: context_length - 1], 1]
        rows.append([*row, *[1] * (context_length - len(row))])
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def siglip():
    from vprompt.backbones import open_clip

    return open_clip.from_config(CONFIG, name="siglip", tokenizer=words)


def test_words_begin_at_the_first_place_and_texts_are_not_cut(siglip):
    from vprompt.models.two_tower import class_texts

    text = siglip.text
    assert (text.start, text.cuts) == (0, False)
    texts = class_texts(text, ("cat", "old dog"), ("a photo of a {}.",))
    assert texts.ids.shape == (2, 12) and texts.ends.tolist() == [11, 11] and texts.slots == 4
    assert class_texts(text, ("cat",), ("{} texture.",)).slots == 0


def test_padding_is_seen_as_the_model_was_trained(siglip):
    from vprompt.models.two_tower import class_features, class_texts

    texts = class_texts(siglip.text, ("cat", "dog"), ("a photo of a {}.",))
    own = siglip.clip.encode_text(words(["a photo of a cat.", "a photo of a dog."], 12))
    expected = own / own.norm(dim=1, keepdim=True)
    torch.testing.assert_close(class_features(siglip.text, texts), expected)


def test_a_class_name_that_would_be_cut_off_is_refused(siglip, refused):
    from vprompt.models.two_tower import class_texts

    fits = "b " * 7
    assert len(class_texts(siglip.text, (fits.strip(),), ("a photo of a {}.",)).ids) == 1
    with refused("longer than the 12 tokens", "cut off", "Shorten"):
        class_texts(siglip.text, (f"{fits} b",), ("a photo of a {}.",))


def test_context_tokens_stand_in_the_places_of_words():
    from vprompt.backbones import open_clip
    from vprompt.models.two_tower import class_features, class_texts
    from vprompt.prompts.prompt import Prompt

    exact = awake(open_clip.from_config(CONFIG, name="siglip", tokenizer=words))
    texts = class_texts(exact.text, ("cat", "dog"), ("a photo of a {}.",))
    rows = exact.text.words(texts.ids)[0, :4]
    prompt = Prompt(rows, torch.zeros(4, dtype=torch.long), persist=True)
    plain = class_features(exact.text, texts)
    assert torch.equal(class_features(exact.text, texts, prompt), plain)
    moved = Prompt(rows.flip(0), prompt.blocks, persist=True)
    assert relative(class_features(exact.text, texts, moved), plain) > 1e-6


def test_words_of_a_start_are_those_of_the_sentence(siglip):
    from vprompt.learning.text_adapter import word_rows

    found = word_rows(siglip, "a photo of a")
    assert torch.equal(found, siglip.text.words(words(["a photo of a"], 12))[0, :4].detach())


def test_zero_shot_probabilities_are_the_sigmoid_with_the_bias(siglip, images):
    from vprompt import extract
    from vprompt.models.two_tower import TextPrompt, text_head

    head = text_head(siglip, ("cat", "dog"), TextPrompt(("a photo of a {}.",)))
    logits = head.logits(extract(siglip, images))
    ids = words(["a photo of a cat.", "a photo of a dog."], 12)
    own, _ = siglip.clip.get_logits(images, ids)
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.probabilities(logits), own.sigmoid(), rtol=1e-4, atol=1e-4)
    assert head.sigmoid and float(head.bias[0]) == -3.0


def test_an_artefact_keeps_how_its_logits_are_read(siglip, tmp_path):
    from vprompt.artifacts import artifact
    from vprompt.core import registry
    from vprompt.learning.classifier import OWN  # noqa: F401
    from vprompt.models.two_tower import TextPrompt, text_head

    head = text_head(siglip, ("cat", "dog"), TextPrompt(("a photo of a {}.",)))
    assert artifact._head_type(head) == "sigmoid"
    adapter = registry.build("adapters", "zero_shot")(siglip)
    assert adapter.sigmoid
    trained = registry.build("adapters", "coop")(siglip)
    assert not trained.sigmoid


def test_a_clip_without_a_bias_answers_among_its_classes():
    from vprompt.backbones import tiny_clip
    from vprompt.models.two_tower import TextPrompt, text_head

    clip = tiny_clip.load()
    head = text_head(clip, ("cat", "dog"), TextPrompt(("a photo of a {}.",)))
    assert clip.shift is None and not head.sigmoid
    assert torch.equal(head.probabilities(torch.zeros(1, 2)), torch.full((1, 2), 0.5))


@pytest.mark.parametrize("counts", [(2, 2, 2), (0, 3, 0)])
def test_prompts_as_keys_are_keys_beside_all_words(counts):
    from vprompt.backbones import open_clip
    from vprompt.models.two_tower import class_texts, encode_texts
    from vprompt.prompts.prompt import Prompt, place

    exact = awake(open_clip.from_config(CONFIG, name="siglip", tokenizer=words))
    texts, part = class_texts(exact.text, ("cat", "dog"), ("a photo of a {}.",)), exact.text.part
    blocks = place(list(counts), 3, deep=True)
    rows = torch.randn(len(blocks), 48, generator=torch.Generator().manual_seed(1)).double()
    x = part.token_embedding(texts.ids) + part.positional_embedding
    for index, block in enumerate(part.transformer.resblocks):
        own = rows[blocks == index].expand(len(x), -1, -1)
        x = block(torch.cat([own, x], dim=1))[:, own.shape[1] :]
    expected = part.text_projection(part.ln_final(x)[:, -1])
    found = encode_texts(exact.text, texts.ids, texts.ends, Prompt(rows, blocks, False))
    assert relative(found, expected) < 1e-12
