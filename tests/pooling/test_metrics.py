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
    with refused("bayes", "ledoit_wolf"):
        hscore(features, labels, shrinkage="bayes")


def test_features_that_are_all_alike_separate_nothing(hscore):
    features, labels = cloud(20, 4, 2, 1.0)
    assert hscore(torch.ones_like(features), labels) == 0.0


# The other metrics, each against another way to compute it.


def clusters(count=60, width=8, classes=4, signal=1.0, seed=0):
    """Features with class centres, and labels that name them."""
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=randomness)
    noise = torch.randn(count, width, generator=randomness)
    return signal * centres[labels] + noise, labels


def metric(name, **settings):
    from vprompt.core import registry

    return registry.build("metrics", registry.Spec(name, settings))


def test_trace_ratio_is_between_over_total():
    features, labels = clusters()
    x, y = features.double().numpy(), labels.numpy()
    means = np.stack([x[y == label].mean(0) for label in y])
    expected = np.trace(np.cov(means.T)) / np.trace(np.cov(x.T))
    assert metric("trace_ratio")(features, labels) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count, width", [(60, 8), (30, 80)])
def test_logme_is_the_largest_gaussian_evidence(count, width):
    """M6: the marginal likelihood of every one-hot column, maximised by another optimiser."""
    from scipy.optimize import minimize
    from scipy.stats import multivariate_normal

    features, labels = clusters(count, width)
    x, y = features.double().numpy(), labels.numpy()

    def negative(logs, target):
        covariance = np.eye(count) / np.exp(logs[1]) + x @ x.T / np.exp(logs[0])
        return -multivariate_normal(np.zeros(count), covariance).logpdf(target)

    found = []
    for label in range(4):
        target = (y == label).astype(float)
        best = minimize(negative, [3.0, 2.0], args=(target,), method="Nelder-Mead")
        found.append(-best.fun / count)
    assert metric("logme")(features, labels) == pytest.approx(np.mean(found), abs=2e-4)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6, 1e9])
def test_the_unit_of_the_features_makes_no_difference_to_logme(scale):
    features, labels = clusters(60, 8)
    here = metric("logme")(features.double(), labels)
    assert metric("logme")(scale * features.double(), labels) == pytest.approx(here, abs=2e-3)


def test_logme_of_features_of_zero_is_the_evidence_of_noise_alone():
    """Every column is then drawn from N(0, its own mean square)."""
    from scipy.stats import norm

    labels = torch.arange(60) % 4
    column = (labels == 0).double().numpy()
    expected = norm(0, np.sqrt(np.mean(column**2))).logpdf(column).mean()
    assert metric("logme")(torch.zeros(60, 8), labels) == pytest.approx(expected)


def test_logme_with_fewer_images_than_dimensions_is_not_the_published_figure():
    """M7: about 0.24, where the widely copied code returns 7.86."""
    randomness = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (300,), generator=randomness)
    centres = torch.randn(10, 768, generator=randomness)
    features = torch.randn(300, 768, generator=randomness) + 0.3 * centres[labels]
    assert metric("logme")(features, labels) == pytest.approx(0.24, abs=0.05)


@pytest.mark.parametrize("count, width", [(60, 8), (24, 40)])
@pytest.mark.parametrize("weighted", [False, True])
def test_transrate_is_the_difference_of_coding_rates(count, width, weighted):
    """M10: by D x D determinants, whichever form was used."""
    features, labels = clusters(count, width)
    labels = torch.where(labels == 3, 0, labels)  # one class with twice the images
    x, y = features.double().numpy(), labels.numpy()
    x = x - x.mean(0)

    def rate(rows):
        return np.linalg.slogdet(np.eye(width) + rows.T @ rows / (len(rows) * 0.01))[1] / 2

    rates, shares = [rate(x[y == c]) for c in range(3)], [np.mean(y == c) for c in range(3)]
    expected = rate(x) - np.average(rates, weights=shares if weighted else None)
    found = metric("transrate", epsilon=0.01, class_weighted=weighted)(features, labels)
    assert found == pytest.approx(expected, rel=1e-8)


