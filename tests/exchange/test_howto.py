"""How-to pages: their commands run as they stand, one after another."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from served import save_artefact

DOCS = Path(__file__).parents[2] / "docs"


def commands(page):
    """Return the words of every `vprompt` line in a page's shell blocks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("vprompt ")]


@pytest.fixture
def place(tmp_path, monkeypatch, tiny):
    """A folder with every file that the pages name."""
    from vprompt.artifacts.artifact import Artifact, make_config, save
    from vprompt.backbones import tiny_clip
    from vprompt.models.heads import Head

    monkeypatch.chdir(tmp_path)
    randomness = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, tiny.dim, generator=randomness).numpy()
    torch.save({"shallow_prompt": rows}, "prompt_ep100.pth")
    clip = tiny_clip.load()
    torch.save({"state_dict": {"ctx": torch.zeros(4, clip.text.dim)}}, "model.pth.tar-50")
    Path("names.txt").write_text("cat\ndog\n")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save("photo.png")
    Path("report.html").write_text("<main></main>")
    head = Head(torch.zeros(3, tiny.feature_dim), torch.zeros(3))
    config = make_config(tiny, None, ("ash", "birch", "cedar"), None, head)
    save(Artifact(None, head, torch.zeros(tiny.feature_dim), config), tmp_path / "probe")
    return tmp_path


@pytest.mark.parametrize("page", ["exchange.md", "attention.md", "serving.md"])
def test_the_commands_of_a_page_run(place, vprompt, monkeypatch, tiny, page):
    from vprompt.web import listening

    class Ends:
        def run(self, sockets):
            assert sockets[0].getsockname()[0] == "127.0.0.1"

    monkeypatch.setattr(listening, "server", lambda app, *, seconds: Ends())
    if page != "exchange.md":
        save_artefact(tiny, place / "pool" / "trees", 0)
    found = commands(page)
    assert found
    for words in found:
        if words[0] in ("serve", "ui"):  # the port may be in use where the tests run
            words = ["0" if word.startswith("80") else word for word in words]
        code, _, err = vprompt(*words)
        assert code == 0, (words, err)
