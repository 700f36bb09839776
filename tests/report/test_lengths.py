"""The record of a search as a picture, a section of the report and a command; curves of several."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from test_report import LEARN

torch.set_num_threads(1)


def search_of(branches=("image",), epochs=3, price=0.0):
    """Two blocks, of which the first comes to prefer 5 tokens, the second none."""
    alpha = [
        {b: [[0.0, 0.3 * e, -0.1 * e], [0.2 * e, 0.0, 0.0]] for b in branches}
        for e in range(epochs + 1)
    ]
    found = [{branch: [5, 0] for branch in branches}] * (epochs + 1)
    if len(branches) == 1:
        alpha, found = ([each[branches[0]] for each in rows] for rows in (alpha, found))
    memory = {
        "branch": branches[0],
        "candidates": [0, 5, 10],
        "alpha": alpha,
        "found": found,
        "gap": {"mixture": 0.8, "found": 0.75, "gap": 0.05},
        "prices": [dict.fromkeys(branches, price)] * (epochs + 1),
    }
    search = {"method": "dpl", "found": found[-1], "tuning": {"memory": memory, "history": []}}
    return {**LEARN, "command": "search", "search": search}


def test_weights_are_the_softmax_of_alpha_less_the_price_of_tokens():
    from vprompt.report import searched

    ((weights, found),) = searched.branches(search_of(price=0.1)).values()
    assert found == [5, 0] and len(weights) == 4
    paid = torch.tensor([0.0, 0.9 - 0.5, -0.3 - 1.0], dtype=torch.float64)
    assert weights[-1][0] == pytest.approx(paid.softmax(0).tolist())
    rows = searched.rows(search_of())
    assert [row["found"] for row in rows] == [5, 0]
    assert rows[1]["weights"]["0"] == pytest.approx(float(torch.tensor([0.6, 0, 0]).softmax(0)[0]))


def test_a_sentence_says_what_was_found():
    from vprompt.report import searched

    said = searched.summary(search_of(("image", "text")))
    assert "10 tokens in 4 blocks, none in 2" in said and "by chance 0.33" in said
    assert "5.0 points" in said


@pytest.mark.parametrize("branches", [("image",), ("text", "image")])
@pytest.mark.parametrize("epochs", [0, 30])
def test_a_picture_is_a_file_of_its_own(tmp_path, branches, epochs):
    from vprompt.report import searched

    run = search_of(branches, epochs)
    for name in ("one.svg", "two.svg", "one.png"):
        searched.drawing(run).save(tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg") and "10 tokens" in text
    assert text == (tmp_path / "two.svg").read_text()
    assert all(f"block, {branch}" in text for branch in branches if len(branches) > 1)


def test_the_page_shows_the_search_where_there_was_one():
    from vprompt.report.html import render

    page = render(search_of())
    assert "How long each block" in page and "5 tokens in 2 blocks" in page
    assert page.count("<svg") == page.count("</svg>") >= 3
    assert "How long each block" not in render(LEARN)


def run_of(method, counts, accuracy, dim=4):
    size = {"prompt": dim * sum(counts), "head": 8} if sum(counts) else {"head": 8}
    test = {"learned": {**LEARN["test"]["learned"], "acc1": accuracy, "low": 0.1, "high": 0.9}}
    tuning = {**LEARN["tuning"], "parameters": size}
    backbone = {**LEARN["backbone"], "token_dim": dim}
    settings = {"num_virtual_tokens": counts} if sum(counts) else {}
    run = {**LEARN, "tuning": tuning, "backbone": backbone, "settings": settings, "test": test}
    return {**run, "command": "search" if method == "search" else "learn", "method": method}


@pytest.fixture
def several():
    return [
        run_of("search", [5, 0], 0.6),
        run_of("search", [10, 10], 0.7),
        run_of("vpt", [2, 3], 0.5),
        run_of("linear", [0, 0], 0.4),
        run_of("vpt", [0, 9], 0.45),
    ]


def test_several_runs_make_a_curve_of_every_kind_of_lengths(several):
    from vprompt.report import budgets

    found = [(p.series, p.tokens, p.accuracy) for p in budgets.points(several)]
    assert found == [
        ("given", 9, 0.45),
        ("searched", 5, 0.6),
        ("searched", 20, 0.7),
        ("uniform", 0, 0.4),
        ("uniform", 5, 0.5),
    ]


def test_runs_without_a_test_are_compared_on_validation(several, refused):
    from vprompt.report import budgets

    several[0]["test"] = {}
    assert budgets.where(several) == "validation"
    tuning = several[0]["tuning"]
    kept = next(r for r in tuning["history"] if r["epoch"] == tuning["kept_epoch"])
    assert {p.accuracy for p in budgets.points(several)} == {kept["val_accuracy"]}
    blind = [{**record, "val_accuracy": None} for record in tuning["history"]]
    several[0]["tuning"] = {**tuning, "history": blind}
    with refused("measured on no images"):
        budgets.points(several)


def test_runs_of_different_images_make_no_curve(several, refused):
    from vprompt.report import budgets

    task = several[0]["task"]
    splits = {**task["splits"], "train": {"images": 3, "digest": "sha256:other"}}
    several[0]["task"] = {**task, "splits": splits}
    with refused("do not make one curve", "one draw"):
        budgets.points(several)


def test_the_command_shows_one_run_or_several(vprompt, fails, several, tmp_path):
    paths = [tmp_path / f"{index}.json" for index in range(len(several))]
    for path, run in zip(paths, several, strict=True):
        path.write_text(json.dumps(run))
    code, out, _ = vprompt("lengths", *paths, "--output", tmp_path / "curve.svg")
    assert code == 0 and "searched" in out and "70.0 %" in out and "curve.svg" in out
    assert ElementTree.parse(tmp_path / "curve.svg").getroot().tag.endswith("svg")
    code, out, _ = vprompt("lengths", *paths, "--json")
    assert len(json.loads(out)["points"]) == 5
    paths[0].write_text(json.dumps(search_of()))
    code, out, _ = vprompt("lengths", paths[0], "--output", tmp_path / "one.png")
    assert code == 0 and "weight of 10" in out and "5 tokens in 2 blocks" in out
    assert (tmp_path / "one.png").is_file()
    code, out, _ = vprompt("lengths", paths[0], "--json")
    assert json.loads(out)["blocks"][0]["found"] == 5
    fails("lengths", paths[0], "--output", tmp_path / "one.gif", saying=[".svg or .png"])
    fails("lengths", paths[2], saying=["no search to show", "vprompt search"])
