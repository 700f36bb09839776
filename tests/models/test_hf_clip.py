"""A CLIP that transformers saved: both towers in open_clip's modules, and its own tokenizer."""

import json
import string

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")

VISION = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 48, "image_size": 32, "patch_size": 8},
}
TEXT = {
    **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 300},
    **{"intermediate_size": 96, "max_position_embeddings": 40},
}
PROCESSOR = {
    **{"do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3},
    **{"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32},
}
KINDS = {
    "as published": ({}, {}),
    "plain GELU, another epsilon": (
        {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-4},
    ),
    "the old number of the end": ({}, {"eos_token_id": 2}),
}


def tokenizer():
    """Return a tokenizer of letters, in which no two letters are one token."""
    letters = [*string.ascii_lowercase, ".", ","]
    tokens = [*letters, *(f"{each}</w>" for each in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=40)


def save(folder, kind="as published", *, with_tokenizer=True, **text):
    torch.manual_seed(0)
    made, (vision, more) = tokenizer(), KINDS[kind]
    end = {"eos_token_id": made.eos_token_id, "bos_token_id": made.bos_token_id}
    config = transformers.CLIPConfig(
        vision_config={**VISION, **vision},
        text_config={**TEXT, **end, **more, **text},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    if with_tokenizer:
        made.save_pretrained(folder)
    return model


def load(folder, **settings):
    from vprompt.backbones import hf

    return hf.load(model=str(folder), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_both_towers_are_those_of_the_original(kind, tmp_path, generator):
    from vprompt import extract
    from vprompt.models.two_tower import class_texts, encode_texts

    original, clip = save(tmp_path, kind), load(tmp_path)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    texts = class_texts(clip.text, ("cat", "polar bear"), ("a photo of a {}.",))
    with torch.no_grad():
        seen = original.get_image_features(images).pooler_output
        read = original.get_text_features(texts.ids).pooler_output
    torch.testing.assert_close(extract(clip, images), seen, rtol=1e-3, atol=1e-4)
    found = encode_texts(clip.text, texts.ids, texts.ends)
    torch.testing.assert_close(found, read, rtol=1e-3, atol=1e-4)
    assert float(clip.scale) == pytest.approx(original.logit_scale.exp().item())
    assert "features equal to" in clip.remark and texts.slots == 9  # letters


def test_it_is_opened_by_its_folder_and_prompted_in_both_towers(tmp_path, generator):
    from vprompt.core import registry
    from vprompt.opening import open_backbone

    save(tmp_path)
    clip = open_backbone(f"hf:{tmp_path}", device="cpu")
    assert open_backbone(clip.name, device="cpu").fingerprint == clip.fingerprint
    assert clip.data_config.mean == (0.1, 0.2, 0.3) and clip.data_config.crop_mode == "center"
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


def test_what_is_missing_or_does_not_fit_is_said(tmp_path, refused):
    save(tmp_path / "no_words", with_tokenizer=False)
    with refused("no tokenizer", "save_pretrained"):
        load(tmp_path / "no_words")
    save(tmp_path / "mixed", hidden_act="gelu")
    with refused("'quick_gelu' and 'gelu'", "in both or neither"):
        load(tmp_path / "mixed")
    save(tmp_path / "few", vocab_size=58)
    tokenizer().save_pretrained(tmp_path / "few")
    config = json.loads((tmp_path / "few" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == 58
    load(tmp_path / "few")
    save(tmp_path / "fewer", vocab_size=57)
    with refused("58 tokens", "its text tower has 57"):
        load(tmp_path / "fewer")
    save(tmp_path / "other_end", eos_token_id=7)
    with refused("number 57", "looks for number 7"):
        load(tmp_path / "other_end")


def test_a_text_that_would_be_cut_off_is_refused(tmp_path, refused):
    from vprompt.models.two_tower import class_texts

    save(tmp_path)
    clip = load(tmp_path)
    with refused("longer than the 40 tokens", "cut off"):
        class_texts(
            clip.text, ("cat", "a class name of very many letters, more than are read"), ("a {}.",)
        )


def test_a_word_that_was_added_behind_the_end_is_not_taken_for_it(tmp_path, refused):
    from vprompt.models.two_tower import class_texts, encode_texts

    words = tokenizer()
    words.add_tokens(["zebra"])
    assert words.convert_tokens_to_ids("zebra") > words.eos_token_id
    texts = (("zebra", "old dog"), ("a {} on sand.", "a {} in water."))
    for kind in ("the old number of the end", "as published"):
        save(tmp_path / kind, kind, with_tokenizer=False)
        words.save_pretrained(tmp_path / kind)
    named = load(tmp_path / "as published").text
    found = class_texts(named, *texts)
    on_sand, in_water, *_ = encode_texts(named, found.ids, found.ends)
    assert not torch.allclose(on_sand, in_water)
    old = load(tmp_path / "the old number of the end").text
    class_texts(old, ("old dog",), texts[1])
    with refused("'a zebra on sand.' holds a word", "end's number, 57", "`eos_token_id`"):
        class_texts(old, *texts)
