"""Bench: a recipe on tiny models, run, killed, run again, and its table."""

import pytest
import yaml

TINY = {"model": "tiny", "image_size": 32}


@pytest.fixture
def shapes(tmp_path):
    """Two tasks of coloured squares as class folders: easy, and with its own name each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for task, spread in (("warm", 60), ("cold", 90)):
        for label in range(3):
            folder = tmp_path / "data" / task / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(15):
                colour = np.zeros(3) + 60
                colour[label] = 180
                pixels = np.clip(colour + spread * rng.standard_normal((8, 8, 3)), 0, 255)
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{index:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a recipe, sound unless it is told otherwise."""

    def make(**changes):
        values = {
            "name": "little",
            "backbone": TINY,
            "seeds": [0, 1],
            "train": {"epochs": 1, "precision": "fp32"},
            "tasks": [{"name": "warm", "shots": 4}, {"name": "cold", "shots": 4}],
            "methods": [
                {"name": "Linear", "learn": "linear"},
                {"name": "VPT", "learn": "vpt(num_virtual_tokens=1)"},
            ],
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return path

    return make


def test_a_recipe_is_run_once_and_shown(write, shapes, vprompt, tmp_path):
    call = ["bench", "run", write(baseline="Linear"), "--data", shapes, "--output", tmp_path / "o"]
    code, out, _ = vprompt(*call, "-q")
    assert (code, "8 runs, 0 finished" in out) == (0, True)
    code, out, _ = vprompt(*call, "-q")
    assert (code, "8 runs, 8 finished" in out) == (0, True)
    code, out, _ = vprompt("bench", "table", tmp_path / "o")
    assert code == 0 and "| Linear |" in out and "mean (2)" in out and "over Linear" in out
    code, out, _ = vprompt("bench", "table", tmp_path / "o", "--format", "csv")
    assert len(out.splitlines()) == 1 + 8 + 2 * 3
