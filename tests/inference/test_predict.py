"""Predict: labels for image files from an artefact alone."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # steps this small only wait for a second thread


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """An artefact that knows digits, a little."""
    from vprompt import TrainConfig, learn, open_task

    target = tmp_path_factory.mktemp("pool") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = open_task("digits").few_shot(6, seed=0)
        config = TrainConfig(epochs=1, keep="last")
        learn(task, model=tiny, config=config, output=target, test=False)
    return target


@pytest.fixture
def pictures(tmp_path):
    """Twelve digits as files, two of them in a folder below."""
    from vprompt import open_task

    found = []
    for row, image in enumerate(open_task("digits").val.images[:12]):
        path = tmp_path / "pictures" / ("below/" if row > 9 else "") / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        found.append(path)
    return found


def test_labels_and_probabilities_are_those_found_by_hand(folder, tiny, pictures):
    from vprompt import extract, load_artifact, predict
    from vprompt.data.images import fit, read_rgb

    found = predict(pictures, artifact=folder, model=tiny, precision="fp32")
    loaded = load_artifact(folder)
    pixels = np.stack([fit(read_rgb(path), loaded.data_config) for path in pictures])
    with torch.no_grad():
        features = extract(tiny, tiny.normalise(torch.from_numpy(pixels)), loaded.prompt)
    shares = torch.softmax(loaded.head.logits(features), 1)
    assert [p.image for p in found] == [str(path) for path in pictures]
    assert [p.label for p in found] == [loaded.classes[i] for i in shares.argmax(1)]
    for prediction, wanted in zip(found, shares, strict=True):
        assert list(prediction.probabilities) == loaded.classes
        assert list(prediction.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-4)
        assert prediction.probability == prediction.probabilities[prediction.label]


def test_accuracy_by_prediction_is_accuracy_by_measurement(folder, tiny, pictures):
    from vprompt import load_artifact, open_task, predict
    from vprompt.data.task import SealedSplit
    from vprompt.results.measure import test_accuracy

    task, loaded = open_task("digits"), load_artifact(folder)
    task = replace(task, test=SealedSplit(task.val.subset(range(12), "test")))
    call = {"precision": "fp32"}
    measured = test_accuracy(tiny, task, {"it": (loaded.prompt, loaded.head)}, **call)["it"]
    found = predict(pictures, artifact=loaded, model=tiny, **call)
    labels = [task.classes[label] for label in task.val.labels[:12]]
    right = sum(p.label == label for p, label in zip(found, labels, strict=True))
    assert right / 12 == pytest.approx(measured.acc1)


def test_probabilities_sum_to_one(folder, tiny, pictures):
    from vprompt import predict

    for prediction in predict(pictures, artifact=folder, model=tiny):
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.probability == max(prediction.probabilities.values())


def test_two_classes_of_one_name_lose_no_probability(folder, tiny, pictures):
    from vprompt import VPromptError, load_artifact, predict

    loaded = load_artifact(folder)
    names = ["crane", "crane", *loaded.classes[2:]]
    twins = replace(loaded, config={**loaded.config, "label_names": names})
    try:
        for prediction in predict(pictures, artifact=twins, model=tiny):
            assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    except VPromptError as error:
        assert "crane" in str(error)


def test_folders_are_searched_in_name_order(folder, tiny, pictures):
    from vprompt import predict

    (pictures[0].parent / "notes.txt").write_text("not an image")
    found = predict([pictures[0].parent], artifact=folder, model=tiny)
    assert [p.image for p in found] == [str(path) for path in pictures]
    assert len(predict([pictures[-1].parent, pictures[0]], artifact=folder, model=tiny)) == 3


def test_the_backbone_is_the_one_that_the_artefact_names(folder, tiny, pictures):
    from vprompt import predict

    given = predict(pictures, artifact=folder, model=tiny)
    assert predict(pictures, artifact=folder) == given
    assert predict(pictures, artifact=str(folder), model="tiny") == given


def test_another_backbone_is_refused_unless_forced(folder, pictures, refused):
    from vprompt import predict

    call = {"artifact": folder, "model": "tiny(seed=1)"}
    with refused("learned on 'tiny'", r"tiny\(model=test_vit, seed=1\)", "fingerprint", "--force"):
        predict(pictures, **call)
    assert len(predict(pictures, force=True, **call)) == 12


def test_a_backbone_of_another_width_is_refused_even_by_force(folder, pictures, refused):
    from vprompt import predict

    with refused("width"):
        predict(pictures, artifact=folder, model="tiny(model=test_vit4)", force=True)


def test_an_unreadable_image_is_named_and_skipped_when_asked(folder, tiny, pictures, refused):
    from vprompt import predict

    pictures[3].write_bytes(b"not an image")
    with refused("1 of 12 images cannot be read", "03.png", "--skip-bad"):
        predict(pictures, artifact=folder, model=tiny)
    found = predict(pictures, artifact=folder, model=tiny, skip_bad=True)
    assert [p.image for p in found] == [str(path) for path in pictures if path != pictures[3]]


@pytest.mark.parametrize("images", [[], ["nowhere.png"], ["."]], ids=["none", "missing", "empty"])
def test_nothing_to_label_is_one_sentence(folder, tiny, tmp_path, monkeypatch, refused, images):
    from vprompt import predict

    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with refused("(no images to predict|No image file or folder at|holds no image files)"):
        predict(images, artifact=folder, model=tiny)


def test_csv_has_a_row_per_image_and_a_column_per_label(folder, tiny, pictures, tmp_path):
    from vprompt import predict
    from vprompt.inference.prediction import write

    found = predict(pictures, artifact=folder, model=tiny)
    write(found, tmp_path / "out" / "labels.csv")
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "image",
        "label",
        "probability",
        *(f"p({digit})" for digit in range(10)),
    ]
    for row, prediction in zip(rows, found, strict=True):
        assert (row["image"], row["label"]) == (prediction.image, prediction.label)
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-6)
        assert sum(float(row[f"p({digit})"]) for digit in range(10)) == pytest.approx(1, abs=1e-4)


def test_json_is_a_list_of_objects(folder, tiny, pictures, tmp_path):
    from vprompt import predict
    from vprompt.inference.prediction import write

    found = predict(pictures, artifact=folder, model=tiny)
    write(found, tmp_path / "labels.json")
    objects = json.loads((tmp_path / "labels.json").read_text())
    assert [o["label"] for o in objects] == [p.label for p in found]
    assert objects[0]["probabilities"] == pytest.approx(found[0].probabilities)


def test_a_linear_probe_predicts_too(tiny, pictures, tmp_path):
    from vprompt import TrainConfig, learn, open_task, predict

    task = open_task("digits").few_shot(2, seed=0)
    call = {"method": "linear", "config": TrainConfig(epochs=0), "test": False}
    outcome = learn(task, model=tiny, **call)
    assert len(predict(pictures, artifact=outcome.artifact, model=tiny)) == 12
