"""Other targets: several classes an image, numbers and class weights, from a list to an answer."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from served import png, serving

torch.set_num_threads(1)
SMALL = {"epochs": 1, "batch_size": 16, "precision": "fp32"}
COUNT = 40


def rows_of(file):
    """Return the rows of a table, by column."""
    return list(csv.DictReader(file.read_text().splitlines()))


def draw(folder):
    """Write images whose upper half may be red, lower half blue, and whose grey is a number."""
    randomness, rows = np.random.default_rng(0), []
    (folder / "photos").mkdir(parents=True)
    for row in range(COUNT):
        red, blue, light = randomness.random(3)
        pixels = np.full((32, 32, 3), 60 + 120 * light) + randomness.integers(0, 20, (32, 32, 3))
        pixels[:16, :, 0] = 255 if red < 0.5 else 0
        pixels[16:, :, 2] = 255 if blue < 0.4 else 0
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{row}.png")
        names = [name for name, on in (("red", red < 0.5), ("blue", blue < 0.4)) if on]
        rows.append((f"photos/{row}.png", "|".join(names) or "[]", 1000 + 50 * light))
    for name, column in (("tags.csv", 1), ("light.csv", 2)):
        with (folder / name).open("w") as file:
            csv.writer(file).writerows([("image", "label"), *((r[0], r[column]) for r in rows)])
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny):
    """Lists and an artefact of each kind, learned as a person would."""
    from vprompt import learn

    folder = draw(tmp_path_factory.mktemp("desk"))
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(folder / "cache"))
        for kind, name in (("several", "tags"), ("number", "light")):
            made[kind] = learn(
                str(folder / f"{name}.csv"),
                target=kind,
                model=tiny,
                method="vpt(num_virtual_tokens=2)",
                config=SMALL,
                output=folder / "pool" / name,
            )
    return folder, made


@pytest.fixture
def artefact(desk):
    """Return a function that returns the artefact's folder of a kind."""
    return lambda kind: desk[0] / "pool" / {"several": "tags", "number": "light"}[kind]


# Several classes


def test_several_classes_are_learned_measured_and_recorded(desk, artefact):
    outcome = desk[1]["several"]
    found = outcome.test["learned"]
    assert found.mean_average_precision > 0.8 and set(found.average_precision) == {"red", "blue"}
    record = json.loads((artefact("several") / "run.json").read_text())
    assert record["task"]["target"] == "several"
    assert record["test"]["learned"]["average_precision"]["red"] == found.average_precision["red"]
    start = record["tuning"]["history"][0]
    assert start["val_measure"] == "mAP" and start["val_accuracy"] is None
    assert record["tuning"]["selection"] == "epoch of best validation mAP, the start included"
    config = json.loads((artefact("several") / "adapter_config.json").read_text())
    assert config["head_type"] == "several" and config["format_version"] == 4
    assert config["thresholds"] == pytest.approx(outcome.artifact.head.thresholds.tolist())
    card = (artefact("several") / "README.md").read_text()
    for words in ("any of which an image may have: `blue`, `red`", "mAP", "found.labels",
                  "| blue | 0.", "largest F1 on validation", "mean_average_precision"):  # fmt: skip
        assert words in card


def test_several_labels_are_predicted_with_probabilities(desk, artefact, tiny):
    from vprompt import load, load_artifact, predict

    folder = artefact("several")
    found = predict(desk[0] / "photos", artifact=folder, model=tiny)
    limits = dict(zip(("blue", "red"), load_artifact(folder).head.thresholds.tolist(), strict=True))
    truth = {r["image"]: r["label"] for r in rows_of(desk[0] / "tags.csv")}
    right = 0
    for one in found:
        kept = {n: p for n, p in one.probabilities.items() if p >= limits[n]}
        assert one.labels == kept and one.probability == max(one.probabilities.values())
        assert one.label == ("|".join(sorted(kept, key=lambda n: -kept[n])) or "[]")
        name = "photos/" + one.image.rpartition("/")[2]
        right += set(one.label.split("|")) == set(truth[name].split("|"))
    assert right > 0.7 * COUNT
    classifier = load(folder, model=tiny)
    assert classifier.target == "several" and "several of 2 classes" in classifier.extra_repr()
    image = desk[0] / "photos" / "0.png"
    shares = classifier(image).sigmoid()[0].tolist()
    assert list(classifier.predict(image)[0].probabilities.values()) == pytest.approx(
        shares, abs=1e-5
    )


