"""Pool: a folder of artefacts, some of which may be broken."""

import json
import os
import subprocess
import sys

import pytest
import torch

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def folder(tiny, pool, tmp_path):
    """Four artefacts on disk, one of them without a prompt."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head

    for name, prompt in {**pool, "doors": None}.items():
        facts = {"task": {"name": f"kinds of {name}"}, "metrics": {"acc1": 0.875}}
        config = make_config(tiny, prompt, ("a", "b"), **facts)
        head = Head(torch.zeros(2, tiny.feature_dim), torch.zeros(2))
        made = Artifact(prompt, head, torch.zeros(tiny.feature_dim), config)
        save_artifact(made, tmp_path / "pool" / name)
    return tmp_path / "pool"


@pytest.fixture
def change(folder):
    """Return a function that rewrites keys of the config of `birds`."""

    def rewrite(**keys):
        path = folder / "birds" / CONFIG
        config = json.loads(path.read_text()) | keys
        config.pop("digests", None)
        path.write_text(json.dumps(config))

    return rewrite


def test_entries_come_in_name_order_and_skip_what_is_hidden(folder):
    from vprompt.artifacts.catalogue import entries

    (folder / ".birds.abc123").mkdir()  # a draft that a killed process left
    (folder / "notes.txt").write_text("not a folder")
    found = entries(folder)
    assert [entry.name for entry in found] == ["apples", "birds", "cars", "doors"]
    assert all(entry.problem is None and entry.config for entry in found)


def test_rows_are_plain_and_say_what_a_person_asks(folder):
    from vprompt.artifacts.catalogue import rows

    row = rows(folder)[0]
    assert json.loads(json.dumps(row)) == row
    assert (row["name"], row["task"], row["classes"], row["tokens"]) == (
        "apples",
        "kinds of apples",
        2,
        3,
    )
    assert (row["backbone"], row["test accuracy"], row["problem"]) == ("tiny", "87.5 %", "")


def test_no_pool_is_named(tmp_path, refused):
    from vprompt.artifacts.catalogue import entries

    with refused("No pool at", "nowhere"):
        entries(tmp_path / "nowhere")


def test_an_empty_pool_says_how_to_fill_it(tmp_path, refused):
    from vprompt.artifacts.catalogue import entries

    with refused("holds no artefact folders", "vprompt learn"):
        entries(tmp_path)


def test_checking_names_every_broken_artefact_and_its_problem(folder, tiny):
    from vprompt.artifacts.pool import check

    (folder / "apples" / CONFIG).write_text("{")
    (folder / "cars" / TENSORS).write_bytes(b"cut")
    (folder / "empty").mkdir()
    problems = {entry.name: entry.problem for entry in check(folder, tiny)}
    assert [name for name, problem in problems.items() if problem] == ["apples", "cars", "empty"]
    assert "not valid JSON" in problems["apples"]
    assert "truncated" in problems["cars"] and "lacks" in problems["empty"]


def test_checking_against_a_backbone_finds_misfits(folder):
    from vprompt.artifacts.pool import check
    from vprompt.backbones import tiny as plugin

    assert not any(entry.problem for entry in check(folder))
    misfits = check(folder, plugin.load(seed=1))
    assert all("base_model_fingerprint" in entry.problem for entry in misfits)


def test_listing_shows_a_broken_artefact_beside_the_sound_ones(folder):
    from vprompt.artifacts.catalogue import rows

    (folder / "birds" / CONFIG).unlink()
    problems = [row["problem"] for row in rows(folder)]
    assert [bool(problem) for problem in problems] == [False, True, False, False]


@pytest.mark.parametrize(
    "keys",
    [
        {"task": "birds"},
        {"task": None},
        {"task": [1]},
        {"metrics": "good"},
        {"metrics": {"acc1": "high"}},
        {"metrics": {"acc1": None}},
        {"num_virtual_tokens": ["3", 0, 0, 0, 0, 0]},
        {"num_virtual_tokens": [[3], 0, 0, 0, 0, 0]},
    ],
    ids=str,
)
def test_a_stranger_s_odd_config_does_not_break_the_listing(folder, change, keys):
    from vprompt.artifacts.catalogue import rows

    change(**keys)
    assert [row["name"] for row in rows(folder)] == ["apples", "birds", "cars", "doors"]


@pytest.mark.parametrize("task", ["birds", None, [1]], ids=str)
def test_a_stranger_s_odd_task_does_not_break_combining(folder, change, tiny, task):
    from vprompt import TrainConfig, VPromptError, combine, open_task

    change(task=task)
    target = open_task("digits").few_shot(1, seed=0)
    try:
        combine(target, pool=folder, model=tiny, config=TrainConfig(epochs=0), test=False)
    except VPromptError as error:
        assert "birds" in str(error)


def test_loading_returns_the_prompts_and_leaves_out_what_has_none(folder, tiny, pool):
    from vprompt.artifacts.pool import load

    found = load(folder, tiny)
    assert [source.name for source in found] == ["apples", "birds", "cars"]
    for source in found:
        assert torch.equal(source.prompt.tokens, pool[source.name].tokens)


def test_sources_are_left_out_by_name(folder, tiny):
    from vprompt.artifacts.pool import load

    assert [s.name for s in load(folder, tiny, exclude=("birds", "doors"))] == ["apples", "cars"]


def test_an_unknown_name_to_leave_out_lists_the_known(folder, tiny, refused):
    from vprompt.artifacts.pool import load

    with refused("holds no 'brids'", "apples, birds, cars, doors"):
        load(folder, tiny, exclude=("brids",))


def test_a_pool_of_one_is_enough(folder, tiny):
    from vprompt.artifacts.pool import load

    assert [s.name for s in load(folder, tiny, exclude=("birds", "cars"))] == ["apples"]


def test_leaving_out_everything_is_refused(folder, tiny, refused):
    from vprompt.artifacts.pool import load

    with refused("holds no prompt to combine", "apples"):
        load(folder, tiny, exclude=("apples", "birds", "cars"))


def test_a_broken_source_is_named_and_can_be_left_out(folder, tiny, refused):
    from vprompt.artifacts.pool import load

    (folder / "birds" / TENSORS).write_bytes(b"cut")
    with refused("birds", "truncated"):
        load(folder, tiny)
    assert len(load(folder, tiny, exclude=("birds",))) == 2


def test_a_misfit_is_named_unless_forced(folder, refused):
    from vprompt.artifacts.pool import load
    from vprompt.backbones import tiny as plugin

    other = plugin.load(seed=1)
    with refused("The source 'apples' was learned on 'tiny'", "--force"):
        load(folder, other)
    assert len(load(folder, other, force=True)) == 3


def test_listing_a_pool_imports_no_torch(folder):
    code = (
        "import sys; sys.argv[1:] = ['pool', 'ls', *sys.argv[1:]]; import atexit; "
        "atexit.register(lambda: print('torch' in sys.modules)); "
        "from vprompt.cli import main; main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert "apples" in found.stdout and found.stdout.rstrip().endswith("False")


def test_a_long_table_is_aligned_and_printed_whole(capsys):
    from vprompt.cli import terminal

    rows = [[f"name {index}", "x" * 300, f"{index}"] for index in range(150)]
    rows[3][0] += "\x1b"
    terminal.table(["name", "text", "count"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 151 and all("x" * 300 in line for line in lines[1:])
    assert len({len(line) for line in lines}) == 1 and "\x1b" not in "".join(lines)
    assert lines[0].endswith("  count") and lines[8].endswith("      7")


def test_listing_a_pool_sweeps_what_dead_processes_left(folder):
    from vprompt.artifacts import catalogue
    from vprompt.core import drafts

    mine = drafts.folder(folder / "cars", "old")
    dead = mine.path.with_name(mine.path.name.replace(f"-{os.getpid()}-", "-999999999-"))
    mine.discard()
    dead.mkdir()
    (folder / "cars").rename(dead / "cars")  # killed between the two steps of an --overwrite
    assert "cars" in [entry.name for entry in catalogue.entries(folder)]
    assert not dead.exists()
