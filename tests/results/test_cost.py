"""Cost: what is said before a run counts every image that goes through the network."""

import contextlib

import numpy as np
import pytest
import torch


@pytest.fixture
def train():
    from vprompt.data.task import Examples

    return Examples(np.zeros((30, 32, 32, 3), np.uint8), torch.arange(30) % 3, "thirty")


@pytest.fixture
def adapter(tiny, monkeypatch):
    """A prompt whose steps take a tenth of a second per image."""
    from vprompt.core import registry

    monkeypatch.setattr("vprompt.results.cost.images_per_second", lambda *a: 10.0)
    monkeypatch.setattr("vprompt.results.cost.forward_per_second", lambda *a: 30.0)
    monkeypatch.setattr("vprompt.results.cost.head_seconds", lambda *a: 0.0)
    monkeypatch.setattr("vprompt.core.clock._BEGAN", [])
    return registry.build("adapters", "vpt(num_virtual_tokens=1)")(tiny)


def test_learning_looks_at_validation_after_every_epoch_and_at_test_twice(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results.cost import training_estimate

    config = TrainConfig(epochs=2, keep="best")
    said = str(training_estimate(adapter, train, config, points=2, val=15, test=30))
    # 2 x 2 x 30 steps; 2 x 3 x 15 + 2 x 30 looks, each a third of a step; 3 x 30 for the heads
    assert said.startswith("about 20 s: 2 x 2 epochs x 30 images at 10 images/s, 150 looks")
    assert "looks" not in str(training_estimate(adapter, train, config))
    # With patience every epoch is looked at, even where the last one is kept.
    for settings, looks in (({}, 2), ({"patience": 9}, 6)):
        last = TrainConfig(epochs=5, keep="last", **settings)
        assert f" {15 * looks} looks" in str(training_estimate(adapter, train, last, val=15))


def test_a_halved_grid_costs_what_is_left_of_it(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results.cost import training_estimate

    config = TrainConfig(epochs=10)
    said = str(training_estimate(adapter, train, config, points=24, halving=True))
    # 24 points for two epochs, 4 for three, 2 for five: 70 epochs of 30 images
    assert ": 7 x 10 epochs x 30 images" in said, said


def test_steps_are_timed_by_their_mean(tiny, train, monkeypatch):
    from vprompt.core import registry
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results import cost

    # Begin and end of each step: the first, which warms up, and then one of 0.1 s and one of 0.5.
    clock = iter([0.0, 9.0, 10.0, 10.1, 20.0, 20.5])
    monkeypatch.setattr(cost, "_MOMENT", 9.55)
    monkeypatch.setattr(cost, "_TRIAL", 16)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    made = registry.build("adapters", "vpt(num_virtual_tokens=1)")(tiny)
    speed = cost.images_per_second(made, train, TrainConfig())
    assert speed == pytest.approx(16 / 0.3)


def test_combining_adds_evidence_and_looks_at_test_five_times(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.pooling.mix import Plan
    from vprompt.results.cost import combining_estimate

    config = TrainConfig(epochs=2, keep="last")
    counts = {"sources": 4, "val": 15, "test": 24}
    gradients = Plan(gradient_head="base")
    said = str(combining_estimate(adapter, train, config, plan=gradients, **counts))
    # (4 + 1 + 2) x 30 steps; 2 x 15 + 5 x 24 looks
    assert said.startswith("about 26 s: 5 evidence passes and 2 epochs x 30 images at 10 images/s")
    assert said.endswith(", 150 looks at images to validate and test")
    # Without gradients the 4 + 1 passes over 30 images are looks.
    said = str(combining_estimate(adapter, train, config, plan=Plan(), **counts))
    assert said.startswith("about 16 s: 5 evidence passes and 2 epochs x 30 images at 10 images/s")


def test_what_an_earlier_run_left_in_the_cache_costs_nothing(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.pooling.mix import Plan
    from vprompt.results.cost import combining_estimate, measuring_estimate, scoring_estimate

    config, counts = TrainConfig(epochs=2, keep="last"), {"sources": 4, "val": 15, "test": 24}

    def combining(**known):
        return str(combining_estimate(adapter, train, config, plan=Plan(), **counts, **known))

    # 3 of 5 passes: 3 s less than 16. All of them and the test images: 2 x 30 steps, 2 x 15 looks.
    assert combining(kept=3).startswith("about 13 s: 2 evidence passes and 2 epochs x 30 images")
    said = combining(kept=5, again=True)
    assert said.startswith("about 7 s: 2 epochs x 30 images; an earlier run left the rest at 10 im")
    assert said.endswith(", 30 looks at images to validate and test")
    scores = {"sources": 4, "scores": 2.0}
    assert scoring_estimate(adapter, train, config, kept=5, **scores).seconds == 2.0
    assert scoring_estimate(adapter, train, config, kept=4, **scores).seconds == 3.0
    again = measuring_estimate(adapter.backbone, None, 90, 2, again=True)
    assert str(again) == "about 0 s: an earlier run has looked at the 90 images"


def test_a_sum_of_moves_adds_its_looks_along_the_scales(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.pooling.mix import Plan
    from vprompt.results.cost import combining_estimate

    plan = Plan(move_scale="auto", form="ensemble", members=3)
    said = str(combining_estimate(adapter, train, TrainConfig(epochs=0), plan=plan, sources=4))
    # 4 + 1 sources, 5 scales, 3 members
    assert said.startswith("about 13 s: 13 evidence passes and 0 epochs x 30 images")


def test_heads_start_up_and_decoding_count(adapter, train, monkeypatch):
    import time

    from vprompt.core import clock
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results import cost

    config = TrainConfig(epochs=1)
    plain = str(cost.training_estimate(adapter, train, config))
    assert plain.startswith("about 5 s: ")
    assert str(cost.training_estimate(adapter, train, config, decoding=10.0)).startswith(
        "about 15 s: "
    )
    monkeypatch.setattr(cost, "head_seconds", lambda *a: 5.0)  # of the start, and of no prompt
    assert str(cost.training_estimate(adapter, train, config)).startswith("about 15 s: ")
    clock.begin()
    clock._BEGAN[0] = time.perf_counter() - 20
    said = str(cost.training_estimate(adapter, train, config))
    # a quarter of the start-up for tables, record, report and the end of the program
    assert said.startswith("about 20 s more, 40 s in all: ")


def test_an_ensemble_looks_at_test_images_once_for_each_member(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.pooling.mix import Plan
    from vprompt.results.cost import combining_estimate

    plan = Plan(move_scale="auto", form="ensemble", members=3)
    said = str(
        combining_estimate(adapter, train, TrainConfig(epochs=0), plan=plan, sources=4, test=10)
    )
    # without a prompt, the start, the best source, three members; what is not tuned is not new
    assert said.endswith(", 60 looks at images to validate and test")


class Heard:
    """Progress that keeps what is said."""

    def __init__(self):
        self.said = []

    @contextlib.contextmanager
    def step(self, description, total):
        yield self

    def advance(self, amount=1, note=""):
        pass

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def watched(monkeypatch):
    """A forecast of ten seconds to tune and ten to test, and a clock to set."""
    from vprompt.core.forecast import Estimate, Forecast, Part

    monkeypatch.setattr("vprompt.core.clock._BEGAN", [])
    time, heard = [0.0], Heard()
    estimate = Estimate("work", {"tune": Part(10.0, 20), "test": Part(10.0, 5)})
    return Forecast(heard, estimate, now=lambda: time[0]), time, heard.said


def test_a_time_that_turns_out_wrong_is_corrected_while_it_runs(watched):
    forecast, time, said = watched
    with forecast.step("tune", 20) as step:
        for _ in range(5):
            time[0] += 1.5  # three times as long as announced
            step.advance()
        assert said == ["it takes longer than announced: about 57 s more"]
        for _ in range(14):
            time[0] += 1.5
            step.advance()
    assert len(said) == 1, "one correction is enough while it holds"


def test_a_time_that_holds_is_not_spoken_of_again(watched):
    forecast, time, said = watched
    for name, total in (("tune", 20), ("test", 5), ("decode images", 9)):
        with forecast.step(name, total) as step:
            for _ in range(total):
                time[0] += 10 / total * 1.1
                step.advance()
    assert said == []


def test_what_was_done_in_an_earlier_run_says_nothing_about_the_pace(watched):
    forecast, time, said = watched
    with forecast.step("tune", 20) as step:
        step.advance(15)
        for _ in range(5):
            time[0] += 0.5
            step.advance()
    assert said == []


def test_candidates_that_share_a_pass_are_counted_once(tiny):
    from vprompt.core import registry
    from vprompt.learning.ensemble import Ensemble
    from vprompt.results.measure import _passes

    prompts = [
        registry.build("adapters", f"vpt(prompt_init=vpt_uniform, prompt_init_seed={n})")(tiny)
        for n in range(2)
    ]
    both = Ensemble(tiny, [p.prompt() for p in prompts], plain=True)
    assert len(_passes(both)) == 3
    assert _passes(None) < _passes(both) and _passes(prompts[0].prompt()) < _passes(both)
    assert _passes(prompts[0]) == _passes(prompts[0].prompt())


def test_scores_searches_and_measurements_are_announced_too(adapter, train):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results import cost

    said = str(cost.scoring_estimate(adapter, train, TrainConfig(), sources=4))
    assert said == "about 5 s: 5 passes x 30 images at 30 images/s, then the scores"
    said = str(cost.scoring_estimate(adapter, train, TrainConfig(), sources=4, scores=7.0))
    assert said.startswith("about 12 s: ")
    config = TrainConfig(epochs=2, batch_size=15, keep="last")
    said = str(
        cost.searching_estimate(adapter, train, config, alpha=10, then=config, again=60, test=30)
    )
    # 2 x (30 + 2 x 10) and 2 x 60 steps; 2 x 60, 2 x 30 and 30 looks
    assert said.startswith("about 29 s: 2 epochs x 30 images to search, then 2 epochs x 60 images")
    said = str(cost.measuring_estimate(adapter.backbone, None, images=3000, candidates=2))
    assert ": 6,000 looks at images at " in said


def test_scores_and_their_floor_are_told_from_one_score(monkeypatch):
    from vprompt.pooling import floor, scoring

    # The first call warms up, the others take 0.01 s each, half of it work of this process.
    clock, work = iter([0.0, 1.0, 2.0, 2.05]), iter([0.0, 1.0, 2.0, 2.025])
    monkeypatch.setattr(floor.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(floor.time, "process_time", lambda: next(work))
    labels = torch.arange(12) % 3
    # 13 scores, and 20 shuffles and 20 halves of 13
    assert floor.expected(["hscore"], labels, 8, 13) == pytest.approx(0.01 * 13 * 41)
    assert floor.expected(["leep"], labels, 8, 13) == 0, "made from what is not there yet"
    assert scoring.needs("leep") == ("source_probabilities", "labels")


def test_a_linear_probe_is_told_in_seconds_too(tiny, train, monkeypatch):
    from vprompt.core import registry
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results import cost

    monkeypatch.setattr(cost, "forward_per_second", lambda *a: 30.0)
    monkeypatch.setattr(cost, "head_seconds", lambda *a: 0.0)
    monkeypatch.setattr("vprompt.core.clock._BEGAN", [])
    linear = registry.build("adapters", "linear")(tiny)
    said = str(cost.training_estimate(linear, train, TrainConfig(), val=15, test=15))
    assert said.startswith("about 2 s: one pass over 30 images, then the head alone at 30 images/s")
