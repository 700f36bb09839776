"""Metrics of heads, prompts and source images: each against a loop, a closed form, another library.

M1 to M15 are the numbers of the tests that the metrics were specified with.
"""

import itertools
import math

import numpy as np
import pytest
import torch


def metric(name, **settings):
    from vprompt.core import registry

    return registry.build("metrics", registry.Spec(name, settings))


def clusters(count=60, width=8, classes=4, signal=1.0, seed=0):
    """Features with class centres, and labels that name them."""
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=randomness)
    noise = torch.randn(count, width, generator=randomness)
    return (signal * centres[labels] + noise).double(), labels


def shares(count=40, source_classes=6, seed=0):
    """Probabilities over source classes."""
    randomness = torch.Generator().manual_seed(seed)
    return torch.randn(count, source_classes, generator=randomness).double().softmax(1)


def onehot(labels):
    return torch.nn.functional.one_hot(labels).double()


# LEEP, NCE


def leep_by_hand(theta, labels):
    """The definition, image by image and class by class."""
    theta, labels = theta.numpy(), labels.numpy()
    count, total = len(labels), 0.0
    for k in range(count):
        predicted = 0.0
        for z in range(theta.shape[1]):
            mass = sum(theta[i, z] for i in range(count))
            if mass:
                own = sum(theta[i, z] for i in range(count) if labels[i] == labels[k])
                predicted += own / mass * theta[k, z]
        total += math.log(predicted)
    return total / count


def test_leep_is_the_definition_written_as_a_loop():
    theta, labels = shares(), torch.arange(40) % 3
    assert metric("leep")(theta, labels) == pytest.approx(leep_by_hand(theta, labels), rel=1e-12)


def test_leep_and_nce_of_sure_heads_are_minus_the_conditional_entropy():
    from sklearn.metrics import mutual_info_score

    chosen, labels = torch.arange(60) % 5, (torch.arange(60) ** 2) % 7
    entropy = mutual_info_score(labels.numpy(), labels.numpy())
    expected = mutual_info_score(labels.numpy(), chosen.numpy()) - entropy
    for name in ("leep", "nce"):
        assert metric(name)(onehot(chosen), labels) == pytest.approx(expected, rel=1e-10)


def test_nce_takes_the_head_s_first_choice():
    theta, labels = shares(), torch.arange(40) % 3
    expected = metric("nce")(onehot(theta.argmax(1)), labels)
    assert metric("nce")(theta, labels) == pytest.approx(expected, rel=1e-12)


def test_leep_is_never_below_nce_and_the_entropy_of_the_labels():
    """A head that says nothing leaves LEEP at minus the entropy of the labels."""
    labels = torch.arange(40) % 4
    nothing = torch.full((40, 3), 1 / 3).double()
    assert metric("leep")(nothing, labels) == pytest.approx(-math.log(4))
    assert metric("leep")(shares(), labels) > -math.log(4)


def test_an_empty_source_class_and_an_absent_target_class_leave_scores_finite():
    """M8: nothing is divided by a mass of 0."""
    theta = torch.cat([shares(), torch.zeros(40, 2).double()], 1)
    labels = 3 * (torch.arange(40) % 3)
    for name in ("leep", "nce"):
        found = metric(name)(theta, labels)
        assert math.isfinite(found)
        assert found == pytest.approx(metric(name)(shares(), labels), rel=1e-12)


@pytest.mark.parametrize("name", ["leep", "nce"])
def test_source_and_target_are_not_the_same_thing(name):
    """M9: swapped, an example that is not symmetric gives another value."""
    source, target = torch.arange(60) % 6, torch.arange(60) % 3
    assert metric(name)(onehot(source), target) == pytest.approx(0)
    assert metric(name)(onehot(target), source) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("name", ["leep", "nce"])
def test_logits_in_place_of_probabilities_are_refused(name, refused):
    with refused("source_probabilities", "sum 1", "softmax"):
        metric(name)(10 * torch.randn(40, 6).double(), torch.arange(40) % 3)


