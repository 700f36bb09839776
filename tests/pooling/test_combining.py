"""Combining: which start is safe, and by how much another one has to be better."""

import pytest
import torch


@pytest.fixture
def start():
    """Return a function that makes a start of these held-out losses, as `make_starts` does."""
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt

    prompt = Prompt(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))

    def make(losses, *, prompted=True):
        held_out = None if losses is None else torch.as_tensor(losses, dtype=torch.float64)
        head = Head(torch.zeros(2, 4), torch.zeros(2), cv_losses=held_out)
        return (prompt if prompted else None, head), {}

    return make


def test_the_gain_is_the_paired_mean_less_its_standard_errors():
    from vprompt.pooling.combining import clear_gain

    before, after = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 1.8, 3.0])
    gaps = [0.5, 0.2, 1.0]
    mean = sum(gaps) / 3
    error = (sum((gap - mean) ** 2 for gap in gaps) / 2) ** 0.5 / 3**0.5
    assert clear_gain(before, after, 0.0) == pytest.approx(mean)
    assert clear_gain(before, after, 1.5) == pytest.approx(mean - 1.5 * error)


def test_a_clearly_better_start_is_taken(start):
    from vprompt.pooling.combining import MIXED, UNIFORM, safest_start

    starts = {
        "best single (x)": start([1.2, 1.1, 1.3, 1.2]),
        UNIFORM: start([0.5, 0.6, 0.7, 0.6]),
        MIXED: start([1.0, 1.0, 1.3, 1.1]),
    }
    assert safest_start(starts) == UNIFORM


def test_a_noisy_advantage_is_not_enough(start):
    from vprompt.pooling.combining import MIXED, UNIFORM, safest_start

    starts = {UNIFORM: start([0.1, 1.9, 0.2, 1.3]), MIXED: start([1.0, 1.0, 1.0, 1.0])}
    assert starts[UNIFORM][0][1].cv_losses.mean() < starts[MIXED][0][1].cv_losses.mean()
    assert safest_start(starts) == MIXED


def test_the_luckiest_of_twelve_equal_sources_is_hardly_ever_taken(start, generator):
    from vprompt.pooling.combining import MIXED, clear_gain, safest_start

    switched = lucky = 0
    for _ in range(300):
        mixed, *singles = torch.rand(13, 50, generator=generator).log().neg()
        best = min(singles, key=torch.mean)
        switched += safest_start({"best single (x)": start(best), MIXED: start(mixed)}) != MIXED
        lucky += clear_gain(mixed, best, 2.0) > 0
    assert switched <= 0.05 * 300 < 0.1 * 300 <= lucky


def test_no_prompt_is_never_where_tuning_starts_and_a_tie_is_the_mix(start):
    from vprompt.pooling.combining import MIXED, UNIFORM, safest_start

    starts = {
        "no prompt": start([0.0, 0.1, 0.0, 0.1], prompted=False),
        UNIFORM: start([1.0, 1.2, 1.1, 1.0]),
        MIXED: start([1.0, 1.2, 1.1, 1.0]),
    }
    assert safest_start(starts) == MIXED


def test_where_nothing_could_be_held_out_the_mix_it_is(start):
    from vprompt.pooling.combining import MIXED, UNIFORM, safest_start

    assert safest_start({UNIFORM: start([0.1, 0.2]), MIXED: start(None)}) == MIXED


def test_held_out_losses_of_two_heads_are_of_the_same_images(generator):
    """Paired differences need one order: shuffled features, same labels, same rows."""
    from vprompt.models.heads import closed_form

    labels = torch.arange(60) % 3
    features = torch.randn(60, 5, generator=generator) + labels[:, None]
    first = closed_form(features, labels, 3)
    again = closed_form(features @ torch.diag(torch.tensor([2.0, 1, 1, 1, 1])), labels, 3)
    assert first.cv_losses.shape == again.cv_losses.shape == (60,)
    assert float(first.cv_losses.mean()) == pytest.approx(first.cv_loss)
    spoilt = features.clone()
    spoilt[labels == 2] = torch.randn(20, 5, generator=generator)  # these images are hard now
    harder = closed_form(spoilt, labels, 3).cv_losses > first.cv_losses
    assert harder.double().mean() > 0.3
