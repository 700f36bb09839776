"""Heads: closed forms against scikit-learn, chosen and calibrated on images held out."""

import numpy as np
import pytest
import torch
from torch.nn import functional


def cloud(images, dim, classes, distance=1.0, seed=0, shift=0.0):
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = distance * torch.randn(classes, dim, generator=randomness)
    noise = torch.randn(images, dim, generator=randomness)
    return centres[labels] + noise + shift, labels


def uneven(images=80, dim=6, classes=3, seed=0):
    """Classes of different sizes around different centres."""
    features, _ = cloud(images, dim, classes, 0.0, seed)
    labels = torch.tensor([0] * 40 + [1] * 25 + [2] * 15)
    return features + 1.5 * torch.eye(3, dim)[labels], labels


def fitted(family, strength, features, labels, classes):
    from vprompt.models.heads import Span, _fit

    span = Span.of(features.double())
    return span.lift(_fit(family, strength, span, labels, classes))


def sklearn_ridge(strength, features, labels, classes):
    """scikit-learn's ridge on one-hot labels, the penalty relative to the mean eigenvalue."""
    from sklearn.linear_model import Ridge

    x = features.double().numpy()
    centred = x - x.mean(0)
    alpha = strength * np.trace(centred.T @ centred) / x.shape[1]
    return Ridge(alpha=alpha, solver="cholesky").fit(x, np.eye(classes)[labels.numpy()])


def with_one_mistake_more(logits, labels):
    """Repeat the image of median confidence, its runner-up as the label."""
    order = logits.sort(dim=1, descending=True)
    gaps = order.values[:, 0] - order.values[:, 1]
    middle = gaps.argsort()[len(gaps) // 2]
    rows = torch.cat([logits, logits[middle][None]])
    return rows, torch.cat([labels, order.indices[middle, 1][None]])


# The two families.


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_ridge_is_scikit_learns(strength):
    features, labels = uneven()
    head = fitted("ridge", strength, features, labels, 3)
    theirs = sklearn_ridge(strength, features, labels, 3)
    np.testing.assert_allclose(head.weight.numpy(), theirs.coef_, rtol=1e-9, atol=1e-12)
    # Ours are centred over the classes, which no softmax and no argmax notices.
    centred = theirs.intercept_ - theirs.intercept_.mean()
    np.testing.assert_allclose(head.bias.numpy(), centred, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 0.9])
