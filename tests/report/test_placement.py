"""The record of moves as a picture, a table and a command; pools of prompts that moved."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from test_report import LEARN

torch.set_num_threads(1)


def decision(epoch, origin, target, why=""):
    return {
        "epoch": epoch,
        "token": 3,
        "from": origin,
        "to": target,
        "score": 1e-3,
        "removal": 1e-3,
        "gains": [1e-4, None, 2e-4],
        "moved": not why,
        "why": why,
        "counts": [],
    }


@pytest.fixture
def record():
    """Four tokens a block in three blocks; two epochs kept of three; two moves, one in place."""
    place = {
        "rules": {"preset": "robust", "score": "mask"},
        "distribution": [[4, 4, 4], [4, 4, 4], [3, 4, 5], [3, 3, 6]],
        "decisions": [
            decision(2, 0, 2),
            decision(2, 1, 1),
            decision(2, 1, None, "no room"),
            decision(3, 1, 2),
        ],
        "pending": None,
        "loss": None,
    }
    tuning = {**LEARN["tuning"], "kept_epoch": 2, "memory": {"placement": place}}
    return {**LEARN, "method": "pro_vpt", "tuning": tuning}


def test_moves_are_counted_up_to_the_kept_epoch(record):
    from vprompt.report import placement

    rows = [[*row.values()] for row in placement.flows(record)]
    assert rows == [[0, 4, 1, 0, 3], [1, 4, 0, 0, 4], [2, 4, 0, 1, 5]]
    said = placement.summary(record)
    assert "2 moves among 12 tokens" in said and "1 made anew" in said and "1 for no room" in said


def test_the_page_shows_where_tokens_stand(record):
    from vprompt.report.html import render

    page = render(record)
    assert "Where the tokens stand" in page and "2 moves among 12 tokens" in page
    assert page.count("<svg") == page.count("</svg>") >= 3
    assert "no room" in page and "placement" in page and "made anew" in page


def test_a_run_without_moves_shows_no_placement():
    from vprompt.report.html import render

    assert "Where the tokens stand" not in render(LEARN)
    assert "Where the tokens stand" not in render(
        {**LEARN, "tuning": {**LEARN["tuning"], "memory": {}}}
    )


@pytest.mark.parametrize("epochs", [0, 3, 60])
def test_a_picture_is_a_file_of_its_own(record, tmp_path, epochs):
    from vprompt.report import placement

    place = record["tuning"]["memory"]["placement"]
    place["distribution"] = place["distribution"][:1] * (epochs + 1)
    place["decisions"] = [decision(e, e % 3, (e + 1) % 3) for e in range(2, epochs)]
    record["tuning"]["kept_epoch"] = epochs // 2
    placement.drawing(record).save(tmp_path / "one.svg")
    placement.drawing(record).save(tmp_path / "one.png")
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    again = tmp_path / "two.svg"
    placement.drawing(record).save(again)
    assert again.read_bytes() == (tmp_path / "one.svg").read_bytes()


def test_the_command_prints_the_blocks_and_writes_the_picture(vprompt, record, tmp_path):
    run = tmp_path / "run.json"
    run.write_text(json.dumps(record))
    code, out, _ = vprompt("placement", run, "--output", tmp_path / "moves.png")
    assert code == 0 and "2 moves among 12 tokens" in out and "moves.png" in out
    assert (tmp_path / "moves.png").is_file()
    code, out, _ = vprompt("placement", run, "--json")
    assert code == 0 and json.loads(out)["blocks"][2]["kept"] == 5


def test_what_is_no_such_record_is_one_sentence(fails, record, tmp_path):
    run = tmp_path / "run.json"
    run.write_text(json.dumps(record))
    fails("placement", run, "--output", tmp_path / "moves.gif", saying=[".svg or .png"])
    run.write_text(json.dumps(LEARN))
    fails("placement", run, saying=["no moves", "--method pro_vpt"])
    run.write_text("[1]")
    fails("placement", run, saying=["not the record of a run"])
    fails("placement", tmp_path / "nothing", saying=["No file"])
    for tuning in ([], {**record["tuning"], "kept_epoch": "last"}, {"memory": {"placement": [1]}}):
        run.write_text(json.dumps({**record, "tuning": tuning}))
        fails("placement", run, saying=["record of a run"])


# Pools


@pytest.fixture
def pool(tiny, tmp_path):
    """Three artefacts of prompts that moved differently on the way."""
    from vprompt import TrainConfig, learn, open_task

    task = open_task("digits").few_shot(2, 0)
    for seed in range(3):
        learn(
            task,
            model=tiny,
            method="pro_vpt(num_virtual_tokens=2, accept=always, cooldown=0, moves_per_epoch=2)",
            config=TrainConfig(epochs=3, seed=seed, keep="last", precision="fp32"),
            output=tmp_path / "pool" / f"source{seed}",
            test=False,
        )
    return tmp_path / "pool"


def test_prompts_that_moved_are_refused_or_brought_to_one_placement(pool, tiny, refused, vprompt):
    from vprompt import combine, load_artifact, open_task

    counts = {str(load_artifact(f).prompt.counts(6)) for f in sorted(pool.iterdir())}
    assert len(counts) > 1  # or this test proves nothing
    code, out, _ = vprompt("placement", pool / "source0")
    assert code == 0 and "among 12 tokens" in out
    task = open_task("digits").few_shot(2, 1)
    given = {"pool": pool, "model": tiny, "method": "uniform", "test": False}
    given |= {"include_self": True, "shots": None}
    with refused("same placement", "--align placement"):
        combine(task, **given)
    outcome = combine(task, align="placement", **given)
    facts = outcome.run["aligned"]
    assert facts["kept"] == 12 <= facts["slots"] and all(0.3 < own <= 1 for own in facts["own"])
    assert len(outcome.artifact.prompt.tokens) == 12
