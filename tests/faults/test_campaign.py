"""The fast part of the campaign of damage, kills and races (benchmarks/faults has the long one)."""

import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    # A child of a fork here uses one thread, and ends without Python's own ending.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def campaign(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks.faults import campaign

    return campaign


def test_no_mutated_artefact_is_believed(campaign, tmp_path):
    found = campaign.mutations(tmp_path, seed=0, count=240)
    assert not any(found[bad] for bad in campaign.BAD), found
    assert found["refused"] > 200


def test_no_damage_to_any_kind_of_cache_file_is_believed(campaign, tmp_path):
    found = campaign.damages(tmp_path, seed=0, count=27)
    assert found == {"same": 27}


@pytest.mark.parametrize("steps", ["one", "two"])
def test_a_kill_at_any_change_of_a_file_leaves_something_whole_and_no_litter(
    campaign, tmp_path, monkeypatch, steps
):
    from vprompt.core import exchange

    if steps == "two":
        monkeypatch.setattr(exchange, "_function", lambda: None)
    found = campaign.kills(tmp_path)
    assert not any(found[bad] for bad in campaign.BAD) and not found["refused"], found
    assert found["same"] >= 14


def test_no_load_sees_two_artefacts_at_once(campaign, tmp_path):
    assert campaign.loads(tmp_path, 100) == {"same": 100}
