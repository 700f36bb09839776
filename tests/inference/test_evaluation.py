"""Evaluate: base classes to new ones by their names, and what a linear head cannot do."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

COLOURS = {"red": 0, "green": 1, "blue": 2, "white": None}
MODEL = "tiny_clip"


@pytest.fixture
def root(tmp_path):
    """A few-shot data set of four coloured squares, in the form of `split_zhou_*.json`."""
    rng, splits = np.random.default_rng(0), {}
    for split, count in (("train", 6), ("val", 2), ("test", 5)):
        splits[split] = []
        for label, (name, channel) in enumerate(COLOURS.items()):
            for number in range(count):
                pixels = rng.integers(0, 100, (32, 32, 3))
                pixels[8:24, 8:24, slice(None) if channel is None else channel] += 140
                path = tmp_path / "data" / name / f"{split}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                splits[split].append([f"{name}/{path.name}", label, f"{name}_square"])
    (tmp_path / "data/squares.json").write_text(json.dumps(splits))
    return tmp_path / "data"


def spec(root, subset):
    return f"few_shot(root='{root}', dataset='squares.json', shots=4, subset={subset})"


@pytest.fixture
def learned(root, tmp_path):
    """An artefact of IVLP, learned on the base classes, and its outcome."""
    from vprompt import TrainConfig, learn

    config = TrainConfig(epochs=2, batch_size=4, lr=0.02, precision="fp32")
    return learn(
        spec(root, "base"), model=MODEL, method="ivlp", config=config, output=tmp_path / "it"
    )


def test_base_to_new_by_class_names(root, learned, tmp_path):
    from vprompt import evaluate, extract, open_backbone, open_task
    from vprompt.models.two_tower import text_head

    base = evaluate(spec(root, "base"), artifact=tmp_path / "it", precision="fp32")
    assert base["learned"].acc1 == learned.test["learned"].acc1
    assert base["zero-shot"].acc1 == learned.test["zero-shot"].acc1
    new = evaluate(spec(root, "new"), artifact=tmp_path / "it", precision="fp32")
    assert new["learned"].images == 10 and learned.artifact.classes == [
        "red_square",
        "green_square",
    ]
    # The same by hand: the text prompt reads the names of classes that it never saw.
    backbone, task = open_backbone(MODEL), open_task(spec(root, "new"))
    head = text_head(backbone, ["blue_square", "white_square"], learned.artifact.text)
    paths = [root / name / f"test{n}.png" for name in ("blue", "white") for n in range(5)]
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    images = backbone.normalise(torch.from_numpy(pixels))
    found = head.logits(extract(backbone, images, learned.artifact.prompt)).argmax(1)
    right = (found == torch.tensor([0] * 5 + [1] * 5)).double().mean().item()
    assert new["learned"].acc1 == pytest.approx(right)
    assert task.classes == ("blue_square", "white_square")


def test_the_card_and_the_report_tell_the_template(learned, tmp_path):
    from vprompt import write_report

    assert "ivlp" in (tmp_path / "it/README.md").read_text()
    config = json.loads((tmp_path / "it/adapter_config.json").read_text())
    assert config["text"]["templates"] == ["a photo of a {}."]
    write_report(learned.run, tmp_path / "report.html")
    assert "zero-shot" in (tmp_path / "report.html").read_text()


def test_a_linear_head_is_measured_on_its_own_classes_alone(root, tmp_path, refused):
    from vprompt import TrainConfig, evaluate, learn

    config = TrainConfig(epochs=1, batch_size=4, precision="fp32")
    outcome = learn(spec(root, "base"), model=MODEL, method="linear", config=config)
    found = evaluate(spec(root, "base"), artifact=outcome.artifact, model=MODEL, precision="fp32")
    assert list(found) == ["learned"]
    assert found["learned"].acc1 == outcome.test["learned"].acc1
    with refused("knows 2 classes", "'red_square'", "has 2", "'blue_square'", "text tower"):
        evaluate(spec(root, "new"), artifact=outcome.artifact, model=MODEL)


def test_the_whole_protocol_on_the_command_line(root, tmp_path, vprompt, fails):
    place = tmp_path / "prompt"
    words = ["learn", spec(root, "base"), "--model", MODEL, "--method", "zero_shot"]
    code, out, err = vprompt(*words, "--templates", "a drawing of a {}.", "--output", place, "-q")
    assert code == 0, err
    assert "zero-shot" in out and "trainable params: 0" in out
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["text"]["templates"] == ["a drawing of a {}."]
    code, out, err = vprompt("evaluate", spec(root, "new"), "--artifact", place, "--json", "-q")
    assert code == 0 and json.loads(out)["learned"]["images"] == 10
    code, out, _ = vprompt("evaluate", spec(root, "all"), "--artifact", place, "--json", "-q")
    assert code == 0 and set(json.loads(out)) == {"zero-shot", "learned"}
    code, out, _ = vprompt("predict", root / "red", "--artifact", place, "--json", "-q")
    assert code == 0 and {entry["label"] for entry in json.loads(out)} <= {
        "red_square",
        "green_square",
    }
    words[words.index(MODEL)] = "tiny"
    fails(*words, "-q", saying=["reads class names", "'tiny' lacks"])
