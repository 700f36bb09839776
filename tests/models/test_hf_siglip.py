"""A SigLIP that transformers saved: both towers, the tokenizer's habits, and sigmoid answers."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")

VISION = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 48, "image_size": 32, "patch_size": 8},
}
TEXT = {
    **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 40},
    **{"intermediate_size": 96, "max_position_embeddings": 12},
}
PROCESSOR = {
    **{"do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3},
    "size": {"height": 32, "width": 32},
}
KINDS = {
    "as published": ({}, {}),
    "a narrower text tower": ({}, {"hidden_size": 18, "projection_size": 24}),
    "other nonlinearities and epsilons": (
        {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
}


def tokenizer(**settings):
    """Return a tokenizer of words in lower case that ends, and fills up, with number 1."""
    import tokenizers

    words = [
        "<unk>",
        "</s>",
        "a",
        "photo",
        "of",
        "cat",
        "old",
        "dog",
        "bear",
        ".",
        "one",
        "two",
        "so",
    ]
    vocab = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", **settings},
    )


def save(folder, kind="as published", words=None, **text):
    torch.manual_seed(0)
    vision, more = KINDS[kind]
    config = transformers.SiglipConfig(
        vision_config={**VISION, **vision}, text_config={**TEXT, **more, **text}
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (words or tokenizer()).save_pretrained(folder)
    return model


def load(folder, **settings):
    from vprompt.backbones import hf

    return hf.load(model=str(folder), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_answers_are_those_of_the_original(kind, tmp_path, generator):
    from vprompt import extract
    from vprompt.models.two_tower import TextPrompt, class_texts, encode_texts, text_head

    original, clip = save(tmp_path, kind), load(tmp_path)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    texts = class_texts(clip.text, ("cat", "old dog"), ("a photo of a {}.",))
    with torch.no_grad():
        own = original(input_ids=texts.ids, pixel_values=images)
        read = original.get_text_features(texts.ids).pooler_output
        seen = original.get_image_features(images).pooler_output
    torch.testing.assert_close(extract(clip, images), seen, rtol=1e-3, atol=1e-4)
    found = encode_texts(clip.text, texts.ids, texts.ends)
    torch.testing.assert_close(found, read, rtol=1e-3, atol=1e-4)
    head = text_head(clip, ("cat", "old dog"), TextPrompt(("a photo of a {}.",)))
    logits = head.logits(extract(clip, images))
    torch.testing.assert_close(logits, own.logits_per_image, rtol=1e-3, atol=1e-3)
    expected = own.logits_per_image.sigmoid()
    torch.testing.assert_close(head.probabilities(logits), expected, rtol=1e-3, atol=1e-3)
    assert head.sigmoid and float(clip.shift) == pytest.approx(original.logit_bias.item())
    assert "SiglipModel of transformers in open_clip's CustomTextCLIP" in clip.remark
    assert texts.ids.shape == (2, 12) and texts.slots == 4


def test_it_is_opened_by_its_folder_and_prompted_in_both_towers(tmp_path, generator):
    from vprompt.core import registry
    from vprompt.opening import open_backbone

    save(tmp_path)
    clip = open_backbone(f"hf:{tmp_path}", device="cpu")
    assert open_backbone(clip.name, device="cpu").fingerprint == clip.fingerprint
    adapter = registry.build("adapters", "clip_deep(num_image_tokens=2, num_text_tokens=2)")(clip)
    adapter.name_classes(("cat", "dog"), ())
    images = torch.randn(2, 3, 32, 32, generator=generator)
    (adapter.features(images) @ adapter.own_head()[0].T).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters() if p.requires_grad)


def test_another_image_size_resamples_positions(tmp_path, generator):
    from vprompt import extract

    original = save(tmp_path)
    clip = load(tmp_path, image_size=48)
    assert clip.data_config.input_size == (3, 48, 48)
    assert "from 32 to 48 by transformers" in clip.remark
    images = torch.randn(1, 3, 48, 48, generator=generator)
    with torch.no_grad():
        seen = original.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(extract(clip, images), seen, rtol=1e-3, atol=1e-4)


def test_capitals_are_read_as_small_letters(tmp_path):
    save(tmp_path)
    ids = load(tmp_path).text.tokenise(["A Photo of a CAT"], 12)
    assert ids[0].tolist() == [2, 3, 4, 2, 5, 1, 1, 1, 1, 1, 1, 1]


def test_what_does_not_fit_is_said(tmp_path, refused):
    save(tmp_path / "left", words=tokenizer(padding_side="left"))
    with refused("on the left", "padding_side = 'right'"):
        load(tmp_path / "left")
    save(tmp_path / "few", vocab_size=12)
    with refused("13 tokens", "its text tower has 12"):
        load(tmp_path / "few")
    save(tmp_path / "apart", projection_size=16)
    with refused("features of 24 and 16 numbers", "cannot be compared"):
        load(tmp_path / "apart")
    save(tmp_path / "other", hidden_act="relu")
    with refused("the nonlinearity 'relu'"):
        load(tmp_path / "other")
    save(tmp_path / "no_words")
    (tmp_path / "no_words" / "tokenizer.json").unlink()
    with refused("no tokenizer", "save_pretrained"):
        load(tmp_path / "no_words")


def test_a_text_that_would_be_cut_off_is_refused(tmp_path, refused):
    from vprompt.models.two_tower import class_texts

    save(tmp_path)
    with refused("longer than the 12 tokens", "cut off"):
        class_texts(load(tmp_path).text, ("cat", "old " * 7 + "dog"), ("a photo of a {}.",))
