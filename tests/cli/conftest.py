"""Fixtures of the command line's tests."""

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of class folders: red and blue pictures."""
    root = tmp_path_factory.mktemp("data") / "colours"
    for name, colour in (("red", (250, 30, 20)), ("blue", (10, 40, 240))):
        for index in range(10):
            path = root / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), tuple(c + index // 2 for c in colour)).save(path)
    return root
