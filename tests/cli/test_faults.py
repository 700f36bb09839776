"""Faults: what the command line does before, after and instead of work that goes wrong."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    for label, name in enumerate(("=1+1", "cat")):
        folder = tmp_path / "task" / name
        folder.mkdir(parents=True)
        for number in range(8):
            shades = draw.integers(0, 90, (16, 16, 3), dtype=np.uint8) + 100 * label
            Image.fromarray(shades.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "task"


@pytest.fixture
def learn(images, vprompt, tmp_path):
    quick = ("--model", "tiny", "--epochs", 1, "--prompt-length", 1, "--no-test", "-q")
    return lambda *more: vprompt("learn", images, *quick, "--output", tmp_path / "it", *more)


def test_places_are_refused_before_the_training(learn, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = learn("--report", tmp_path)
    assert code == 1 and "is a folder; name a file" in err
    code, _, err = learn("--report", tmp_path / "file" / "r.html")
    assert code == 1 and "--report" in err and not (tmp_path / "it").exists()


def test_names_that_are_too_long_are_one_sentence(learn, images, fails, tmp_path):
    long = tmp_path / ("x" * 300)
    fails("learn", images, "--model", "tiny", "-q", "--output", long, saying=("too long",))
    fails("learn", long, "--model", "tiny", "-q", saying=("too long",))
    assert learn()[0] == 0
    fails("predict", long, "--artifact", tmp_path / "it", "-q", saying=("too long",))
    fails("predict", images, "--artifact", long, "-q", saying=("too long",))


def test_a_report_is_made_afterwards(learn, vprompt, tmp_path):
    assert learn()[0] == 0
    code, out, _ = vprompt("report", tmp_path / "it", "--output", tmp_path / "r.html")
    assert code == 0 and "r.html" in out and (tmp_path / "r.html").stat().st_size > 1000


def test_a_table_of_predictions_computes_nothing(learn, vprompt, images, tmp_path):
    assert learn()[0] == 0
    words = ("predict", images, "--artifact", tmp_path / "it", "-q", "--output")
    assert vprompt(*words, tmp_path / "x.csv")[0] == 0
    with (tmp_path / "x.csv").open() as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    assert not [cell for cell in cells if cell.startswith("=")] and cells & {"'=1+1", "cat"}


def test_what_is_no_number_has_no_accuracy(learn, images, fails, tmp_path):
    from dataclasses import replace

    from vprompt import load_artifact, save_artifact

    assert learn()[0] == 0
    made = load_artifact(tmp_path / "it")
    harmful = replace(made.head, weight=made.head.weight.sign() * 3e38)
    save_artifact(replace(made, head=harmful), tmp_path / "harmful")
    words = ("evaluate", images, "--artifact", tmp_path / "harmful", "-q")
    fails(*words, saying=("learned gives no numbers", "of 16 test images", "has no accuracy"))


def test_the_cache_is_listed_and_emptied(learn, vprompt, cache):
    assert learn()[0] == 0
    assert (
        "images" in vprompt("cache", "ls")[1] and '"bytes"' in vprompt("cache", "ls", "--json")[1]
    )
    assert "removed" in vprompt("cache", "clean", "--older-than", 0)[1]
    assert not [path for path in cache.rglob("*") if path.is_file()]


SLEEP = """
import sys, time
from vprompt.cli import terminal
with terminal.running("vprompt"):
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_say_that_a_run_can_be_continued(name):
    number = getattr(signal, name)
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started so that they ignore it, as by nohup")
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {name}. Run the same command again to continue." in err


def test_names_are_no_markup_for_the_bars(capsys, monkeypatch):
    from vprompt.cli import terminal

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.progress(False) as progress, progress.step("[/x]", 1) as step:
        step.advance(1, "[/y]\x1b[31m")
    assert "\x1b[31m" not in capsys.readouterr().err