def test_a_relative_epsilon_makes_transrate_free_of_scale():
    features, labels = clusters()
    relative = metric("transrate", epsilon=0.1, relative=True)
    assert relative(5 * features, labels) == pytest.approx(relative(features, labels), rel=1e-6)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_gbc_is_minus_the_sum_of_bhattacharyya_coefficients(covariance):
    features, labels = clusters(width=3)
    x, y = features.double().numpy(), labels.numpy()
    x = x - x.mean(0)
    parts = []
    for label in range(4):
        spread = np.cov(x[y == label].T)
        if covariance == "diagonal":
            spread = np.diag(np.diag(spread))
        elif covariance == "spherical":
            spread = np.eye(3) * np.trace(spread) / 3
        parts.append((x[y == label].mean(0), spread))
    total = 0.0
    for one in range(4):
        for other in range(4):
            if one != other:
                (m, s), (n, r) = parts[one], parts[other]
                middle = (s + r) / 2
                distance = (m - n) @ np.linalg.solve(middle, m - n) / 8 + 0.5 * np.log(
                    np.linalg.det(middle) / np.sqrt(np.linalg.det(s) * np.linalg.det(r))
                )
                total += np.exp(-distance)
    plain = metric("gbc", covariance=covariance, log=False)(features, labels)
    assert plain == pytest.approx(-total, rel=1e-8)
    logged = metric("gbc", covariance=covariance)(features, labels)
    assert logged == pytest.approx(-np.log(total), rel=1e-8)


def test_gbc_is_one_number_for_isotropic_classes_in_either_form():
    """M11, with features whose class covariances are exactly multiples of the identity."""
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    features = torch.cat([corners, 2 * corners + torch.tensor([5.0, 1])]).double()
    labels = torch.arange(8) // 4
    forms = [metric("gbc", covariance=c)(features, labels) for c in ("spherical", "diagonal")]
    assert forms[0] == pytest.approx(forms[1], rel=1e-12)
    full = metric("gbc", covariance="full")(features, labels)
    assert full == pytest.approx(forms[0], rel=1e-8)


def test_gbc_of_few_images_is_that_on_the_axes_they_span():
    """With fewer images than axes a lossless rotation must not change the value."""
    features, labels = clusters(count=20)
    features = torch.nn.functional.pad(features, (0, 100))
    mixed = torch.linalg.qr(torch.randn(len(features.T), len(features.T)).double())[0]
    centred = features.double() - features.double().mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][: len(features) - 1]
    value = metric("gbc")(features, labels)
    assert value == pytest.approx(metric("gbc")(features.double() @ mixed, labels), rel=1e-6)
    assert value == pytest.approx(metric("gbc")(centred @ axes.T, labels))


@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_gbc_by_the_other_convention_is_the_released_code_s(covariance, scale):
    """Variances over n, the floor under each axis, then their mean; one logarithm if spherical."""
    features, labels = clusters(width=100)
    features[:, :3] *= 1e-3  # below the floor
    features = scale * features
    x, y = features.double().numpy(), labels.numpy()
    means = [x[y == label].mean(0) for label in range(4)]
    variances = [np.maximum(x[y == label].var(0), 1e-4) for label in range(4)]
    if covariance == "spherical":
        variances = [spread.mean() for spread in variances]
    total = 0.0
    for one in range(4):
        for other in range(4):
            if one == other:
                continue
            middle = (variances[one] + variances[other]) / 2
            distance = ((means[one] - means[other]) ** 2 / middle).sum() / 8
            distance += np.sum(np.log(middle)) / 2
            distance -= (np.sum(np.log(variances[one])) + np.sum(np.log(variances[other]))) / 4
            total += np.exp(-distance)
    published = metric("gbc", covariance=covariance, convention="published")
    assert published(features, labels) == pytest.approx(-total, rel=1e-9)
    logged = metric("gbc", covariance=covariance, convention="published", log=True)
    assert logged(features, labels) == pytest.approx(-np.log(total), rel=1e-9)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"convention": "paper"}, ("convention is one of axes, published", "paper")),
        (
            {"convention": "published", "covariance": "full"},
            ("no full covariance", "spherical or diagonal"),
        ),
        (
            {"convention": "published", "dimensions": 32},
            ("no principal axes", "Leave out dimensions"),
        ),
    ],
)
def test_what_the_released_gbc_lacks_is_refused(settings, words, refused):
    with refused(*words):
        metric("gbc", **settings)(*clusters())