def test_a_list_of_predictions_can_be_read_as_labels(desk, artefact, tiny, tmp_path):
    from vprompt import open_task, predict
    from vprompt.inference.prediction import as_json, write

    found = predict(desk[0] / "photos", artifact=artefact("several"), model=tiny)
    write(found, tmp_path / "found.csv")
    task = open_task(f"table(file='{tmp_path / 'found.csv'}', target=several)")
    said = {str(p): {task.classes[i] for i in label} for p, label in
            zip(task.train.images, task.train.labels, strict=True)}  # fmt: skip
    assert all(said[one.image] == set(one.labels) for one in found if one.image in said)
    first = json.loads(as_json(found))[0]
    assert set(first) == {"image", "labels", "probabilities"}


# Numbers


def test_numbers_are_learned_measured_and_recorded(desk, artefact):
    found = desk[1]["number"].test["learned"]
    assert found.r2 > 0.7 and found.mae < 0.7 * found.mae_of_mean and found.low <= found.r2
    record = json.loads((artefact("number") / "run.json").read_text())
    assert record["task"]["target"] == "number" and record["task"]["classes"] == ["label"]
    assert record["test"]["learned"]["mae"] == found.mae
    assert record["tuning"]["history"][0]["val_measure"] == "R2"
    config = json.loads((artefact("number") / "adapter_config.json").read_text())
    assert config["head_type"] == "number" and config["num_classes"] == 1
    assert config["metrics"]["r2"] == found.r2 and "thresholds" not in config
    card = (artefact("number") / "README.md").read_text()
    for words in ("its head for one number, label", "R2", "mean absolute error", "found.value"):
        assert words in card
    assert "pipeline_tag" not in card


def test_numbers_are_predicted_without_a_unit(desk, artefact, tiny, tmp_path):
    from vprompt import load, predict
    from vprompt.inference.prediction import as_json, write

    found = predict(desk[0] / "photos", artifact=artefact("number"), model=tiny)
    truth = {r["image"]: float(r["label"]) for r in rows_of(desk[0] / "light.csv")}
    wanted = [truth["photos/" + one.image.rpartition("/")[2]] for one in found]
    assert np.mean(np.abs([one.value for one in found] - np.array(wanted))) < 8
    assert math.isnan(found[0].probability) and not found[0].probabilities
    assert json.loads(as_json(found))[0] == {"image": found[0].image, "value": found[0].value}
    write(found, tmp_path / "found.csv")
    [first, *_] = rows_of(tmp_path / "found.csv")
    assert first == {"image": found[0].image, "value": repr(found[0].value)}
    classifier = load(artefact("number"), model=tiny)
    assert classifier.target == "number" and classifier.thresholds is None
    image = desk[0] / "photos" / "0.png"
    assert classifier(image).item() == pytest.approx(classifier.predict(image)[0].value, rel=1e-5)


# Both


@pytest.mark.parametrize(("kind", "name"), [("several", "tags"), ("number", "light")])
def test_an_artefact_is_evaluated_on_a_list_of_its_kind(
    desk, artefact, tiny, refused, vprompt, kind, name
):
    from vprompt import evaluate

    found = evaluate(str(desk[0] / f"{name}.csv"), artifact=artefact(kind), model=tiny)["learned"]
    assert found.images == COUNT
    assert (found.r2 if kind == "number" else found.mean_average_precision) > 0.7
    with refused("labels of the kind `class`", f"`{kind}` is wanted"):
        evaluate("digits", artifact=artefact(kind), model=tiny)
    if kind == "number":
        with refused("is no number", "every row has one"):
            evaluate(str(desk[0] / "tags.csv"), artifact=artefact(kind), model=tiny)


@pytest.mark.parametrize(("kind", "name"), [("several", "tags"), ("number", "light")])
def test_the_terminal_shows_each_kind(desk, artefact, vprompt, kind, name):
    task, folder = desk[0] / f"{name}.csv", artefact(kind)
    code, out, err = vprompt("evaluate", task, "--artifact", folder, "--model", "tiny", "-q")
    assert code == 0, err
    words = ("mAP", "F1", "average precision, learned", "red") if kind == "several" else ("R2", "mean absolute error")  # noqa: E501  # fmt: skip
    assert all(word in out for word in words)
    code, out, err = vprompt(
        "predict", desk[0] / "photos" / "0.png", "--artifact", folder, "--model", "tiny", "-q"
    )
    assert code == 0 and ("value" in out) == (kind == "number"), err
    code, out, err = vprompt("pool", "ls", desk[0] / "pool")
    assert code == 0 and "mAP" in out and "R2" in out


