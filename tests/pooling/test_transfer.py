"""Transfer: scores and their gradients against other ways to compute them, and the solver."""

from pathlib import Path

import numpy as np
import pytest
import torch

METHODS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "src" / "vprompt" / "transfer").glob("*.py")
    if not path.stem.startswith("_")
)


def weights_by(name):
    """Return a method's function reduced to its weights; no intervals, which take their time."""
    from vprompt.core import registry

    settings = {"bootstrap": 0} if name == "hgprompt" else {}
    return lambda evidence, **given: (
        registry.find("transfer", name)(evidence, **{**settings, **given}).weights
    )


def sources(count=4, images=60, width=10, classes=4, signal=1.0, seed=0):
    """Features of several sources, each with class centres of its own, and the labels."""
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(count, classes, width, generator=randomness).double()
    noise = torch.randn(count, images, width, generator=randomness).double()
    strength = signal * torch.rand(count, 1, 1, generator=randomness).double()
    return strength * centres[:, labels] + noise, labels


def simplex(count, generator):
    """A random point inside the simplex."""
    return torch.rand(count, generator=generator).double().add(0.05).softmax(0)


def raw_hscore(fused, labels, rho):
    """(1 - rho) tr(S^-1 B) / (classes - 1) in NumPy, with covariances by their definitions."""
    x, y = np.asarray(fused, dtype=np.float64), labels.numpy()
    sigma = np.cov(x.T).reshape(x.shape[1], x.shape[1])
    rows = np.stack([x[y == label].mean(0) for label in y]) - x.mean(0)
    between = rows.T @ rows / (len(x) - 1)
    shrunk = (1 - rho) * sigma + rho * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    return (1 - rho) * np.trace(np.linalg.solve(shrunk, between)) / (len(set(y.tolist())) - 1)


def slope_by_differences(function, alpha, step=1e-5):
    """Central differences in every coordinate, the simplex left behind."""
    slopes = []
    for unit in torch.eye(len(alpha), dtype=torch.float64):
        slopes.append(
            (function(alpha + step * unit)[0] - function(alpha - step * unit)[0]) / (2 * step)
        )
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.fixture
def evidence():
    """Return a function that wraps features, and gradients of two tokens, as evidence."""
    from vprompt.pooling.evidence import Evidence

    def make(features, labels, seed=0):
        randomness = torch.Generator().manual_seed(seed)
        gradients = torch.randn(len(features), 2, features.shape[2], generator=randomness)
        names = tuple(f"source {index}" for index in range(len(features)))
        return Evidence(
            names,
            features.float(),
            gradients,
            labels,
            features[0].float(),
            half_gradients=gradients,
            reference=torch.randn(2, features.shape[2], generator=randomness),
            variances=gradients.square(),
            prompts=torch.randn(gradients.shape, generator=randomness),
            target=torch.randn(2, features.shape[2], generator=randomness),
            task_embeddings=torch.randn(features[:, 0].shape, generator=randomness),
            val_features=features.float(),
            val_labels=labels,
        )

    return make


def objectives():
    """Every objective in turn: name, function of the weights, features and labels behind it."""
    from vprompt.pooling.scores import HScore, TraceRatio
    from vprompt.transfer._alignment import UniformAlignment

    tall, labels = sources()
    wide, few = sources(images=20, width=30)
    gradients = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    return {
        "raw": HScore.of(tall, labels, 0.0),
        "primal": HScore.of(tall, labels, 0.1),
        "Ledoit-Wolf": HScore.of(tall, labels),
        "dual": HScore.of(wide, few, 0.1),
        "dual, Ledoit-Wolf": HScore.of(wide, few),
        "trace ratio": TraceRatio.of(tall, labels),
        "alignment": UniformAlignment.of(gradients),
    }


NAMES = ["raw", "primal", "Ledoit-Wolf", "dual", "dual, Ledoit-Wolf", "trace ratio", "alignment"]
SCORES = NAMES[:-1]


# Values.


