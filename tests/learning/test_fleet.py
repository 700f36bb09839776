"""Fleet: what members learn together is what each learns alone, and who leaves disturbs nobody."""

import functools
import math
import threading

import numpy as np
import pytest
import torch
from exact import relative
from stopping import StopAfter

torch.set_num_threads(1)
CLASSES = 3


def draw(count, seed):
    """Return examples in which every class has a tint under much noise."""
    from vprompt.data.task import Examples

    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = rng.integers(0, 200, (count, 32, 32, 3)).astype(np.uint8)
    pixels[np.arange(count), :, :, labels] += 40
    return Examples(pixels, torch.tensor(labels), f"{count} examples of seed {seed}")


@pytest.fixture
def float64(monkeypatch):
    """Compute everything in float64, also what asks for float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def member(backbone, spec, *, data=1, count=22, checkpoint=None, progress=None, **config):
    """Return a piece of work that learns from scratch every time it is called."""
    from vprompt.core import registry
    from vprompt.core.progress import SILENT
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    given = {"epochs": 3, "batch_size": 8, "precision": "fp32", "lr": 0.05, "head_lr": 0.01}
    settings = TrainConfig(**{**given, **config})

    def work():
        adapter = registry.build("adapters", spec)(backbone)
        return tune(
            adapter,
            draw(count, data),
            draw(12, 2),
            CLASSES,
            settings,
            checkpoint=checkpoint,
            progress=progress or SILENT,
        )

    return work


ASSORTED = {
    "shallow": ("vpt(num_virtual_tokens=2, deep=False, prompt_init=vpt_uniform)", {}),
    "deep": ("vpt(num_virtual_tokens=3)", {"lr": 0.02, "weight_decay": 0.1}),
    "other data": ("vpt(num_virtual_tokens=1)", {"data": 3, "count": 9, "epochs": 5}),
    "other seed": ("vpt(num_virtual_tokens=3)", {"seed": 4, "opt": "sgd", "keep": "last"}),
    "dropout": ("vpt(num_virtual_tokens=2, prompt_dropout=0.5)", {"head": "kaiming"}),
    "patient": ("vpt(num_virtual_tokens=2)", {"lr": 1.0, "patience": 1, "epochs": 6}),
    "late": ("vpt(num_virtual_tokens=[0, 2, 0, 0, 1, 0])", {"batch_size": 5}),
    "linear": ("linear", {}),
    "moving": ("pro_vpt(num_virtual_tokens=2, score_every=2)", {"epochs": 4}),
    "cut": ("vpt(num_virtual_tokens=2)", {"augment": "crop_flip", "clip_grad": 0.1}),
}


def values(tuned):
    """Return all numbers that a run delivers, and everything that it counts."""
    prompt = tuned.adapter.prompt()
    parts = [tuned.head.weight, tuned.head.bias]
    parts += [] if prompt is None else [prompt.tokens]
    losses = [r.val_loss or 0.0 for r in tuned.history] + [
        r.train_loss or 0.0 for r in tuned.history
    ]
    counted = [(r.epoch, r.lr, r.val_accuracy) for r in tuned.history]
    places = None if prompt is None else prompt.blocks.tolist()
    return torch.cat([p.flatten() for p in parts] + [torch.tensor(losses)]), (
        counted,
        tuned.kept_epoch,
        tuned.ended,
        places,
    )


@pytest.fixture
def small():
    """A backbone of this test alone."""
    from vprompt.backbones import tiny

    return tiny.load(image_size=32)


@pytest.fixture
def two_lanes():
    """Compute on two cores, which a fleet shares between two threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("width", [None, 3])
def test_in_float64_every_member_learns_what_it_learns_alone(small, float64, width):
    check_in_float64(small, width)


def test_in_float64_two_lanes_change_nothing(small, float64, two_lanes):
    check_in_float64(small, None)


_alone = []


def alone_in_float64(works):
    """Return what every member learns alone; the first test that asks computes it for all."""
    if not _alone:
        _alone.extend(values(work()) for work in works)
    return _alone


