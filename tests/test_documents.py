"""Documents: every command and every Python block of the README and of docs/ is tried.

Commands that need nothing but images of one's own are run from top to bottom, on drawn images, with
the tiny backbone in place of a real one; of the others the command line is read, so that no option
is shown that does not exist. Python blocks are run the same way, where they stand on their own.
"""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUG_INS = ROOT / "docs" / "plug-ins.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(path, language):
    return [text for kind, text in FENCE.findall(path.read_text("utf-8")) if kind == language]


def commands(path):
    """Return the words of every `vprompt` command of a page, without comments and placeholders."""
    found = []
    for text in blocks(path, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in line.split(";"):
                words = shlex.split(re.sub(r"\[[^\]]*\]", "", part), comments=True)
                if "vprompt" in words:
                    found.append(words[words.index("vprompt") + 1 :])
    return [words for words in found if words]


ALL = [(path, words) for path in PAGES for words in commands(path)]


@pytest.mark.parametrize("path, words", ALL, ids=[" ".join(w)[:60] for _, w in ALL])
def test_a_command_is_one_that_exists_with_these_options(path, words):
    """Read it as the command line would, down to the function that it would call."""
    import click
    import typer

    from vprompt.cli.app import app

    command, context = typer.main.get_command(app), None
    rest = [word for word in words if word != "..."]
    while isinstance(command, click.Group):
        name, *rest = rest
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{path.name}: no command {name!r}"
        command = found
    context = command.make_context(" ".join(words[:1]), rest, resilient_parsing=False)
    assert context is not None


def test_there_are_commands_on_many_pages():
    assert len({path for path, _ in ALL}) >= 8 and len(ALL) >= 40


TRACKERS = {"mlflow", "trackio", "wandb"}  # tests/learning/test_following.py runs these
PYTHON = [(path, n, text) for path in PAGES for n, text in enumerate(blocks(path, "python"))]


@pytest.mark.parametrize("path, number, text", PYTHON, ids=[f"{p.stem}-{n}" for p, n, _ in PYTHON])
def test_a_python_block_names_only_what_exists(path, number, text):
    """Compile it, make its imports, and look every `vprompt.NAME` up."""
    import ast

    import vprompt

    tree = ast.parse(text.replace(", ...)", ")"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node.names[0].name in TRACKERS:
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), str(path), "exec"), {})
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "vprompt":
            assert hasattr(vprompt, node.attr), f"{path.name}: vprompt.{node.attr}"


# What is run. The README's names of things, and what stands for them here.
HERE = {
    "vit_base_patch14_reg4_dinov2.lvd142m": "tiny",
    "demo": "tiny",
    "elpv": "dsprites(train=64, val=16, test=16)",
    "pools/demo": "pool",
}
NOT_HERE = {"bench", "data", "evaluate", "share"}  # they need image sets, or a network
SHORT = {
    "learn": ["--epochs", "1"],
    "search": ["--epochs", "1", "--search-epochs", "2", "--max-prompts", "12"],
}


def draw_photographs(folder, count):
    """Write a class of light and one of dark images, as many of each."""
    import numpy as np
    from PIL import Image

    randomness = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 8)):
        (folder / name).mkdir(parents=True)
        for row in range(count):
            pixels = randomness.integers(low, low + 240, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{row}.png")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with everything that the README's commands speak of, to type them in."""
    monkeypatch.chdir(tmp_path)
    draw_photographs(tmp_path / "my_images", 12)
    draw_photographs(tmp_path / "new_task", 10)
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "new_task" / "dark").iterdir():
        path.rename(tmp_path / "photos" / path.name) if path.stem == "9" else None
    (tmp_path / "requests.csv").write_text("image,artifact\nphotos/9.png,prompt\n")
    (tmp_path / "recipe.yml").write_text(
        "merge_method: moves\nmodels: [{model: pool/mine}]\ntarget: {data: new_task, shots: 4}\n"
    )
    return tmp_path