def test_lda_is_scikit_learns_up_to_the_degrees_of_freedom(shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = uneven()
    head = fitted("lda", shrinkage, features, labels, 3)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    model.fit(features.double().numpy(), labels.numpy())
    theirs = torch.from_numpy(model.decision_function(features.double().numpy()))
    prior = torch.tensor([40, 25, 15]).double().div(80).log()
    # scikit-learn divides the within-class scatter by N, we by N - classes.
    ours = (head.logits(features.double()) - prior) * 80 / 77 + prior
    torch.testing.assert_close(ours.log_softmax(1), theirs.log_softmax(1), rtol=1e-8, atol=1e-8)


def test_lda_by_hand():
    from vprompt.models.heads import shrinkage_lda

    features, labels = uneven()
    x, width, counts = features.double(), 6, [40, 25, 15]
    means = [x[labels == c].mean(0) for c in range(3)]
    within = torch.zeros(width, width, dtype=torch.float64)
    for row, label in zip(x, labels.tolist(), strict=True):
        within += torch.outer(row - means[label], row - means[label]) / (80 - 3)
    shrunk = 0.7 * within + 0.3 * within.trace() / width * torch.eye(width)
    inverse = torch.linalg.inv(shrunk)
    scores = torch.stack(
        [
            x @ inverse @ mean - mean @ inverse @ mean / 2 + np.log(count / 80)
            for mean, count in zip(means, counts, strict=True)
        ],
        dim=1,
    )
    found = shrinkage_lda(features, labels, 3, 0.3).logits(x)
    torch.testing.assert_close(found.log_softmax(1), scores.log_softmax(1))


@pytest.mark.parametrize("family", ["ridge", "lda"])
def test_more_dimensions_than_images_are_no_obstacle(family):
    features, labels = cloud(12, 40, 3, 3.0)
    head = fitted(family, 0.1, features, labels, 3)
    assert head.weight.isfinite().all() and head.bias.isfinite().all()
    assert torch.equal(head.logits(features.double()).argmax(1), labels)


@pytest.mark.parametrize("family", ["ridge", "lda"])
def test_features_that_are_all_alike_leave_a_finite_head(family):
    features, labels = torch.ones(10, 4), torch.arange(10) % 2
    head = fitted(family, 0.1, features, labels, 2)
    assert head.weight.isfinite().all() and head.bias.isfinite().all()


# Cross-validation.


def folds_by_hand(labels, folds=5):
    """Class by class, images are dealt over the folds in turn, as cards are."""
    fold_of, card = [None] * len(labels), 0
    for label in sorted(set(labels.tolist())):
        for row, own in enumerate(labels.tolist()):
            if own == label:
                fold_of[row] = card % folds
                card += 1
    return torch.tensor(fold_of)


def test_folds_hold_every_class_in_equal_parts():
    from vprompt.models.heads import _stratified_folds

    _, labels = uneven()
    fold_of = _stratified_folds(labels, 5)
    assert torch.equal(fold_of, folds_by_hand(labels))
    for label, size in enumerate([40, 25, 15]):
        assert torch.bincount(fold_of[labels == label]).tolist() == [size // 5] * 5


def test_the_chosen_ridge_has_the_least_held_out_loss_as_scikit_learn_measures_it():
    from vprompt.models.heads import RIDGE_STRENGTHS, closed_form

    features, labels = uneven(seed=3)
    fold_of = folds_by_hand(labels)
    losses, accuracies, scales = [], [], []
    for strength in RIDGE_STRENGTHS:
        scores = np.zeros((80, 3))
        for fold in range(5):
            fit, test = (fold_of != fold).numpy(), (fold_of == fold).numpy()
            model = sklearn_ridge(strength, features[fit], labels[fit], 3)
            scores[test] = model.predict(features.double().numpy()[test])
        logits = torch.from_numpy(scores)
        grid = torch.logspace(-3, 3, 6001, dtype=torch.float64)
        rows, targets = with_one_mistake_more(logits, labels)
        curve = torch.stack([functional.cross_entropy(s * rows, targets) for s in grid])
        scales.append(grid[curve.argmin()].item())
        losses.append(functional.cross_entropy(scales[-1] * logits, labels).item())
        accuracies.append((logits.argmax(1) == labels).double().mean().item())
    best = int(np.argmin(losses))
    head = closed_form(features, labels, 3, families=["ridge"])
    assert (head.family, head.strength) == ("ridge", RIDGE_STRENGTHS[best])
    assert head.cv_loss == pytest.approx(losses[best], rel=5e-3)  # a grid of scales
    assert head.cv_accuracy == accuracies[best]
    whole = sklearn_ridge(RIDGE_STRENGTHS[best], features, labels, 3)
    np.testing.assert_allclose(head.weight.numpy(), scales[best] * whole.coef_, rtol=5e-3)
    centred = whole.intercept_ - whole.intercept_.mean()
    np.testing.assert_allclose(head.bias.numpy(), scales[best] * centred, rtol=5e-3, atol=1e-6)


def test_the_calibration_scale_is_the_minimiser(generator):
    from vprompt.models.heads import calibrated

    logits = 20 * torch.randn(200, 4, generator=generator).double()
    labels = torch.where(
        torch.rand(200, generator=generator) < 0.6,
        logits.argmax(1),
        torch.randint(0, 4, (200,), generator=generator),
    )
    loss, accuracy, scale = calibrated(logits, labels)
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    functional.cross_entropy(logits * factor, labels).backward()
    assert abs(factor.grad * scale) < 2e-3  # flat, per relative change of the scale
    for other in (0.9 * scale, 1.1 * scale):
        assert functional.cross_entropy(logits * other, labels) > loss
    assert accuracy == (logits.argmax(1) == labels).double().mean()


def test_the_winner_is_the_best_of_both_families():
    from vprompt.models.heads import closed_form

    features, labels = uneven(seed=1)
    both = closed_form(features, labels, 3)
    alone = [closed_form(features, labels, 3, families=[family]) for family in ("ridge", "lda")]
    best = min(alone, key=lambda head: head.cv_loss)
    assert (both.family, both.strength) == (best.family, best.strength)
    assert both.cv_loss == best.cv_loss
    assert torch.equal(both.weight, best.weight) and torch.equal(both.bias, best.bias)


def test_noise_in_many_dimensions_is_met_with_more_regularisation_than_clear_classes():
    from vprompt.models.heads import RIDGE_STRENGTHS, closed_form

    clear = closed_form(*cloud(200, 5, 2, 2.0), 2, families=["ridge"])
    noisy = closed_form(*cloud(40, 60, 2, 0.1), 2, families=["ridge"])
    assert clear.strength < noisy.strength
    assert noisy.strength in RIDGE_STRENGTHS
    assert clear.cv_accuracy > 0.95


def test_separated_classes_are_told_apart_with_confidence():
    from vprompt.models.heads import closed_form

    features, labels = cloud(60, 8, 3, 5.0)
    head = closed_form(features, labels, 3)
    assert head.cv_accuracy == 1.0 and head.cv_loss < 0.05
    fresh, truth = cloud(60, 8, 3, 5.0)
    assert functional.cross_entropy(head.logits(fresh), truth) < 0.05
    assert head.weight.dtype == head.bias.dtype == torch.float32


def test_labels_of_chance_leave_a_head_that_admits_it(generator):
    from vprompt.models.heads import closed_form

    features = torch.randn(60, 30, generator=generator)
    labels = torch.randint(0, 3, (60,), generator=generator)
    head = closed_form(features, labels, 3)
    assert head.cv_loss < np.log(3) + 0.05  # an overconfident head would lose much more
    assert head.logits(features).softmax(1).max() < 0.9


def test_the_same_features_give_the_same_head():
    from vprompt.models.heads import closed_form

    features, labels = uneven()
    state = torch.get_rng_state()
    first, second = (closed_form(features, labels, 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert torch.equal(torch.get_rng_state(), state)


def test_fitting_takes_no_gradient_and_changes_no_feature():
    from vprompt.models.heads import closed_form

    features, labels = uneven()
    before = features.clone()
    head = closed_form(features.requires_grad_(), labels, 3)
    assert torch.equal(features, before)
    assert not head.weight.requires_grad


# Few images, absent classes.


@pytest.mark.parametrize("family", ["ridge", "lda"])
def test_a_class_that_no_training_image_shows_is_never_predicted(family, generator):
    from vprompt.models.heads import closed_form

    features, labels = cloud(60, 8, 3, 4.0)
    labels = torch.tensor([0, 2, 5])[labels]
    head = closed_form(features, labels, 7, families=[family])
    anything = torch.cat([features, 10 * torch.randn(500, 8, generator=generator)])
    predicted = head.logits(anything).argmax(1)
    assert set(predicted.tolist()) <= {0, 2, 5}


def test_an_image_between_far_classes_is_not_given_to_a_class_that_was_never_seen():
    from vprompt.models.heads import closed_form

    # Every class is far from the origin, so the origin is unlikely under each of them.
    features, labels = cloud(60, 8, 3, 0.0)
    features = features + 30 * torch.eye(3, 8)[labels]
    head = closed_form(features, labels, 4, families=["lda"])
    assert head.logits(torch.zeros(1, 8)).argmax(1).item() != 3


def test_an_absent_class_changes_nothing_for_the_others():
    from vprompt.models.heads import closed_form

    features, labels = uneven()
    plain = closed_form(features, labels, 3)
    gap = closed_form(features, torch.tensor([0, 2, 3])[labels], 4)
    assert (gap.family, gap.strength) == (plain.family, plain.strength)
    torch.testing.assert_close(gap.weight[[0, 2, 3]], plain.weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("families", [("ridge",), ("lda",), ("ridge", "lda")])
def test_one_image_of_every_class_is_enough(families):
    from vprompt.models.heads import closed_form

    features, labels = 5 * torch.eye(4, 10), torch.arange(4)
    head = closed_form(features, labels, 4, families=families)
    assert torch.equal(head.logits(features).argmax(1), labels)
    # No spread within a class says nothing about certainty: logits stay of an ordinary size.
    assert head.logits(features).abs().max() < 1e4


def test_without_anything_to_hold_out_the_head_still_says_how_it_was_made():
    from vprompt.models.heads import RIDGE_STRENGTHS, closed_form

    head = closed_form(5 * torch.eye(4, 10), torch.arange(4), 4, families=["ridge"])
    assert (head.family, head.strength) == ("ridge", RIDGE_STRENGTHS[2])  # the middle one
    assert head.weight.dtype == head.bias.dtype == torch.float32


def test_a_class_with_one_image_among_larger_ones_can_still_be_predicted():
    from vprompt.models.heads import closed_form

    features, labels = cloud(40, 6, 2, 1.0)
    features = torch.cat([features, torch.full((1, 6), 20.0)])
    labels = torch.cat([labels, torch.tensor([2])])
    head = closed_form(features, labels, 3)
    assert head.logits(features)[-1].argmax() == 2
    assert np.isfinite(head.cv_loss)


def test_an_unknown_family_is_answered_with_those_there_are(refused):
    from vprompt.models.heads import closed_form

    features, labels = uneven()
    with refused("No closed-form head called 'svm'", "lda, ridge"):
        closed_form(features, labels, 3, families=["svm"])


def test_a_head_works_in_the_precision_of_the_features():
    from vprompt.models.heads import closed_form

    features, labels = uneven()
    head = closed_form(features, labels, 3)
    assert head.logits(features.double()).dtype == torch.float64
    exact = head.logits(features.double())
    torch.testing.assert_close(head.logits(features).double(), exact, atol=1e-5, rtol=1e-5)
