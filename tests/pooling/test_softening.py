"""Weights between an optimum and the plain average: each rule against its written-out formula."""

import pytest
import torch

from vprompt.core.errors import VPromptError
from vprompt.transfer import _softening

OPTIMUM = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)


def _resampled() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(50, 4, generator=generator, dtype=torch.float64).pow(4).log_softmax(1).exp()


def test_none_returns_the_optimum_itself() -> None:
    assert _softening.soften_weights(OPTIMUM, "none", None) is OPTIMUM


def test_a_number_is_the_share_of_uniform_weights() -> None:
    found = _softening.soften_weights(OPTIMUM, 0.2, None)
    assert found.tolist() == pytest.approx([0.85, 0.05, 0.05, 0.05])


def test_bagged_is_the_mean_of_the_resampled_optima() -> None:
    samples = _resampled()
    found = _softening.soften_weights(OPTIMUM, "bagged", samples)
    by_hand = [sum(float(row[i]) for row in samples) / len(samples) for i in range(4)]
    assert found.tolist() == pytest.approx(by_hand)


def test_spread_pulls_by_the_share_of_variance_in_the_distance_from_uniform() -> None:
    samples = _resampled()
    mean = samples.mean(0)
    variance = sum(float(samples[:, i].var(correction=0)) for i in range(4))
    distance = sum((float(mean[i]) - 0.25) ** 2 for i in range(4))
    share = variance / (variance + distance)
    found = _softening.soften_weights(OPTIMUM, "spread", samples)
    assert found.tolist() == pytest.approx(((1 - share) * mean + share / 4).tolist())
    assert float(found.sum()) == pytest.approx(1)


def test_optima_that_agree_are_not_pulled_and_optima_that_cancel_become_uniform() -> None:
    assert _softening.uniform_share(OPTIMUM.expand(10, 4)) == 0
    assert _softening.uniform_share(torch.eye(4, dtype=torch.float64)) == 1


@pytest.mark.parametrize("rule", ["bagged", "spread"])
def test_resampled_optima_are_pulled_as_far_as_their_mean(rule: str) -> None:
    samples = _resampled()
    pulled = _softening.soften_samples(samples, rule)
    found = _softening.soften_weights(OPTIMUM, rule, samples)
    assert pulled.mean(0).tolist() == pytest.approx(found.tolist())
    assert pulled.sum(1).tolist() == pytest.approx([1.0] * len(samples))


def test_resampled_optima_of_a_hard_or_fixed_rule() -> None:
    samples = _resampled()
    assert torch.equal(_softening.soften_samples(samples, "none"), samples)
    by_hand = [[0.8 * float(value) + 0.05 for value in row] for row in samples]
    assert torch.allclose(_softening.soften_samples(samples, 0.2), torch.tensor(by_hand).double())


@pytest.mark.parametrize("bad", ["bag", -0.1, 1.5])
def test_unknown_rules_and_shares_are_refused(bad: str | float) -> None:
    with pytest.raises(VPromptError, match="soften is none, bagged, spread"):
        _softening.check(bad)
