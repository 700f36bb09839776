"""Protocols: what each project does, what follows for this trainer, what a result says of it."""

import json

import numpy as np
import pytest
import torch


def find(name):
    from vprompt.results.protocols import find

    return find(name)


def plan(name, **settings):
    from vprompt.results.protocol import plan

    return plan(find(name), **settings)


NAMES = ["vpt", "robust", "hgprompt", "noah", "fact", "binary-adapter", "ssf"]
NAMES += ["adapter+", "v-petl", "osu"]
EVERY = pytest.mark.parametrize("name", NAMES)


def test_all_protocols_of_the_specification_are_there():
    from vprompt.results.protocols import ALL, known

    wanted = {"vpt", "noah", "fact", "binary-adapter", "ssf", "adapter+", "v-petl", "osu"}
    assert wanted < set(known()) and len(known()) == len(ALL)
    assert all(each.summary.endswith(".") and each.reference for each in ALL)


def test_an_unknown_protocol_is_answered_with_the_nearest(refused):
    with refused("No protocol called 'ssv'", "Did you mean 'ssf'"):
        find("ssv")


@EVERY
def test_every_protocol_gives_settings_that_the_trainer_takes(name):
    from vprompt.learning.train_config import TrainConfig

    found = plan(name)
    for point in found.points:
        config = TrainConfig.checked(point)
        assert config.head == "kaiming" and config.keep == "last" and config.lr > 0
    assert found.seeds and found.method["prompt_init"] == "vpt_uniform"
    json.dumps(find(name).settings())


@EVERY
def test_what_is_not_known_of_a_protocol_is_said(name):
    protocol, found = find(name), plan(name)
    text = " ".join(found.cannot)
    for what, value in (
        ("learning rate", protocol.lrs),
        ("seeds", protocol.seeds),
        ("epochs", protocol.epochs),
        ("interpolation", protocol.interpolation),
    ):
        assert value is not None or what in text


def test_vpt_s_rates_are_the_base_rates_times_batch_by_256():
    found = plan("vpt", num_virtual_tokens=100)
    base = [50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05]
    assert [(p["lr"], p["weight_decay"]) for p in found.points] == [
        (lr * 64 / 256, decay) for lr in base for decay in (0.01, 0.001, 0.0001, 0.0)
    ]
    assert all(p["head_lr"] == p["lr"] and p["batch_size"] == 64 for p in found.points)
    [first, *_] = plan("vpt", num_virtual_tokens=10).points
    assert first["batch_size"] == 128 and first["lr"] == 25.0
    assert first["opt"] == "sgd" and first["warmup"] == 0.1 and first["min_lr"] == 0
    assert found.seeds == (42, 44, 82, 100, 800) and found.select_on == "val200"


def test_vpt_s_dropout_is_for_deep_prompts_alone():
    assert plan("vpt").method["prompt_dropout"] == 0.1
    assert plan("vpt", deep=False).method["prompt_dropout"] == 0.0


def test_the_end_of_the_cosine_is_absolute():
    points = plan("robust").points
    assert [(p["lr"], p["lr"] * p["min_lr"]) for p in points] == [
        (1e-3, pytest.approx(1e-5)),
        (1e-3, pytest.approx(1e-5)),
        (1e-2, pytest.approx(1e-5)),
        (1e-2, pytest.approx(1e-5)),
    ]


def test_vpt_says_what_this_trainer_does_otherwise():
    text = " ".join(plan("vpt").cannot)
    assert "trains the first one at rate 0" in text and "smooths when it shrinks" in text
    assert not any("not known" in each for each in plan("vpt").cannot)
    assert any("drop-path" in each for each in plan("osu").cannot)
    assert plan("robust").cannot == ()


@pytest.mark.parametrize(
    ("name", "method", "mean"),
    [
        ("vpt", "vpt", (0.485, 0.456, 0.406)),
        ("noah", "vpt", (0.5, 0.5, 0.5)),  # its scripts differ
        ("noah", "lora", (0.485, 0.456, 0.406)),
        ("ssf", "vpt", (0.5, 0.5, 0.5)),
        ("osu", "vpt", (0.0, 0.0, 0.0)),
        ("robust", "vpt", None),  # the model's own
        ("hgprompt", "vpt", None),  # not stated
    ],
)
def test_normalisation_follows_the_code_of_each_project(name, method, mean):
    assert plan(name, method=method).data_config.get("mean") == mean


def test_preprocessing_is_changed_on_a_copy_that_shares_the_weights(tiny, refused):
    from dataclasses import replace

    from vprompt.results.protocol import plan as make

    small = replace(find("vpt"), image_size=32)
    changed = make(small).preprocess(tiny)
    assert changed.data_config.mean == (0.485, 0.456, 0.406)
    assert changed.data_config.interpolation == "bilinear"
    assert tiny.data_config.mean != changed.data_config.mean
    assert all(a is b for a, b in zip(tiny.parameters(), changed.parameters(), strict=True))
    pixels = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    wanted = torch.tensor([(1 - m) / s for m, s in zip(*_imagenet(), strict=True)])
    torch.testing.assert_close(changed.normalise(pixels)[0, :, 0, 0], wanted)
    assert not torch.equal(changed.normalise(pixels), tiny.normalise(pixels))
    with refused("images of 224 pixels", "opened for 32", "--image-size 224"):
        plan("vpt").preprocess(tiny)


