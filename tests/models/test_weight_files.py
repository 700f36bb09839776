"""Weight files: a model is filled whole by them, under any usual wrapper, or refused."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

ARCHITECTURE = "test_vit"


def small(seed=0, **options):
    """A random model of 32 pixels, every tensor of which is drawn."""
    vit = timm.create_model(ARCHITECTURE, img_size=32, num_classes=0, **options)
    randomness = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=randomness))
    return vit.eval()


@pytest.fixture(scope="module")
def vit():
    return small()


@pytest.fixture
def load(tmp_path):
    """Return a function that saves something as a checkpoint and loads the backbone from it."""
    from vprompt.backbones import timm_vit

    def run(held, name="weights.pth", model=ARCHITECTURE, **options):
        torch.save(held, tmp_path / name)
        path = str(tmp_path / name)
        return timm_vit.load(model=model, checkpoint=path, image_size=32, **options)

    return run


def same(backbone, vit):
    """Say whether a backbone holds exactly these weights."""
    own, wanted = backbone.vit.state_dict(), vit.state_dict()
    return own.keys() == wanted.keys() and all(torch.equal(own[k], v) for k, v in wanted.items())


def renamed(vit, prefix):
    return {f"{prefix}{name}": value for name, value in vit.state_dict().items()}


def with_head(vit):
    head = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    return {**vit.state_dict(), **head}


# What one program or another saves, and what is said to have been taken off.
WRAPPED = {
    "as it is": (lambda v: v.state_dict(), []),
    "with a head": (with_head, []),
    "timm's training": (lambda v: {"state_dict": with_head(v), "epoch": 3, "arch": "x"}, ["state"]),
    "MAE": (
        lambda v: {
            "model": {
                **v.state_dict(),
                "decoder_pos_embed": torch.zeros(1),
                "mask_token": torch.ones(1),
            },
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
        },
        ["`model`"],
    ),
    "MoCo v3": (
        lambda v: {
            "state_dict": {
                **renamed(v, "module.base_encoder."),
                **renamed(small(1), "module.momentum_encoder."),
                "module.base_encoder.head.0.weight": torch.zeros(4, 64),
            }
        },
        ["`state_dict`", "`module.base_encoder.`"],
    ),
    "DINO": (
        lambda v: {
            "student": renamed(small(1), "module.backbone."),
            "teacher": {**renamed(v, "backbone."), "head.mlp.0.weight": torch.zeros(4, 64)},
        },
        ["`teacher`", "`backbone.`"],
    ),
    "DINO, the student alone": (
        lambda v: {"student": renamed(v, "module.backbone.")},
        ["`student`", "`module.backbone.`"],
    ),
    "Lightning": (
        lambda v: {
            "state_dict": {
                **renamed(small(1), "student.backbone."),
                **renamed(v, "teacher.backbone."),
            }
        },
        ["`teacher.backbone.`"],
    ),
    "I-JEPA": (
        lambda v: {
            "encoder": renamed(v, "module."),
            "predictor": {"module.w": torch.zeros(2)},
        },
        ["`encoder`", "`module.`"],
    ),
    "an average beside": (
        lambda v: {"state_dict": small(1).state_dict(), "state_dict_ema": v.state_dict()},
        ["`state_dict_ema`"],
    ),
    "compiled and distributed": (
        lambda v: renamed(v, "_orig_mod.module."),
        ["`_orig_mod.module.`"],
    ),
    "an encoder": (lambda v: renamed(v, "encoder."), ["`encoder.`"]),
    "a prefix of one's own": (lambda v: renamed(v, "my_net.trunk."), ["`my_net.trunk.`"]),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_usual_wrappers_are_taken_off_and_named(vit, load, kind):
    wrap, said = WRAPPED[kind]
    backbone = load(wrap(vit))
    assert same(backbone, vit)
    assert all(word in backbone.remark for word in said) and bool(said) == bool(backbone.remark)


def test_names_of_the_model_library_s_own_converters_still_load(vit, load):
    """OpenAI's spelling of an image tower, which no wrapper explains."""
    clip = timm.create_model(
        "vit_base_patch16_clip_224", img_size=32, num_classes=0, depth=1, embed_dim=64, num_heads=4
    )
    spelled = {
        "visual.class_embedding": clip.cls_token[0, 0],
        "visual.positional_embedding": clip.pos_embed[0],
        "visual.conv1.weight": clip.patch_embed.proj.weight,
    }
    from vprompt.backbones._checkpoints import unwrap

    found, remark = unwrap({k: v.detach() for k, v in spelled.items()}, clip.state_dict(), "file")
    assert found.keys() == spelled.keys() and remark == ""
    wrapped = {f"module.{k}": v.detach() for k, v in spelled.items()}
    found, remark = unwrap({"state_dict": wrapped}, list(clip.state_dict()), "file")
    assert found.keys() == spelled.keys() and "`module.`" in remark