def check_in_float64(small, width):
    from vprompt.core import fleet

    small = small.double()
    works = [member(small, spec, **given) for spec, given in ASSORTED.values()]
    together = fleet.run(works, width=width)
    for name, found, wanted in zip(ASSORTED, together, alone_in_float64(works), strict=True):
        mine, counted = values(found)
        alone, expected = wanted
        assert counted == expected, name
        assert relative(mine, alone) < 1e-10, name


def test_in_float32_the_difference_is_rounding(small):
    from vprompt.core import fleet

    works = [member(small, spec, **given) for spec, given in ASSORTED.values()]
    for work, found in zip(works, fleet.run(works), strict=True):
        assert relative(values(found)[0], values(work())[0]) < 2e-3


def test_a_member_that_turns_to_nan_leaves_and_changes_no_bit_of_the_others(small):
    from vprompt.core import fleet
    from vprompt.core.errors import VPromptError

    good = [member(small, "vpt(num_virtual_tokens=2)", lr=lr) for lr in (0.01, 0.1)]
    bad = member(small, "vpt(num_virtual_tokens=2)", lr=1e30, head_lr=1e30, opt="sgd")
    expected = [values(found) for found in fleet.run(good)]
    first, failed, second = fleet.run([good[0], bad, good[1]])
    assert isinstance(failed, VPromptError) and "Use a smaller --lr" in str(failed)
    for found, (numbers, counted) in zip((first, second), expected, strict=True):
        mine = values(found)
        assert mine[1] == counted and relative(mine[0], numbers) < 1e-4


def test_members_of_two_backbones_do_not_mix(small):
    from vprompt.backbones import tiny
    from vprompt.core import fleet

    other = tiny.load(model="test_vit2", image_size=32)
    works = [member(each, "vpt(num_virtual_tokens=2)", epochs=1) for each in (small, other, small)]
    for work, found in zip(works, fleet.run(works), strict=True):
        assert relative(values(found)[0], values(work())[0]) < 1e-4


def test_a_member_without_images_says_so_and_leaves(small):
    from vprompt.core import fleet

    works = [member(small, "vpt", epochs=1), member(small, "vpt", count=0, head="zero")]
    fine, empty = fleet.run(works)
    assert fine.kept_epoch in (0, 1) and "no training images" in str(empty)


RESUMED = ("deep", "other data", "shallow", "linear", "other seed", "patient")


@functools.cache
def learned_at_once():
    """Return what a fleet learns that nothing stops; any test that asks computes in two lanes."""
    from vprompt.backbones import tiny
    from vprompt.core import fleet

    backbone = tiny.load(image_size=32)
    specs = [ASSORTED[name] for name in RESUMED]
    return [values(run) for run in fleet.run([member(backbone, s, **given) for s, given in specs])]


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_a_fleet_that_was_stopped_resumes_to_the_same_bits(small, tmp_path, two_lanes, steps):
    from vprompt.core import fleet

    specs = [ASSORTED[name] for name in RESUMED]
    stopper = StopAfter(steps)
    stopped = [
        member(small, spec, **given, checkpoint=tmp_path, progress=stopper if row == 0 else None)
        for row, (spec, given) in enumerate(specs)
    ]
    with pytest.raises(KeyboardInterrupt):
        fleet.run(stopped)
    again = fleet.run([member(small, s, **given, checkpoint=tmp_path) for s, given in specs])
    for found, theirs in zip(again, learned_at_once(), strict=True):
        mine = values(found)
        assert mine[1] == theirs[1] and torch.equal(mine[0], theirs[0])


def test_each_lane_has_a_part_of_the_members_and_fails_alone(two_lanes):
    from vprompt.core import fleet

    seen, there = set(), threading.Barrier(2, timeout=20)

    def answer(asked):
        there.wait()  # both lanes are at work, or nobody gets on
        seen.add((threading.current_thread().name, torch.get_num_threads(), *asked))
        if 3 in asked:
            raise ValueError(f"no answer to {asked}")
        return asked

    def work(number):
        mine = fleet.member()
        mine.ask(fleet.FORWARD, "key", number, list, divides=True)
        return mine.ask(fleet.BACKWARD, "key", number, answer, divides=True)

    one, two, three, four = fleet.run([functools.partial(work, n) for n in (1, 2, 3, 4)])
    assert (one, two) == (1, 2)
    assert str(three) == str(four) == "no answer to [3, 4]"
    assert {entry[1:] for entry in seen} == {(1, 1, 2), (1, 3, 4)}
    assert len({entry[0] for entry in seen}) == 2
    assert torch.get_num_threads() == 2