def test_parc_is_the_rank_correlation_of_two_distances():
    from scipy.stats import spearmanr

    features, labels = clusters(count=20)
    x, y = features.double().numpy(), labels.numpy()
    x = (x - x.mean(0)) / x.std(0)
    pairs = [(i, j) for i in range(20) for j in range(i + 1, 20)]
    alike = [1 - np.corrcoef(x[i], x[j])[0, 1] for i, j in pairs]
    same = [float(y[i] != y[j]) for i, j in pairs]
    expected = 100 * spearmanr(alike, same).statistic
    assert metric("parc")(features, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_parc_of_one_image_of_a_class_is_zero_and_says_nothing():
    features, _ = clusters(count=20)
    assert metric("parc")(features, torch.arange(20)) == 0


@pytest.mark.parametrize("neighbours", [1, 3])
def test_knn_is_scikit_learns_left_out_one_by_one(neighbours):
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = clusters(signal=0.7)
    # With two classes an odd number of neighbours cannot tie.
    labels = (labels > 1).long()
    model = KNeighborsClassifier(neighbours, metric="cosine")
    scores = cross_val_score(model, features.double().numpy(), labels.numpy(), cv=LeaveOneOut())
    assert metric("knn", neighbours=neighbours)(features, labels) == pytest.approx(scores.mean())


def test_knn_breaks_ties_by_the_nearest():
    angles = torch.tensor([0.0, 0.1, 0.3, 0.6, 3.0])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 0, 1, 2, 1])
    # Seen from the first image, its neighbours 0, 1 and 2 have one vote each: the nearest wins.
    nearest = labels[1]
    assert nearest == labels[0]
    found = metric("knn", neighbours=3)(features, labels)
    right = []
    for row in range(5):
        order = sorted((abs(angles[row] - a).item(), i) for i, a in enumerate(angles) if i != row)
        votes = [labels[i].item() for _, i in order[:3]]
        best = max(votes, key=lambda v, votes=votes: (votes.count(v), -votes.index(v)))
        right.append(best == labels[row])
    assert found == pytest.approx(sum(right) / 5)


def test_linear_probe_is_the_closed_form_heads_cross_validation():
    from vprompt.models.heads import closed_form

    features, labels = clusters()
    head = closed_form(features, labels, 4)
    assert metric("linear_probe")(features, labels) == pytest.approx(-head.cv_loss)
    accuracy = metric("linear_probe", measure="accuracy")(features, labels)
    assert accuracy == pytest.approx(head.cv_accuracy)


def released_sfda(features, labels):
    """The steps of the released code in NumPy and SciPy, with what it mixes and how it shrinks."""
    from scipy import linalg

    x, y = features.double().numpy().copy(), labels.numpy()
    shares = np.bincount(y) / len(y)
    classes = range(len(shares))

    def largest(matrix):
        one = matrix.sum(1)
        for _ in range(3):
            other = matrix @ one / np.linalg.norm(matrix @ one)
            one = matrix @ other / np.linalg.norm(matrix @ other)
        return one @ matrix @ other

    def shrink(matrix, amount):
        return (1 - amount) * matrix + amount * np.trace(matrix) / len(matrix) * np.eye(len(matrix))

    def posteriors(amount):
        means = np.stack([x[y == label].mean(0) for label in classes])
        within = sum(
            share * np.cov(x[y == label].T, bias=True)
            for label, share in zip(classes, shares, strict=True)
        )
        amount = max(np.exp(-5 * largest(within)), 1e-10) if amount is None else amount
        between = shrink(np.cov(x.T, bias=True), amount) - shrink(within, amount)
        directions = linalg.eigh(between, shrink(within, amount))[1]
        slopes = means @ directions @ directions.T
        logits = x @ slopes.T - (means * slopes).sum(1) / 2 + np.log(shares)
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        return exponents / exponents.sum(1, keepdims=True), amount

    first, amount = posteriors(None)
    softened = np.exp(first) / np.exp(first).sum(1, keepdims=True)
    means = np.stack([x[y == label].mean(0) for label in classes])
    for row, label in enumerate(y):
        others = np.mean([means[c] for c in classes if c != label], axis=0)
        x[row] = softened[row, label] * x[row] + (1 - softened[row, label]) * others
    return posteriors(amount)[0][np.arange(len(y)), y].mean()


@pytest.mark.parametrize("signal", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 5.0])
def test_sfda_is_what_the_released_code_computes(signal, scale):
    """Small features have a shrinkage that counts, large ones the least there is."""
    features, labels = clusters(signal=signal)
    labels = torch.where(labels == 3, 0, labels)  # classes of different sizes
    found = metric("sfda")(scale * features, labels)
    assert found == pytest.approx(released_sfda(scale * features, labels), rel=1e-9)
    assert found < 1


def test_sfda_tells_sources_apart_whose_first_round_is_sure_of_every_image():
    """Without the second softmax nothing was mixed in, and all of these came within 1e-11 of 1."""
    given = [clusters(count=200, width=6, signal=signal) for signal in (4, 5, 6)]
    found = [metric("sfda")(*each) for each in given]
    assert found == pytest.approx([released_sfda(*each) for each in given], rel=1e-9)
    assert found[0] < found[1] < found[2] < 1 - 1e-5


