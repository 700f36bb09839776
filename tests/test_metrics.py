"""Metrics: the H-score against a computation by hand, its bounds, and what it must not do."""

import numpy as np
import pytest
import torch


@pytest.fixture
def hscore():
    from vprompt.metrics.hscore import score

    return score


def cloud(images, dim, classes, distance, seed=0):
    """Class centres drawn at a distance from one another, with unit noise around them."""
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = distance * torch.randn(classes, dim, generator=randomness)
    return centres[labels] + torch.randn(images, dim, generator=randomness), labels


def by_hand(features, labels, rho):
    """tr(S^-1 B) in NumPy, without any shortcut, divided by classes - 1."""
    x, y = features.double().numpy(), labels.numpy()
    count, width = x.shape
    total, between = np.zeros((width, width)), np.zeros((width, width))
    for row in x:
        total += np.outer(row - x.mean(0), row - x.mean(0)) / (count - 1)
    for label in set(y.tolist()):
        off = x[y == label].mean(0) - x.mean(0)
        between += (y == label).sum() * np.outer(off, off) / (count - 1)
    shrunk = (1 - rho) * total + rho * np.trace(total) / width * np.eye(width)
    return (1 - rho) * np.trace(np.linalg.inv(shrunk) @ between) / (len(set(y.tolist())) - 1)


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.7])
def test_the_hscore_is_the_trace_written_by_hand(hscore, rho):
    features, labels = cloud(60, 7, 4, 0.7)
    assert hscore(features, labels, shrinkage=rho) == pytest.approx(by_hand(features, labels, rho))


@pytest.mark.parametrize("images, dim", [(60, 7), (20, 40)])
def test_shrinkage_is_ledoit_and_wolfs_unless_given(hscore, images, dim):
    from sklearn.covariance import LedoitWolf

    features, labels = cloud(images, dim, 4, 0.7)
    centred = (features.double() - features.double().mean(0)).numpy()
    rho = LedoitWolf(assume_centered=True).fit(centred).shrinkage_
    assert hscore(features, labels) == pytest.approx(by_hand(features, labels, rho))


def test_the_raw_hscore_is_the_share_that_labels_explain_of_linear_projections(hscore):
    # tr(S^-1 B) is the sum of squared canonical correlations of features and one-hot labels.
    features, labels = cloud(60, 5, 3, 0.7)
    onehot = torch.nn.functional.one_hot(labels).double()
    first, _ = torch.linalg.qr(features.double() - features.double().mean(0))
    second = torch.linalg.svd(onehot - onehot.mean(0), full_matrices=False).U[:, :2]
    explained = torch.linalg.svdvals(first.T @ second).square().sum() / 2
    assert hscore(features, labels, shrinkage=0.0) == pytest.approx(explained.item())


@pytest.mark.parametrize("images, dim, classes", [(30, 4, 2), (200, 30, 10), (32, 64, 4)])
@pytest.mark.parametrize("distance", [0.0, 0.5, 50.0])
def test_the_hscore_lies_between_nothing_and_one(hscore, images, dim, classes, distance):
    features, labels = cloud(images, dim, classes, distance)
    assert 0 <= hscore(features, labels) <= 1


def test_separated_classes_score_high_and_above_noise(hscore):
    scores = [hscore(*cloud(200, 16, 4, distance)) for distance in (0.0, 0.3, 1.0, 10.0)]
    assert scores == sorted(scores)
    assert scores[0] < 0.15 and scores[-1] > 0.9


def test_meaningless_labels_score_low_with_few_images_in_many_dimensions(hscore):
    scores = []
    for seed in range(5):
        features, labels = cloud(32, 64, 4, 0.0, seed)
        scores.append(hscore(features, labels))
    assert max(scores) < 0.3


@pytest.mark.parametrize("images, dim", [(32, 64), (65, 64), (10, 9)])
def test_the_raw_hscore_is_refused_where_it_is_the_same_for_any_features(
    hscore, images, dim, refused
):
    features, labels = cloud(images, dim, 4, 1.0)
    with refused(f"{images} images in {dim} dimensions", "same for any", "ledoit_wolf"):
        hscore(features, labels, shrinkage=0.0)


def test_one_image_more_and_the_raw_hscore_is_allowed(hscore):
    features, labels = cloud(66, 64, 4, 1.0)
    assert 0 <= hscore(features, labels, shrinkage=0.0) <= 1


def test_classes_without_an_image_make_no_difference(hscore):
    features, labels = cloud(60, 7, 3, 0.7)
    spread = torch.tensor([2, 5, 11])[labels]
    assert hscore(features, spread) == pytest.approx(hscore(features, labels))


def test_the_order_of_images_and_the_names_of_classes_make_no_difference(hscore, generator):
    features, labels = cloud(60, 7, 3, 0.7)
    order = torch.randperm(60, generator=generator)
    renamed = torch.tensor([1, 2, 0])[labels[order]]
    assert hscore(features[order], renamed) == pytest.approx(hscore(features, labels))


@pytest.mark.parametrize("rho", ["ledoit_wolf", 0.3])
def test_scale_shift_and_rotation_make_no_difference(hscore, generator, rho):
    features, labels = cloud(60, 7, 3, 0.7)
    turn, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator).double())
    moved = 100 * features.double() @ turn + 5
    plain = hscore(features.double(), labels, shrinkage=rho)
    assert hscore(moved, labels, shrinkage=rho) == pytest.approx(plain)


def test_labels_of_chance_score_what_the_permutation_formula_says(hscore, generator):
    # E[tr((S + gamma I)^-1 B)] = (C - 1) df / (N - 1) over permutations, with ridge gamma.
    features, labels = cloud(100, 30, 5, 0.5)
    rho = 0.05
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / 99)
    gamma = rho / (1 - rho) * values.mean()
    expected = ((values / (values + gamma)).sum() / 99).item()
    scores = [
        hscore(features, labels[torch.randperm(100, generator=generator)], shrinkage=rho)
        for _ in range(300)
    ]
    assert np.mean(scores) == pytest.approx(expected, rel=0.02)


def test_one_class_alone_is_refused(hscore, refused):
    features, labels = cloud(20, 4, 2, 1.0)
    with refused("at least two classes"):
        hscore(features, torch.zeros_like(labels))


@pytest.mark.parametrize("wrong", [1.0, 1.5, -0.1])
def test_a_shrinkage_outside_its_range_is_refused(hscore, wrong, refused):
    features, labels = cloud(20, 4, 2, 1.0)
    with refused("shrinkage", str(wrong)):
        hscore(features, labels, shrinkage=wrong)


def test_an_unknown_name_of_a_shrinkage_is_refused(hscore, refused):
    features, labels = cloud(20, 4, 2, 1.0)
    with refused("oas", "ledoit_wolf"):
        hscore(features, labels, shrinkage="oas")


def test_features_that_are_all_alike_separate_nothing(hscore):
    features, labels = cloud(20, 4, 2, 1.0)
    assert hscore(torch.ones_like(features), labels) == 0.0
