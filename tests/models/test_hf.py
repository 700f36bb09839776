"""Models of transformers: the same features in timm's modules, and the processor's images."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 48, "image_size": 32, "patch_size": 8},
}
KINDS = {
    "ViT": {},
    "DeiT": {},
    "Dinov2": {},
    "Dinov2 gated": {"use_swiglu_ffn": True},
    "Dinov2WithRegisters": {"num_register_tokens": 3},
    "DINOv3ViT": {"num_register_tokens": 3, "image_size": (32, 48)},
    "DINOv3ViT gated": {
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "query_bias": False,
        "value_bias": False,
    },
    "SiglipVision": {},
}
PROCESSOR = {
    **{"do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2},
    "size": {"height": 32, "width": 32},
}


def awaken(model):
    randomness = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=randomness))
    return model.eval()


def save(folder, kind="ViT", processor=PROCESSOR, **changes):
    name = kind.partition(" ")[0]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **KINDS[kind], **changes})
    model = awaken(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def load(folder, **settings):
    from vprompt.backbones import hf

    return hf.load(model=str(folder), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_original(kind, tmp_path, generator):
    from vprompt.models.backbone import enter

    original = save(tmp_path, kind)
    size = KINDS[kind].get("image_size", (32, 32))
    backbone = load(tmp_path, image_size=size)
    images = torch.randn(3, 3, *size, generator=generator)
    with torch.no_grad():
        own = original(pixel_values=images)
        tokens = enter(backbone, images, backbone.depth).tokens
        torch.testing.assert_close(
            backbone.vit.norm(tokens), own.last_hidden_state, rtol=1e-3, atol=1e-4
        )
        if kind != "DeiT":
            torch.testing.assert_close(
                backbone.pool(tokens),
                own.pooler_output if kind != "ViT" else own.last_hidden_state[:, 0],
                rtol=1e-3,
                atol=1e-4,
            )
    assert "features equal to" in backbone.remark


def test_a_folder_is_opened_by_its_name_and_can_be_prompted(tmp_path, generator):
    import vprompt
    from vprompt.opening import open_backbone
    from vprompt.prompts.prompt import Prompt, place

    save(tmp_path, "DINOv3ViT", image_size=32)
    backbone = open_backbone(f"hf:{tmp_path}", image_size=32, device="cpu")
    assert backbone.name.startswith("hf(model=")
    again = open_backbone(backbone.name, image_size=32, device="cpu")
    assert again.fingerprint == backbone.fingerprint
    blocks = place(2, backbone.depth, deep=True)
    prompt = Prompt(torch.randn(len(blocks), backbone.dim, generator=generator), blocks, False)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    assert vprompt.extract(backbone, images, prompt).shape == (2, 32)


def test_the_processor_s_images_are_taken_over_and_told(tmp_path):
    save(tmp_path)
    backbone = load(tmp_path)
    config = backbone.data_config
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (config.interpolation, config.crop_mode, config.input_size) == (
        "bilinear",
        "squash",
        (3, 32, 32),
    )
    assert "32 pixels, both sides resized, bilinear, mean 0.1/0.2/0.3" in backbone.remark


def test_a_shortest_edge_and_a_cut_are_a_centre(tmp_path):
    cut = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 24, "resample": 3}
    save(tmp_path, "Dinov2", processor={**PROCESSOR, **cut})
    backbone = load(tmp_path)
    config = backbone.data_config
    assert (config.input_size, config.crop_mode) == ((3, 24, 24), "center")
    assert config.crop_pct == pytest.approx(0.6) and config.interpolation == "bicubic"
    assert "positions resampled from 32 to 24" in backbone.remark
    assert load(tmp_path, image_size=(16, 32)).data_config.input_size == (3, 16, 32)


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (40, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_features_at_another_size_are_those_of_the_original(kind, size, tmp_path, generator):
    from vprompt.models.backbone import enter

    original = save(tmp_path, kind, image_size=32)
    backbone = load(tmp_path, image_size=size)
    images = torch.randn(3, 3, *size, generator=generator)
    asked = {} if kind.lower().startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        own = original(pixel_values=images, **asked).last_hidden_state
        found = backbone.vit.norm(enter(backbone, images, backbone.depth).tokens)
    torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-4)
    computed = "computed for" if kind.startswith("DINOv3") else "by transformers"
    assert computed in backbone.remark


def test_positions_of_a_rectangle_are_resampled_by_timm(tmp_path):
    save(tmp_path, image_size=(32, 48))
    backbone = load(tmp_path, image_size=16)
    assert "from 32x48 to 16 by the library that runs it" in backbone.remark
    assert backbone.data_config.input_size == (3, 16, 16)


def test_a_processor_that_leaves_pixels_as_they_are():
    from vprompt.backbones._hf_processor import data_config_of

    _, config, _ = data_config_of({"do_rescale": False, "do_normalize": False}, 16, "m")
    assert config.std == pytest.approx((1 / 255,) * 3) and config.mean == (0.0, 0.0, 0.0)
    old = {"size": 20, "image_mean": [0.5], "resample": 3}
    size, config, _ = data_config_of(old, 16, "m")
    assert size == 20 and config.mean == (0.5, 0.5, 0.5)


def test_two_sizes_in_a_row_are_refused(tmp_path, refused):
    both = {**PROCESSOR, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
    save(tmp_path, processor=both)
    with refused("resizes both sides to 32", "cuts 24", "shortest edge"):
        load(tmp_path)


def test_a_missing_processor_is_said(tmp_path, refused):
    save(tmp_path, processor=None)
    with refused("no preprocessor_config.json", "processor.save_pretrained"):
        load(tmp_path)


def test_code_of_a_repository_is_never_run(tmp_path, refused):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with refused("code of its own", "never run", "dinov2"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind, why", [("siglip2", "any number of patches"), ("bert", "no plain")])
def test_other_kinds_are_refused_by_their_config(kind, why, tmp_path, refused):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with refused(kind, why, "Read are"):
        load(tmp_path)


def test_weights_that_are_too_few_or_of_another_width_are_refused(tmp_path, refused):
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    left = {key: value for key, value in weights.items() if "layer.1." not in key}
    save_file(left, file, {"format": "pt"})
    with refused("lacks layers.1", "at random"):
        load(tmp_path)
    save_file(weights, file, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with refused("another shape", r"\(1, 1, 32\), not \(1, 1, 64\)"):
        load(tmp_path)


def test_sizes_that_no_patch_fits_and_places_that_are_not_there(tmp_path, refused):
    save(tmp_path)
    with refused("4 x 4", "8 x 8"):
        load(tmp_path, image_size=4)
    with refused("No folder at"):
        load(tmp_path / "nowhere")


def test_without_the_library_the_extra_is_named(monkeypatch, refused):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(r"pip install 'vprompt\[transformers\]'"):
        load("org/name")