def test_sfda_of_features_that_do_not_vary_is_finite():
    labels = torch.arange(12) % 3
    assert metric("sfda")(torch.ones(12, 4), labels) == pytest.approx(1 / 3)
    corners = torch.eye(3)[labels]
    assert metric("sfda")(corners, labels) == pytest.approx(1.0)


ALL = ["hscore", "trace_ratio", "logme", "transrate", "gbc", "parc", "knn", "linear_probe", "sfda"]


@pytest.mark.parametrize("name", ALL)
def test_separated_classes_score_higher_than_shuffled_labels(name, generator):
    """M3, and M1: the caller's features stay as they are."""
    features, labels = clusters(signal=1.5)
    before = features.clone()
    found = metric(name)(features, labels)
    shuffled = labels[torch.randperm(len(labels), generator=generator)]
    assert found > metric(name)(features, shuffled)
    assert torch.equal(features, before)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_images_and_the_names_of_classes_do_not_matter(name, generator):
    """M2; folds follow the order, so the probe is looser."""
    features, labels = clusters(signal=1.5)
    order = torch.randperm(len(labels), generator=generator)
    renamed = torch.tensor([7, 2, 9, 4])[labels]
    plain = metric(name)(features, labels)
    assert metric(name)(features, renamed) == pytest.approx(plain, rel=1e-8)
    loose = 0.3 if name == "linear_probe" else 1e-8
    assert metric(name)(features[order], labels[order]) == pytest.approx(plain, rel=loose)


@pytest.mark.parametrize("name", ALL)
def test_one_class_is_refused(name, refused):
    features, labels = clusters()
    with refused("at least two classes"):
        metric(name)(features, torch.zeros_like(labels))


# The H-score family once more: what was published, what is chance, what is wrong.


def test_by_the_other_convention_the_raw_hscore_is_tllib_s(hscore):
    """Both covariances of `h_score` divide by N - 1, that of the class means as well."""
    features, labels = cloud(30, 6, 4, 0.7)
    x, y = features.double().numpy(), labels.numpy()
    means = np.zeros_like(x)
    for label in range(4):
        means[y == label] = x[y == label].mean(0)
    expected = np.trace(np.linalg.pinv(np.cov(x, rowvar=False)) @ np.cov(means, rowvar=False))
    found = metric("hscore", shrinkage=0, convention="tllib")(features, labels)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == pytest.approx(3 * hscore(features, labels, shrinkage=0.0), rel=1e-12)


def test_tllib_shrinks_by_less_than_our_least_where_images_are_many(hscore):
    from sklearn.covariance import LedoitWolf

    features, labels = cloud(40_000, 3, 4, 2.0)
    features = features * torch.tensor([1.0, 5.0, 20.0])
    x, y = features.double().numpy(), labels.numpy()
    estimator = LedoitWolf().fit(x - x.mean(0))
    assert estimator.shrinkage_ < 1e-4
    means = np.stack([x[y == label].mean(0) for label in range(4)])[y]
    kept = (1 - estimator.shrinkage_) * np.cov(means, rowvar=False)
    expected = np.trace(np.linalg.pinv(estimator.covariance_) @ kept)
    assert hscore(features, labels, convention="tllib") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("images, dim", [(60, 7), (40, 60)])
@pytest.mark.parametrize("rho", ["ledoit_wolf", 0.3])
def test_by_the_other_convention_the_hscore_is_tllib_s(hscore, images, dim, rho):
    """M12: one covariance over N, the other over N - 1, and a pseudo-inverse."""
    from sklearn.covariance import LedoitWolf, shrunk_covariance

    features, labels = cloud(images, dim, 4, 0.7)
    x, y = features.double().numpy(), labels.numpy()
    x = x - x.mean(0)
    estimator = LedoitWolf().fit(x)
    if rho == "ledoit_wolf":
        total, amount = estimator.covariance_, estimator.shrinkage_
    else:
        total, amount = shrunk_covariance(x.T @ x / images, rho), rho
    means = np.stack([x[y == label].mean(0) for label in y])
    between = np.cov(means, rowvar=False)
    expected = np.trace(np.linalg.pinv(total) @ ((1 - amount) * between))
    theirs = hscore(features, labels, shrinkage=rho, convention="tllib")
    assert theirs == pytest.approx(expected, rel=1e-8)
    ours = 3 * hscore(features, labels, shrinkage=rho)
    assert ours == pytest.approx((images - 1) / images * expected, rel=1e-8)


def test_an_unknown_convention_is_refused(hscore, refused):
    with refused("convention is one of share, tllib", "parc"):
        hscore(*cloud(20, 4, 2, 1.0), convention="parc")