def test_the_command_line_learns_each_kind(desk, vprompt, tmp_path):
    for name, kind, word in (("tags", "several", "mAP"), ("light", "number", "R2")):
        code, out, err = vprompt(
            "learn", desk[0] / f"{name}.csv", "--target", kind, "--model", "tiny", "--method",
            "linear", "--epochs", 1, "-q", "--report", tmp_path / f"{name}.html",
        )  # fmt: skip
        assert code == 0 and word in out, err
        page = (tmp_path / f"{name}.html").read_text()
        assert f"{word} on the test split" in page and "classified correctly" not in page


@pytest.mark.parametrize("kind", ["several", "number"])
def test_a_record_is_drawn_with_its_own_measure(artefact, vprompt, tmp_path, kind):
    code, _, err = vprompt("report", artefact(kind), "--output", tmp_path / "run.html")
    assert code == 0, err
    page = (tmp_path / "run.html").read_text()
    measure = {"several": "mAP", "number": "R2"}[kind]
    assert (
        f"validation {measure}" in page
        and f'<th>candidate</th><th class="number">{measure}' in page
    )


@pytest.mark.parametrize("kind", ["several", "number"])
@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_an_exported_model_says_the_same(desk, short, tmp_path, kind, to):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    from vprompt import learn, load
    from vprompt.exchange import exporting, onnx_files, torch_programs

    photo = desk[0] / "photos" / "1.png"
    place = tmp_path / ("m.pt2" if to == "torch" else "m.onnx")
    listed = desk[0] / ("tags.csv" if kind == "several" else "light.csv")
    learn(str(listed), target=kind, model=short, method="vpt(num_virtual_tokens=2)", config=SMALL,
          output=tmp_path / "mine", test=False)  # fmt: skip
    exporting.export(tmp_path / "mine", to=to, output=place, model=short, images=[photo])
    classifier = load(tmp_path / "mine", model=short, precision="fp32")
    opened = (torch_programs if to == "torch" else onnx_files).opened(place)
    batch = classifier.preprocess([photo, photo])
    torch.testing.assert_close(opened(batch), classifier(batch), rtol=1e-4, atol=1e-4)
    if to == "torch":
        extra = {"vprompt.json": ""}
        torch.export.load(place, extra_files=extra)
        facts = json.loads(extra["vprompt.json"])
        assert ("thresholds" in facts) == (kind == "several")
        assert ("numbers" if kind == "number" else "sigmoid") in facts["output"]


def test_a_folder_of_timm_is_refused_for_what_is_read_otherwise(desk, tiny, tmp_path, refused):
    from vprompt import learn
    from vprompt.exchange import exporting

    learn(str(desk[0] / "light.csv"), target="number", model=tiny, method="linear", config=SMALL,
          output=tmp_path / "head", test=False)  # fmt: skip
    with refused("gives the target `number`", "--to onnx or --to torch"):
        exporting.export(
            tmp_path / "head", to="safetensors-timm", output=tmp_path / "t", model=tiny
        )
    assert not (tmp_path / "t").exists()


def test_a_server_gives_several_labels_and_numbers(desk, artefact, tiny, tmp_path):
    from vprompt import predict

    (tmp_path / "image.png").write_bytes(png(1))
    with serving([desk[0] / "pool"], tiny) as client:
        status, answer = client.send(png(1), png(1), artifact=["tags", "light"])
        rows = client.json("/artifacts")
    several, number = answer["results"]
    assert status == 200 and set(several) == {"artifact", "labels", "probabilities"}
    assert set(number) == {"artifact", "value"}
    for found, kind in ((several, "several"), (number, "number")):
        wanted = predict(
            tmp_path / "image.png", artifact=artefact(kind), model=tiny, precision="fp32"
        )[0]
        if kind == "number":
            assert found["value"] == pytest.approx(wanted.value, rel=1e-5)
        else:
            assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
            assert set(found["labels"]) == set(wanted.labels)
    assert {row["target"]: row["measured"][:2] for row in rows} == {"several": "mA", "number": "R2"}