@pytest.mark.parametrize("images, width", [(60, 10), (20, 30)])
@pytest.mark.parametrize("rho", [0.1, 0.6])
def test_the_score_is_the_hscore_of_the_fused_features(images, width, rho, generator):
    from vprompt.metrics.hscore import score
    from vprompt.pooling.scores import HScore

    features, labels = sources(images=images, width=width)
    objective = HScore.of(features, labels, rho)
    for _ in range(3):
        alpha = simplex(4, generator)
        fused = sum(a * source for a, source in zip(alpha, features, strict=True))
        value, _ = objective(alpha)
        assert value == pytest.approx(raw_hscore(fused, labels, rho), rel=1e-10)
        assert value == pytest.approx(score(fused, labels, shrinkage=rho), rel=1e-10)


def test_a_vertex_scores_as_its_source_alone():
    from vprompt.metrics.hscore import score
    from vprompt.pooling.scores import HScore

    features, labels = sources()
    objective = HScore.of(features, labels, 0.1)
    for row, source in zip(torch.eye(4, dtype=torch.float64), features, strict=True):
        assert objective(row)[0] == pytest.approx(score(source, labels, shrinkage=0.1))


@pytest.mark.parametrize("images, width", [(80, 12), (30, 50)])
def test_the_intensity_is_scikit_learns_at_uniform_weights(images, width):
    from sklearn.covariance import LedoitWolf

    from vprompt.core.linalg import ledoit_wolf_intensity
    from vprompt.pooling.scores import HScore

    features, labels = sources(images=images, width=width)
    fused = features.mean(0)
    model = LedoitWolf(assume_centered=True).fit((fused - fused.mean(0)).numpy())
    assert HScore.of(features, labels).rho == pytest.approx(model.shrinkage_, rel=1e-12)
    # And by the formula: how much of the distance from a multiple of the identity is noise.
    x = (fused - fused.mean(0)).numpy()
    sample = x.T @ x / images
    mean = np.trace(sample) / width
    delta = ((sample - mean * np.eye(width)) ** 2).sum() / width
    beta = ((x**2).sum(1) ** 2).sum() - images * (sample**2).sum()
    expected = min(beta / images**2 / width, delta) / delta
    assert ledoit_wolf_intensity(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-10)


def test_the_trace_ratio_is_between_by_total_of_the_fused_features(generator):
    from vprompt.pooling.scores import TraceRatio

    features, labels = sources()
    objective = TraceRatio.of(features, labels)
    for _ in range(3):
        alpha = simplex(4, generator)
        fused = torch.einsum("s,snh->nh", alpha, features)
        total = (fused - fused.mean(0)).square().sum()
        between = sum(
            (labels == c).sum() * (fused[labels == c].mean(0) - fused.mean(0)).square().sum()
            for c in range(4)
        )
        assert objective(alpha)[0] == pytest.approx((between / total).item(), rel=1e-12)


def test_alignment_is_the_papers_mean_of_one_minus_cosine(generator):
    from vprompt.transfer._alignment import UniformAlignment

    gradients = torch.randn(5, 3, 4, generator=generator).double()
    alpha = simplex(5, generator)
    unit = [g / g.norm() for g in gradients]
    mixed = sum(a * u for a, u in zip(alpha, unit, strict=True))
    expected = sum(1 - (u * mixed / mixed.norm()).sum() for u in unit) / 5
    assert UniformAlignment.of(gradients)(alpha)[0] == pytest.approx(expected.item(), rel=1e-12)


def test_gradients_that_agree_have_no_alignment_loss(generator):
    from vprompt.transfer._alignment import UniformAlignment

    one = torch.randn(2, 3, generator=generator)
    loss = UniformAlignment.of(torch.stack([one, 3 * one, 0.1 * one]))
    value, gradient = loss(simplex(3, generator))
    assert value == pytest.approx(0, abs=1e-12) and gradient.abs().max() < 1e-6


