"""The fast part of the campaign of damage, kills and races (benchmarks/faults has the long one)."""

import signal
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    # A child of a fork here uses one thread, and ends without Python's own ending.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BAD = ("wrong", "traceback", "litter")


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import faults
    from benchmarks.faults import artefacts, caches, campaign, children, commands, hubs, strangers
    from vprompt import cli, flow  # what a forked command need not import again

    del cli, flow
    assert campaign.BAD == BAD
    del artefacts, caches, children, hubs, strangers
    monkeypatch.setattr(commands, "warm", lambda: None)
    return faults


def test_no_mutated_artefact_is_believed(faults, tmp_path):
    found = faults.artefacts.mutations(tmp_path, seed=0, count=240)
    assert not any(found[bad] for bad in BAD), found
    assert found["refused"] > 200


def test_no_damage_to_any_kind_of_cache_file_is_believed(faults, tmp_path):
    found = faults.caches.damages(tmp_path, seed=0, count=27)
    assert found == {"same": 27}


@pytest.mark.parametrize("steps", ["one", "two"])
def test_a_kill_at_any_change_of_a_file_leaves_something_whole_and_no_litter(
    faults, tmp_path, monkeypatch, steps
):
    from vprompt.core import swap

    if steps == "two":
        monkeypatch.setattr(swap, "_function", lambda: None)
    found = faults.artefacts.saves(tmp_path, 0, None)
    assert not any(found[bad] for bad in BAD) and not found["refused"], found
    assert found["same"] >= 14


def test_no_load_sees_two_artefacts_at_once(faults, tmp_path):
    assert faults.artefacts.loads(tmp_path, 0, 100) == {"same": 100}


def test_a_fetch_that_goes_wrong_is_refused_and_done_again(faults, tmp_path, monkeypatch):
    # All but those after which the hub's library waits and tries again.
    monkeypatch.setattr(faults.hubs, "KINDS", ("cut", "changed", "redirect", "killed", "full"))
    assert faults.hubs.fetches(tmp_path / "hub", 0, 5) == {"same": 5}


def test_a_whole_command_that_dies_or_has_no_room_is_run_again_to_the_same_bits(
    faults, tmp_path, monkeypatch
):
    monkeypatch.setattr(faults.commands, "COMMANDS", ("learn",))
    found = faults.commands.kills(tmp_path / "world", 1, 3)
    found += faults.commands.full_disks(tmp_path / "world", 1, 1)
    assert found["same"] == 4 and found["hit"] >= 3 and not any(found[bad] for bad in BAD), found


@pytest.mark.parametrize("name", ["adapter_config.json", "run.json"])
def test_no_odd_value_of_a_stranger_breaks_a_command(faults, vprompt, tmp_path, name):
    import json
    import random

    chance, strangers = random.Random(0), faults.strangers
    run = {"tuning": {"history": [{"epoch": 0}], "kept": "it"}, "method": "vpt", "test": {}}
    folder = tmp_path / "pool" / "it"
    faults.artefacts.artifact.save(faults.artefacts.made(0), folder, run=run)
    whole = {path.name: path.read_text() for path in folder.glob("*.json")}
    for number in range(40):
        value = json.loads(whole[name])
        value.pop("digests", None)
        places = list(strangers._places(value))
        odd = strangers._ODD[number % len(strangers._ODD)]
        changed = strangers._replaced(value, chance.choice(places), odd)
        (folder / name).write_text(json.dumps(changed))
        strangers._seal(folder)
        for words in (("ls", folder.parent), ("check", folder.parent), ("show", folder)):
            code, out, err = vprompt("pool", *words)  # a traceback would end the test
            assert code in (0, 1) and (out or err) and not {*"\x1b\x07"} & {*out, *err}
        for text in whole:
            (folder / text).write_text(whole[text])


def test_children_die_are_refused_and_counted(faults, tmp_path):
    children = faults.children

    def work():
        for number in range(3):
            (tmp_path / f"{number}").write_text("it")
        print("done")

    ended = children.in_child(work)
    assert (ended.code, ended.said, ended.changes) == (0, "done\n", 3) and not ended.crashed
    for path in tmp_path.iterdir():
        path.unlink()
    ended = children.in_child(work, children.Fault(signal.SIGKILL, change=1))
    assert ended.code == -signal.SIGKILL and [p.name for p in tmp_path.iterdir()] == ["0"]
    ended = children.in_child(work, children.Fault(full_at=2))
    assert ended.crashed and "No space left" in ended.said and ended.code == 1
    assert children.in_child(work, children.Fault(largest=1)).crashed


def test_what_is_finished_of_a_campaign_is_not_done_again(faults, tmp_path, monkeypatch, capsys):
    from collections import Counter

    campaign, asked = faults.campaign, []

    def trial(folder, seed, count):
        asked.append((seed, count))
        return Counter(same=count)

    part = campaign.Part(trial, 5, 2, "things")
    monkeypatch.setattr(campaign, "PARTS", {"loads": part})
    words = ["campaign", "--seed", "3", "--output", str(tmp_path), "--parts", "loads"]
    monkeypatch.setattr(sys, "argv", words)
    campaign.main()
    first = capsys.readouterr().out
    assert [count for _, count in asked] == [2, 2, 1] and len({seed for seed, _ in asked}) == 3
    campaign.main()
    assert len(asked) == 3 and capsys.readouterr().out == first and "| 3 | things | 5 |" in first
    part = campaign.Part(lambda *_: Counter(wrong=1), 6, 2, "things")
    monkeypatch.setattr(campaign, "PARTS", {"loads": part})
    with pytest.raises(SystemExit):
        campaign.main()
