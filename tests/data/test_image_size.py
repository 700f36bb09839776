"""Image sizes: height and width, patches that fill them, and what a person types."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

# Reading what a person types.


@pytest.mark.parametrize(
    ("text", "size"),
    [("224", 224), ("64x32", (64, 32)), ("64X32", (64, 32)), ("64,32", (64, 32)), ("32x32", 32)],
)
def test_a_size_is_a_number_or_height_and_width(text, size):
    from vprompt.data.preprocessing import read_size

    assert read_size(text) == size


@pytest.mark.parametrize(
    "text", ["0", "-32", "0x32", "32x0", "5000", "64x32x3", "", "x", "a", "3.5"]
)
def test_a_size_that_no_image_has_is_refused(text, refused):
    from vprompt.data.preprocessing import read_size

    with refused("--image-size"):
        read_size(text)


@pytest.mark.parametrize("size", [0, -1, True, (0, 32), (32, -32)])
@pytest.mark.parametrize("name", ["tiny", "tiny_clip", "timm_vit", "open_clip"])
def test_no_size_stands_for_the_default(size, name, refused):
    from vprompt import open_backbone
    from vprompt.core import registry

    with refused("--image-size"):
        open_backbone(name, image_size=size)
    with refused("--image-size|fill the patches"):
        registry.find("backbones", name)(image_size=size)


def test_the_command_line_refuses_0_and_takes_height_and_width(vprompt, fails, tmp_path):
    digits = ("learn", "digits", "--model", "tiny", "--shots", "1", "--epochs", "0", "--no-test")
    for wrong in ("0", "-1", "64x"):
        fails(*digits, f"--img-size={wrong}", saying=["--image-size"])
    output = tmp_path / "it"
    code, _, err = vprompt(*digits, "--img-size", "64x32", "--output", output, "--quiet")
    assert code == 0, err
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["data_config"]["input_size"] == [3, 64, 32]


# Rectangles, all the way.


@pytest.fixture
def tall(tmp_path):
    """A folder as timm writes it, of a model for images of 64 x 32 pixels."""
    folder = tmp_path / "tall"
    folder.mkdir()
    arguments = {"img_size": [64, 32]}
    vit = timm.create_model("test_vit", num_classes=0, **arguments)
    save_file(vit.state_dict(), folder / "model.safetensors")
    config = {"input_size": [3, 64, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    text = {"architecture": "test_vit", "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps({**text, "pretrained_cfg": config}))
    return f"local-dir:{folder}"


def test_a_prompt_for_tall_images_is_learned_predicted_with_pooled_and_combined(
    tall, vprompt, tmp_path
):
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (20, 40), (90 * index + number, 80, 10))
            image.save(tmp_path / "d" / name / f"{number}.png")
    data, pool = tmp_path / "d", tmp_path / "pool"
    for seed in (0, 1):
        words = ("learn", data, "--model", tall, "--epochs", 1, "--seed", seed, "--quiet")
        code, _, err = vprompt(*words, "--output", pool / f"s{seed}")
        assert code == 0, err
    image = data / "cat" / "0.png"
    for words in (
        ("predict", image, "--artifact", pool / "s0", "--model", tall),
        ("evaluate", data, "--artifact", pool / "s0", "--model", tall),
        ("score", data, "--pool", pool, "--model", tall),
        ("combine", data, "--pool", pool, "--model", tall, "--epochs", 1, "--include-self"),
        ("pool", "check", pool, "--model", tall),
    ):
        code, _, err = vprompt(*words)
        assert code == 0, (words, err)


@pytest.mark.parametrize("name", ["tiny", "tiny_clip"])
def test_height_comes_first_and_pixels_go_where_they_belong(name):
    from vprompt import open_backbone
    from vprompt.models.backbone import extract

    backbone = open_backbone(name, image_size=(64, 32))
    assert backbone.data_config.input_size == (3, 64, 32)
    assert backbone.data_config.image_size == (64, 32)
    assert backbone.data_config.shown_size == "64x32"
    assert extract(backbone, torch.zeros(1, 3, 64, 32)).shape == (1, backbone.feature_dim)
    assert open_backbone(name, image_size=(32, 32)).data_config.image_size == 32


def test_an_artefact_of_another_shape_is_told_from_one_of_the_same_height(refused):
    from vprompt.artifacts.artifact import check_fits, make_config
    from vprompt.backbones import tiny

    config = make_config(tiny.load(image_size=(64, 32)), None, ("a",))
    with refused(r"\[3, 64, 32\]", r"\[3, 64, 64\]"):
        check_fits(config, tiny.load(image_size=64))


def test_most_of_a_pool_decide_its_image_size(tmp_path):
    from vprompt import opening, save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.backbones import tiny
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt

    for name, size in (("a", (64, 32)), ("b", (64, 32)), ("c", 64)):
        backbone = tiny.load(image_size=size)
        prompt = Prompt(torch.zeros(1, 64), torch.tensor([0]))
        config = make_config(backbone, prompt, ("x", "y"))
        head = Head(torch.zeros(2, 64), torch.zeros(2))
        save_artifact(Artifact(prompt, head, torch.zeros(64), config), tmp_path / name)
    for model in (None, "tiny"):
        found = opening.open_pool_backbone(tmp_path, model)
        assert found.data_config.input_size == (3, 64, 32)


# Patches that fill the image.


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [
        ("tiny", 40, "32 or 48"),
        ("tiny", (32, 40), "32 or 32x48"),
        ("tiny_clip", 36, "32 or 40"),
        ("tiny_clip", (32, 4), "32x8"),
    ],
)
def test_a_size_that_leaves_a_border_unread_is_refused(name, size, near, refused):
    from vprompt import open_backbone

    with refused("do not fill the patches", "border", near):
        open_backbone(name, image_size=size)


def test_a_clip_is_refused_before_it_is_made(refused, monkeypatch):
    import open_clip as library

    from vprompt.backbones import open_clip

    monkeypatch.setattr(library, "create_model", lambda *a, **k: pytest.fail("made"))
    with refused("100 x 100", "32 x 32", "96 or 128"):
        open_clip.load(model="ViT-S-32-alt", pretrained=False, image_size=100)


def test_a_size_that_a_model_was_published_with_is_its_own(refused):
    from vprompt.backbones._timm_models import check_image_size

    name = "vit_so400m_patch14_siglip_384"  # 27 patches of 14 pixels, and 6 pixels more
    for size, fits in ((384, True), (378, True), (383, False)):
        with torch.device("meta"):
            vit = timm.create_model(name, img_size=size, num_classes=0, depth=1)
        if fits:
            check_image_size(vit, name)
            continue
        with refused("383 x 383", "378 or 392"):
            check_image_size(vit, name)


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("vit_base_r26_s32_224", (32, 32)),
        ("vit_small_resnet50d_s16_224", (16, 16)),
        ("vit_tiny_r_s16_p8_224", (32, 32)),
        ("vitamin_small_224", (16, 16)),
        ("vit_base_mci_224", (16, 16)),
        ("vit_base_patch16_224", (16, 16)),
        ("vit_base_patch32_clip_256", (32, 32)),
    ],
)
def test_a_patch_is_what_a_token_is_made_of_in_a_hybrid_too(name, patch, refused):
    from vprompt.backbones._timm_models import check_image_size, patch_size_of

    with torch.device("meta"):
        vit = timm.create_model(name, num_classes=0)
    assert patch_size_of(vit) == patch
    size, tokens = vit.patch_embed.img_size, vit.patch_embed.num_patches
    assert size[0] * size[1] == tokens * patch[0] * patch[1]
    vit.patch_embed.img_size = (size[0] + 1, size[1])
    with refused(f"{patch[0]} x {patch[1]}"):
        check_image_size(vit, name)


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [
        ("vit_small_resnet26d_224", 70, "32 x 32.*64 or 96"),  # three cells, the last one padded
        ("vitamin_small_224", 72, "16 x 16.*64 or 80"),
        ("vitamin_small_224", (64, 40), "16 x 16.*64x32 or 64x48"),
    ],
)
def test_a_size_that_a_hybrid_fills_up_is_refused_by_its_true_stride(name, size, near, refused):
    from vprompt.backbones import timm_vit

    with refused(near):
        timm_vit.load(model=name, pretrained=False, image_size=size)


def test_a_hybrid_s_random_tokens_are_bounded_by_its_patch_of_pixels():
    from vprompt.backbones import timm_vit
    from vprompt.prompts.prompt import vpt_uniform

    backbone = timm_vit.load(model="vit_tiny_r_s16_p8_224", pretrained=False, image_size=64)
    assert backbone.patch_size == (32, 32)
    drawn = vpt_uniform(
        torch.zeros(64, dtype=torch.long),
        backbone.dim,
        backbone.patch_size,
        generator=torch.Generator().manual_seed(0),
    )
    bound = (6 / (3 * 32 * 32 + backbone.dim)) ** 0.5
    assert 0.98 * bound < drawn.abs().max().item() <= bound


def test_a_size_that_timm_cannot_take_is_refused_in_a_useful_sentence(refused):
    from vprompt.backbones import timm_vit

    # timm's own assertion has no text.
    with refused("200 x 200", "32 x 32", "192 or 224"):
        timm_vit.load(model="vit_tiny_r_s16_p8_224", pretrained=False, image_size=200)
    for model in ("convnext_atto", "test_resnet"):
        with refused(model, "not a plain vision transformer"):
            timm_vit.load(model=model, pretrained=False, image_size=64)


@pytest.mark.parametrize("model", ["convnext_atto.d2_in1k", "resnet18.a1_in1k"])
def test_a_network_of_another_kind_is_one_with_weights_and_a_size_too(model, refused):
    from vprompt.backbones import timm_vit

    with refused(model, "not a plain vision transformer"):
        timm_vit.load(model=model, image_size=64)


def test_sizes_of_recipes_may_be_rectangles(tmp_path):
    from vprompt.bench.recipe import BackboneEntry

    assert BackboneEntry(image_size=[64, 32]).image_size == (64, 32)
    assert BackboneEntry(image_size=70).image_size == 70
    for wrong in (0, [0, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match="image_size"):
            BackboneEntry(image_size=wrong)
