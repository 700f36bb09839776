"""Following: logs and callbacks are told of every epoch once, also of a run that was stopped."""

import csv
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stopping import StopAfter

torch.set_num_threads(1)
PAGE = Path(__file__).parents[2] / "docs" / "following.md"


def few(train=24, val=12):
    """Return digits with a few images of every split, and none to test on."""
    from vprompt import open_task

    whole = open_task("digits")
    rows, looks = range(train), range(val)
    return replace(
        whole,
        train=whole.train.subset(rows, "train"),
        val=whole.val.subset(looks, "val"),
        test=None,
        allow_absent=True,
    )


def learn(tiny, **given):
    """Learn for three epochs of three steps."""
    import vprompt

    config = {"epochs": 3, "batch_size": 8, "precision": "fp32"}
    method = "vpt(num_virtual_tokens=1, deep=False)"
    return vprompt.learn(few(), **{"model": tiny, "method": method, "config": config, **given})


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def events(folder):
    """Return what TensorBoard would draw: by tag, the steps and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_callback_is_told_what_the_record_says(tiny):
    seen = []
    outcome = learn(tiny, callbacks=[seen.append])
    history = outcome.run["tuning"]["history"]
    assert [s.epoch for s in seen] == [0, 1, 2, 3] == [h["epoch"] for h in history]
    for each, told in zip(seen, history, strict=True):
        known = {name: value for name, value in told.items() if value is not None}
        assert {"epoch": each.epoch, **each.numbers} == {
            **known,
            **({} if each.epoch == 0 else {"seconds": each.numbers["seconds"]}),
        }
        assert (each.seconds is None) == (each.epoch == 0) and not each.resumed
        assert each.settings["task"] == "digits" and each.settings["train"]["epochs"] == 3
    assert {s.run for s in seen} == {seen[0].run} and seen[0].run.startswith("learn-vpt-digits-")


def test_following_changes_no_bit(tiny):
    import vprompt

    plain, followed = learn(tiny), learn(tiny, callbacks=[lambda seen: torch.rand(3)])
    assert torch.equal(plain.artifact.prompt.tokens, followed.artifact.prompt.tokens)
    with pytest.raises(vprompt.VPromptError, match="functions of one argument"):
        learn(tiny, callbacks=["loud"])


def test_every_kind_of_log_holds_the_same_numbers(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    seen = []
    learn(
        tiny, callbacks=[seen.append], log=["csv", "jsonl", "tensorboard"], log_dir=tmp_path / "l"
    )
    [folder] = (tmp_path / "l").iterdir()
    assert folder.name == seen[0].run
    table = rows_of(folder / "metrics.csv")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drawn = events(folder)
    assert len(table) == len(lines) == 4
    for row, line, each in zip(table, lines, seen, strict=True):
        for name, value in each.numbers.items():
            assert float(row[name]) == line[name] == value
            split, _, rest = name.partition("_")
            tag = f"{split}/{rest}" if rest else name
            assert dict(drawn[tag])[each.epoch] == pytest.approx(value)
        assert row["time"].endswith("+00:00")
    assert table[0]["train_loss"] == "" and lines[0]["train_loss"] is None
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["method"] == "vpt(num_virtual_tokens=1, deep=False)"


@pytest.mark.parametrize(
    "method", ["vpt(num_virtual_tokens=1)", "pro_vpt(num_virtual_tokens=1, score_every=2)"]
)
def test_a_run_that_was_stopped_goes_on_without_a_line_twice(tiny, tmp_path, method):
    pytest.importorskip("tensorboard")
    place = {"log": "csv,jsonl,tensorboard", "log_dir": tmp_path / "l", "method": method}
    seen, again = [], []
    with pytest.raises(KeyboardInterrupt):
        learn(tiny, progress=StopAfter(7), callbacks=[seen.append], **place)
    [folder] = (tmp_path / "l").iterdir()
    before = rows_of(folder / "metrics.csv")
    assert [row["epoch"] for row in before] == ["0", "1", "2"]
    # The process ended in the middle of a line, and before one that its state knows of.
    for name in ("metrics.csv", "metrics.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:-1]) + lines[-1][:9])
    learn(tiny, callbacks=[again.append], **place)
    assert [each.name for each in (tmp_path / "l").iterdir()] == [folder.name]
    after = rows_of(folder / "metrics.csv")
    assert [row["epoch"] for row in after] == ["0", "1", "2", "3"]
    assert after[:2] == before[:2] and after[2]["val_loss"] == before[2]["val_loss"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [step for step, _ in events(folder)["val/loss"]] == [0, 1, 2, 3]
    assert [(s.epoch, s.resumed) for s in again] == [(0, True), (1, True), (2, True), (3, False)]
    assert {s.run for s in seen + again} == {folder.name}


def test_a_finished_run_that_begins_afresh_replaces_its_log(tiny, tmp_path):
    place = {"log": ["csv", "jsonl"], "log_dir": tmp_path / "l"}
    learn(tiny, **place)
    [folder] = (tmp_path / "l").iterdir()
    (folder / "metrics.csv").write_text("epoch,lr\n0,7\n9,7\nword,7\n")
    (folder / "metrics.jsonl").write_text('{"epoch": 9}\nno json\n[]\n')
    learn(tiny, **place)
    assert [row["epoch"] for row in rows_of(folder / "metrics.csv")] == ["0", "1", "2", "3"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("fleet", ["off", "auto"])
def test_every_point_of_a_grid_has_a_log_of_its_own(tiny, tmp_path, fleet):
    seen = []
    learn(
        tiny,
        grid={"lr": [0.01, 0.02], "weight_decay": [0.0, 0.1]},
        fleet=fleet,
        log="csv",
        log_dir=tmp_path / "l",
        callbacks=[seen.append],
    )
    names = sorted(folder.name for folder in (tmp_path / "l").iterdir())
    assert [name.rpartition("-")[0] for name in names] == [
        f"learn-vpt-digits-lr={lr}-weight_decay={decay}"
        for lr in ("0.01", "0.02")
        for decay in ("0", "0.1")
    ]
    for name in names:
        rows = rows_of(tmp_path / "l" / name / "metrics.csv")
        told = [s for s in seen if s.run == name]
        assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3] == [s.epoch for s in told]
        assert [float(row["val_loss"]) for row in rows] == [s.record.val_loss for s in told]
        assert f"lr={told[0].settings['train']['lr']:g}-" in name


def test_combining_and_searching_are_followed(tiny, tmp_path):
    import vprompt
    from vprompt.searching import search

    call = {"model": tiny, "log": "csv", "log_dir": tmp_path / "l", "test": False}
    for seed in (0, 1):
        config = {"epochs": 1, "keep": "last", "seed": seed}
        vprompt.learn(few(), model=tiny, method="vpt(num_virtual_tokens=1)", config=config,
                      test=False, output=tmp_path / "pool" / str(seed))  # fmt: skip
    quick = {"epochs": 2, "precision": "fp32"}
    vprompt.combine(
        few(), pool=tmp_path / "pool", method="best", include_self=True, config=quick, **call
    )
    search(few(), method="dpl", search_config={"epochs": 1}, config=quick, **call)
    counts = {
        folder.name.split("-")[0]: len(rows_of(folder / "metrics.csv"))
        for folder in (tmp_path / "l").iterdir()
    }
    assert counts == {"combine": 3, "search": 2, "learn": 3}


def test_what_cannot_be_logged_is_said_before_the_work(tiny, tmp_path, refused, monkeypatch):
    from vprompt.learning import logs

    (tmp_path / "file").write_text("")
    with refused("--log-dir", "is a file", "name a folder"):
        learn(tiny, log="csv", log_dir=tmp_path / "file")
    with refused("--log-dir", "cannot be written", "Nothing was begun"):
        learn(tiny, log="csv", log_dir=tmp_path / "file" / "below")
    with refused("--log is one of tensorboard, csv, jsonl, but got 'wandb'"):
        learn(tiny, log="csv,wandb")
    with refused("--log-dir here says where, but not what: add --log tensorboard"):
        learn(tiny, log_dir="here")
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with refused("tensorboard", r"pip install 'vprompt\[tensorboard\]'", "--log csv"):
        learn(tiny, log="tensorboard")
    assert not Path("logs").exists()


def test_a_log_in_the_way_of_which_something_stands_is_refused_before_a_step(
    tiny, tmp_path, refused
):
    learn(tiny, log="csv", log_dir=tmp_path / "l")
    [folder] = (tmp_path / "l").iterdir()
    (folder / "metrics.csv").unlink()
    (folder / "metrics.csv").mkdir()
    with refused("The log", "cannot be written", "do without --log"):
        learn(tiny, log="csv", log_dir=tmp_path / "l")


def test_a_disk_that_fills_up_costs_the_log_and_not_the_training(tiny, tmp_path, monkeypatch):
    from vprompt.core.progress import Silent
    from vprompt.learning import logs

    said = []

    class Says(Silent):
        def say(self, text):
            said.append(text)

    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs._Jsonl, "add", full)
    outcome = learn(tiny, log="csv,jsonl", log_dir=tmp_path / "l", progress=Says())
    assert len(outcome.run["tuning"]["history"]) == 4
    [sentence] = [text for text in said if "No space left" in text]
    assert "goes on without it" in sentence
    [table] = (tmp_path / "l").glob("*/metrics.csv")
    assert len(rows_of(table)) == 4


def test_what_a_callback_raises_ends_the_run_which_can_be_continued(tiny):
    seen = []

    def fail(told):
        seen.append(told)
        if told.epoch == 2 and not told.resumed:
            raise RuntimeError("the tracker is away")

    with pytest.raises(RuntimeError, match="away"):
        learn(tiny, callbacks=[fail])
    learn(tiny, callbacks=[fail])
    assert [(s.epoch, s.resumed) for s in seen[3:]] == [(0, True), (1, True), (2, True), (3, False)]


def test_a_number_that_comes_late_makes_a_column(tmp_path):
    from vprompt.learning.logs import start

    [log] = start(["csv"], tmp_path, {})
    log.begin([{"epoch": 0, "lr": 0.1}])
    log.add({"epoch": 1, "lr": 0.2, "score": 3})
    log.add({"epoch": 2, "lr": 0.3})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,lr,score\n0,0.1,\n1,0.2,3\n2,0.3,\n"


def test_tensorboard_x_stands_in_where_tensorboard_is_not(tmp_path, monkeypatch):
    from vprompt.learning import logs

    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            written.append((Path(folder), purge_step))

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def flush(self):
            pass

        close = flush

    monkeypatch.setattr(logs, "find_spec", lambda name: name if name == "tensorboardX" else None)
    stand_in = types.ModuleType("tensorboardX")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboardX", stand_in)
    [log] = logs.start(["tensorboard"], tmp_path, {})
    log.begin([{"epoch": 0, "val_loss": 2.0, "train_loss": None, "time": "now"}])
    log.close()
    assert written == [(tmp_path, None), ("val/loss", 2.0, 0)]


# The page


class Tracker(types.ModuleType):
    """Stands in for wandb, mlflow and trackio: notes what is logged, as each of them is called."""

    def __init__(self, name):
        super().__init__(name)
        self.logged, self.begun, self.ended, self.params = {}, {}, [], {}

    def init(self, *, project, config, id=None, name=None, resume=None, reinit=None):
        run = id or name
        assert project and resume == "allow" and run not in self.begun
        self.begun[run] = config
        return types.SimpleNamespace(
            log=lambda numbers, *, step: self.logged.setdefault(run, []).append((step, numbers)),
            finish=lambda: self.ended.append(run),
        )

    def MlflowClient(self):
        def create(experiment, *, run_name):
            assert experiment == "0"
            self.begun[run_name] = {}
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))

        def metric(run, name, value, *, step):
            steps = self.logged.setdefault(run, [])
            if not steps or steps[-1][0] != step:
                steps.append((step, {}))
            steps[-1][1][name] = value

        return types.SimpleNamespace(
            create_run=create,
            log_param=lambda run, name, value: self.begun[run].update({name: value}),
            log_metric=metric,
            set_terminated=self.ended.append,
        )


def python_blocks():
    """Return the Python blocks of the page, by the tracker that each imports."""
    blocks = PAGE.read_text("utf-8").split("```python\n")[1:]
    texts = [text.split("```")[0] for text in blocks]
    return {
        next((n for n in ("wandb", "mlflow", "trackio") if f"import {n}" in text), "plain"): text
        for text in texts
    }


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with images of two classes, to work in."""
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for label in ("dark", "light"):
        (tmp_path / "my_images" / label).mkdir(parents=True)
        for row in range(8):
            pixels = np.full((32, 32, 3), row + 200 * (label == "light"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my_images" / label / f"{row}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_examples_of_the_page_log_every_epoch_once(desk, monkeypatch, name):
    tracker = Tracker(name)
    monkeypatch.setitem(sys.modules, name, tracker)
    exec(compile(python_blocks()[name], f"following.md, {name}", "exec"), {})
    [run] = tracker.begun
    assert tracker.ended == [run] and run.startswith("learn-vpt-my_images-")
    assert [step for step, _ in tracker.logged[run]] == [0, 1, 2]
    assert {"lr", "val_loss", "val_accuracy", "train_loss", "seconds"} == set(
        tracker.logged[run][-1][1]
    )
    assert tracker.begun[run]


def test_the_plain_example_and_the_command_of_the_page_run(desk, capsys, vprompt):
    exec(compile(python_blocks()["plain"], "following.md", "exec"), {})
    assert capsys.readouterr().out.count("learn-vpt-my_images-") == 3
    pytest.importorskip("tensorboard")
    [line] = [x for x in PAGE.read_text("utf-8").splitlines() if x.startswith("vprompt ")]
    code, _, err = vprompt(*line.split()[1:], "-q")
    assert code == 0, err
    [folder] = (desk / "logs").iterdir()
    assert len(rows_of(folder / "metrics.csv")) == 3 and list(folder.glob("events.out.tfevents.*"))
