"""Measured: mean average precision, R2 and errors with their intervals, against scikit-learn."""

import numpy as np
import pytest
import torch


@pytest.fixture
def several(generator):
    """Logits and sets of four classes, the last of which no image shows; some logits are equal."""
    labels = (torch.rand(80, 4, generator=generator) < 0.4).float()
    labels[:, 3] = 0
    logits = (2 * labels + torch.randn(80, 4, generator=generator)).mul(4).round() / 4
    return logits, labels


def head_of(classes):
    from vprompt.models.heads import Head

    zeros = torch.zeros(classes, 1), torch.zeros(classes)
    return Head(*zeros, sigmoid=True, thresholds=torch.full((classes,), 0.7))


def test_weighted_average_precision_is_scikit_learns(several):
    from sklearn.metrics import average_precision_score

    from vprompt.results.several import _Order

    logits, labels = (part[:, 0].double().numpy() for part in several)
    weights = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=6).astype(float)
    found = _Order.of(logits, labels > 0.5).average_precision(weights)
    theirs = [average_precision_score(labels, logits, sample_weight=each) for each in weights]
    assert found == pytest.approx(theirs)


def test_several_classes_are_measured_with_each_class(several):
    from sklearn.metrics import average_precision_score, f1_score

    from vprompt.results.several import Judge

    logits, labels = several
    judge = Judge(labels, ("a", "b", "c", "d"))
    first = judge("no prompt", head_of(4), torch.randn(80, 4))
    found = judge("learned", head_of(4), logits)
    theirs = [average_precision_score(labels[:, c], logits[:, c]) for c in range(3)]
    assert found.mean_average_precision == pytest.approx(np.mean(theirs))
    assert found.average_precision["d"] is None and list(found.average_precision) == list("abcd")
    assert found.low < found.mean_average_precision < found.high
    said = (logits.sigmoid() >= 0.7).numpy()
    assert found.f1 == pytest.approx(f1_score(labels[:, :3], said[:, :3], average="macro"))
    assert first.gain is None and found.gain.over == "no prompt" and found.gain.low > 0
    assert found.chance == pytest.approx(labels[:, :3].mean().item())
    assert found.to_json()["gain"]["difference"] == pytest.approx(
        found.mean_average_precision - first.mean_average_precision
    )


def test_numbers_are_measured_by_r2_and_by_how_far_they_are_off(generator):
    from sklearn.metrics import mean_absolute_error, r2_score

    from vprompt.results.numbers import Judge

    wanted = 1e6 + 100 * torch.randn(60, generator=generator).double()
    near = wanted[:, None] + 20 * torch.randn(60, 1, generator=generator)
    far = wanted[:, None] + 90 * torch.randn(60, 1, generator=generator)
    judge = Judge(wanted)
    first, found = judge("no prompt", head_of(1), far), judge("learned", head_of(1), near)
    assert found.r2 == pytest.approx(r2_score(wanted, near[:, 0]))
    assert found.mae == pytest.approx(mean_absolute_error(wanted, near[:, 0]))
    assert found.low < found.r2 < found.high and found.mae_low < found.mae < found.mae_high
    assert found.gain.difference == pytest.approx(found.r2 - first.r2) and found.gain.low > 0
    spread = (wanted - wanted.mean()).abs().mean().item()
    assert found.mae_of_mean == pytest.approx(spread)


def test_numbers_that_are_all_the_same_have_an_error_and_no_r2():
    from vprompt.results.numbers import Judge

    judge = Judge(torch.full((5,), 3.0, dtype=torch.float64))
    for name in ("no prompt", "learned"):
        found = judge(name, head_of(1), torch.full((5, 1), 4.0))
        assert found.r2 is None and found.low is None and found.gain is None and found.mae == 1


def test_an_interval_holds_the_truth_as_often_as_it_says(generator):
    """Of many samples of one population, about 95 % of the intervals hold its R2."""
    from vprompt.results.numbers import Judge

    held = 0
    for _ in range(60):
        wanted = torch.randn(80, generator=generator)
        said = wanted + 0.5 * torch.randn(80, generator=generator)
        found = Judge(wanted.double())("x", head_of(1), said[:, None])
        held += found.low <= 0.75 <= found.high
    assert held >= 50


def test_words_of_a_measurement_are_by_its_kind():
    from vprompt.artifacts import measured

    accuracy = {"acc1": 0.875, "low": 0.8, "high": 0.9}
    precision = {"mean_average_precision": 0.5, "low": None, "high": None, "gain": None}
    explained = {"r2": -0.25, "low": -0.5, "high": 0.1}
    explained["gain"] = {"over": "x", "difference": 0.125, "low": -0.1, "high": 0.3}
    assert measured.short(accuracy) == "87.5 %" and measured.short(precision) == "mAP 50.0 %"
    assert measured.short(explained) == "R2 -0.250" and measured.short({"r2": None}).endswith(
        "defined"
    )
    assert measured.interval(accuracy) == "80.0 to 90.0 %" and measured.interval(precision) == ""
    assert (
        measured.gain(explained) == "+0.125 (-0.100 to +0.300)" and measured.gain(precision) == ""
    )
    assert measured.is_sound(accuracy) and measured.is_sound(explained)
    assert not measured.is_sound({"acc1": 2}) and not measured.is_sound({"r2": "x"})
    assert not measured.is_sound([]) and not measured.is_sound({})