def test_what_several_members_look_at_under_one_prompt_is_computed_once(small, monkeypatch):
    from vprompt.core import fleet

    images, embed = [0], type(small).embed

    def counted(self, pixels):
        images[0] += len(pixels)
        return embed(self, pixels)

    monkeypatch.setattr(type(small), "embed", counted)
    spec = "vpt(num_virtual_tokens=2, prompt_init=vpt_uniform)"
    member(small, spec, epochs=2)()
    alone, images[0] = images[0], 0
    fleet.run([member(small, spec, epochs=2, lr=lr) for lr in (0.1, 0.2, 1)])
    # The same images in the same order: embedded once, whatever the prompts.
    assert images[0] == alone


def test_seconds_of_a_member_are_its_own_and_its_share():
    import time

    from vprompt.core import fleet

    def work(seconds):
        began = fleet.now()
        time.sleep(seconds)
        mine = fleet.member()
        mine.ask(fleet.LOOK, "sleep", 0.1, lambda asked: [time.sleep(max(asked))] * len(asked))
        return fleet.now() - began

    short, long = fleet.run([functools.partial(work, 0.01), functools.partial(work, 0.3)])
    assert 0.05 < short < 0.3 < long < 1.5


# Halving


def test_the_rungs_of_halving_cost_less_than_a_third_of_the_runs():
    from vprompt.learning.halving import rungs, trainings

    assert rungs(24, 10) == {2: 4, 5: 2}
    assert trainings(24, 10) == (24 * 2 + 4 * 3 + 2 * 5) / 10
    assert all(trainings(24, epochs) <= 7 for epochs in (10, 16, 30, 100))
    assert rungs(2, 10) == {} and rungs(5, 1) == {} and rungs(4, 2) == {1: 2}


def test_settings_are_compared_by_the_mean_of_their_ranks_in_loss_and_accuracy():
    from vprompt.learning.halving import Dropped, Halving, SoFar, _judge

    def judged(*reached):
        own = Halving({2: 1})
        return _judge([(SoFar(*each), 2, own) for each in reached])

    # The first has the least loss, the third is the most accurate, the second is good in both.
    verdicts = judged((1.0, 0.35), (1.1, 0.58), (1.5, 0.60), (1.2, 0.40))
    assert [verdict is None for verdict in verdicts] == [False, True, False, False]
    last = verdicts[3]
    assert (last["rank"], last["of"], last["kept"]) == (4, 4, 1)
    assert (last["val_loss"], last["val_quality"]) == (1.2, 0.40)
    # Equal accuracy: the loss decides; what was never measured comes last.
    verdicts = judged((1.2, 0.5), (1.1, 0.5), (1.0, 0.5), (math.inf, -math.inf))
    assert [verdict is None for verdict in verdicts] == [False, False, True, False]
    unmeasured = {**verdicts[3], "val_loss": None, "val_quality": None}
    assert "none at a loss of none on validation, rank 4 of 4; 1 went on" in str(
        Dropped(unmeasured)
    )


def grid_of(backbone, rates, *, checkpoint=None, stop=None, width=8, epochs=8):
    from vprompt.core import registry
    from vprompt.core.progress import SILENT
    from vprompt.learning.grid import tune_all
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    given = {"epochs": epochs, "batch_size": 11, "precision": "fp32", "head_lr": 1e-4}
    points = [TrainConfig(**given, lr=rate) for rate in rates]

    def train(config, progress, after):
        adapter = registry.build("adapters", "vpt(num_virtual_tokens=2)")(backbone)
        return tune(
            adapter,
            draw(22, 1),
            draw(12, 2),
            CLASSES,
            config,
            checkpoint=checkpoint,
            progress=stop if config.lr == rates[-1] and stop else progress,
            after_epoch=after,
        )

    return tune_all(
        points,
        train,
        steps_per_epoch=lambda config: 2,
        width=width,
        halving=True,
        progress=SILENT,
    )