def test_images_of_one_table_may_ask_artefacts_of_every_kind(desk, artefact, tiny, tmp_path):
    from vprompt import predict_table
    from vprompt.inference.prediction import write

    photo = desk[0] / "photos" / "3.png"
    rows = [f"{photo},{artefact(kind)}" for kind in ("several", "number")]
    (tmp_path / "ask.csv").write_text("\n".join(["image,artifact", *rows]))
    several, number = predict_table(tmp_path / "ask.csv", model=tiny)
    assert several.labels is not None and number.value is not None
    write([several, number], tmp_path / "said.csv")
    said = rows_of(tmp_path / "said.csv")
    assert [row["label"] for row in said] == [several.label, number.label]
    assert [row["probability"] for row in said] == ["", ""]


# What judges by one class an image says so before it works


@pytest.mark.parametrize(("kind", "name"), [("several", "tags"), ("number", "light")])
def test_other_verbs_refuse_before_they_work(desk, vprompt, kind, name, monkeypatch):
    from vprompt import stages

    monkeypatch.setattr(stages, "prepare", lambda *a, **k: pytest.fail("it went to work"))
    common = [desk[0] / f"{name}.csv", "--target", kind, "--model", "tiny"]
    pool = ["--pool", desk[0] / "pool"]
    for words in (["combine", *common, *pool], ["score", *common, *pool], ["search", *common]):
        code, _, err = vprompt(*words, "-q")
        assert code == 1 and f"has the target `{kind}`, and {words[0]} judges by one class" in err
        assert "`vprompt learn` takes several classes" in err and err.rstrip().endswith(".")


def test_a_source_of_another_target_gives_its_prompt_and_no_probabilities(desk, tiny, refused):
    from vprompt import score

    found = score("digits", pool=desk[0] / "pool", metric=["hscore", "leep"], shots=4, model=tiny)
    assert {name for name, _ in found["hscore"].ranked} >= {"tags", "light"}
    assert set(found["leep"].missing) >= {"tags", "light"}
    assert "source's own head" in found["leep"].missing["light"]


def test_a_method_that_reads_class_names_refuses_a_number(desk, refused):
    from vprompt import learn
    from vprompt.backbones import tiny_clip

    with refused("learns one class an image", "has the target `number`", "--method vpt"):
        learn(str(desk[0] / "light.csv"), target="number", model=tiny_clip.load(), method="coop")


def test_class_weights_do_not_go_with_other_targets(desk, tiny, refused):
    from vprompt import learn

    with refused("--class-weights balanced is for one class", "Leave --class-weights out"):
        learn(str(desk[0] / "tags.csv"), target="several", model=tiny,
              config={"class_weights": "balanced"})  # fmt: skip


# Class weights


@pytest.fixture
def uneven():
    """A task of 40 dark images, and 6 that are little lighter."""
    from vprompt.data.task import SealedSplit, Split, Task

    randomness = np.random.default_rng(3)

    def some(name, counts):
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        pixels = randomness.integers(0, 200, (len(labels), 32, 32, 3))
        pixels = (pixels + 8 * np.array(labels)[:, None, None, None]).astype(np.uint8)
        return Split(name, pixels, tuple(labels))

    test = SealedSplit(some("test", (30, 10)))
    return Task("uneven", ("dark", "light"), some("train", (40, 6)), some("val", (20, 4)), test)


def test_weights_are_recorded_and_balanced_accuracy_chooses(uneven, tiny, tmp_path):
    from vprompt import learn

    config = {**SMALL, "epochs": 2, "class_weights": "balanced"}
    made = learn(uneven, model=tiny, method="linear", config=config, output=tmp_path / "a")
    record = made.run
    assert record["train"]["class_weights"] == "balanced"
    assert record["tuning"]["selection"].startswith("epoch of best validation balanced accuracy")
    history = record["tuning"]["history"]
    assert all(row["val_measure"] == "balanced accuracy" for row in history)
    assert all(row["val_accuracy"] is not None for row in history)
    plain = learn(uneven, model=tiny, method="linear", config=SMALL)
    assert not torch.equal(made.artifact.head.bias, plain.artifact.head.bias)
    assert "balanced accuracy |" in (tmp_path / "a" / "README.md").read_text()
    assert "class_weights" not in plain.run["train"] and "val_score" not in plain.run["tuning"]["history"][0]  # noqa: E501  # fmt: skip