def test_the_commands_of_the_readme_run_from_top_to_bottom(desk, vprompt):
    assert vprompt("learn", "new_task", "--model", "tiny", "--epochs", 3, "-q", "--keep", "last",
                   "--output", "pool/first")[0] == 0  # fmt: skip
    ran = []
    for words in commands(ROOT / "README.md"):
        verb = words[0]
        if verb in NOT_HERE or "few_shot(root" in " ".join(words):
            continue
        own = [HERE.get(word, word) for word in words]
        own += ["--model", "tiny"] if verb in ("learn", "search") and "--model" not in own else []
        quiet = [] if verb in ("placement", "lengths", "pool", "list") else ["-q"]
        again = ["--overwrite"] if "--output" in own and verb in ("learn", "combine") else []
        code, _, err = vprompt(*own, *SHORT.get(verb, []), *quiet, *again)
        assert code == 0, f"{' '.join(words)}: {err}"
        ran.append(verb)
    assert {"learn", "score", "combine", "placement", "search", "lengths", "predict"} <= set(ran)


def test_the_python_of_the_readme_runs(desk, vprompt):
    import torch

    assert vprompt("learn", "my_images", "--model", "tiny", "--epochs", 3, "-q", "--keep", "last",
                   "--output", "pool/first")[0] == 0  # fmt: skip
    for text in blocks(ROOT / "README.md", "python"):
        for name, stand_in in HERE.items():
            text = text.replace(f'"{name}"', f'"{stand_in}"')
        space = {"images": torch.randn(2, 3, 32, 32)}
        exec(compile(text, "README.md", "exec"), space)
        assert space["features"].shape == (2, 64)
    assert (desk / "report.html").is_file()


COMPLETE = re.compile(r"^`(my_package/\w+\.py)`, complete:\n\n```python\n(.*?)^```", re.M | re.S)


@pytest.fixture
def my_package(desk, monkeypatch):
    """The package that docs/plug-ins.md writes, with what it says that it brings, installed."""
    import sys

    import numpy as np

    from vprompt.core import registry

    for name, text in COMPLETE.findall(PLUG_INS.read_text("utf-8")):
        (desk / name).parent.mkdir(exist_ok=True)
        (desk / name).write_text(text)
    [said] = blocks(PLUG_INS, "toml")
    brought = tomllib.loads(said)["project"]["entry-points"]
    lines = [
        line
        for group, entries in brought.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    installed = desk / "my_package-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(desk)
    registry._installed.cache_clear()
    randomness = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = randomness.integers(0, 255, (12, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(12, dtype=np.uint8)[:, None] % 3
    np.savez(desk / "pathmnist.npz", **arrays)
    yield {group.removeprefix("vprompt."): list(each) for group, each in brought.items()}
    registry._installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def test_there_is_an_example_of_every_kind_of_plug_in_and_each_runs(my_package, vprompt):
    from vprompt.core import registry
    from vprompt.results import protocols

    assert set(my_package) == {*registry.VERBS, "protocols"}
    said = {}
    for words in commands(PLUG_INS):
        quiet = [] if words[0] == "list" else ["-q"]
        code, out, err = vprompt(*words, *quiet)
        assert code == 0, f"{' '.join(words)}: {err}"
        said[" ".join(words)] = out
    for kind, [name] in my_package.items():
        assert any(name in command for command in said), f"nothing uses {name}"
        if kind == "protocols":
            assert protocols.find(name).summary.endswith(".")
        else:  # what test_contracts asks of our own
            assert registry.find(kind, name).__doc__ and registry.summary(kind, name).endswith(".")
    assert "departures from protocol lab" in next(said[each] for each in said if "lab" in each)


def test_the_output_of_the_demonstration_is_that_of_its_record():
    import json

    from vprompt.artifacts import final
    from vprompt.results import advice

    page = (ROOT / "README.md").read_text("utf-8")
    run = json.loads((ROOT / "benchmarks/results/demo_combine.json").read_text("utf-8"))
    shown = [run["moves"]["verdict"], advice.after_combining(run, None)[0]]
    own = final.name(run["command"], run["train"]["epochs"])  # an older record calls it tuned
    for known, found in run["test"].items():
        name = own if known == final.name_in(run) else known
        interval = f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %"
        row = rf"{name} +{100 * found['acc1']:.1f} %  {interval} +"
        row += rf"{100 * found['mean_per_class_recall']:.1f} %"
        gain = found["gain"]
        if gain is not None:
            span = f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"
            row += re.escape(f"  {100 * gain['difference']:+.1f} ({span})")
        assert re.search(row, page), row
    assert all(sentence in page for sentence in shown)
