"""Ranking and judging: measures against SciPy and by hand, intervals, and the table they make."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats


def pairs(count, levels, seed):
    """Two lists of numbers with many ties (few levels) or none."""
    rng = np.random.default_rng(seed)
    if levels is None:
        return rng.random(count), rng.random(count)
    return rng.integers(levels, size=count) / 4, rng.integers(levels, size=count) / 4


CASES = [(n, levels, seed) for n in (3, 8, 13) for levels in (None, 2, 4) for seed in range(4)]


@pytest.mark.parametrize("count, levels, seed", CASES)
def test_correlations_are_scipy_s_with_ties_and_without(count, levels, seed):
    from vprompt.results import ranking

    x, y = pairs(count, levels, seed)
    if min(np.ptp(x), np.ptp(y)) == 0:
        assert math.isnan(ranking.weighted_tau(x, y)) and math.isnan(ranking.spearman(x, y))
        return
    wanted = {
        ranking.weighted_tau: stats.weightedtau(x, y).statistic,
        ranking.kendall_tau: stats.kendalltau(x, y).statistic,
        ranking.pearson: stats.pearsonr(x, y).statistic,
        ranking.spearman: stats.spearmanr(x, y).statistic,
    }
    for function, expected in wanted.items():
        assert float(function(x, y)) == pytest.approx(expected, abs=1e-12)


def test_measures_work_along_the_last_axis():
    from vprompt.results import ranking

    rng = np.random.default_rng(0)
    scores, accuracies = rng.integers(5, size=(4, 3, 9)) / 2, rng.random((3, 9))
    found = ranking.measure(scores, accuracies)
    assert tuple(found) == ranking.MEASURES
    for i, j in itertools.product(range(4), range(3)):
        alone = ranking.measure(scores[i, j], accuracies[j])
        assert all(found[name][i, j] == pytest.approx(alone[name]) for name in found)


def test_a_small_example_with_ties_is_what_it_is_by_hand():
    """M14. Scores 3, 2, 2, 1 of candidates that reach 0.9, 0.5, 0.7, 0.7."""
    from vprompt.results import ranking

    scores, reached = np.array([3.0, 2, 2, 1]), np.array([0.9, 0.5, 0.7, 0.7])
    # Pairs: 12+ 13+ 14+ 23 tied in scores, 24- , 34 tied in accuracy. So 3 - 1 of sqrt(5 * 5).
    assert float(ranking.kendall_tau(scores, reached)) == pytest.approx(2 / 5)
    # By score, then accuracy, the ranks are 0, 2, 1, 3; weights 1, 1/3, 1/2, 1/4.
    by_score = (4 / 3 + 3 / 2 + 5 / 4 - 7 / 12) / math.sqrt(
        (4 / 3 + 3 / 2 + 5 / 4 + 7 / 12 + 3 / 4) * (4 / 3 + 3 / 2 + 5 / 4 + 5 / 6 + 7 / 12)
    )
    # By accuracy, then score, they are 0, 3, 1, 2; weights 1, 1/4, 1/2, 1/3.
    by_accuracy = (5 / 4 + 3 / 2 + 4 / 3 - 7 / 12) / math.sqrt(
        (5 / 4 + 3 / 2 + 4 / 3 + 7 / 12 + 5 / 6) * (5 / 4 + 3 / 2 + 4 / 3 + 3 / 4 + 7 / 12)
    )
    expected = (by_score + by_accuracy) / 2
    assert float(ranking.weighted_tau(scores, reached)) == pytest.approx(expected, rel=1e-12)
    # Ranks 4, 2.5, 2.5, 1 and 4, 1, 2.5, 2.5 about their mean 2.5: 2.25 / 4.5.
    assert float(ranking.spearman(scores, reached)) == pytest.approx(0.5)
    # Deviations 1, 0, 0, -1 and 0.2, -0.2, 0, 0: 0.2 / sqrt(2 * 0.08).
    assert float(ranking.pearson(scores, reached)) == pytest.approx(0.2 / math.sqrt(0.16))
    assert float(ranking.regret(scores, reached, 1)) == 0
    # Turned round, the worst score is 3: the first choice reaches 0.7, and so do any three.
    assert float(ranking.regret(-scores, reached, 1)) == pytest.approx(0.2)
    assert float(ranking.regret(-scores, reached, 3)) == pytest.approx(0.2)
    assert float(ranking.regret(-scores, reached, 4)) == 0
    # Two tied for the first place: 0.5 or 0.7, each with probability 1/2.
    tied = ranking.regret(np.array([1.0, 2, 2, 0]), reached, 1)
    assert float(tied) == pytest.approx(0.9 - 0.6)
    assert float(ranking.regret(-scores, reached, 1, relative=True)) == pytest.approx(0.2 / 0.9)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_regret_with_ties_is_the_mean_over_all_ways_to_break_them(k, seed):
    from vprompt.results import ranking

    rng = np.random.default_rng(seed)
    scores, reached = rng.integers(3, size=6).astype(float), rng.random(6)
    losses = []
    for order in itertools.permutations(range(6)):
        chosen = sorted(order, key=lambda i: -scores[i])[:k]  # sorting keeps the order of ties
        losses.append(reached.max() - reached[chosen].max())
    assert float(ranking.regret(scores, reached, k)) == pytest.approx(np.mean(losses), abs=1e-12)


def test_a_perfect_and_a_reversed_ranking_are_the_ends_of_the_scale():
    from vprompt.results import ranking

    reached = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    best, worst = ranking.measure(reached, reached), ranking.measure(-reached, reached)
    for name in ranking.MEASURES[:4]:
        assert float(best[name]) == pytest.approx(1) and float(worst[name]) == pytest.approx(-1)
    assert float(best["regret@1"]) == 0 and float(worst["regret@1"]) == pytest.approx(0.8)


def test_what_cannot_be_ranked_is_refused(refused):
    from vprompt.results import ranking

    with refused("at least one candidate", "k=0"):
        ranking.regret(np.ones(3), np.ones(3), 0)
    with refused("at least two candidates"):
        ranking.Problem(np.ones((1, 1)), np.ones((1, 1)))
    with refused("finite"):
        ranking.Problem(np.full((1, 3), np.nan), np.ones((1, 3)))
    with refused("shapes", r"\(1, 3\)", r"\(1, 4\)"):
        ranking.Problem(np.ones((1, 3)), np.ones((1, 4)))


def problems(signal, targets=5, seeds=2, count=12, seed=0):
    from vprompt.results.ranking import Problem

    rng = np.random.default_rng(seed)
    made = []
    for _ in range(targets):
        reached = rng.random(count) + 0.05 * rng.random((seeds, count))
        made.append(Problem(signal * reached + rng.random((seeds, count)), reached))
    return made


def test_bootstrap_intervals_hold_the_mean_and_narrow_with_more_targets():
    from vprompt.results import ranking

    few, many = problems(1.0, targets=2), problems(1.0, targets=20)
    widths = []
    for each in (few, many):
        drawn = ranking.bootstrap(each, np.random.default_rng(0), resamples=200)
        low, high = np.nanquantile(drawn["tau"], [0.025, 0.975])
        assert low < ranking.average(each)["tau"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    again = ranking.bootstrap(few, np.random.default_rng(0), resamples=200)
    first = ranking.bootstrap(few, np.random.default_rng(0), resamples=200)
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_one_resample_is_what_a_loop_over_targets_and_candidates_gives():
    from vprompt.results import ranking

    made = problems(1.0, targets=3, seeds=2, count=9)
    drawn = ranking.bootstrap(made, np.random.default_rng(7), resamples=4)
    rng = np.random.default_rng(7)
    slots = rng.integers(3, size=(4, 3))
    values = np.zeros((4, 3))
    for index, problem in enumerate(made):
        places = np.argwhere(slots == index)
        rows = rng.integers(9, size=(len(places), 9))
        for (resample, slot), chosen in zip(places, rows, strict=True):
            taus = [
                stats.kendalltau(s[chosen], a[chosen]).statistic
                for s, a in zip(problem.scores, problem.accuracies, strict=True)
            ]
            values[resample, slot] = np.mean(taus)
    assert drawn["tau"] == pytest.approx(values.mean(1))


def test_p_values_are_small_for_a_signal_and_even_for_noise():
    from vprompt.results import ranking

    def p_value(signal, seed):
        made = problems(signal, targets=3, count=8, seed=seed)
        return ranking.permutation_p_value(made, np.random.default_rng(0), permutations=200)

    assert p_value(3.0, 0) == pytest.approx(1 / 201)
    noise = [p_value(0.0, seed) for seed in range(60)]
    assert stats.kstest(noise, "uniform").pvalue > 0.01


def test_random_rankings_have_no_correlation_and_the_regret_of_all_ties():
    from vprompt.results import ranking

    made = problems(1.0)
    drawn = ranking.chance(made, np.random.default_rng(0), rankings=3000)
    assert abs(drawn["tau"].mean()) < 0.01 and drawn["tau"].std() > 0.05
    ties = [ranking.regret(np.zeros_like(p.scores), p.accuracies, 1).mean() for p in made]
    assert drawn["regret@1"].mean() == pytest.approx(np.mean(ties), rel=0.03)


# The table


def records(targets=("cats", "dogs", "owls"), seeds=(0, 1), count=8, **more):
    rng = np.random.default_rng(0)
    made = []
    for target in targets:
        worth = rng.random(count)
        for seed in seeds:
            for index in range(count):
                reached = float(worth[index] + 0.02 * rng.random())
                scores = {
                    "knn": reached + 0.1 * float(rng.random()),
                    "trace_ratio": float(rng.random()),
                    "perfect": reached,
                    "never": None,
                    "sometimes": reached if index < 5 else None,
                    "flat": 0.5,
                }
                made.append(
                    {
                        "target": target,
                        "seed": seed,
                        "source": f"source {index}",
                        "scores": scores,
                        "accuracy_after_tuning": reached,
                        "seconds": {"knn": 0.25, "perfect": None},
                        **more,
                    }
                )
    return made


def test_a_judgement_has_every_metric_and_three_baselines():
    from vprompt.results.judging import judge
    from vprompt.results.ranking import MEASURES

    found = judge(records(), resamples=100)
    rows = {row.metric: row for row in found.rows}
    named = {"knn", "trace_ratio", "perfect", "never", "sometimes", "flat", "random ranking"}
    assert set(rows) == named and found.targets == ["cats", "dogs", "owls"] and not found.own
    assert all(tuple(row.measures) == MEASURES for row in found.rows)
    assert rows["perfect"].measures["weighted tau"].value == pytest.approx(1)
    assert rows["perfect"].measures["regret@1"].value == 0 and rows["perfect"].p_value < 0.02
    assert found.rows[0].metric in ("perfect", "sometimes")
    assert rows["knn"].seconds == 0.25 and rows["perfect"].seconds is None
    assert (rows["knn"].targets, rows["knn"].candidates) == (3, 8)
    assert (rows["sometimes"].targets, rows["sometimes"].candidates) == (3, 5)
    assert (rows["never"].targets, rows["never"].measures["tau"].value) == (0, None)
    assert rows["flat"].measures["tau"].value is None and rows["flat"].p_value is None
    random = rows["random ranking"].measures
    assert random["tau"].low < 0 < random["tau"].high and abs(random["tau"].value) < 0.05
    assert rows["flat"].measures["regret@1"].value == pytest.approx(
        random["regret@1"].value, abs=0.1
    )
    json.dumps(found.to_json(), allow_nan=False)


def test_a_judgement_is_the_mean_of_what_scipy_gives_for_every_target_and_seed():
    from vprompt.results.judging import judge

    made = records()
    taus = []
    for target, seed in itertools.product(("cats", "dogs", "owls"), (0, 1)):
        own = [r for r in made if (r["target"], r["seed"]) == (target, seed)]
        scores = [r["scores"]["knn"] for r in own]
        taus.append(stats.weightedtau(scores, [r["accuracy_after_tuning"] for r in own]).statistic)
    [row] = [row for row in judge(made, resamples=50).rows if row.metric == "knn"]
    interval = row.measures["weighted tau"]
    assert interval.value == pytest.approx(np.mean(taus))
    assert interval.low < interval.value < interval.high


def test_a_judgement_is_the_same_every_time_and_in_any_order_of_the_records():
    from vprompt.results.judging import judge

    made = records()
    first = judge(made, resamples=50, seed=3)
    assert judge(made, resamples=50, seed=3) == first
    shuffled = [made[i] for i in np.random.default_rng(0).permutation(len(made))]
    again = {row.metric: row for row in judge(shuffled, resamples=50, seed=3).rows}
    for row in first.rows:
        for name, interval in row.measures.items():
            assert again[row.metric].measures[name].value == pytest.approx(interval.value)


def test_markdown_shows_points_of_accuracy_baselines_and_what_flatters():
    from vprompt.results.judging import judge, markdown

    text = markdown(judge(records(targets=("cats", "source 1")), resamples=50))
    assert "| knn (baseline) |" in text and "| random ranking (baseline) |" in text
    assert "| perfect | 1.00 (1.00 to 1.00) |" in text and "2 x 8" in text
    assert "The own prompt of source 1 is among its sources" in text
    plain = markdown(judge(records(), resamples=50))
    assert "No target's own prompt is among its sources" in plain and "3 targets" in plain
    assert len({line.count("|") for line in plain.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda r: r[0].pop("seconds"), "lacks 'seconds'"),
        (lambda r: r.append(r[0]), "two records of source 'source 0' on 'cats', seed 0"),
        (lambda r: r.clear(), "no records"),
        (lambda r: [each["scores"].pop("knn") for each in r], "no scores of knn"),
        (lambda r: r.__delitem__(slice(1, None)), "nothing to rank"),
    ],
)
def test_records_that_cannot_be_judged_are_refused(spoil, words, refused):
    from vprompt.results.judging import judge

    made = records()
    spoil(made)
    with refused(words):
        judge(made, resamples=10)


def test_the_command_judges_a_folder_of_records(vprompt, fails, tmp_path):
    import json

    made = records()
    for part, name in ((made[::2], "a.json"), (made[1::2], "b.json")):
        (tmp_path / name).write_text(json.dumps({"records": part}))
    (tmp_path / "bench.json").write_text(json.dumps({"recipe": {}}))  # holds no scored sources
    (tmp_path / "list.json").write_text("[1]")
    code, out, _ = vprompt("bench", "metrics", tmp_path)
    assert code == 0 and "| metric |" in out and "random ranking" in out
    code, out, _ = vprompt("bench", "metrics", tmp_path, "--json")
    assert code == 0 and {"rows", "targets", "own"} == set(json.loads(out))
    fails("bench", "metrics", tmp_path / "nowhere", saying=["no scored sources", "records"])