def test_probabilities_in_single_precision_do_not_underflow():
    theta = torch.full((40, 6), 1e-30)
    theta[torch.arange(40), torch.arange(40) % 6] = 1.0
    assert metric("leep")(theta, torch.arange(40) % 3) == pytest.approx(0, abs=1e-12)


# Several sources


def test_ensembles_by_leep_are_the_formulas_written_as_loops():
    from vprompt.metrics.leep import best_subsets

    sources = {name: shares(seed=seed) for seed, name in enumerate("abcd")}
    labels = torch.arange(40) % 3

    def predictor(theta):
        table = np.zeros((3, theta.shape[1]))
        for k, label in enumerate(labels.tolist()):
            table[label] += theta[k].numpy() / 40
        conditional = table / table.sum(0)
        return np.array([conditional[label] @ theta[k].numpy() for k, label in enumerate(labels)])

    each = {name: predictor(theta) for name, theta in sources.items()}
    for rule in ("e_leep", "ms_leep"):
        found = dict(best_subsets(sources, labels, rule=rule))
        subsets = [s for size in (1, 2, 3) for s in itertools.combinations("abcd", size)]
        assert set(found) == set(subsets)
        for subset in subsets:
            if rule == "ms_leep":
                expected = np.mean([np.log(each[name]).mean() for name in subset])
            else:
                expected = np.log(np.mean([each[name] for name in subset], axis=0)).mean()
            assert found[subset] == pytest.approx(expected, rel=1e-12)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_averaging_predictors_is_never_below_averaging_scores_and_one_source_is_leep():
    from vprompt.metrics.leep import best_subsets

    sources = {name: shares(seed=seed) for seed, name in enumerate("abc")}
    labels = torch.arange(40) % 3
    averaged, mean = (dict(best_subsets(sources, labels, rule=r)) for r in ("e_leep", "ms_leep"))
    assert all(averaged[subset] >= mean[subset] - 1e-12 for subset in mean)
    assert mean[("a",)] == averaged[("a",)] == pytest.approx(metric("leep")(sources["a"], labels))
    assert len(best_subsets(sources, labels, rule="ms_leep")[0][0]) == 1  # its best is one alone


def test_sources_that_know_different_classes_are_better_together():
    from vprompt.metrics.leep import best_subsets

    labels = torch.arange(60) % 3
    knows = {f"knows {c}": onehot((labels == c).long()) for c in range(3)}
    assert len(best_subsets(knows, labels)[0][0]) == 3
    assert {len(names) for names, _ in best_subsets(knows, labels, most=2)} == {1, 2}


@pytest.mark.parametrize("wrong", [{"rule": "leap"}, {"most": 0}])
def test_subsets_that_make_no_sense_are_refused(wrong, refused):
    from vprompt.metrics.leep import best_subsets

    with refused(str(next(iter(wrong.values())))):
        best_subsets({"a": shares()}, torch.arange(40) % 3, **wrong)


# NLEEP


