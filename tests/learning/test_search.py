"""Search: lengths are found without the test split, then learned; the record holds both."""

import json

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # steps this small only wait for a second thread


@pytest.fixture
def task():
    from vprompt.data.task import SealedSplit, Split, Task

    def split(name, count, seed):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return Split(name, pixels, tuple((np.arange(count) % 2).tolist()))

    test = SealedSplit(split("test", 4, 3))
    return Task("toy", ("a", "b"), split("train", 12, 1), None, test)


def test_the_found_lengths_are_learned_and_recorded(tiny, task, tmp_path):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.searching import search

    short = TrainConfig(epochs=1, batch_size=6, precision="fp32", keep="last", head="zero")
    method = "dpl(lengths=[0, 1], alpha_init=1.0, alpha_warmup=0.0)"
    done = search(
        task,
        model=tiny,
        method=method,
        config=short,
        search_config=short,
        output=tmp_path / "it",
    )
    record = json.loads((tmp_path / "it" / "run.json").read_text())
    found = record["search"]["found"]
    assert record["command"] == "search" and sum(found) > 0
    assert done.artifact.prompt.counts(tiny.depth) == found
    assert len(record["search"]["tuning"]["memory"]["alpha"]) == 2
    sizes = record["search"]["task"]["splits"]
    assert (sizes["train"]["images"], sizes["val"]["images"]) == (6, 6) and "test" not in sizes
    assert record["task"]["splits"]["train"]["images"] == 12
    assert done.test["learned"] is not None


def test_halves_share_no_image_and_hold_every_class(task):
    from vprompt.searching import split_for_alpha

    halved = split_for_alpha(task, "auto", 0)
    parts = [{image.tobytes() for image in part.images} for part in (halved.train, halved.val)]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 12
    assert sorted(halved.train.labels) == sorted(halved.val.labels) == [0] * 3 + [1] * 3
    assert halved.test is None


def test_what_cannot_be_split_is_refused(task, refused):
    from vprompt.searching import split_for_alpha

    with refused("no validation images", "half"):
        split_for_alpha(task, "val", 0)
    with refused("auto", "val", "half", "most"):
        split_for_alpha(task, "most", 0)


def test_patience_is_that_of_the_found_lengths_and_refused_before_the_search(
    tiny, task, vprompt, monkeypatch, refused
):
    from vprompt import searching

    with refused("patience=2", "no images are left to validate on"):
        searching.search(task, model=tiny, config={"patience": 2})
    given = {}

    class Enough(Exception):
        pass

    def search(*words, **settings):
        given.update(settings)
        raise Enough

    monkeypatch.setattr(searching, "search", search)
    with pytest.raises(Enough):
        vprompt("search", "digits", "--patience", 3, "--epochs", 7, "--quiet")
    assert given["config"] == {"patience": 3, "epochs": 7}
    assert "patience" not in given["search_config"]


def test_the_command_is_there(vprompt):
    code, out, _ = vprompt("search", "--help")
    assert code == 0 and "--max-prompts" in out and "--max-params" in out


SHORT = {"epochs": 2, "batch_size": 6, "precision": "fp32", "keep": "last", "head": "zero"}
METHOD = "dpl(lengths=[0, 1], alpha_init=1.0, alpha_warmup=0.0, prompt_init=normal)"


def test_a_search_that_was_stopped_while_it_learned_goes_on_with_the_same_bits(
    tiny, task, tmp_path, monkeypatch
):
    from vprompt import searching
    from vprompt.adapters.dpl import LengthSearch
    from vprompt.learning.train_config import TrainConfig

    short = TrainConfig(**SHORT)
    steps, begin, learn = [], LengthSearch.begin_step, searching.flow.learn

    def search(name):
        done = searching.search(
            task,
            model=tiny,
            method=METHOD,
            config=short,
            search_config=short,
            output=tmp_path / name,
        )
        return done.run["search"], done.artifact.prompt

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        LengthSearch, "begin_step", lambda self, t: (steps.append(t.step), begin(self, t))[1]
    )
    monkeypatch.setattr(searching.flow, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        search("stopped")
    assert not (tmp_path / "stopped").exists()
    monkeypatch.setattr(searching.flow, "learn", learn)
    count = len(steps)
    resumed, prompt = search("stopped")
    assert len(steps) == count  # the search itself was done
    whole, expected = search("whole")
    assert len(steps) == 2 * count
    assert resumed["tuning"]["memory"] == whole["tuning"]["memory"]
    assert torch.equal(prompt.tokens, expected.tokens)


def test_the_prompts_of_a_search_can_go_on_being_learned(tiny, task, tmp_path, refused):
    from vprompt import flow
    from vprompt.core import registry
    from vprompt.learning.train_config import TrainConfig
    from vprompt.searching import split_for_alpha

    short, halved = TrainConfig(**SHORT), split_for_alpha(task, "half", 0)
    searched = flow.learn(
        halved, model=tiny, method=METHOD, config=short, output=tmp_path / "a", test=False
    )
    method = f"vpt(start='{tmp_path / 'a'}')"
    start = registry.build("adapters", method)(tiny).prompt()
    assert torch.equal(start.tokens, searched.artifact.prompt.tokens)
    assert torch.equal(start.blocks, searched.artifact.prompt.blocks) and not start.persist
    learned = flow.learn(task, model=tiny, method=method, config=short, output=tmp_path / "b")
    assert learned.artifact.prompt.counts(tiny.depth) == start.counts(tiny.depth)
    assert not torch.equal(learned.artifact.prompt.tokens, start.tokens)
    # Its tokens are no longer those of a fresh start, so that travels along.
    assert learned.run["prompt_init"]["kind"] == "stored"
    flow.learn(task, model=tiny, method="linear", config=short, output=tmp_path / "c")
    with refused("no prompt to go on from"):
        registry.build("adapters", f"vpt(start='{tmp_path / 'c'}')")(tiny)
