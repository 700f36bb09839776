"""Goals: losses, judgements and heads of every kind of target, against torch and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

torch.set_num_threads(1)


def draw(kind, count, seed):
    """Return examples whose tint says what they are labelled with."""
    from vprompt.data import targets
    from vprompt.data.task import Examples

    rng = np.random.default_rng(seed)
    amount = rng.random((count, 3))
    pixels = (80 * rng.random((count, 32, 32, 3)) + 150 * amount[:, None, None, :]).astype(np.uint8)
    sets = [tuple(int(c) for c in np.flatnonzero(row > 0.6)) for row in amount]
    labels = {
        "class": [int(row.argmax()) for row in amount],
        "several": sets,
        "number": [float(1e5 + 2e4 * row[0]) for row in amount],
    }[kind]
    found = targets.tensor(labels, kind, 3)
    return Examples(pixels, found, f"{kind} {count} {seed}")


@pytest.fixture
def settings():
    from vprompt.learning.train_config import TrainConfig

    small = {"epochs": 3, "batch_size": 8, "precision": "fp32"}
    return lambda **changes: TrainConfig(**{**small, **changes})


def goal_of(kind, examples, weights="none"):
    from vprompt.data.task import Split, Task
    from vprompt.learning import goals

    classes = ("value",) if kind == "number" else ("red", "green", "blue")
    some = {"class": (0, 1), "several": ((0,), (1,)), "number": (1.0, 2.0)}[kind]
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    train = Split("train", pixels, some)
    task = Task("tints", classes, train, target=kind, allow_absent=True)
    return goals.of(task, examples.labels, weights)


# Class weights


def test_the_weighted_loss_is_that_of_torch_by_hand(generator):
    from vprompt.learning.goals import OneClass

    logits = torch.randn(12, 3, generator=generator)
    labels = torch.tensor([0] * 7 + [1] * 4 + [2])
    weights = torch.tensor([0.5, 1.0, 4.0])
    ours = OneClass(3, weights).loss(logits, labels)
    by_hand = sum(
        weights[label] * -row.log_softmax(0)[label]
        for row, label in zip(logits, labels, strict=True)
    )
    torch.testing.assert_close(ours, by_hand / 12)
    theirs = functional.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(ours, theirs * weights[labels].sum() / 12)
    assert torch.equal(OneClass(3).loss(logits, labels), functional.cross_entropy(logits, labels))


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    from vprompt.learning.goals import weights_of

    labels = torch.tensor([0] * 7 + [1] * 4 + [3])
    found = weights_of(("a", "b", "c", "d"), labels, "balanced")
    theirs = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy())
    assert found[[0, 1, 3]].tolist() == pytest.approx(theirs.tolist()) and found[2] == 1
    assert found[labels].mean().item() == pytest.approx(1)


def test_weights_by_name_have_mean_one_over_the_images():
    from vprompt.learning.goals import weights_of

    labels = torch.tensor([0, 0, 0, 1])
    found = weights_of(("a", "b"), labels, {"b": 3.0})
    assert (found[1] / found[0]).item() == pytest.approx(3)
    assert found[labels].mean().item() == pytest.approx(1)
    assert weights_of(("a", "b"), labels, "none") is None


def test_a_weight_for_an_unknown_class_is_refused(refused):
    from vprompt.learning.goals import weights_of

    words = ("weighs 'cta'", "no such class", "Did you mean 'cat'", "It has: cat, dog")
    with refused(*words):
        weights_of(("cat", "dog"), torch.tensor([0, 1]), {"cta": 2.0})


@pytest.mark.parametrize("given", ["foo", "{cat: x}", "{cat: 0}", "{cat: .inf}", "{cat", "{}", 3])
def test_weights_that_are_none_are_refused(refused, given):
    from vprompt.learning.train_config import TrainConfig

    with refused("--class-weights"):
        TrainConfig.checked({"class_weights": given})


def test_weights_are_typed_as_yaml_whose_names_stay_texts():
    from vprompt.learning.train_config import TrainConfig

    found = TrainConfig.checked({"class_weights": "{yes: 2, 1: 0.5, null: 1}"})
    assert found.class_weights == {"yes": 2.0, "1": 0.5, "null": 1.0}
    assert TrainConfig.checked(found.model_dump()) == found


def test_a_setting_that_is_not_used_is_in_no_record():
    from vprompt.learning.train_config import TrainConfig

    assert "class_weights" not in TrainConfig().model_dump()
    assert TrainConfig(class_weights="balanced").model_dump()["class_weights"] == "balanced"


def test_a_start_in_closed_form_is_moved_by_the_weights(generator):
    from vprompt.learning.goals import OneClass
    from vprompt.models.heads import closed_form

    features, labels = torch.randn(30, 6, generator=generator), torch.tensor([0] * 24 + [1] * 6)
    features[:, 0] += labels
    weights = torch.tensor([0.625, 2.5])
    plain, moved = (
        closed_form(features, labels, 2),
        OneClass(2, weights).closed_form(features, labels),
    )
    shares = plain.logits(features).softmax(1) * weights
    torch.testing.assert_close(moved.logits(features).softmax(1), shares / shares.sum(1)[:, None])
    assert (moved.logits(features).argmax(1) == 1).sum() > (
        plain.logits(features).argmax(1) == 1
    ).sum()


def test_with_weights_epochs_are_compared_by_balanced_accuracy(generator):
    from sklearn.metrics import balanced_accuracy_score

    from vprompt.learning.goals import OneClass

    logits, labels = torch.randn(40, 3, generator=generator), torch.arange(40).clamp_max(2)
    found = OneClass(3, torch.ones(3)).judge(logits, labels)
    theirs = balanced_accuracy_score(labels.numpy(), logits.argmax(1).numpy())
    assert found.measure == "balanced accuracy" and found.score == pytest.approx(theirs)
    assert OneClass(3).judge(logits, labels).measure == ""


# Average precision and thresholds


def test_average_precision_is_scikit_learns(generator):
    from sklearn.metrics import average_precision_score

    from vprompt.learning.goals import Several, average_precisions

    logits = torch.randn(50, 4, generator=generator)
    labels = (torch.rand(50, 4, generator=generator) < 0.3).float()
    labels[:, 3] = 0
    found = average_precisions(logits, labels)
    theirs = [average_precision_score(labels[:, c].numpy(), logits[:, c].numpy()) for c in range(3)]
    assert found[:3] == pytest.approx(theirs) and found[3] is None
    judged = Several(4).judge(logits, labels)
    assert judged.score == pytest.approx(np.mean(theirs)) and judged.measure == "mAP"
    wanted = functional.binary_cross_entropy(logits.double().sigmoid(), labels.double())
    assert judged.loss == pytest.approx(wanted.item())
    assert Several(4).judge(logits, torch.zeros(50, 4)).score is None


def test_thresholds_are_those_of_the_largest_f1(generator):
    from sklearn.metrics import f1_score

    from vprompt.learning.goals import best_thresholds

    shares = torch.rand(40, 3, generator=generator)
    labels = (torch.rand(40, 3, generator=generator) < shares * 0.7).float()
    labels[:, 2] = 0
    found = best_thresholds(shares, labels)
    for column in range(2):
        shown = labels[:, column].numpy()
        every = [
            f1_score(shown, shares[:, column].numpy() >= edge)
            for edge in shares[:, column].tolist()
        ]
        assert f1_score(shown, (shares[:, column] >= found[column]).numpy()) == max(every)
    assert found[2] == 0.5 and ((found >= 0) & (found <= 1)).all()


# Numbers


def test_numbers_are_judged_by_r2_and_trained_at_mean_0_and_variance_1(generator):
    from sklearn.metrics import r2_score

    examples = draw("number", 30, 0)
    goal = goal_of("number", examples)
    inside = goal.inside(examples).labels
    assert inside.mean().item() == pytest.approx(0, abs=1e-9)
    assert inside.std(correction=0).item() == pytest.approx(1)
    logits = (inside[:, None] + 0.5 * torch.randn(30, 1, generator=generator)).float()
    judged = goal.judge(logits, inside)
    assert judged.score == pytest.approx(r2_score(inside.numpy(), logits[:, 0].numpy()), rel=1e-5)
    assert goal.judge(logits[:1], inside[:1]).score is None
    head = goal.closed_form(torch.randn(30, 4, generator=generator), inside)
    out, x = goal.outside(head), torch.randn(5, 4, generator=generator)
    expected = head.logits(x).double() * goal.spread + goal.mean
    torch.testing.assert_close(out.logits(x).double(), expected, rtol=1e-5, atol=0.1)


# The training loop


@pytest.mark.parametrize("kind", ["several", "number"])
@pytest.mark.parametrize("method", ["vpt(num_virtual_tokens=2)", "linear", "pro_vpt"])
def test_training_gets_better_at_what_it_is_after(tiny, settings, kind, method):
    from vprompt.core import registry
    from vprompt.learning.classifier import features_of
    from vprompt.learning.tune import tune

    train, val = draw(kind, 40, 1), draw(kind, 24, 2)
    goal = goal_of(kind, train)
    config = settings(epochs=4, head="zero", head_lr=0.05)
    tuned = tune(
        registry.build("adapters", method)(tiny), train, val, goal.outputs, config, goal=goal
    )
    start, kept = tuned.record(0), tuned.record(tuned.kept_epoch)
    assert (
        kept.val_measure == {"several": "mAP", "number": "R2"}[kind] and kept.val_accuracy is None
    )
    assert kept.val_loss < start.val_loss and kept.quality > start.quality
    assert tuned.head.target == kind and kept.shown in tuned.sentence
    logits = tuned.head.logits(features_of(tiny, tuned.adapter, val, precision="fp32"))
    if kind == "number":  # the head that comes out says the numbers themselves
        assert logits[:, 0].mean().item() == pytest.approx(val.labels.mean().item(), rel=0.05)
    else:
        assert tuned.head.thresholds.shape == (3,)
    assert kept.quality == pytest.approx(goal.judge(logits, val.labels).score, abs=1e-3) or (
        kind == "number"
    )


def test_the_start_in_closed_form_is_hard_to_beat(tiny, settings):
    from vprompt.core import registry
    from vprompt.learning.tune import tune

    for kind, least in (("several", 0.8), ("number", 0.7)):
        train, val = draw(kind, 60, 1), draw(kind, 40, 2)
        goal = goal_of(kind, train)
        adapter = registry.build("adapters", "linear")(tiny)
        tuned = tune(adapter, train, val, goal.outputs, settings(epochs=0), goal=goal)
        assert tuned.record(0).quality > least


def test_an_epoch_of_numbers_that_do_not_vary_is_judged_by_its_loss():
    from vprompt.learning.checkpoint import EpochRecord
    from vprompt.learning.tune import is_better

    def at(loss):
        return EpochRecord(1, 0.1, None, None, loss, None, "R2")

    assert is_better(at(0.5), at(0.7), at(0.7), "best") and at(0.5).shown == "loss 0.5"
    assert not is_better(at(0.7), at(0.5), at(0.7), "best")


def test_a_stopped_training_of_numbers_continues_with_the_same_bits(tiny, settings, tmp_path):
    from vprompt.core import registry
    from vprompt.learning.tune import tune

    train, val = draw("number", 20, 1), draw("number", 12, 2)
    goal = goal_of("number", train)

    def run(folder, after=None):
        adapter = registry.build("adapters", "vpt(num_virtual_tokens=2)")(tiny)
        config = settings(keep="last")
        options = {"goal": goal, "checkpoint": folder, "after_epoch": after}
        return tune(adapter, train, val, 1, config, **options)

    def stop(history):
        if history[-1].epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop)
    continued, whole = run(tmp_path), run(tmp_path / "other")
    assert continued.history == whole.history
    assert torch.equal(continued.head.weight, whole.head.weight)


def test_every_method_takes_every_target_or_says_that_it_does_not(tiny, settings):
    """A method that is after one class an image alone must not train on anything else."""
    from vprompt.backbones import tiny_clip
    from vprompt.core import registry
    from vprompt.core.errors import VPromptError
    from vprompt.learning.tune import tune

    trained, refused = set(), set()
    clip = tiny_clip.load()
    train = draw("number", 8, 1)
    goal = goal_of("number", train)
    for name in registry.names("adapters"):
        build = registry.build("adapters", name)
        try:
            adapter = build(tiny)
        except VPromptError:
            try:
                adapter = build(clip)
            except VPromptError:
                continue  # made by `combine`, which refuses by itself
        if adapter.classes_alone or adapter.own_head() is not None:
            refused.add(name)
            continue
        if adapter.backbone is not tiny:
            continue
        tuned = tune(adapter, train, None, 1, settings(epochs=1), goal=goal)
        assert math.isfinite(tuned.history[-1].train_loss or 0.0), name
        trained.add(name)
    assert {"vpt", "linear", "pro_vpt", "lora", "adapter", "bias", "mlp"} <= trained
    assert {"dpl", "coop", "zero_shot"} <= refused


# Folds


@pytest.mark.parametrize("kind", ["class", "several", "number"])
def test_folds_judge_every_image_by_a_training_without_it(tiny, settings, kind):
    from vprompt.core import registry
    from vprompt.core.progress import SILENT
    from vprompt.learning import folding
    from vprompt.learning.tune import tune

    examples = draw(kind, 18, 1)
    goal, config = goal_of(kind, examples), settings(epochs=2)
    labels = examples.labels.tolist()
    if kind == "several":
        labels = [tuple(c for c, on in enumerate(row) if on) for row in labels]
    folds = folding.Folds(3)

    def build():
        return registry.build("adapters", "vpt(num_virtual_tokens=2)")(tiny)

    found = folding.judge(build, examples, labels, folds, goal, config, SILENT)
    assert [record.epoch for record in found.history] == [0, 1, 2]
    inside = goal.inside(examples).labels
    held = folds.rows(labels)[0]
    said = {}
    others = sorted({*range(18)} - {*held})
    tune(build(), examples.subset(others), examples.subset(held), goal.outputs, config, goal=goal,
         said=said)  # fmt: skip
    torch.testing.assert_close(found.said[held], said[found.kept])
    judged = goal.judge(found.said, inside)
    assert found.record.val_loss == pytest.approx(judged.loss)
    best = max(found.history, key=lambda record: (record.quality, -record.val_loss))
    assert found.kept == best.epoch


def test_folds_say_what_does_not_go_with_them(settings, refused):
    from vprompt.learning import folding

    with refused("--folds 5 needs as many images, and there are 3", "--folds 3 at most"):
        folding.Folds(5).rows([0, 1, 0])
    with refused("--folds", "--patience 2", "Leave one"):
        folding.check(settings(patience=2))
