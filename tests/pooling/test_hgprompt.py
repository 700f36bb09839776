"""HGPrompt: presets, alignments, solvers, intervals, streaming, and the numeric oracles."""

import json

import numpy as np
import pytest
import torch
from test_transfer import mixed_signs, simplex, slope_by_differences, sources


@pytest.fixture
def pool():
    """Four sources with gradients, halves, variances and prompts."""
    return make_pool()


def make_pool(images=60, width=10, seed=0, **given):
    from vprompt.pooling.evidence import Evidence

    features, labels = sources(images=images, width=width, signal=2.0, seed=seed)
    features = given.pop("features", features)
    randomness = torch.Generator().manual_seed(seed)
    gradients = torch.randn(len(features), 3, 5, generator=randomness)
    return Evidence(
        **{
            "names": tuple("abcdef"[: len(features)]),
            "features": features.float(),
            "gradients": gradients,
            "labels": labels,
            "plain": features[0].float(),
            "half_gradients": gradients,
            "reference": torch.randn(3, 5, generator=randomness),
            "variances": gradients.square(),
            **given,
        }
    )


# Alignments.


def alignments():
    from vprompt.transfer._alignment import ReferenceAlignment, UniformAlignment, VarianceAlignment

    randomness = torch.Generator().manual_seed(4)
    gradients = torch.randn(4, 3, 5, generator=randomness).double()
    reference = torch.randn(3, 5, generator=randomness).double()
    return {
        "uniform": UniformAlignment.of(gradients),
        "reference": ReferenceAlignment.of(gradients, reference),
        "variance": VarianceAlignment.of(gradients.square()),
    }


@pytest.mark.parametrize("name", ["uniform", "reference", "variance"])
def test_an_alignments_gradient_is_its_slope(name, generator):
    loss = alignments()[name]
    for _ in range(3):
        alpha = simplex(4, generator)
        expected = slope_by_differences(loss, alpha)
        assert (loss(alpha)[1] - expected).norm() < 1e-6 * expected.norm()


def test_the_reference_alignment_is_one_minus_a_cosine(generator):
    from vprompt.transfer._alignment import ReferenceAlignment

    gradients = torch.randn(4, 2, 3, generator=generator).double()
    reference = torch.randn(2, 3, generator=generator).double()
    alpha = simplex(4, generator)
    mixed = sum(a * g / g.norm() for a, g in zip(alpha, gradients, strict=True))
    expected = 1 - (mixed * reference).sum() / mixed.norm() / reference.norm()
    found = ReferenceAlignment.of(gradients, reference)(alpha)[0]
    assert found == pytest.approx(expected.item(), rel=1e-12)
    assert ReferenceAlignment.of(gradients, gradients[1])(torch.eye(4)[1].double())[
        0
    ] == pytest.approx(0, abs=1e-12)


def test_the_variance_alignment_is_fishrs_distance_and_least_at_uniform_weights(generator):
    from vprompt.transfer._alignment import VarianceAlignment

    variances = torch.rand(4, 2, 3, generator=generator).double()
    scaled = variances.flatten(1) / variances.flatten(1).norm(dim=1).mean()
    alpha = simplex(4, generator)
    mixed = sum(a * v for a, v in zip(alpha, scaled, strict=True))
    expected = sum((v - mixed).square().sum() for v in scaled) / 4
    loss = VarianceAlignment.of(variances)
    assert loss(alpha)[0] == pytest.approx(expected.item(), rel=1e-10)
    uniform = torch.full((4,), 0.25).double()
    assert loss(uniform)[1].abs().max() < 1e-12
    assert all(loss(simplex(4, generator))[0] >= loss(uniform)[0] for _ in range(50))


def test_weighting_the_outer_mean_too_makes_every_vertex_a_minimum(generator):
    """O15: sum_i alpha_i (1 - cos_i) = 1 - sqrt(alpha'K alpha), which is 0 at the vertices."""
    from vprompt.core.linalg import cosine_matrix

    gradients = torch.randn(5, 3, 4, generator=generator).double()
    cosines = cosine_matrix(gradients)
    units = gradients.flatten(1) / gradients.flatten(1).norm(dim=1, keepdim=True)
    for alpha in [simplex(5, generator), *torch.eye(5).double()]:
        mixed = alpha @ units
        weighted = (alpha * (1 - units @ mixed / mixed.norm())).sum()
        closed = 1 - (alpha @ cosines @ alpha).sqrt()
        assert weighted == pytest.approx(closed.item(), abs=1e-12)
    assert 1 - float(cosines[0, 0]) ** 0.5 == pytest.approx(0, abs=1e-12)