def test_halving_drops_what_lies_behind_and_says_why(small):
    rates = [1e-4, 0.01, 0.03, 3.0, 10.0, 1e30]
    found = grid_of(small, rates)
    assert sum(each.tuned is not None for each in found) == 2
    for each in found:
        record = each.to_json()
        if each.dropped:
            assert record["dropped"]["epoch"] in (2, 4) and record["val_accuracy"] is None
            assert each.dropped["val_loss"] is None or each.dropped["val_loss"] > 0
            assert each.dropped["rank"] > each.dropped["kept"] >= 2
    one_by_one = grid_of(small, rates, width=1)
    assert [each.dropped is None for each in one_by_one] == [each.dropped is None for each in found]


def test_halving_that_was_stopped_drops_the_same_when_it_continues(small, tmp_path):
    rates = [0.01, 3.0, 0.03, 10.0]  # the last one goes on to the end
    whole = grid_of(small, rates)
    with pytest.raises(KeyboardInterrupt):
        grid_of(small, rates, checkpoint=tmp_path, stop=StopAfter(11))
    again = grid_of(small, rates, checkpoint=tmp_path)
    for found, expected in zip(again, whole, strict=True):
        assert found.dropped == expected.dropped
        if found.tuned is not None:
            assert torch.equal(values(found.tuned)[0], values(expected.tuned)[0])


def test_a_grid_of_epochs_is_not_halved(small, refused):
    from vprompt.core.progress import SILENT
    from vprompt.learning.grid import tune_all
    from vprompt.learning.train_config import TrainConfig

    points = [TrainConfig(epochs=epochs) for epochs in (1, 2)]
    with refused("same epochs", "Leave epochs out"):
        tune_all(
            points,
            lambda *given: None,
            steps_per_epoch=lambda config: 1,
            width=1,
            halving=True,
            progress=SILENT,
        )


# How many


def test_a_fleet_too_large_for_memory_is_refused_with_the_largest_that_fits(
    small, refused, monkeypatch
):
    from vprompt.core import registry
    from vprompt.learning import fleet_size
    from vprompt.learning.train_config import TrainConfig

    build = functools.partial(registry.build("adapters", "vpt"), small)
    points = [TrainConfig(batch_size=8, lr=10.0**-n) for n in range(12)]
    own = 8 * fleet_size.bytes_per_image(build(), draw(22, 1), points[0])
    assert own > 1e4
    monkeypatch.setattr(fleet_size, "free_bytes", lambda device: 5.5 * own / 0.8)
    with refused("A fleet of 12 at batch size 8", "largest that fits is 5", "--fleet 5"):
        fleet_size.width(12, build, draw(22, 1), points)
    assert fleet_size.width("auto", build, draw(22, 1), points) == 5
    assert fleet_size.width(3, build, draw(22, 1), points) == 3
    assert fleet_size.width("off", build, draw(22, 1), points) == 1
    for wrong in ("many", 0, "-1"):
        with refused("--fleet is `auto`, `off` or a number"):
            fleet_size.width(wrong, build, draw(22, 1), points)


def test_the_free_memory_of_this_machine_is_known():
    from vprompt.learning import fleet_size

    free = fleet_size.free_bytes(torch.device("cpu"))
    assert free is None or math.isfinite(free)


@pytest.mark.device
def test_a_fleet_on_a_device_learns_what_its_members_learn_alone():
    from vprompt.backbones import tiny
    from vprompt.core import fleet
    from vprompt.opening import resolve_device

    backbone = tiny.load(image_size=32).to(resolve_device("auto"))
    works = [member(backbone, "vpt(num_virtual_tokens=2)", lr=lr) for lr in (0.01, 0.05)]
    for work, found in zip(works, fleet.run(works), strict=True):
        assert relative(values(found)[0], values(work())[0]) < 5e-3
