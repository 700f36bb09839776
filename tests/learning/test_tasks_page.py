"""The page on tasks: its commands run as they stand, one after another, on the tiny backbone."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def commands():
    """Return the words of every `vprompt` line in the page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("vprompt ")]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with every list that the page names."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    randomness = np.random.default_rng(0)
    lists = {"tags": ["image,label"], "ages": ["image,age"], "kinds": ["image,label"]}
    for row in range(40):
        red, blue = randomness.random(2) < 0.5
        pixels = randomness.integers(0, 180, (32, 32, 3))
        pixels += np.array([60 * red, 0, 60 * blue])
        Image.fromarray(pixels.astype(np.uint8)).save(f"photos/{row}.png")
        names = [name for name, on in (("red", red), ("blue", blue)) if on]
        place = f"photos/{row}.png"
        lists["tags"].append(f"{place},{'|'.join(names) or '[]'}")
        lists["ages"].append(f"{place},{20 + 30 * red + randomness.random():.1f}")
        lists["kinds"].append(f"{place},{'rare' if row % 5 == 0 else 'usual'}")
    for name, lines in lists.items():
        Path(f"{name}.csv").write_text("\n".join(lines) + "\n")
        Path(f"new-{name}.csv").write_text("\n".join(lines[:20]) + "\n")
    return tmp_path


def test_the_commands_of_the_page_run_from_top_to_bottom(desk, vprompt):
    ran = []
    for words in commands():
        short = ["--epochs", "1"] if words[0] == "learn" else []
        code, _, err = vprompt(*words, "--model", "tiny", "-q", *short)
        assert code == 0, (words, err)
        ran.append(words[0])
    assert {*ran} == {"learn", "predict", "evaluate"} and len(ran) >= 10
    assert (desk / "found.csv").read_text().startswith("image,label,p(blue),p(red)")