def test_a_source_without_gradient_is_left_out_of_the_alignment_and_named(generator):
    from vprompt.transfer import hgprompt
    from vprompt.transfer._alignment import UniformAlignment

    gradients = torch.randn(4, 3, 5, generator=generator)
    gradients[2] = 0
    alpha = torch.tensor([0.5, 0.3, 0.0, 0.2]).double()
    three = UniformAlignment.of(gradients[[0, 1, 3]])(alpha[[0, 1, 3]])[0]
    assert UniformAlignment.of(gradients)(alpha)[0] == pytest.approx(three, rel=1e-12)
    silent = make_pool(gradients=gradients)
    assert hgprompt.weigh(silent, bootstrap=0).facts["without_gradient"] == ["c"]
    all_silent = make_pool(gradients=torch.zeros(4, 3, 5))
    weights = hgprompt.weigh(all_silent, alignment="uniform", bootstrap=0).weights
    assert weights.isfinite().all() and float(weights.sum()) == pytest.approx(1)


# Solvers.


@pytest.mark.parametrize("solver", ["projected", "frank_wolfe", "softmax_adam"])
@pytest.mark.parametrize("score", ["hscore_shrunk", "trace_ratio"])
def test_solvers_on_the_simplex_agree_where_there_is_one_optimum(solver, score):
    from vprompt.transfer import hgprompt

    randomness = torch.Generator().manual_seed(3)
    labels = torch.arange(300) % 5
    centres = 0.5 * torch.randn(5, 8, generator=randomness)
    own = 0.1 * torch.randn(4, 5, 8, generator=randomness)
    noise = torch.randn(4, 300, 8, generator=randomness) * torch.tensor([1, 2, 1, 3])[:, None, None]
    pool = make_pool(features=(centres + own)[:, labels] + noise, labels=labels)
    expected = hgprompt.weigh(pool, score=score, bootstrap=0)
    found = hgprompt.weigh(pool, score=score, solver=solver, bootstrap=0)
    assert found.facts["optima"][0]["value"] == pytest.approx(
        expected.facts["optima"][0]["value"], abs=2e-4
    )
    torch.testing.assert_close(found.weights, expected.weights, atol=0.03, rtol=0)