def test_the_raw_hscore_with_few_images_is_its_bound_and_not_an_elementwise_product(hscore):
    """M5: C - 1 = 9, whatever the features; a widely copied product of entries gives another."""
    features, labels = cloud(200, 300, 10, 0.3)
    x, y = features.double().numpy(), labels.numpy()
    assert 9 * hscore(features, labels, shrinkage=1e-9) == pytest.approx(9.0, abs=1e-4)
    means = np.stack([x[y == label].mean(0) for label in y])
    total, between = np.cov(x.T), np.cov(means.T)
    inverse = np.linalg.pinv(total, rcond=1e-12)
    assert np.trace(inverse @ between) == pytest.approx(9.0, abs=1e-6)
    assert abs(np.sum(inverse * between.T) - 9.0) < 1e-6  # the trace, written as a sum
    assert abs(np.trace(inverse * between) - 9.0) > 1.0


@pytest.mark.parametrize("images, dim", [(400, 64), (300, 200)])
def test_features_of_noise_score_rank_over_images(hscore, images, dim):
    """M4 (O4): E[H] = rank (C - 1)/(N - 1) for labels that mean nothing."""
    scores = [hscore(*cloud(images, dim, 10, 0.0, seed), shrinkage=0.0) for seed in range(8)]
    assert np.mean(scores) == pytest.approx(dim / (images - 1), rel=0.05)


@pytest.mark.parametrize("images, dim", [(100, 30), (40, 60)])
def test_the_adjusted_hscore_of_permuted_labels_is_zero(images, dim, generator):
    """M13: within two standard errors."""
    features, labels = cloud(images, dim, 5, 0.5)
    adjusted = metric("hscore_adjusted")
    orders = [torch.randperm(images, generator=generator) for _ in range(200)]
    scores = np.array([adjusted(features, labels[order]) for order in orders])
    assert abs(scores.mean()) < 2 * scores.std() / len(scores) ** 0.5
    assert adjusted(features, labels) > 5 * scores.std()


@pytest.mark.parametrize("rho", ["ledoit_wolf", 0.2])
def test_the_adjusted_hscore_is_that_of_one_source_in_hgprompt(rho):
    from vprompt.pooling.scores import AdjustedHScore, HScore

    for images, dim in ((60, 7), (20, 40)):
        features, labels = cloud(images, dim, 4, 0.7)
        alone = AdjustedHScore(HScore.of(features[None], labels, rho))
        expected, _ = alone(torch.ones(1).double())
        found = metric("hscore_adjusted", shrinkage=rho)(features, labels)
        assert found == pytest.approx(expected, rel=1e-8)


def test_the_adjusted_hscore_of_perfect_features_is_one():
    labels = torch.arange(60) % 4
    features = torch.nn.functional.one_hot(labels).double()
    features = features + 1e-6 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    assert metric("hscore_adjusted", shrinkage=1e-9)(features, labels) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count, width", [(40, 6), (30, 80)])
@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (30.0, 5.0), (0.2, 40.0)])
def test_logme_s_evidence_is_the_marginal_likelihood_at_fixed_precisions(count, width, alpha, beta):
    """M6: one expression, whether images or dimensions are more."""
    from scipy.stats import multivariate_normal

    from vprompt.metrics.logme import log_evidence

    features, labels = clusters(count, width)
    x, target = features.double(), (labels == 0).double()
    left, values, _ = torch.linalg.svd(x, full_matrices=False)
    projected = (left.T @ target).square()
    precisions = [torch.tensor(value, dtype=torch.float64) for value in (alpha, beta)]
    outside = (target.square().sum() - projected.sum()).clamp_min(0)
    evidence = log_evidence(values.square(), projected, outside, *precisions, count)
    covariance = np.eye(count) / beta + x.numpy() @ x.numpy().T / alpha
    expected = multivariate_normal(np.zeros(count), covariance).logpdf(target.numpy())
    assert float(evidence) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("neighbours", [1, 2, 3, 4, 5])
def test_knn_is_the_vote_written_as_a_loop_for_one_to_five_neighbours(neighbours):
    """Ties go to the nearest among the labels that are tied."""
    features, labels = clusters(count=40, signal=0.8)
    x = torch.nn.functional.normalize(features.double())
    right = 0
    for row in range(40):
        others = [i for i in range(40) if i != row]
        order = sorted(others, key=lambda i, row=row: -float(x[row] @ x[i]))
        votes = [int(labels[i]) for i in order[:neighbours]]
        most = max(votes.count(vote) for vote in votes)
        right += next(v for v in votes if votes.count(v) == most) == int(labels[row])
    assert metric("knn", neighbours=neighbours)(features, labels) == pytest.approx(right / 40)