# Gradients.


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_slope(name, generator):
    objective = objectives()[name]
    for _ in range(3):
        alpha = simplex(4, generator)
        _, gradient = objective(alpha)
        expected = slope_by_differences(objective, alpha)
        assert (gradient - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_has_no_part_along_the_weights(name, generator):
    objective = objectives()[name]
    for _ in range(5):
        alpha = simplex(4, generator)
        _, gradient = objective(alpha)
        assert abs(alpha @ gradient) < 1e-12 * max(1, gradient.norm())


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_weights_does_not_matter(name, generator):
    objective = objectives()[name]
    alpha = simplex(4, generator)
    for factor in (0.01, 3.0, 1e4):
        assert objective(factor * alpha)[0] == pytest.approx(objective(alpha)[0], abs=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_scores_lie_between_nothing_and_one(name, generator):
    objective = objectives()[name]
    points = [*torch.eye(4, dtype=torch.float64), *(simplex(4, generator) for _ in range(10))]
    assert all(0 <= objective(alpha)[0] <= 1 for alpha in points)


@pytest.mark.parametrize("images, width", [(60, 10), (20, 30), (31, 30), (30, 30)])
@pytest.mark.parametrize("rho", [1e-3, 0.1, 0.9])
def test_the_dual_form_equals_the_primal_form(images, width, rho, generator):
    from vprompt.pooling.scores import HScore

    features, labels = sources(images=images, width=width)
    objective = HScore.of(features, labels, rho)
    fused = torch.einsum("s,snh->nh", simplex(4, generator), objective.features)
    (primal, slope), (dual, same) = objective._primal(fused), objective._dual(fused)
    assert primal == pytest.approx(dual, rel=1e-9)
    assert (slope - same).norm() < 1e-8 * slope.norm()


@pytest.mark.parametrize("images, width, form", [(20, 30, "_dual"), (60, 10, "_primal")])
def test_the_cheaper_form_is_used(images, width, form, monkeypatch):
    from vprompt.pooling.scores import HScore

    used = []
    for name in ("_primal", "_dual"):
        own = getattr(HScore, name)
        monkeypatch.setattr(
            HScore, name, lambda self, a, name=name, own=own: used.append(name) or own(self, a)
        )
    features, labels = sources(images=images, width=width)
    HScore.of(features, labels, 0.1)(torch.full((4,), 0.25).double())
    assert used == [form]


# What the mathematics says.


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_two_sources_of_opposite_signal_are_two_optima_with_nothing_between(rho, generator):
    from vprompt.pooling.scores import HScore

    labels = torch.arange(4000) % 2
    sign = (2 * labels - 1).double()[:, None]
    features = torch.stack(
        [s * sign + torch.randn(4000, 1, generator=generator).double() for s in (1, -1)]
    )
    objective = HScore.of(features, labels, rho)
    alone, other, between = (
        objective(torch.tensor(alpha).double())[0] for alpha in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5])
    )
    # In one dimension shrinkage towards the mean variance changes S by nothing.
    assert alone / (1 - rho) == pytest.approx(0.5, abs=0.03)
    assert other / (1 - rho) == pytest.approx(0.5, abs=0.03)
    assert between == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("count, rank", [(2, 1), (3, 8), (6, 4), (10, 40)])
def test_alignment_is_least_at_uniform_weights_whatever_the_gradients(count, rank, generator):
    from vprompt.transfer._alignment import UniformAlignment

    for _ in range(10):
        gradients = torch.randn(count, 1, rank, generator=generator).double()
        loss = UniformAlignment.of(gradients)
        uniform = torch.full((count,), 1 / count, dtype=torch.float64)
        least, slope = loss(uniform)
        total = float(loss.cosines.sum())
        if total < 1e-6:
            continue  # all gradients cancel: no direction to align with
        assert least == pytest.approx(1 - total**0.5 / count, abs=1e-12)
        assert slope.abs().max() < 1e-12 / total
        for _ in range(30):
            alpha = torch.rand(count, generator=generator).double().pow(3)
            assert loss(alpha / alpha.sum())[0] >= least - 1e-10