def test_projection_is_the_nearest_point_of_the_simplex(generator):
    from scipy.optimize import minimize

    from vprompt.pooling.solvers import project

    for _ in range(10):
        point = 2 * torch.randn(4, generator=generator).double()
        found = project(point)
        assert float(found.sum()) == pytest.approx(1) and (found >= 0).all()
        best = minimize(
            lambda x, p: ((x - p) ** 2).sum(),
            np.full(4, 0.25),
            args=(point.numpy(),),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(found.numpy(), best.x, atol=1e-5)


def test_leave_one_out_steps_are_plain_gradient_steps_with_the_last_weight_free():
    from vprompt.pooling.solvers import leave_one_out_sgd

    target = torch.tensor([1.5, -0.7, 0.2]).double()

    def objective(alpha):
        return -float((alpha - target).square().sum()), -2 * (alpha - target)

    found = leave_one_out_sgd(objective, torch.full((3,), 1 / 3).double(), steps=3, rate=0.1)
    alpha = [1 / 3, 1 / 3]
    for _ in range(3):
        last = 1 - sum(alpha)
        slope = [-2 * (a - t) for a, t in zip([*alpha, last], target.tolist(), strict=True)]
        alpha = [a + 0.1 * (s - slope[2]) for a, s in zip(alpha, slope, strict=False)]
    assert found.weights.tolist() == pytest.approx([*alpha, 1 - sum(alpha)])
    far = leave_one_out_sgd(objective, torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(far.weights, target, atol=1e-3, rtol=0)
    assert float(far.weights.min()) < 0


def test_mixed_signs_have_several_optima_and_all_are_listed():
    """O12: several local optima in most instances, and several starts never do worse than one."""
    from vprompt.pooling.scores import HScore
    from vprompt.pooling.simplex import maximise
    from vprompt.transfer import hgprompt

    several = 0
    for seed in range(4):
        features, labels = mixed_signs(seed)
        pool = make_pool(
            features=features,
            labels=labels,
        )
        mix = hgprompt.weigh(pool, score="hscore_shrunk", shrinkage=0.1, bootstrap=0)
        optima = mix.facts["optima"]
        several += len(optima) > 1
        values = [optimum["value"] for optimum in optima]
        assert values == sorted(values, reverse=True)
        uniform = maximise(HScore.of(pool.features, labels, 0.1), torch.full((6,), 1 / 6).double())
        assert values[0] >= uniform.value - 1e-9
    assert several >= 2


# Presets.


def test_the_paper_preset_is_the_published_combination(pool):
    from vprompt.transfer import hgprompt

    mix = hgprompt.weigh(pool, preset="paper")
    assert mix.facts["chosen"] == {
        "score": "hscore_raw",
        "alignment": "uniform",
        "lambda_": 1.0,
        "solver": "leave_one_out_sgd",
        "bootstrap": 0,
        "refine": 0,
        "soften": "none",
        "climb": 0,
    }
    assert not mix.simplex and float(mix.weights.sum()) == pytest.approx(1)
    plan = hgprompt.plan(preset="paper")
    assert (plan.align, plan.scale, plan.safeguard) == ("none", "none", False)
    assert (plan.move_scale, plan.form, plan.gradient_head) == ("published", "sum", "base")
    robust = hgprompt.plan()
    assert (robust.move_scale, robust.form, robust.gradient_head) == ("auto", "ensemble", None)
    assert (robust.align, robust.scale, robust.safeguard) == ("auto", "auto", True)


def test_the_paper_preset_climbs_the_raw_score_less_eq_10(pool):
    """The objective written out: H in [0, C - 1], a bare inverse, lambda 1, a uniform start."""
    from vprompt.transfer import hgprompt

    def objective(alpha):
        fused = sum(a * f for a, f in zip(alpha, pool.features.double().numpy(), strict=True))
        y = pool.labels.numpy()
        sigma = np.cov(fused.T)
        rows = np.stack([fused[y == label].mean(0) for label in y]) - fused.mean(0)
        hscore = np.trace(np.linalg.solve(sigma, rows.T @ rows / (len(y) - 1)))
        units = [g / np.linalg.norm(g) for g in pool.gradients.double().numpy()]
        mixed = sum(a * u for a, u in zip(alpha, units, strict=True))
        cosines = [(u * mixed).sum() / np.linalg.norm(mixed) for u in units]
        return hscore - np.mean([1 - c for c in cosines])

    alpha = np.full(4, 0.25)
    for _ in range(30):
        slope = [
            (objective(alpha + 1e-5 * e) - objective(alpha - 1e-5 * e)) / 2e-5 for e in np.eye(4)
        ]
        alpha[:3] += 0.005 * (np.array(slope[:3]) - slope[3])
        alpha[3] = 1 - alpha[:3].sum()
    from vprompt.pooling.solvers import leave_one_out_sgd

    own = hgprompt.build_objective(pool, score="hscore_raw", alignment="uniform")
    found = leave_one_out_sgd(own, torch.full((4,), 0.25).double(), steps=30)
    np.testing.assert_allclose(found.weights.numpy(), alpha, atol=1e-6)


def test_the_paper_preset_refuses_where_the_raw_score_is_constant(refused):
    from vprompt.transfer import hgprompt

    with refused("20 images in 30 dimensions", "score=trace_ratio"):
        hgprompt.weigh(make_pool(images=20, width=30), preset="paper")
    mix = hgprompt.weigh(make_pool(images=20, width=30), preset="paper", score="trace_ratio")
    assert mix.weights.isfinite().all()


def test_the_gradient_only_row_of_the_paper_is_its_plain_average_row(pool):
    """Table 2: with Eq. 10 alone the weights stay uniform, so both rows are one method."""
    from vprompt.pooling.solvers import leave_one_out_sgd
    from vprompt.transfer._alignment import UniformAlignment

    loss = UniformAlignment.of(pool.gradients)
    uniform = torch.full((4,), 0.25).double()

    def objective(alpha):
        value, gradient = loss(alpha)
        return -value, -gradient

    assert loss(uniform)[1].abs().max() < 1e-12
    found = leave_one_out_sgd(objective, uniform)
    torch.testing.assert_close(found.weights, uniform, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"preset": "robus"}, ("no preset 'robus'", "Did you mean 'robust'")),
        ({"solver": "adam"}, ("no solver 'adam'", "softmax_adam")),
        ({"bootstrap": -1}, ("bootstrap", "-1")),
        ({"preset": "paper", "bootstrap": 5}, ("leave_one_out_sgd", "bootstrap=0")),
        ({"members": 0}, ("at least 1 member", "0")),
        ({"alignment": "reference", "gradient_head": "own"}, ("gradient_head=base",)),
        ({"shrinkage": "bayes"}, ("shrinkage", "oas")),
        ({"gradient_head": "basse"}, ("No gradient head called 'basse'", "ncm")),
    ],
)
def test_wrong_settings_are_refused_before_evidence_is_gathered(settings, words, refused):
    from vprompt.transfer import hgprompt

    with refused(*words):
        hgprompt.plan(**settings)


