"""Ridges: heads for numbers and for several classes, against scikit-learn's."""

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def features(generator):
    """Forty images of twelve features of very different sizes."""
    return torch.randn(40, 12, generator=generator) * torch.logspace(-1, 1, 12) + 3


@pytest.fixture
def numbers(features, generator):
    """Years, most of which the features explain."""
    noise = torch.randn(40, generator=generator)
    return (1990 + 10 * features[:, 3] - 4 * features[:, 7] + noise).double()


def penalty(features, strength):
    """Return what scikit-learn calls alpha: the strength times the mean of the scatter's values."""
    centred = features.double() - features.double().mean(0)
    return strength * centred.square().sum().item() / features.shape[1]


@pytest.mark.parametrize("count", [40, 8])  # more images than features, and fewer
def test_a_head_for_numbers_is_scikit_learns_ridge(features, numbers, count):
    from sklearn.linear_model import Ridge

    from vprompt.models.ridges import for_numbers

    features, numbers = features[:count], numbers[:count]
    head = for_numbers(features, numbers)
    assert head.target == "number" and head.numbers and head.family == "ridge"
    theirs = Ridge(alpha=penalty(features, head.strength)).fit(features.numpy(), numbers.numpy())
    assert head.weight[0].numpy() == pytest.approx(theirs.coef_, rel=1e-4, abs=1e-5)
    said = head.logits(features)[:, 0].numpy()
    assert said == pytest.approx(theirs.predict(features.numpy()), rel=1e-5)


def test_its_strength_is_the_one_of_least_error_on_held_out_folds(features, numbers):
    from sklearn.linear_model import Ridge

    from vprompt.models.heads import RIDGE_STRENGTHS
    from vprompt.models.ridges import for_numbers

    order = numbers.argsort(stable=True).numpy()
    fold = np.empty(40, int)
    fold[order] = np.arange(40) % 5
    errors = {}
    for strength in RIDGE_STRENGTHS:
        said = np.empty(40)
        for number in range(5):
            fit, test = fold != number, fold == number
            alpha = penalty(features[fit], strength)
            model = Ridge(alpha=alpha).fit(features[fit].numpy(), numbers[fit].numpy())
            said[test] = model.predict(features[test].numpy())
        errors[strength] = float(np.mean((said - numbers.numpy()) ** 2))
    head = for_numbers(features, numbers)
    assert head.strength == min(errors, key=errors.get)
    share = errors[head.strength] / numbers.numpy().var()
    assert head.cv_loss == pytest.approx(share, rel=1e-4) and head.cv_loss < 0.2


def test_a_head_for_several_classes_is_ridge_then_one_slope_and_offsets(features):
    from sklearn.linear_model import Ridge

    from vprompt.models.ridges import for_several

    sets = torch.stack([features[:, 3] > 3, features[:, 8] > 4, features[:, 3] > 3.1], 1).float()
    head = for_several(features, sets)
    assert head.target == "several" and head.sigmoid and head.thresholds.tolist() == [0.5] * 3
    theirs = Ridge(alpha=penalty(features, head.strength)).fit(features.numpy(), sets.numpy())
    slopes = head.weight.numpy() / theirs.coef_
    assert (
        slopes == pytest.approx(np.full_like(slopes, slopes[0, 0]), rel=1e-3) and slopes[0, 0] > 0
    )
    assert ((head.logits(features) > 0) == (sets > 0)).float().mean() > 0.85


def test_probabilities_are_fitted_as_platt_did():
    """One class alone has the slope and offset of a logistic regression on softened targets."""
    from scipy.optimize import minimize

    from vprompt.models.ridges import fit_probabilities

    rng = np.random.default_rng(0)
    shown = rng.random(60) < 0.3
    said = 0.3 * shown + 0.3 * rng.random(60)
    _, slope, offsets = fit_probabilities(
        torch.from_numpy(said[:, None]), torch.from_numpy(shown[:, None].astype(float))
    )
    count = shown.sum()
    soft = np.where(shown, (count + 1) / (count + 2), 1 / (60 - count + 2))

    def loss(point):
        logits = point[0] * said + point[1]
        return np.mean(np.logaddexp(0, logits) - soft * logits)

    found = minimize(
        loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "maxiter": 4000}
    )
    assert [slope, offsets.item()] == pytest.approx(found.x, rel=1e-2)


def test_a_class_of_all_images_or_of_none_has_one_answer_for_every_image(features):
    from vprompt.models.ridges import for_several

    sets = torch.stack([torch.ones(40), torch.zeros(40), (features[:, 3] > 3).float()], 1)
    head = for_several(features, sets)
    shares = head.probabilities(head.logits(features))
    assert shares[:, 0].tolist() == pytest.approx([41 / 42] * 40, rel=1e-5)
    assert shares[:, 1].tolist() == pytest.approx([1 / 42] * 40, rel=1e-5)
    assert torch.isfinite(head.weight).all()


@pytest.mark.parametrize("count", [1, 2])
def test_two_images_are_enough_for_a_head(features, numbers, count):
    from vprompt.models.ridges import for_numbers, for_several

    head = for_numbers(features[:count], numbers[:count])
    assert torch.isfinite(head.logits(features)).all()
    sets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:count]
    assert torch.isfinite(for_several(features[:count], sets).logits(features)).all()


def test_the_head_of_one_class_an_image_is_as_it_was(features):
    """The two ridges share their formula; its bits may not move."""
    from torch.nn import functional

    from vprompt.models.heads import head_path

    labels = torch.arange(40) % 3
    data = features.double()
    [(_, head)] = head_path("ridge", data, labels, 3, 12, (0.1,))
    mean = data.mean(0)
    centred = data - mean
    targets = functional.one_hot(labels, 3).double()
    prior = targets.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    rotated = vectors.T @ (centred.T @ (targets - prior))
    strength = 0.1 * (values.sum() / 12).clamp_min(1e-30)
    weight = (vectors @ (rotated / (values.clamp_min(0) + strength)[:, None])).T
    bias = prior - weight @ mean
    assert torch.equal(head.weight, weight - weight.mean(0))
    assert torch.equal(head.bias, bias - bias.mean())
