"""Measure: right numbers, and a test split that opens once and to nobody else."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # steps this small only wait for a second thread
SOURCE = Path(__file__).parents[2] / "src" / "vprompt"


@pytest.fixture
def task():
    """Twelve digits to learn from, as many to choose by, and ten to test on."""
    from dataclasses import replace

    from vprompt import open_task
    from vprompt.data.task import SealedSplit

    whole = open_task("digits").few_shot(2, seed=0)
    test = whole.train.subset(range(10), "test")
    return replace(whole, test=SealedSplit(test), allow_absent=True)


@pytest.fixture
def config():
    from vprompt import TrainConfig

    return TrainConfig(epochs=0)


@pytest.mark.parametrize("count", [1, 2, 10, 797])
def test_the_interval_is_wilson_s(count):
    from scipy.stats import binomtest

    from vprompt.results.measure import wilson_interval

    for successes in {0, 1, count // 3, count // 2, count - 1, count}:
        wanted = binomtest(successes, count).proportion_ci(0.95, method="wilson")
        found = wilson_interval(successes, count)
        assert found == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
def test_measurements_agree_with_scikit_learn(classes, generator):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

    from vprompt.results.measure import judge

    labels = torch.arange(60) % classes
    labels[:20] = 0  # unbalanced
    logits = torch.randn(60, classes, generator=generator)
    logits[torch.arange(60), labels] += 1
    found = judge(logits, labels)
    guesses, y = logits.argmax(1).numpy(), labels.numpy()
    assert found.images == 60
    assert found.acc1 == pytest.approx(accuracy_score(y, guesses))
    assert found.mean_per_class_recall == pytest.approx(balanced_accuracy_score(y, guesses))
    assert found.majority == pytest.approx(np.bincount(y).max() / 60)
    if classes > 5:
        top5 = top_k_accuracy_score(y, logits.numpy(), k=5, labels=range(classes))
        assert found.acc5 == pytest.approx(top5)
    else:
        assert found.acc5 is None  # it would be 1 for any logits


def test_recall_is_averaged_over_the_classes_that_occur():
    from vprompt.results.measure import judge

    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [9, 0, 0], [0, 0, 9]])
    found = judge(logits, torch.tensor([0, 0, 2, 2]))
    assert found.mean_per_class_recall == pytest.approx(0.75)


def test_a_measurement_is_plain_json():
    import json

    from vprompt.results.measure import judge

    found = judge(torch.eye(3), torch.tensor([0, 1, 1])).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_features_are_those_of_the_whole_backbone_in_any_batch_size(tiny, pool, task):
    from vprompt import extract
    from vprompt.learning.classifier import features_of

    examples = task.examples(task.train, tiny.data_config)
    prompt = pool["birds"]
    with torch.no_grad():
        images = tiny.normalise(torch.from_numpy(np.array(examples.pixels)))
        wanted = extract(tiny, images, prompt)
    for size in (3, 64):
        found = features_of(tiny, prompt, examples, batch_size=size, precision="fp32")
        assert not found.requires_grad and found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# The test split


def test_a_task_without_a_test_split_says_so(tiny, task, refused):
    from dataclasses import replace

    from vprompt.results.measure import test_accuracy

    with refused("'digits' has no test split"):
        test_accuracy(tiny, replace(task, test=None), {})


def test_all_candidates_are_measured_in_one_visit(tiny, task, pool):
    from vprompt.models.heads import Head
    from vprompt.results.measure import test_accuracy

    head = Head(torch.zeros(10, tiny.feature_dim), torch.arange(10.0))
    found = test_accuracy(tiny, task, {"plain": (None, head), "birds": (pool["birds"], head)})
    assert list(found) == ["plain", "birds"] and task.test.opened == 1


def test_learning_opens_it_once_and_only_when_asked(tiny, task, config):
    from vprompt import learn

    learn(task, model=tiny, config=config, test=False)
    assert task.test.opened == 0
    learn(task, model=tiny, config=config)
    assert task.test.opened == 1


def test_combining_opens_it_once_and_scoring_never(tiny, task, config, tmp_path):
    from vprompt import combine, learn, score

    for name in ("one", "two"):
        learn(task, model=tiny, config=config, output=tmp_path / "pool" / name, test=False)
    score(task, pool=tmp_path / "pool", model=tiny)
    assert task.test.opened == 0
    pool = tmp_path / "pool"
    combine(task, pool=pool, model=tiny, config=config, include_self=True)
    assert task.test.opened == 1


def test_few_shots_leave_it_closed(task):
    task.few_shot(1, seed=0)
    assert task.test.opened == 0 and len(task.test) == 10


def test_nobody_else_can_open_it(task, refused):
    with refused("test split 'test' can be opened by vprompt.results.measure alone", __name__):
        task.test.open()
    with refused("can be opened by vprompt.results.measure alone"):
        list(map(lambda sealed: sealed.open(), [task.test]))
    assert task.test.opened == 0


def test_no_other_file_opens_it():
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        opened = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "open"
            and "test" in ast.unparse(node.func.value)
        ]
        assert opened == (["task.test.open"] if path.name == "measure.py" else []), path
        assert "_SealedSplit__" not in text, path


def test_the_paired_gain_counts_the_images_on_which_two_candidates_differ():
    from vprompt.results.measure import paired_gain

    right = torch.tensor([1, 1, 1, 1, 0, 0, 0, 1, 1, 1]).bool()
    reference = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1, 1]).bool()
    gain = paired_gain(right, reference, over="no prompt")
    assert (gain.only_here, gain.only_there, gain.over) == (3, 1, "no prompt")
    # The standard error of a mean of per-image differences, by hand.
    differences = right.double() - reference.double()
    error = differences.std(correction=0).item() / 10**0.5
    assert gain.difference == pytest.approx(differences.mean().item())
    assert gain.high - gain.low == pytest.approx(2 * 1.959964 * error)