def test_plan_and_weigh_take_the_same_settings():
    import inspect

    from vprompt.transfer import hgprompt, spot

    for module in (hgprompt, spot):
        asked = dict(inspect.signature(module.plan).parameters)
        given = dict(inspect.signature(module.weigh).parameters)
        given.pop("evidence")
        assert {n: p.default for n, p in asked.items()} == {n: p.default for n, p in given.items()}


# Intervals and the noise floor.


def test_intervals_hold_their_weight_and_narrow_with_more_images():
    from vprompt.transfer import hgprompt

    widths = []
    for images in (60, 960):
        mix = hgprompt.weigh(make_pool(images=images, seed=1), bootstrap=60)
        spans = mix.facts["intervals"]
        assert len(spans) == 4 and all(0 <= low <= high <= 1 for low, high in spans)
        for weight, (low, high) in zip(mix.weights.tolist(), spans, strict=True):
            # One resample in sixty can lift a mean beyond the central 95 %, though not by much.
            assert low - 0.01 <= weight <= high + 0.01
        widths.append(sum(high - low for low, high in spans))
    assert widths[1] < widths[0]


def test_the_noise_floor_is_what_shuffled_labels_score_on_average(generator):
    """O5: the exact mean over permutations of the labels."""
    from vprompt.transfer import hgprompt

    pool = make_pool(images=60, width=20)
    mix = hgprompt.weigh(pool, bootstrap=0)
    fused = torch.einsum("s,snh->nh", mix.weights, pool.features.double())
    from vprompt.metrics.hscore import score

    rho = mix.facts["shrinkage"]
    shuffled = [
        score(fused, pool.labels[torch.randperm(60, generator=generator)], shrinkage=rho)
        for _ in range(400)
    ]
    error = np.std(shuffled) / 400**0.5
    assert mix.facts["noise_floor"] == pytest.approx(np.mean(shuffled), abs=4 * error)


@pytest.mark.parametrize("gamma, expected", [(1e-2, 1.2329), (1e-8, 1.8090)])
def test_the_permutation_null_with_a_ridge(gamma, expected, generator):
    """O5 as the specification words it: N = 200, h = 60, C = 7, an absolute ridge."""
    features = torch.randn(200, 60, generator=generator).double()
    labels = torch.arange(200) % 7
    centred = features - features.mean(0)
    sigma = centred.T @ centred / 199
    inverse = torch.linalg.inv(sigma + gamma * torch.eye(60).double())
    freedom = float((sigma @ inverse).trace())
    found = []
    for _ in range(300):
        shuffled = labels[torch.randperm(200, generator=generator)]
        indicator = torch.nn.functional.one_hot(shuffled).double()
        means = indicator.T @ centred / indicator.sum(0)[:, None]
        between = (means * indicator.sum(0)[:, None]).T @ means / 199
        found.append(float((inverse @ between).trace()))
    assert np.mean(found) == pytest.approx(6 * freedom / 199, rel=0.01)
    if gamma < 1e-4:  # df is the rank, so the figure is the same for any features
        assert 6 * freedom / 199 == pytest.approx(expected, rel=1e-3)


# Oracles that other files do not hold.


def test_o1_a_single_source_is_the_textbook_hscore():
    """O1: tr(pinv(cov(f)) cov(g)), g the class mean of every image, as tllib codes it."""
    from vprompt.pooling.scores import HScore

    features, labels = sources(1, images=80, width=12)
    x, y = features[0].numpy(), labels.numpy()
    g = np.zeros_like(x)
    for label in set(y):
        g[y == label] = x[y == label].mean(0)
    expected = np.trace(np.linalg.pinv(np.cov(x.T), rcond=1e-15) @ np.cov(g.T))
    raw = HScore.of(features, labels, 0.0)
    assert raw.most * raw(torch.ones(1).double())[0] == pytest.approx(expected, rel=1e-8)