def test_a_source_twice_counts_by_the_sum_of_its_weights(generator):
    from vprompt.pooling.scores import HScore, TraceRatio

    features, labels = sources(3)
    twice = torch.cat([features, features[:1]])
    alpha = simplex(3, generator)
    for share in (0.0, 0.3, 1.0):
        split = torch.cat([alpha, share * alpha[:1]])
        split[0] *= 1 - share
        for make in (lambda f: HScore.of(f, labels, 0.1), lambda f: TraceRatio.of(f, labels)):
            assert make(twice)(split)[0] == pytest.approx(make(features)(alpha)[0], rel=1e-12)


def test_the_raw_score_is_refused_where_it_is_the_same_for_all_weights(refused):
    from vprompt.pooling.scores import HScore

    for images in (20, 30, 31):
        features, labels = sources(images=images, width=30)
        with refused(f"{images} images in 30 dimensions", "is 3 for any weights", "trace_ratio"):
            HScore.of(features, labels, 0.0)
    features, labels = sources(images=32, width=30)
    assert 0 <= HScore.of(features, labels, 0.0)(torch.full((4,), 0.25).double())[0] <= 1


def test_a_score_outside_its_bounds_is_refused_not_returned(refused, monkeypatch):
    from vprompt.pooling import scores
    from vprompt.pooling.scores import HScore

    features, labels = sources()
    objective = HScore.of(features, labels, 0.1)
    monkeypatch.setattr(
        scores, "hscore_and_slope", lambda *_: (300.0, torch.zeros(60, 10).double())
    )
    with refused("H-score came out as", r"outside \[0, 3\]", "trace_ratio"):
        objective(torch.full((4,), 0.25).double())


def test_classes_without_an_image_make_no_difference(generator):
    from vprompt.pooling.scores import HScore

    alpha = simplex(4, generator)
    for images, width in ((60, 10), (20, 30)):
        features, labels = sources(images=images, width=width)
        gaps = torch.tensor([1, 4, 5, 9])[labels]
        plain, other = (
            HScore.of(features, labels, 0.1)(alpha),
            HScore.of(features, gaps, 0.1)(alpha),
        )
        assert plain[0] == pytest.approx(other[0], rel=1e-12)
        torch.testing.assert_close(plain[1], other[1])


# The solver.


def mixed_signs(seed, count=6, images=600, width=20, classes=5):
    """Sources whose class signals point in directions of their own, some against others."""
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    shared = torch.randn(classes, width, generator=randomness).double()
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).double()[:count, None, None]
    own = torch.randn(count, classes, width, generator=randomness).double()
    noise = torch.randn(count, images, width, generator=randomness).double()
    return (0.3 * signs * shared + 0.2 * own)[:, labels] + noise, labels


@pytest.mark.parametrize("seed", range(3))
def test_every_start_ends_with_a_small_gap(seed):
    from vprompt.pooling.scores import HScore
    from vprompt.pooling.simplex import maximise, starts

    features, labels = mixed_signs(seed)
    objective = HScore.of(features, labels, 0.1)
    for start in starts(6, 0):
        found = maximise(objective, start)
        value, gradient = objective(found.weights)
        assert found.value == value >= objective(start)[0]
        assert found.gap == pytest.approx(float(gradient.max() - found.weights @ gradient))
        assert found.gap < 1e-6 and found.steps < 500
        assert found.weights.sum() == pytest.approx(1) and (found.weights >= 0).all()