def test_the_terminal_shows_balanced_accuracy_beside_accuracy(vprompt):
    code, out, err = vprompt(
        "learn", "digits", "--shots", 2, "--model", "tiny", "--method", "linear", "--epochs", 1,
        "--class-weights", "{3: 2.5}", "-q",
    )  # fmt: skip
    assert code == 0 and "accuracy" in out and "balanced" in out, err
    code, _, err = vprompt("learn", "digits", "--shots", 2, "--model", "tiny", "--class-weights",
                           "{cat: 2}", "-q")  # fmt: skip
    assert code == 1 and "weighs 'cat', and the task has no such class" in err


def test_combine_has_no_weights(desk, refused):
    from vprompt import combine

    with refused("combine chooses by how many images", "vprompt learn"):
        combine("digits", pool=desk[0] / "pool", config={"class_weights": "balanced"})


# Folds


def test_learn_by_folds_validates_on_every_image(desk, vprompt, tiny, tmp_path):
    from vprompt import learn

    made = learn(str(desk[0] / "tags.csv"), target="several", model=tiny, config=SMALL, folds=3,
                 method="linear", output=tmp_path / "a")  # fmt: skip
    run = made.run
    assert run["folds"] == 3 and "val" not in run["task"]["splits"]
    assert (
        run["tuning"]["selection"] == "epoch of best validation mAP, the start included, by folds"
    )
    assert run["task"]["splits"]["train"]["images"] == 32
    assert [row["epoch"] for row in run["tuning"]["history"]] == [0, 1]
    assert "judged by folds" in run["tuning"]["kept"]
    assert "largest F1" in (tmp_path / "a" / "README.md").read_text()
    assert made.artifact.head.thresholds.tolist() != [0.5, 0.5]
    words = ["--shots", 3, "--model", "tiny", "--method", "linear", "--epochs", 1, "--folds", 3]
    code, out, err = vprompt("learn", "digits", *words, "--grid", "lr=0.01,0.001", "-q")
    assert code == 0 and "judged by folds" in out, err


def test_folds_refuse_what_needs_one_split(refused, tiny):
    from vprompt import learn

    with refused("--halving drops points", "--folds"):
        learn("digits", model=tiny, folds=3, halving=True, shots=2, grid={"lr": [0.1, 0.2]})
    with refused("--folds", "--patience 2"):
        learn("digits", model=tiny, folds=3, shots=2, config={"patience": 2})
    with refused("--folds: .*greater than or equal to 2"):
        learn("digits", model=tiny, folds=1)


# What a stranger's artefact may say


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("several", {"thresholds": [0.5]}, "a number from 0 to 1 for each of the 2"),
        ("several", {"thresholds": [0.5, 2.0]}, "a number from 0 to 1"),
        ("several", {"thresholds": [0.5, True]}, "a number from 0 to 1"),
        ("several", {"thresholds": None}, "a number from 0 to 1"),
        ("several", {"head_type": "number"}, "a head of numbers has one output"),
        ("number", {"format_version": 5}, "format version 5"),
    ],
)
def test_a_broken_head_of_another_target_is_refused(
    artefact, tmp_path, refused, kind, change, words
):
    import shutil

    from vprompt import load_artifact

    shutil.copytree(artefact(kind), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = {**json.loads(path.read_text()), **change}
    config.pop("digests", None)
    path.write_text(json.dumps(config))
    with refused(words):
        load_artifact(tmp_path / "a")


def test_an_artefact_of_one_class_an_image_is_written_as_before(tiny):
    from vprompt.artifacts.artifact import make_config
    from vprompt.models.heads import Head

    config = make_config(tiny, None, ("a", "b"), None, Head(torch.zeros(2, 64), torch.zeros(2)))
    assert config["format_version"] == 1 and config["head_type"] == "linear"
    assert list(config) == [
        "peft_type", "task_type", "peft_version", "format_version", "base_model_name_or_path",
        "revision", "base_model_fingerprint", "inference_mode", "num_virtual_tokens", "token_dim",
        "num_layers", "persist", "feature_dim", "insert_position", "modules_to_save", "head_type",
        "num_classes", "label_names", "data_config",
    ]  # fmt: skip