def test_o3_the_raw_score_is_constant_with_few_images(generator):
    x = torch.randn(20, 40, generator=generator).double()
    centred = x - x.mean(0)
    labels = torch.arange(20) % 5
    projector = centred @ torch.linalg.pinv(centred)
    indicator = torch.nn.functional.one_hot(labels).double()
    indicator = indicator - indicator.mean(0)
    classes = indicator @ torch.linalg.pinv(indicator)
    assert float((projector @ classes).trace()) == pytest.approx(4, abs=1e-8)


@pytest.mark.parametrize("images, width, expected", [(1000, 64, 0.58), (400, 300, 6.77)])
def test_o4_labels_that_mean_nothing_score_rank_over_images(images, width, expected, generator):
    from vprompt.pooling.scores import HScore

    values = []
    for _ in range(5):
        features = torch.randn(1, images, width, generator=generator)
        labels = (torch.arange(images) % 10)[torch.randperm(images, generator=generator)]
        raw = HScore.of(features, labels, 0.0)
        values.append(raw.most * raw(torch.ones(1).double())[0])
    assert np.mean(values) == pytest.approx(9 * width / (images - 1), rel=0.15)
    assert 9 * width / (images - 1) == pytest.approx(expected, abs=0.005)


def test_o10_scale_invariance_fails_with_an_absolute_ridge():
    features, labels = sources(2)
    centred = features - features.mean(1, keepdim=True)

    def absolute(alpha):
        fused = torch.einsum("s,snh->nh", alpha, centred)
        sigma = fused.T @ fused / 59 + 0.5 * torch.eye(10).double()
        means = torch.stack([fused[labels == c].mean(0) for c in range(4)]) * (15 / 59) ** 0.5
        return float((torch.linalg.inv(sigma) @ means.T @ means).trace())

    alpha = torch.tensor([0.6, 0.4]).double()
    assert abs(absolute(3 * alpha) - absolute(alpha)) > 1e-2


def test_o17_the_trace_ratio_is_h_ensembles_score(generator):
    """O17: tr(cov(g)) / tr(cov(f)), the score that the group's released code computes."""
    from vprompt.pooling.scores import TraceRatio

    features, labels = sources()
    alpha = simplex(4, generator)
    fused = torch.einsum("s,snh->nh", alpha, features).float().numpy()
    g = np.zeros_like(fused)
    for label in range(4):
        g[labels.numpy() == label] = fused[labels.numpy() == label].mean(0)
    expected = np.trace(np.cov(g.T)) / np.trace(np.cov(fused.T))
    assert TraceRatio.of(features, labels)(alpha)[0] == pytest.approx(expected, rel=1e-6)


def test_o24_oas_is_scikit_learns():
    from sklearn.covariance import OAS

    from vprompt.core.linalg import shrinkage_intensity

    for images, width in ((80, 12), (30, 50)):
        features = sources(1, images=images, width=width)[0][0]
        centred = features - features.mean(0)
        expected = OAS(assume_centered=True).fit(centred.numpy()).shrinkage_
        assert shrinkage_intensity(centred, "oas") == pytest.approx(expected, rel=1e-12)


def test_o25_tllibs_regularised_score_differs_by_its_two_denominators():
    """O25: tllib shrinks a covariance over N and takes class means over N - 1."""
    from sklearn.covariance import LedoitWolf

    from vprompt.pooling.scores import HScore

    features, labels = sources(1, images=80, width=12)
    x, y = features[0].numpy() - features[0].numpy().mean(0), labels.numpy()
    model = LedoitWolf(assume_centered=True).fit(x)
    g = np.zeros_like(x)
    for label in set(y):
        g[y == label] = (1 - model.shrinkage_) ** 0.5 * x[y == label].mean(0)
    tllib = np.trace(np.linalg.pinv(model.covariance_, rcond=1e-15) @ np.cov(g.T))
    own = HScore.of(features, labels, model.shrinkage_)
    value = own.most * own(torch.ones(1).double())[0]
    assert value == pytest.approx(79 / 80 * tllib, rel=1e-8)