def _imagenet():
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# What a result says


@pytest.fixture
def record():
    """The record of a final run that keeps to VPT's protocol in all that can be compared."""
    [point, *_] = plan("vpt").points
    from vprompt.learning.train_config import TrainConfig

    data = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_mode": "squash"}
    data |= {"mean": list(_imagenet()[0]), "std": list(_imagenet()[1]), "crop_pct": 1.0}
    return {
        "method": "vpt(num_virtual_tokens=10)",
        "settings": {
            "num_virtual_tokens": 10,
            "deep": True,
            "prompt_dropout": 0.1,
            "prompt_init": "vpt_uniform",
        },
        "train": TrainConfig.checked({**point, "seed": 42}).model_dump(),
        "train_on": "trainval",
        "backbone": {"name": "vit_base_patch16_224.orig_in21k", "data_config": data},
        "task": {"facts": {"vtab": "cifar"}, "splits": {"train": {"images": 1000}}},
    }


def test_a_run_that_keeps_to_its_protocol_departs_in_nothing(record):
    assert find("vpt").departures(record) == []


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("train.epochs", 10, "epochs: 10 in place of 100"),
        ("train.seed", 3, "seed: 3 in place of 42 or 44 or 82 or 100 or 800"),
        ("train.opt", "adamw", "opt: adamw in place of sgd"),
        ("train.batch_size", 32, "batch_size: 32 in place of 64 or 128"),
        ("train.keep", "best", "keep: best in place of last"),
        ("train.patience", 5, "patience: 5 in place of 0"),
        ("train.weight_decay", 0.5, "weight_decay: 0.5 in place of 0.01 or 0.001 or 0.0001 or 0"),
        ("train_on", "train", "train_on: train in place of trainval"),
        ("backbone.name", "demo", "backbone: demo in place of vit_base_patch16_224.orig_in21k"),
        ("task.splits.train.images", 800, "training images: 800 in place of 1000"),
        ("task.facts.warning", "lossy", "images: a JPEG copy in place of TFDS arrays"),
        ("settings.num_virtual_tokens", 7, "num_virtual_tokens: 7 in place of 1 or 5"),
        ("settings.prompt_init", "blank", "prompt_init: blank in place of vpt_uniform"),
    ],
)
def test_every_departure_is_named(record, place, value, sentence):
    *path, last = place.split(".")
    inside = record
    for key in path:
        inside = inside[key]
    inside[last] = value
    [found] = find("vpt").departures(record)
    assert found.startswith(sentence)


def test_other_preprocessing_is_a_departure(record):
    record["backbone"]["data_config"] |= {"interpolation": "bicubic", "mean": [0.5, 0.5, 0.5]}
    found = find("vpt").departures(record)
    assert found[0] == "interpolation: bicubic in place of bilinear"
    assert found[1].startswith("mean: [0.5, 0.5, 0.5] in place of (0.485")
    assert len(found) == 2


def test_a_result_carries_its_protocol(tiny):
    from vprompt import Split, Task, learn
    from vprompt.data.task import SealedSplit

    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    split = Split("all", pixels, tuple(i % 2 for i in range(12)))
    task = Task("two", ("a", "b"), split, split, SealedSplit(split))
    settings = {"model": tiny, "method": "vpt(num_virtual_tokens=2)", "test": False}
    settings["config"] = _short()
    run = learn(task, **settings, protocol=find("robust")).run
    assert run["protocol"]["name"] == "robust" and run["protocol"]["epochs"] == 100
    assert "epochs: 1 in place of 100" in run["protocol"]["departures"]
    json.dumps(run["protocol"], allow_nan=False)
    assert learn(task, **settings).run["protocol"] is None


def test_the_commands_take_a_protocol_by_name(vprompt, fails, tmp_path):
    call = ["digits", "--model", "tiny", "--shots", "2", "--epochs", "1", "--protocol"]
    code, out, _ = vprompt("learn", *call, "vpt", "--output", tmp_path / "pool" / "made", "-q")
    assert code == 0 and "departures from protocol vpt: " in out
    assert "  epochs: 1 in place of 100" in out
    run = json.loads((tmp_path / "pool" / "made" / "run.json").read_text())
    assert run["protocol"]["name"] == "vpt"
    pool = ["--pool", tmp_path / "pool", "--include-self"]
    code, out, err = vprompt("combine", *call, "vpt", *pool, "-q")
    assert code == 0 and "departures from protocol vpt: " in out, err
    method = ["--method", "dpl(lengths=[0,1])", "--search-epochs", "1"]
    code, out, err = vprompt("search", *call, "vpt", *method, "-q")
    assert code == 0 and "departures from protocol vpt: " in out, err
    fails("learn", *call, "vtp", saying=["vtp", "Did you mean 'vpt'"])


def _short():
    from vprompt.learning.train_config import TrainConfig

    return TrainConfig(epochs=1, batch_size=6)


def test_the_command_lists_protocols(vprompt):
    code, out, _ = vprompt("list", "protocols")
    assert code == 0 and "protocols  vpt(backbone=vit_base_patch16_224.orig_in21k" in out
    assert "antialias=False" in out and "end_lr=0.0" in out and "adapters  vpt" not in out
    code, out, _ = vprompt("list", "--json")
    kinds = {entry["kind"] for entry in json.loads(out)}
    assert {"protocols", "adapters", "tasks"} <= kinds
