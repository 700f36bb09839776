"""The benchmark of tasks where prompts learn: its draws, its records, and what its tables say."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
SETUP = {"model": "m", "size": 64, "train": 8, "val": 2, "epochs": 3, "patience": 1, "batch": 4}
ACCURACIES = {  # by task, seed and arm: the trained head and the one fitted anew
    ("gtsrb", 0): {"linear": (0.30, 0.32), "vpt": (0.40, 0.42), "found": (0.41, 0.40)},
    ("gtsrb", 1): {"linear": (0.31, 0.30), "vpt": (0.43, 0.41), "found": (0.42, 0.40)},
    ("coil20", 0): {"linear": (0.50, 0.50), "vpt": (0.52, 0.53), "found": (0.55, 0.56)},
    ("coil20", 1): {"linear": (0.52, 0.50), "vpt": (0.53, 0.52), "found": (0.58, 0.55)},
}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def record(target, seed, arm, trained, refitted):
    """Return what `learning.common` writes; validation prefers the head that was fitted anew."""
    history = [
        {"epoch": e, "lr": 0.1, "train_loss": e or None, "val_accuracy": 0.4, "val_loss": 1.0}
        for e in range(3)
    ]
    return {
        "target": target,
        "seed": seed,
        "arm": arm,
        "setup": SETUP,
        "heads": {"trained": {"acc1": trained}, "refitted": {"acc1": refitted}},
        "chosen_head": "refitted",
        "kept_epoch": 1,
        "history": history,
        "backbone": {"fingerprint": "f"},
        "machine": {"created_at": f"{target} {seed}", "precision": "bf16"},
        **({"tokens": 90, "lengths": [9] * 10} if arm == "found" else {}),
    }


@pytest.fixture
def folder(tmp_path):
    from vprompt.core.files import write_json

    for (target, seed), arms in ACCURACIES.items():
        for arm, heads in arms.items():
            write_json(
                tmp_path / f"{target}_{arm}_seed{seed}.json", record(target, seed, arm, *heads)
            )
    return tmp_path


def test_a_draw_is_of_all_images_but_the_test_split_with_classes_in_proportion():
    from benchmarks.learning.common import draw
    from vprompt.core.registry import build

    whole = build("tasks", "dsprites")(train=64, val=32, test=16)
    one, same, other = (draw(whole, 48, 32, seed) for seed in (1, 1, 2))
    parts = [{image.tobytes() for image in split.images} for split in (one.train, one.val)]
    assert [len(part) for part in parts] == [48, 32] and not parts[0] & parts[1]
    assert np.bincount(one.train.labels).tolist() == [3] * 16
    assert np.bincount(one.val.labels).tolist() == [2] * 16
    assert one.test is whole.test and one.test.opened == 0
    assert np.array_equal(one.train.images, same.train.images)
    assert not np.array_equal(one.train.images, other.train.images)


def test_all_records_make_one_file_that_says_the_same(folder):
    from benchmarks.learning.tables import as_lines, collect, tables

    made = collect(folder)
    text = as_lines(made)
    assert json.loads(text) == made and len(text.splitlines()) == len(made["runs"]) + 5
    assert made["machines"] == [{"precision": "bf16"}]  # the time of a run is no difference
    first = made["runs"][0]
    assert first["history"]["train_loss"] == [None, 1, 2] and "setup" not in first
    assert tables(made) == tables(json.loads(text))


def test_tables_pair_what_shares_images_over_runs_and_over_tasks(folder):
    from benchmarks.learning.tables import collect, tables

    text = tables(collect(folder))
    runs = np.array([1.0, -1.0, 3.0, 5.0])  # found over VPT-Deep, trained heads
    for gaps in (runs, runs.reshape(2, 2).mean(1)):
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
        low, high = gaps.mean() - half, gaps.mean() + half
        assert f"{gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})" in text
    # The probe is the better on validation, here the one in closed form: 32, 30, 50 and 50.
    assert "on 1 of 2 tasks: gtsrb +10.5, coil20 +2.5" in text
    assert "| DPL, found lengths | VPT-Deep | 4 |" in text
    assert "Not run" not in text


def test_what_is_missing_is_named_and_other_settings_are_refused(folder):
    from benchmarks.learning.tables import collect, tables

    (folder / "coil20_found_seed1.json").unlink()
    assert "Not run: found on coil20, seed 1." in tables(collect(folder))
    path = folder / "coil20_vpt_seed1.json"
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 4'))
    with pytest.raises(SystemExit, match="of 2 settings"):
        collect(folder)


def test_a_finished_run_is_skipped_unless_it_was_made_otherwise(folder):
    from benchmarks.learning.common import Case, run_missing

    options = argparse.Namespace(**SETUP, runs=folder)
    case = Case(options, None, "gtsrb", 0)
    run_missing(case, {"vpt": lambda case: pytest.fail("it ran again")})
    options.epochs = 4
    with pytest.raises(SystemExit, match="other settings"):
        case.known("vpt")
    assert Case(options, None, "gtsrb", 2).known("vpt") is None


@pytest.mark.parametrize("part, own", [("0/1", "abc"), ("0/2", "ac"), ("1/2", "b")])
def test_parts_share_the_tasks_out(part, own):
    from benchmarks.learning.common import targets_of

    assert targets_of(argparse.Namespace(part=part, targets=list("abc"))) == list(own)


@pytest.mark.parametrize("arm", ["found", "uniform", "random", "shuffled"])
def test_controls_have_as_many_tokens_as_were_found(arm):
    from benchmarks.learning.places import lengths_of

    found = [0, 5, 20, 10, 0, 5]
    lengths = lengths_of(arm, found, [0, 5, 10, 20], seed=1)
    assert sum(lengths) == 40 and len(lengths) == 6
    assert (lengths == found) is (arm == "found")
    if arm == "uniform":
        assert max(lengths) - min(lengths) == 1
    if arm == "shuffled":
        assert sorted(lengths) == sorted(found)