def test_o28_the_feature_gradient_of_the_score_gives_that_of_the_weights(generator):
    """O28: its inner product with each source's features is the gradient (G2), any form."""
    from vprompt.core.linalg import hscore_and_slope
    from vprompt.pooling.scores import HScore

    for images, width in ((60, 10), (20, 30)):
        features, labels = sources(images=images, width=width)
        objective = HScore.of(features, labels, 0.2)
        alpha = simplex(4, generator)
        fused = torch.einsum("s,snh->nh", alpha, objective.features)
        value, slope = hscore_and_slope(fused, labels, 0.2)
        own = torch.einsum("snh,nh->s", objective.features, slope)
        assert value / objective.most == pytest.approx(objective(alpha)[0], rel=1e-10)
        torch.testing.assert_close(own / objective.most, objective(alpha)[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("images, width", [(64, 6), (24, 40)])
def test_class_balance_is_the_score_of_data_with_as_many_images_of_every_class(images, width):
    """A class seen half as often counts double, as if each of its rows stood there twice."""
    from vprompt.pooling.scores import HScore, TraceRatio

    features, labels = sources(images=images, width=width)
    thinned = torch.cat(
        [torch.arange(0, images, 4)[::2], (torch.arange(images) % 4).nonzero()[:, 0]]
    )
    few, own = features[:, thinned], labels[thinned]
    twice = torch.cat([thinned, torch.arange(0, images, 4)[::2]])
    alpha = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    full, same = features[:, twice], labels[twice]
    expected = TraceRatio.of(full, same)(alpha)[0]
    found = TraceRatio.of(few, own, class_balanced=True)(alpha)[0]
    assert found == pytest.approx(expected, rel=1e-10)
    expected = HScore.of(full, same, 0.3)(alpha)[0]
    balanced = HScore.of(few, own, 0.3, class_balanced=True)
    assert balanced(alpha)[0] == pytest.approx(expected, rel=1e-10)
    slope = slope_by_differences(balanced, alpha)
    assert (balanced(alpha)[1] - slope).norm() < 1e-6 * slope.norm()


# Streaming.


def statistics(pieces, origin=None):
    from vprompt.pooling.statistics import collect

    return collect(pieces, 4, origin)


@pytest.mark.parametrize("cuts", [[60], [1, 59], [20, 20, 20], [7, 13, 40]])
def test_o18_streamed_statistics_equal_the_batch_in_any_order_and_sharding(cuts, generator):
    from vprompt.pooling.scores import HScore, TraceRatio

    features, labels = sources(width=6)
    order = torch.randperm(60, generator=generator)
    pieces = [(features[:, rows], labels[rows]) for rows in order.split(cuts)]
    found = statistics(pieces)
    alpha = simplex(4, generator)
    for own, whole in (
        (found.hscore(0.2), HScore.of(features, labels, 0.2)),
        (found.hscore(), HScore.of(features, labels, "oas")),
        (found.trace_ratio(), TraceRatio.of(features, labels)),
    ):
        assert own(alpha)[0] == pytest.approx(whole(alpha)[0], rel=1e-10)
        torch.testing.assert_close(own(alpha)[1], whole(alpha)[1], atol=1e-10, rtol=0)
    origin = found.origin
    halves = [statistics(pieces[i::2], origin) for i in range(2) if pieces[i::2]]
    for shards in (halves, halves[::-1]):
        merged = shards[0]
        for shard in shards[1:]:
            merged = merged.merge(shard)
        torch.testing.assert_close(merged.scatter, found.scatter, atol=1e-9, rtol=1e-10)
        assert torch.equal(merged.counts, found.counts)


def test_statistics_of_different_origins_do_not_merge(refused):
    features, labels = sources(width=6)
    with refused("same origin"):
        statistics([(features, labels)]).merge(statistics([(features + 1, labels)]))


def test_statistics_of_one_class_are_refused(refused):
    features, labels = sources(width=6)
    with refused("two classes"):
        statistics([(features, torch.zeros_like(labels))]).hscore(0.1)


@pytest.mark.parametrize("score", ["hscore_adjusted", "hscore_raw", "trace_ratio"])
def test_a_single_class_is_refused_in_words(score, refused):
    from vprompt.transfer import hgprompt

    one = make_pool(labels=torch.zeros(60, dtype=torch.long))
    with refused("two classes"):
        hgprompt.weigh(one, score=score)


# Duplicates.


def test_a_duplicate_gets_no_weight_and_is_named_with_its_twin(pool):
    from vprompt.pooling.combining import duplicates, weigh_sources
    from vprompt.transfer import hgprompt

    twice = pool.select([0, 1, 0, 2])
    assert duplicates(twice.features) == {2: 0}
    mix, twins = weigh_sources(lambda e: hgprompt.weigh(e, bootstrap=0), "hgprompt", twice)
    alone, none = weigh_sources(
        lambda e: hgprompt.weigh(e, bootstrap=0), "hgprompt", pool.select([0, 1, 2])
    )
    assert twins == {"a": "a"} and none == {}
    assert mix.weights.tolist() == pytest.approx(
        [*alone.weights[:2].tolist(), 0.0, float(alone.weights[2])]
    )


def test_facts_are_plain_values(pool):
    from vprompt.transfer import hgprompt

    mix = hgprompt.weigh(pool, bootstrap=10)
    assert json.loads(json.dumps(mix.facts)) == dict(mix.facts)


# SPoT and given weights.


def test_spot_takes_the_most_similar_prompt_whatever_the_order_of_tokens(generator):
    from vprompt.transfer import spot

    target = torch.randn(3, 5, generator=generator)
    prompts = torch.randn(4, 3, 5, generator=generator)
    prompts[2] = 2 * target[[1, 2, 0]]
    pool = make_pool(prompts=prompts, target=target)
    for similarity in ("tokens", "mean"):
        mix = spot.weigh(pool, similarity=similarity)
        assert mix.weights.tolist() == [0, 0, 1, 0]
    cosines = [
        [float(torch.cosine_similarity(a, b, dim=0)) for a in target for b in source]
        for source in prompts
    ]
    found = spot.weigh(pool).facts["similarities"]
    assert found == pytest.approx([np.mean(each) for each in cosines], abs=1e-6)
    top = spot.weigh(pool, top=2).weights
    assert (top > 0).sum() <= 2 and float(top.sum()) == pytest.approx(1)


def test_linear_takes_the_given_weights(refused):
    from vprompt.transfer import linear

    pool = make_pool()
    assert linear.weigh(pool, weights=[1.0, 1.0, 2.0, 0.0]).weights.tolist() == [0.25, 0.25, 0.5, 0]
    assert linear.weigh(pool).weights.tolist() == [0.25] * 4
    assert not linear.weigh(pool, weights=[2.0, -1.0, 0.0, 0.0]).simplex
    with refused("got 2 weights for 4 sources", "a, b, c, d"):
        linear.weigh(pool, weights=[0.5, 0.5])
    with refused("sum to 0"):
        linear.weigh(pool, weights=[1.0, -1.0, 0.0, 0.0])


def test_standardised_features_do_not_depend_on_their_units(pool):
    """Units of single features change the trace ratio, not that of standardised features."""
    from dataclasses import replace

    from vprompt.transfer import hgprompt

    def best(evidence, **more):
        mix = hgprompt.weigh(evidence, score="trace_ratio", bootstrap=0, **more)
        return mix.facts["optima"][0]["value"]

    units = torch.logspace(-1, 1, pool.features.shape[2])
    other = replace(pool, features=pool.features * units + 3)
    value = best(pool, standardise=True)
    assert best(other, standardise=True) == pytest.approx(value, rel=1e-5)
    assert best(other) != pytest.approx(best(pool), rel=1e-2)
    mean, spread = pool.features.mean(1, keepdim=True), pool.features.std(1, keepdim=True)
    by_hand = replace(pool, features=(pool.features - mean) / spread)
    assert best(by_hand) == pytest.approx(value, rel=1e-5)


def test_robust_softens_and_without_a_bootstrap_returns_the_optimum(pool):
    from vprompt.core.errors import VPromptError
    from vprompt.transfer import hgprompt

    soft, hard = hgprompt.weigh(pool), hgprompt.weigh(pool, bootstrap=0)
    assert soft.facts["chosen"]["soften"] == "spread" and hard.facts["chosen"]["soften"] == "none"
    best = torch.tensor(soft.facts["optima"][0]["weights"], dtype=torch.float64)
    assert torch.equal(hard.weights, best)
    assert not torch.allclose(soft.weights, best)
    assert soft.simplex and float(soft.weights.sum()) == pytest.approx(1)
    assert float((soft.weights - 1 / 4).norm()) < float((best - 1 / 4).norm())
    with pytest.raises(VPromptError, match="soften=bagged averages resampled weights"):
        hgprompt.weigh(pool, bootstrap=0, soften="bagged")
