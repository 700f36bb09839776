"""Export: one model of another program says what vprompt says, or nothing is written."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


def make(backbone, method, folder, **changes):
    """Save an artefact of a method, its tensors moved away from their start."""
    from vprompt.artifacts.artifact import Artifact, make_config, save
    from vprompt.core import registry
    from vprompt.models.heads import Head

    randomness = torch.Generator().manual_seed(3)
    adapter = registry.build("adapters", method)(backbone)
    with torch.no_grad():
        for value in adapter.parameters():
            if value.requires_grad:
                value.add_(0.02 * torch.randn(value.shape, generator=randomness))
    head = Head(torch.randn(3, adapter.feature_dim, generator=randomness), torch.ones(3))
    prompt, state = adapter.prompt(), {}
    if prompt is None:
        state = {name: value.detach() for name, value in adapter.state().items()}
    classes = ("ash", "birch", "cedar")
    config = make_config(backbone, prompt, classes, None, head, method=str(method), **changes)
    embedding = torch.zeros(backbone.feature_dim)
    save(Artifact(prompt, head, embedding, config, state=state), folder, overwrite=True)
    return folder


@pytest.fixture
def artefact(tiny, tmp_path):
    """Return a function that saves an artefact of a method."""
    return lambda method, name="mine", **changes: make(tiny, method, tmp_path / name, **changes)


@pytest.fixture
def export(short, tmp_path):
    """Return a function that exports an artefact of a method on the short backbone."""
    from vprompt.exchange import exporting

    def run(method, **options):
        return exporting.export(make(short, method, tmp_path / "mine"), model=short, **options)

    return run


@pytest.fixture
def photograph(tmp_path):
    """A file of an odd size."""
    from sklearn.datasets import load_sample_image

    path = tmp_path / "china.png"
    Image.fromarray(load_sample_image("china.jpg")[:301, :277]).save(path)
    return path


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


DEEP = "vpt(deep=True, num_virtual_tokens=2)"


@pytest.mark.parametrize("to, method", [("onnx", "vpt"), ("torch", "vpt"), ("torch", DEEP)])
def test_a_prompted_model_is_compared_before_it_is_there(export, tmp_path, to, method):
    from vprompt.exchange.exporting import TARGETS, lines

    target = tmp_path / f"out{TARGETS[to]}"
    found = export(method, to=to, output=target)
    assert not any("say nothing" in text for text in lines(found))
    assert target.is_file() and found.bytes == target.stat().st_size
    assert found.difference < 1e-4 and found.images == 6
    assert found.seconds > 0 and found.own_seconds > 0
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == [target.name]


def test_an_onnx_file_gives_what_predict_gives(export, short, tmp_path, photograph):
    from vprompt import predict

    folder, target = tmp_path / "mine", tmp_path / "model.onnx"
    options = {"output": target, "preprocess": True, "images": [photograph]}
    found = export("vpt(deep=True)", to="onnx", **options)
    assert found.opset == 18 and found.resize_difference < 1e-2
    model = session(target)
    facts = model.get_modelmeta().custom_metadata_map
    assert json.loads(facts["label_names"]) == ["ash", "birch", "cedar"]
    pixels = np.array(Image.open(photograph))[None]
    logits = torch.from_numpy(model.run(None, {"pixels": np.repeat(pixels, 3, 0)})[0])
    [wanted] = predict([photograph], artifact=folder, model=short, precision="fp32")
    for row in logits.softmax(1):
        assert row.tolist() == pytest.approx(list(wanted.probabilities.values()), abs=1e-2)


def test_weights_may_stand_beside_an_onnx_file(export, tmp_path):
    """Of a deep prompt, which is compared like that in one file before it is there."""
    target = tmp_path / "deep" / "model.onnx"
    found = export(DEEP, to="onnx", output=target, external_data=True)
    assert found.difference < 1e-4 and found.images == 6
    assert found.seconds > 0 and found.own_seconds > 0
    assert found.external_data == "model.onnx.data"
    assert sorted(p.name for p in target.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert found.bytes == sum(p.stat().st_size for p in target.parent.iterdir())
    images = np.zeros((5, 3, 32, 32), np.float32)
    assert session(target).run(None, {"images": images})[0].shape == (5, 3)


@pytest.mark.parametrize("method", ["linear", "bias", "full", "partial", "lora"])
def test_what_leaves_weights_alone_is_a_model_of_timms(artefact, tmp_path, tiny, method):
    import timm

    from vprompt import load_artifact
    from vprompt.exchange.exporting import export
    from vprompt.learning.adapter import Adapter
    from vprompt.models.backbone import extract
    from vprompt.opening import open_adapter

    folder, target = artefact(method), tmp_path / "timm"
    found = export(folder, to="safetensors-timm", output=target)
    assert found.difference < 1e-4
    model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    images, loaded = torch.randn(2, 3, 32, 32), load_artifact(folder)
    adapted = open_adapter(loaded, tiny)
    with torch.no_grad():
        features = (
            adapted.features(images) if isinstance(adapted, Adapter) else extract(tiny, images)
        )
        torch.testing.assert_close(
            model(images), loaded.head.logits(features), atol=1e-4, rtol=1e-4
        )
    config = json.loads((target / "config.json").read_text())
    assert config["label_names"] == ["ash", "birch", "cedar"]


@pytest.mark.parametrize("method", ["mlp", "adapter", "side"])
def test_layers_of_a_methods_own_are_exported_too(export, tmp_path, method):
    assert export(method, to="torch", output=tmp_path / "m.pt2").difference < 1e-4


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("vpt", ("a prompt of", "tokens", "--to onnx")),
        ("adapter", ("leaves layers beside", "--to onnx")),
        ("mlp", ("leaves layers beside", "--to onnx")),
    ],
)
def test_what_timm_has_no_place_for_says_why(artefact, tmp_path, refused, method, words):
    from vprompt.exchange.exporting import export

    with refused(*words):
        export(artefact(method), to="safetensors-timm", output=tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


def test_a_model_whose_check_fails_leaves_no_file(export, tmp_path, monkeypatch, refused):
    from vprompt.exchange import torch_programs

    opened = torch_programs.opened
    monkeypatch.setattr(torch_programs, "opened", lambda path: lambda x: opened(path)(x) + 0.1)
    place = tmp_path / "new"
    with refused("differ from vprompt's by 0.1", "not kept"):
        export("vpt", to="torch", output=place / "m.pt2")
    assert list(place.iterdir()) == []


def test_a_method_that_cannot_be_traced_says_so(artefact, tmp_path, monkeypatch, refused):
    from vprompt.adapters.mlp import HiddenLayers
    from vprompt.exchange.exporting import export

    def features(self, images, *, generator=None):
        return images.flatten(1)[:, : self.feature_dim] * float(images.sum())

    folder = artefact("mlp")
    monkeypatch.setattr(HiddenLayers, "features", features)
    with refused("cannot be exported", "HiddenLayers", "vprompt predict"):
        export(folder, to="torch", output=tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_places_that_cannot_be_written_and_words_that_mean_nothing(artefact, tmp_path, fails):
    folder = artefact("linear")
    (tmp_path / "file").write_text("")
    (tmp_path / "there.pt2").write_text("precious")
    for words, saying in [
        (["--to", "tflite"], ["--to is one of onnx, torch"]),
        (["--to", "onnx", "--output", "m.pt"], ["is a .onnx file", "'m.onnx'"]),
        (["--to", "torch", "--output", tmp_path / "file" / "m.pt2"], ["Could not write"]),
        (["--to", "torch", "--output", tmp_path / "there.pt2"], ["exists already", "--overwrite"]),
        (["--to", "safetensors-timm", "--preprocess"], ["Leave --preprocess out"]),
        (["--to", "torch", "--image", tmp_path / "file"], ["cannot be read as an image"]),
    ]:
        fails("export", folder, "-q", *words, saying=saying)
    assert (tmp_path / "there.pt2").read_text() == "precious"


def test_the_command_prints_size_and_speed(artefact, tmp_path, vprompt):
    target = tmp_path / "timm"
    words = ("--to", "safetensors-timm", "--output", target, "-q")
    code, out, _ = vprompt("export", artefact("linear"), *words)
    assert code == 0 and f"{target}: " in out and "MiB" in out and "ms an image" in out
    target = tmp_path / "m.pt2"
    target.write_text("of another export")
    code, out, _ = vprompt(
        *("export", tmp_path / "mine", "--to", "torch", "--output", target, "-q"),
        *("--overwrite", "--json"),
    )
    assert code == 0 and json.loads(out)["images"] == 6


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("mode", "pct"), [("squash", 1.0), ("center", 0.875)])
def test_the_resize_in_the_model_is_pillows_but_for_rounding(photograph, interpolation, mode, pct):
    from vprompt.data.decoding import fit
    from vprompt.data.preprocessing import DataConfig
    from vprompt.exchange.resizing import Resizing

    half = (0.5, 0.5, 0.5)
    image = Image.open(photograph)
    for size in ((3, 32, 48), (3, 350, 301)):
        config = DataConfig(size, interpolation, half, half, pct, mode)
        made = Resizing(config)(torch.from_numpy(np.array(image))[None])[0].numpy()
        off = np.abs(made - fit(image, config))
        assert off.max() <= 1 and (off > 0).mean() < 0.02


def test_an_opset_that_torch_does_not_write_is_refused(export, tmp_path, refused):
    with refused("opset 18, and not of 3", "--opset 18 or later"):
        export("linear", to="onnx", opset=3, output=tmp_path / "old.onnx")
    assert not (tmp_path / "old.onnx").exists()


def test_a_head_of_zeros_is_said_to_prove_nothing(short, tmp_path):
    from dataclasses import replace

    from vprompt.artifacts import artifact as artifacts
    from vprompt.exchange.exporting import export, lines
    from vprompt.models.heads import Head

    whole = artifacts.load(make(short, "linear", tmp_path / "mine"))
    blank = replace(whole, head=Head(torch.zeros_like(whole.head.weight), torch.zeros(3)))
    found = export(blank, to="torch", model=short, output=tmp_path / "m.pt2")
    assert any("say nothing" in text for text in lines(found))


def test_a_resize_that_is_not_known_is_refused(refused):
    from vprompt.data.preprocessing import DataConfig
    from vprompt.exchange.resizing import Resizing

    half = (0.5, 0.5, 0.5)
    with refused("nearest", "without --preprocess"):
        Resizing(DataConfig((3, 8, 8), "nearest", half, half))