@pytest.mark.parametrize("score", ["hscore_shrunk", "trace_ratio"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_a_fine_grid_is_better(score, count, seed, evidence):
    from vprompt.transfer.hgprompt import build_objective

    weigh = weights_by("hgprompt")

    features, labels = mixed_signs(seed, count, images=100, width=5)
    pool = evidence(features, labels)
    found = weigh(pool, score=score)
    objective = build_objective(pool, score=score)
    steps = 200 if count == 2 else 40
    best = max(
        objective(torch.tensor([i, j, steps - i - j][-count:]).double() / steps)[0]
        for i in (range(steps + 1) if count == 3 else [0])
        for j in range(steps - i + 1)
    )
    value = objective(found)[0]
    assert value >= best - 1e-7
    assert value <= best + 0.01


@pytest.mark.parametrize("seed", range(4))
def test_several_starts_are_never_worse_than_the_uniform_one(seed, evidence):
    from vprompt.pooling.simplex import maximise
    from vprompt.transfer.hgprompt import build_objective

    weigh = weights_by("hgprompt")

    pool = evidence(*mixed_signs(seed, images=200))
    objective = build_objective(pool, shrinkage=0.1)
    uniform = maximise(objective, torch.full((6,), 1 / 6).double())
    found = objective(weigh(pool, shrinkage=0.1))[0]
    assert found >= uniform.value - 1e-9
    assert all(found >= objective(row)[0] for row in torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_where_all_sources_point_the_same_way_every_start_ends_at_one_value(seed):
    from vprompt.pooling.scores import HScore
    from vprompt.pooling.simplex import distinct, maximise, starts

    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(600) % 5
    centres = 0.3 * torch.randn(5, 20, generator=randomness).double()
    own = 0.05 * torch.randn(6, 5, 20, generator=randomness).double()
    noise = torch.randn(6, 600, 20, generator=randomness).double()
    objective = HScore.of((centres + own)[:, labels] + noise, labels, 0.1)
    found = [maximise(objective, start) for start in starts(6, 0)]
    values = [optimum.value for optimum in found]
    assert max(values) - min(values) < 5e-3
    assert distinct(found)[0].value == pytest.approx(max(values), abs=1e-9)


def test_a_linear_function_is_maximised_at_its_best_vertex():
    from vprompt.pooling.simplex import maximise

    slope = torch.tensor([0.1, 0.5, 0.2]).double()
    found = maximise(lambda a: (float(a @ slope), slope), torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(
        found.weights, torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-5, rtol=0
    )


def test_a_concave_function_is_maximised_where_its_gradient_is_level():
    from vprompt.pooling.simplex import maximise

    centre = torch.tensor([0.5, 0.3, 0.2]).double()
    found = maximise(
        lambda a: (-float((a - centre).square().sum()), -2 * (a - centre)),
        torch.tensor([0.05, 0.05, 0.9]).double(),
    )
    assert found.gap < 1e-6
    torch.testing.assert_close(found.weights, centre, atol=1e-3, rtol=0)


def test_a_level_function_stops_at_once():
    from vprompt.pooling.simplex import maximise

    start = torch.full((3,), 1 / 3).double()
    found = maximise(lambda a: (0.0, torch.zeros(3).double()), start)
    assert found.steps == 0 and torch.equal(found.weights, start)


@pytest.mark.parametrize("count", [1, 2, 6, 32, 33, 50])
def test_starts_are_uniform_and_softened_corners_inside_the_simplex(count):
    from vprompt.pooling.simplex import starts

    found = starts(count, best_single=count - 1)
    assert len(found) == {1: 1, 33: 2, 50: 2}.get(count, count + 1)
    for start in found:
        assert start.sum() == pytest.approx(1) and (start > 0).all()
    torch.testing.assert_close(found[0], torch.full((count,), 1 / count, dtype=torch.float64))
    if count > 1:
        assert found[-1].argmax() == count - 1 and found[-1].max() == 0.9


def test_optima_that_differ_are_listed_once_best_first():
    from vprompt.pooling.simplex import Optimum, distinct

    def optimum(value, *weights):
        return Optimum(torch.tensor(weights).double(), value, 0.0, 1)

    first, same = optimum(0.5, 1.0, 0.0), optimum(0.500001, 0.9999, 0.0001)
    other, worse = optimum(0.5, 0.0, 1.0), optimum(0.3, 0.5, 0.5)
    found = distinct([worse, first, other, same])
    assert [o.value for o in found] == [0.500001, 0.5, 0.3]
    assert [o.weights.argmax().item() for o in found] == [0, 1, 0]


@pytest.mark.parametrize("rho, expected", [(0.0, 0.85), (0.1, 0.92), (0.5, 0.94)])
def test_informative_sources_are_recovered(rho, expected):
    """O26. The specification's 0.72 for the raw score came out as 0.85 with these six seeds."""
    from vprompt.pooling.scores import HScore
    from vprompt.pooling.simplex import maximise

    strengths = torch.tensor([0.35, 0.25, 0.0, 0.0, 0.0, 0.0]).double()
    width, images, classes = 128, 160, 10
    masses = []
    for seed in range(6):
        randomness = torch.Generator().manual_seed(seed)
        labels = torch.arange(images) % classes
        centres = torch.randn(6, classes, width, generator=randomness).double()
        noise = torch.randn(6, images, width, generator=randomness).double()
        features = strengths[:, None, None] * centres[:, labels] + noise
        features = features * torch.logspace(0, -1, width).double()
        uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
        found = maximise(HScore.of(features, labels, rho), uniform)
        masses.append(float(found.weights[:2].sum()))
    assert np.mean(masses) == pytest.approx(expected, abs=0.05)


# hgprompt.


def test_alignment_pulls_towards_uniform_weights_and_is_off_by_default(evidence):
    weigh = weights_by("hgprompt")

    pool = evidence(*sources(signal=2.0))
    plain = weigh(pool)
    assert torch.equal(plain, weigh(pool, alignment="none", lambda_=7.0))
    assert torch.equal(plain, weigh(pool, alignment="uniform", lambda_=0.0))
    distances = [
        float((weigh(pool, alignment="uniform", lambda_=strength) - 0.25).norm())
        for strength in (0.01, 0.3, 10.0, 1000.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-2 < distances[0]


@pytest.mark.parametrize("score", ["hscore_shrunk", "trace_ratio"])
def test_the_objective_is_score_minus_lambda_times_alignment(score, evidence, generator):
    from vprompt.transfer._alignment import UniformAlignment
    from vprompt.transfer.hgprompt import build_objective

    pool = evidence(*sources())
    alpha = simplex(4, generator)
    gain, slope = build_objective(pool, score=score)(alpha)
    cost, pull = UniformAlignment.of(pool.gradients)(alpha)
    both = build_objective(pool, score=score, alignment="uniform", lambda_=0.7)
    assert both(alpha)[0] == pytest.approx(gain - 0.7 * cost)
    torch.testing.assert_close(both(alpha)[1], slope - 0.7 * pull)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"score": "hscore"}, ("no score 'hscore'", "Did you mean 'hscore_raw'")),
        ({"alignment": "mean"}, ("no alignment 'mean'", "none, reference, uniform")),
        ({"shrinkage": 0.0}, ("for any weights", "trace_ratio")),
        ({"shrinkage": 1.0}, ("shrinkage", "1.0")),
        ({"shrinkage": -0.5}, ("shrinkage", "-0.5")),
    ],
)
def test_wrong_settings_are_answered_with_what_to_type(settings, words, evidence, refused):
    weigh = weights_by("hgprompt")

    pool = evidence(*sources(images=20, width=30))
    with refused(*words):
        weigh(pool, **settings)


def test_alignment_without_gradients_is_refused(evidence, refused):
    from dataclasses import replace

    weigh = weights_by("hgprompt")

    pool = replace(evidence(*sources()), gradients=torch.zeros(4, 0, 10))
    with refused("Alignment needs prompt gradients", "holds none"):
        weigh(pool, alignment="uniform")


def test_best_is_the_source_with_the_highest_score(evidence):
    weigh = weights_by("best")

    features, labels = sources(signal=0.0)
    features[2] += 3 * torch.eye(4, 10).double()[labels]
    assert weigh(evidence(features, labels)).tolist() == [0.0, 0.0, 1.0, 0.0]
    assert weigh(evidence(features, labels), metric="hscore(shrinkage=0.5)").argmax() == 2


def test_best_answers_an_unknown_metric(evidence, refused):
    weigh = weights_by("best")

    with refused("No metric called 'hscor'", "Did you mean 'hscore'"):
        weigh(evidence(*sources()), metric="hscor")


# What every method obeys.


@pytest.fixture(params=METHODS)
def method(request):
    return weights_by(request.param)


@pytest.mark.parametrize(
    "images, width, count", [(60, 10, 4), (12, 30, 3), (8, 64, 5), (60, 10, 40)]
)
def test_weights_are_non_negative_and_sum_to_one(method, evidence, images, width, count):
    weights = method(evidence(*sources(count, images, width)))
    assert weights.shape == (count,)
    assert weights.isfinite().all() and (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9)


def test_weights_follow_their_sources_in_any_order(method, evidence):
    from dataclasses import replace

    pool, order = evidence(*sources(signal=2.0)), torch.tensor([2, 0, 3, 1])
    shuffled = replace(
        pool,
        names=tuple(pool.names[i] for i in order),
        features=pool.features[order],
        gradients=pool.gradients[order],
        prompts=pool.prompts[order],
        task_embeddings=pool.task_embeddings[order],
        val_features=pool.val_features[order],
    )
    torch.testing.assert_close(method(shuffled), method(pool)[order], atol=2e-3, rtol=0)


def test_a_pool_of_one_has_all_the_weight(method, evidence):
    assert method(evidence(*sources(1))).tolist() == [1.0]


def test_the_same_evidence_gives_the_same_weights(method, evidence):
    pool = evidence(*sources())
    state = torch.get_rng_state()
    assert torch.equal(method(pool), method(pool))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_copies_of_a_source_are_no_obstacle(method, evidence):
    features, labels = sources()
    weights = method(evidence(torch.cat([features, features[:1]]), labels))
    assert weights.isfinite().all() and float(weights.sum()) == pytest.approx(1, abs=1e-9)


def test_a_source_that_says_nothing_at_all_is_no_obstacle(method, evidence):
    features, labels = sources()
    features[1] = 1.0
    weights = method(evidence(features, labels))
    assert weights.isfinite().all() and float(weights.sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("images, width", [(60, 12), (25, 40)], ids=["primal", "dual"])
@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_the_adjusted_score_is_its_formula_and_its_gradient_a_slope(images, width, rho):
    from vprompt.pooling.scores import AdjustedHScore, HScore

    generator = torch.Generator().manual_seed(5)
    features = torch.randn(3, images, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(images) % 4
    features[0] += torch.eye(4, width, dtype=torch.float64)[labels]
    score = AdjustedHScore(HScore.of(features.float(), labels, rho))
    alpha = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    fused = torch.einsum("s,snh->nh", alpha, score.plain.features)
    sigma = fused.T @ fused / (images - 1)
    gamma = rho / (1 - rho) * sigma.trace() / width
    freedom = (sigma @ torch.linalg.inv(sigma + gamma * torch.eye(width).double())).trace()
    floor, plain = float(freedom) / (images - 1), score.plain(alpha)[0]
    assert score(alpha)[0] == pytest.approx((plain - floor) / (1 - floor), rel=1e-9)

    for part in (score, score.floor):
        for source in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[source] = 1e-6
            slope = (part(alpha + step)[0] - part(alpha - step)[0]) / 2e-6
            assert part(alpha)[1][source].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_shuffled_labels_have_an_adjusted_score_of_nothing():
    from vprompt.pooling.scores import AdjustedHScore, HScore

    generator = torch.Generator().manual_seed(7)
    features = torch.randn(2, 60, 30, generator=generator)
    alpha = torch.tensor([0.6, 0.4], dtype=torch.float64)
    scores = []
    for _ in range(200):
        labels = (torch.arange(60) % 5)[torch.randperm(60, generator=generator)]
        scores.append(AdjustedHScore(HScore.of(features, labels, 0.1))(alpha)[0])
    values = torch.tensor(scores)
    assert values.mean().abs() < 2.5 * values.std() / 200**0.5