# What would leave random numbers behind.


def without(vit, *starts):
    return {k: v for k, v in vit.state_dict().items() if not k.startswith(starts)}


@pytest.mark.parametrize(
    "held, words",
    [
        (lambda v: {}, ["holds no weights"]),
        (lambda v: {"state_dict": {}}, ["holds no weights"]),
        (lambda v: [1, 2], ["holds no weights"]),
        (lambda v: without(v, "blocks.4", "blocks.5"), ["fills 54 of the 78", "blocks.4.", "more"]),
        (lambda v: without(v, "norm."), ["fills 76 of the 78", "norm.weight, norm.bias"]),
        (lambda v: without(v, "pos_embed"), ["fills 77 of the 78", "pos_embed"]),
        (
            lambda v: {"module.layer1.0.conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(3)},
            ["fills 0 of the 78", "It holds", "layer1.0.conv1.weight"],
        ),
        (
            lambda v: {**v.state_dict(), "blocks.6.attn.qkv.weight": torch.zeros(192, 64)},
            ["blocks.6.attn.qkv.weight", "no place"],
        ),
        (lambda v: {**v.state_dict(), "reg_token": torch.zeros(1, 4, 64)}, ["no place"]),
        (lambda v: {**v.state_dict(), "blocks.0.ls1.gamma": torch.ones(64)}, ["ls1", "no place"]),
        (
            lambda v: {**v.state_dict(), "blocks.0.attn.qkv.weight": torch.zeros(3, 3)},
            ["another shape", "blocks.0.attn.qkv.weight", r"\(3, 3\), not \(192, 64\)"],
        ),
        (
            lambda v: {**renamed(v, "first."), **renamed(v, "second.")},
            ["several sets", "first.", "second."],
        ),
    ],
)
def test_what_does_not_fill_the_model_is_refused(vit, load, held, words, refused):
    with refused(*words):
        load(held(vit))


def test_a_file_that_is_no_weight_file_is_refused_in_a_sentence(tmp_path, refused):
    from vprompt.backbones import timm_vit

    contents = {
        "empty.pth": b"",
        "page.pth": b"<html>404</html>",
        "cut.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with refused(name):
            timm_vit.load(model=ARCHITECTURE, checkpoint=str(tmp_path / name), image_size=32)
    with refused("empty.pth is empty"):
        timm_vit.load(model=ARCHITECTURE, checkpoint=str(tmp_path / "empty.pth"))
    with refused("Git LFS", "git lfs pull"):
        timm_vit.load(model=ARCHITECTURE, checkpoint=str(tmp_path / "pointer.safetensors"))


def test_settings_beside_the_weights_are_read_and_code_is_not(vit, load, tmp_path, refused):
    import argparse

    held = {"model": vit.state_dict(), "args": argparse.Namespace(lr=0.1)}
    assert same(load(held), vit)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    with refused("is not read", "without code", "torch.save"):
        load({"model": vit.state_dict(), "note": Bomb()})
    assert not (tmp_path / "exploded").exists()


def test_a_file_of_another_program_is_named_without_a_byte_or_a_warning(tmp_path, refused):
    import pickle

    from vprompt.backbones import _checkpoints

    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": print}, protocol=4))
    for name in ("text.pth", "plain.pth"):
        with refused(f"{name} is not read: it is damaged, or no file of PyTorch's"):
            _checkpoints.read(tmp_path / name)


# Folders and hubs.


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a folder as timm does, around any weights."""

    def make(held, name="pytorch_model.bin", **config):
        path = tmp_path / "folder"
        path.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(held, path / name)
        else:
            torch.save(held, path / name)
        text = {
            "architecture": ARCHITECTURE,
            "num_classes": 0,
            "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 0},
            "model_args": {"img_size": 32},
            **config,
        }
        (path / "config.json").write_text(json.dumps(text))
        return path

    return make


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "epoch_90.pth"])
def test_a_local_folder_is_filled_whole_or_refused(vit, folder, name, refused):
    from vprompt.backbones import timm_vit

    path = folder(renamed(vit, "module."), name)
    backbone = timm_vit.load(model=f"local-dir:{path}")
    assert same(backbone, vit) and "`module.`" in backbone.remark
    folder(without(vit, "blocks.2"), name)
    with refused("fills 66 of the 78", "blocks.2."):
        timm_vit.load(model=f"local-dir:{path}")


def test_a_norm_that_the_weights_do_not_hold_under_that_name_is_refused(vit, folder, refused):
    from vprompt.backbones import timm_vit

    # Average pooling has its norm behind it, under another name; timm leaves it as it was drawn.
    path = folder(vit.state_dict(), model_args={"img_size": 32, "global_pool": "avg"})
    with refused("fills 76 of the 78", "fc_norm"):
        timm_vit.load(model=f"local-dir:{path}")


def test_two_files_that_may_be_the_weights_are_named(vit, folder, refused):
    from vprompt.backbones import timm_vit

    folder(vit.state_dict(), "epoch_1.pth")
    path = folder(vit.state_dict(), "epoch_2.pth")
    with refused("epoch_1.pth, epoch_2.pth", "checkpoint="):
        timm_vit.load(model=f"local-dir:{path}")


def test_a_checkpoint_goes_before_what_a_folder_holds(vit, folder, tmp_path):
    from vprompt.backbones import timm_vit

    path = folder(small(1).state_dict())
    torch.save(vit.state_dict(), tmp_path / "mine.pth")
    backbone = timm_vit.load(model=f"local-dir:{path}", checkpoint=str(tmp_path / "mine.pth"))
    assert same(backbone, vit)


def test_a_hub_s_weights_fill_the_model_whole_or_are_refused(vit, monkeypatch, refused):
    from timm.models import _factory

    from vprompt.backbones import _reach, _timm_models, timm_vit

    monkeypatch.setattr(_reach, "_problem", lambda address: "")
    config = {
        "input_size": (3, 32, 32),
        "num_classes": 0,
        "source": "hf-hub",
        "hf_hub_id": "you/it",
    }
    parsed = (config, ARCHITECTURE, {"img_size": 32})
    monkeypatch.setattr(
        _factory, "load_model_config_from_hf", lambda *a, **k: (dict(config), *parsed[1:])
    )
    held = {"state_dict": renamed(vit, "module.")}
    monkeypatch.setattr(_timm_models, "load_state_dict_from_hf", lambda *a, **k: held)
    backbone = timm_vit.load(model="hf-hub:you/it")
    assert same(backbone, vit) and backbone.name == "hf-hub:you/it"
    held["state_dict"] = without(vit, "cls_token")
    with refused("hf-hub:you/it fills 77 of the 78", "cls_token"):
        timm_vit.load(model="hf-hub:you/it")


def test_what_timm_itself_fetches_fills_the_model_whole_or_is_refused(
    vit, hub_answers, monkeypatch, refused
):
    from timm.models import _builder

    from vprompt.backbones import timm_vit

    held = dict(vit.state_dict())
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *a, **k: dict(held))
    name = "test_vit.r160_in1k"
    assert same(timm_vit.load(model=name, image_size=32), vit)
    held.pop("blocks.3.mlp.fc1.bias")
    with refused(
        "The checkpoint of 'test_vit.r160_in1k'", "fills 77 of the 78", "blocks.3.mlp.fc1.bias"
    ):
        timm_vit.load(model=name, image_size=32)


@pytest.fixture
def clip_folder(tmp_path):
    """Return a function that writes weights into a folder of open_clip, for a tiny model."""
    from vprompt.backbones import tiny_clip

    config = {**tiny_clip.CONFIG}
    config["vision_cfg"] = {**config["vision_cfg"], "image_size": 32}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (tmp_path / "open_clip_config.json").write_text(text)

    def write(held):
        torch.save(held, tmp_path / "open_clip_pytorch_model.bin")
        return f"open_clip(model='local-dir:{tmp_path}')"

    return write


def test_open_clip_s_weights_fill_both_towers_or_are_refused(clip_folder, refused):
    from vprompt import open_backbone
    from vprompt.backbones import tiny_clip

    whole = tiny_clip.load(seed=3).clip.state_dict()
    for changed, words in (
        ({k: v for k, v in whole.items() if "resblocks.2" not in k}, ("lacks", "resblocks.2")),
        ({f"net.{k}": v for k, v in whole.items() if "ln_final" not in k}, ("fills 0 of", "net.")),
        ({**whole, "odd": torch.zeros(1)}, ("odd", "no place")),
    ):
        with refused(*words):
            open_backbone(clip_folder(changed))


@pytest.mark.parametrize(
    "wrap, said",
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}, ""),
        (lambda s: {"epoch": 3, "model": {f"module.{k}": v for k, v in s.items()}}, "`model`"),
        (lambda s: {f"clip.{k}": v for k, v in s.items()}, "`clip.`"),
    ],
)
def test_wrappers_are_taken_off_a_clip_s_weights_too(wrap, said, clip_folder):
    from vprompt import open_backbone
    from vprompt.backbones import tiny_clip

    clip = tiny_clip.load(seed=3)
    loaded = open_backbone(clip_folder(wrap(clip.clip.state_dict())))
    assert loaded.fingerprint == clip.fingerprint
    assert said in loaded.remark and bool(said) == bool(loaded.remark)


# The original release.


def arrays(vit):
    """The weights of a small model under the names of the original ViT's release."""
    held, heads = {}, vit.blocks[0].attn.num_heads
    held["embedding/kernel"] = vit.patch_embed.proj.weight.permute(2, 3, 1, 0)
    held["embedding/bias"] = vit.patch_embed.proj.bias
    held["cls"], where = vit.cls_token, "Transformer/posembed_input/pos_embedding"
    held[where] = vit.pos_embed
    held["Transformer/encoder_norm/scale"] = vit.norm.weight
    held["Transformer/encoder_norm/bias"] = vit.norm.bias
    for index, block in enumerate(vit.blocks):
        at = f"Transformer/encoderblock_{index}"
        for number, norm in ((0, block.norm1), (2, block.norm2)):
            held[f"{at}/LayerNorm_{number}/scale"] = norm.weight
            held[f"{at}/LayerNorm_{number}/bias"] = norm.bias
        parts = zip(
            ("query", "key", "value"),
            block.attn.qkv.weight.chunk(3),
            block.attn.qkv.bias.chunk(3),
            strict=True,
        )
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for name, weight, bias in parts:
            held[f"{attention}/{name}/kernel"] = weight.T.unflatten(1, (heads, -1))
            held[f"{attention}/{name}/bias"] = bias.unflatten(0, (heads, -1))
        held[f"{attention}/out/kernel"] = block.attn.proj.weight.T.unflatten(0, (heads, -1))
        held[f"{attention}/out/bias"] = block.attn.proj.bias
        for number, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            held[f"{at}/MlpBlock_3/Dense_{number}/kernel"] = layer.weight.T
            held[f"{at}/MlpBlock_3/Dense_{number}/bias"] = layer.bias
    return {name: value.detach().numpy() for name, value in held.items()}


def test_the_arrays_of_the_original_vit_are_read_whole_or_refused(vit, tmp_path, refused):
    from vprompt.backbones import timm_vit

    def load(held):
        np.savez(tmp_path / "vit.npz", **held)
        path = str(tmp_path / "vit.npz")
        return timm_vit.load(model=ARCHITECTURE, checkpoint=path, image_size=32)

    whole = arrays(vit)
    backbone = load(whole)
    assert same(backbone, vit) and "original ViT" in backbone.remark
    more = {k.replace("_0/", "_6/", 1): v for k, v in whole.items() if "encoderblock_0/" in k}
    with refused("holds 7 blocks", "has 6"):
        load({**whole, **more})
    with refused("holds 5 blocks", "has 6"):
        load({k: v for k, v in whole.items() if "encoderblock_5/" not in k})
    with refused("does not fill", "encoderblock_2/LayerNorm_0/bias"):
        load({k: v for k, v in whole.items() if k != "Transformer/encoderblock_2/LayerNorm_0/bias"})
    with refused("holds a, b", "original ViT"):
        load({"a": np.zeros(1), "b": np.zeros(1)})
    (tmp_path / "vit.npz").write_bytes((tmp_path / "vit.npz").read_bytes()[:-40])
    with refused("vit.npz"):
        timm_vit.load(model=ARCHITECTURE, checkpoint=str(tmp_path / "vit.npz"), image_size=32)


def test_arrays_for_registers_that_they_do_not_hold_are_refused(vit, tmp_path, refused):
    from vprompt.backbones._checkpoints import fill_from_arrays

    np.savez(tmp_path / "vit.npz", **arrays(vit))
    other = small(reg_tokens=2, no_embed_class=False)
    with refused("vit.npz", "other"):
        fill_from_arrays(other, tmp_path / "vit.npz", "other")


# What is refused before anything is read or fetched.


@pytest.mark.parametrize(
    "model, right",
    [
        ("vit_base_patch32_clip_224.openai", "vit_base_patch32_clip_quickgelu_224.openai"),
        ("vit_large_patch14_clip_224.dfn2b", "vit_large_patch14_clip_quickgelu_224.dfn2b"),
        ("vit_huge_patch14_clip_378", "vit_huge_patch14_clip_quickgelu_378.dfn5b"),
    ],
)
def test_weights_of_another_activation_are_refused_by_name(model, right, monkeypatch, refused):
    from vprompt.backbones import timm_vit

    assert timm.models.is_model_pretrained(right)
    _no_network(monkeypatch)
    with refused("QuickGELU", "exact GELU", f"'{right}'"):
        timm_vit.load(model=model)


def test_every_name_that_timm_lists_twice_is_refused_under_the_wrong_one(refused):
    from vprompt.backbones._timm_models import _check_activation

    notes = {}
    for name in timm.list_pretrained("vit_*_clip_*"):
        config = timm.models.get_pretrained_cfg(name)
        notes[name] = any("quickgelu" in note.lower() for note in config.notes or ())
    wrong = [name for name, quick in notes.items() if quick and "quickgelu" not in name]
    assert len(wrong) >= 15
    for name in wrong:
        with torch.device("meta"):
            sketch = timm.create_model(name, num_classes=0, depth=1)
        right = name.replace("_clip_", "_clip_quickgelu_")
        with refused(f"'{right}'"):
            _check_activation(sketch, name)
        with torch.device("meta"):
            sketch = timm.create_model(right, num_classes=0, depth=1)
        _check_activation(sketch, right)


def test_a_copy_on_a_hub_or_in_a_folder_is_known_by_its_tag(vit, folder, refused):
    from vprompt.backbones import timm_vit

    tagged = {"tag": "openai", "input_size": [3, 224, 224], "num_classes": 0}
    path = folder(
        vit.state_dict(),
        architecture="vit_base_patch32_clip_224",
        pretrained_cfg=tagged,
        model_args={"depth": 1},
    )
    with refused("QuickGELU", "vit_base_patch32_clip_quickgelu_224.openai"):
        timm_vit.load(model=f"local-dir:{path}")


def test_an_artefact_of_one_activation_is_refused_under_the_other(tiny, refused):
    """The weights, and so the fingerprint, are the same."""
    from vprompt.artifacts.artifact import check_fits, make_config

    names = ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai")
    plain, quick = (type(tiny)(tiny.vit, name, tiny.data_config) for name in names)
    config = make_config(plain, None, ("a",))
    check_fits(config, plain)
    with refused("base_model_name_or_path", *names):
        check_fits(config, quick)
    check_fits(config, type(tiny)(tiny.vit, "local-dir:/a/copy", tiny.data_config))


def _no_network(monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("model", ["resnet18.a1_in1k", "beit_base_patch16_224.in22k_ft_in22k"])
def test_a_model_that_cannot_be_prompted_is_refused_before_a_download(model, monkeypatch, refused):
    from vprompt.backbones import timm_vit

    _no_network(monkeypatch)
    with refused(model):
        timm_vit.load(model=model)


def test_what_was_taken_off_is_said_and_kept_in_the_record(vit, tmp_path):
    from vprompt import TrainConfig, flow
    from vprompt.core.progress import Silent

    class Listening(Silent):
        said: list[str]

        def say(self, text):
            said.append(text)

    said = []
    torch.save({"state_dict": renamed(vit, "module.")}, tmp_path / "w.pth")
    outcome = flow.learn(
        "digits",
        model=f"timm_vit(model=test_vit, checkpoint='{tmp_path / 'w.pth'}')",
        config=TrainConfig(epochs=0),
        shots=1,
        image_size=32,
        test=False,
        progress=Listening(),
    )
    [sentence] = [line for line in said if "`module.`" in line]
    assert outcome.run["backbone"]["weights"] == sentence