def test_nleep_is_leep_of_the_clusters_of_a_mixture_on_principal_axes():
    """Axes and clusters are scikit-learn's; clusters are far apart, so none is unsure."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    randomness = torch.Generator().manual_seed(0)
    centres = 30 * torch.randn(6, 5, generator=randomness)
    blobs = torch.arange(120) % 6
    features = (centres[blobs] + torch.randn(120, 5, generator=randomness)).double()
    labels = torch.where(torch.arange(120) < 90, blobs % 3, 0)
    reduced = PCA(0.8, svd_solver="full").fit_transform(features.numpy())
    chosen = KMeans(6, n_init=10, random_state=0).fit_predict(reduced)
    expected = leep_by_hand(onehot(torch.from_numpy(chosen).long()), labels)
    found = metric("nleep", clusters_per_class=2, starts=10)(features, labels)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_nleep_is_the_same_in_any_order_of_the_images(covariance, generator):
    """M2: the mixture starts at random, but from images in an order of their own."""
    features, labels = clusters(100)
    order = torch.randperm(100, generator=generator)
    score = metric("nleep", covariance=covariance)
    assert score(features[order], labels[order]) == pytest.approx(score(features, labels), rel=1e-6)


def test_nleep_takes_fewer_clusters_where_images_are_few():
    """With a cluster for every other image, any labels would look predictable."""
    features, labels = clusters(40, signal=0.0)
    entropy = -math.log(4)
    greedy = metric("nleep", images_per_cluster=2)(features, labels)
    assert entropy <= metric("nleep")(features, labels) < greedy


def test_nleep_of_constant_features_is_minus_the_entropy_of_the_labels():
    _, labels = clusters()
    assert metric("nleep")(torch.ones(60, 8), labels) == pytest.approx(-math.log(4))


@pytest.mark.parametrize(
    "wrong", [{"covariance": "tied"}, {"variance": 0.0}, {"variance": 1.5}, {"starts": 0}]
)
def test_nleep_refuses_settings_outside_their_range(wrong, refused):
    with refused(next(iter(wrong))):
        metric("nleep", **wrong)(*clusters())


# ETran


@pytest.mark.parametrize("count, width", [(80, 8), (40, 60)])
def test_etran_s_discriminant_is_scikit_learn_s_and_its_energy_a_log_sum_exp(count, width):
    from scipy.special import logsumexp
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = clusters(count, width)
    labels = torch.where(labels == 3, 0, labels)  # one class with twice the images
    x, y = features.numpy(), labels.numpy()
    inside = x - np.stack([x[y == label].mean(0) for label in y])
    rho = ledoit_wolf_shrinkage(inside, assume_centered=True)
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=rho).fit(x, y)
    sure = model.predict_proba(x)[np.arange(count), y].mean()
    energy = logsumexp(x, axis=1).mean()
    assert metric("etran", part="lda")(features, labels) == pytest.approx(sure, rel=1e-8)
    assert metric("etran", part="energy")(features, labels) == pytest.approx(energy, rel=1e-12)
    assert metric("etran")(features, labels) == pytest.approx(sure + energy, rel=1e-8)


def test_etran_is_finite_where_nothing_varies_within_or_at_all():
    _, labels = clusters()
    assert metric("etran", part="lda")(onehot(labels), labels) > 0.5
    assert metric("etran", part="lda")(torch.ones(60, 3), labels) == pytest.approx(0.25)


def test_etran_refuses_an_unknown_part(refused):
    with refused("part is one of both, energy, lda", "regression"):
        metric("etran", part="regression")(*clusters())


# OTCE


def test_sinkhorn_approaches_optimal_transport_and_keeps_the_margins():
    from scipy.optimize import linprog

    from vprompt.metrics.otce import sinkhorn

    randomness = torch.Generator().manual_seed(0)
    cost = torch.rand(5, 7, generator=randomness).double()
    coupling = sinkhorn(cost, 0.005)
    assert coupling.sum(1).numpy() == pytest.approx(np.full(5, 1 / 5), abs=1e-4)
    assert coupling.sum(0).numpy() == pytest.approx(np.full(7, 1 / 7), abs=1e-12)
    margins = [np.kron(np.eye(5), np.ones(7)), np.kron(np.ones(5), np.eye(7))]
    best = linprog(cost.numpy().ravel(), A_eq=np.vstack(margins), b_eq=[1 / 5] * 5 + [1 / 7] * 7)
    assert float((coupling * cost).sum()) == pytest.approx(best.fun, abs=0.01)


def test_the_wasserstein_distance_of_classes_is_that_of_gaussians_in_closed_form():
    from scipy.linalg import sqrtm

    from vprompt.metrics.otce import class_distances

    one, index = clusters(40, 3, 2)
    other, other_index = clusters(45, 3, 3, seed=1)
    found = class_distances(one, index, other, other_index)
    for a in range(2):
        for b in range(3):
            x, y = one[index == a].numpy(), other[other_index == b].numpy()
            s, r = np.cov(x.T, ddof=0), np.cov(y.T, ddof=0)
            root = sqrtm(s)
            mixed = np.real(np.trace(sqrtm(root @ r @ root)))
            gap = np.square(x.mean(0) - y.mean(0)).sum()
            expected = gap + np.trace(s) + np.trace(r) - 2 * mixed
            assert float(found[a, b]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variant", ["f_otce", "jc_nce"])
def test_otce_is_zero_where_source_classes_sit_on_target_classes(variant):
    features, labels = clusters(60, signal=20.0)
    own = torch.tensor([3, 0, 2, 1])[labels]
    score = metric("otce", variant=variant, epsilon=0.03)
    assert score(features, labels, features, own) == pytest.approx(0, abs=1e-3)
    # A source that does not tell two of the classes apart leaves one of two open.
    merged = torch.where(own == 3, 0, own)
    assert score(features, labels, features, merged) == pytest.approx(-math.log(2) / 2, abs=1e-2)


def test_otce_is_the_conditional_entropy_of_the_coupled_labels():
    from vprompt.metrics.otce import sinkhorn

    features, labels = clusters(20, 4, 2)
    own, own_labels = clusters(30, 4, 3, seed=1)
    cost = torch.stack([torch.stack([(a - b) @ (a - b) for b in own]) for a in features])
    coupling = sinkhorn(cost, 0.1 * float(cost.std()))
    table = np.zeros((2, 3))
    for i, j in itertools.product(range(20), range(30)):
        table[labels[i], own_labels[j]] += float(coupling[i, j])
    table /= table.sum()
    expected = (table * np.log(table / table.sum(0))).sum()
    found = metric("otce")(features, labels, own, own_labels)
    assert found == pytest.approx(expected, rel=1e-9)


def test_joint_correspondence_moves_the_matching_by_the_classes():
    features, labels = clusters(40, 4, 2, signal=0.7)
    own, own_labels = clusters(60, 4, 2, signal=0.7)
    call = (features, labels, own, own_labels)
    joint = metric("otce", variant="jc_nce")(*call)
    assert joint > metric("otce")(*call)
    alone = metric("otce", variant="jc_nce", balance=1.0)(*call)
    assert alone == pytest.approx(metric("otce")(*call), rel=1e-9)


@pytest.mark.parametrize("wrong", [{"variant": "otce"}, {"epsilon": 0.0}, {"balance": 2.0}])
def test_otce_refuses_settings_outside_their_range(wrong, refused):
    features, labels = clusters()
    with refused(next(iter(wrong))):
        metric("otce", **wrong)(features, labels, features, labels)


def test_a_matching_that_does_not_converge_is_refused(refused):
    from vprompt.metrics.otce import sinkhorn

    cost = torch.cdist(clusters(50)[0], clusters(70, seed=1)[0]).square()
    with refused("not converged", "larger epsilon"):
        sinkhorn(cost, 1e-3)


# Prompt cosine


def test_prompt_cosine_is_the_mean_over_pairs_or_the_cosine_of_means(generator):
    one = torch.randn(3, 5, generator=generator).double()
    other = torch.randn(4, 5, generator=generator).double()
    cosine = torch.nn.functional.cosine_similarity
    pairs = [float(cosine(a, b, dim=0)) for a in one for b in other]
    assert metric("prompt_cosine")(one, other) == pytest.approx(np.mean(pairs))
    means = float(cosine(one.mean(0), other.mean(0), dim=0))
    assert metric("prompt_cosine", similarity="mean")(one, other) == pytest.approx(means)


@pytest.mark.parametrize("similarity", ["tokens", "mean"])
def test_prompt_cosine_does_not_mind_the_order_of_tokens(similarity, generator):
    one, other = torch.randn(2, 6, 5, generator=generator).double()
    order = torch.randperm(6, generator=generator)
    score = metric("prompt_cosine", similarity=similarity)
    assert score(one[order], other) == pytest.approx(score(one, other[order]), abs=1e-12)


@pytest.mark.parametrize("wrong", [{"similarity": "euclid"}, {"epochs": 0}])
def test_prompt_cosine_refuses_what_does_not_exist(wrong, refused):
    with refused(str(next(iter(wrong.values())))):
        metric("prompt_cosine", **wrong)(torch.ones(2, 3), torch.ones(2, 3))
