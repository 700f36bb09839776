"""Baselines: weights from similarity, scores, validation and chance, each against a hand count."""

import numpy as np
import pytest
import torch
from test_hgprompt import make_pool
from test_transfer import sources


def cosine(a, b):
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# SPoT


@pytest.fixture
def prompts(generator):
    """Four sources' tokens and the target's, `[4, 3, 5]` and `[3, 5]`."""
    own = torch.randn(3, 5, generator=generator)
    apart = torch.tensor([1.0, 0.5, -0.2, -1.0])[:, None, None]  # two near it, two turned away
    return apart * own + 0.3 * torch.randn(4, 3, 5, generator=generator), own


def test_spots_similarities_by_hand(prompts):
    from vprompt.transfer.spot import prompt_similarities

    theirs, own = prompts
    pairs = [[cosine(a, b) for a in own for b in source] for source in theirs]
    found = prompt_similarities(theirs, own, "tokens").tolist()
    assert found == pytest.approx([np.mean(each) for each in pairs], abs=1e-12)
    means = [cosine(source.double().mean(0), own.double().mean(0)) for source in theirs]
    assert prompt_similarities(theirs, own, "mean").tolist() == pytest.approx(means, abs=1e-12)


def test_what_moved_is_compared_by_hand(prompts, generator, refused):
    from vprompt.transfer.spot import prompt_similarities

    theirs, own = prompts
    start = torch.randn(3, 5, generator=generator)
    found = prompt_similarities(theirs, own, "moved", start).tolist()
    wanted = [cosine(source - start, own - start) for source in theirs]
    assert found == pytest.approx(wanted, abs=1e-6)
    with refused("similarity=moved needs the start"):
        prompt_similarities(theirs, own, "moved")


def test_a_source_that_stayed_where_it_began_is_nearest_by_its_tokens_alone(generator):
    from vprompt.transfer import spot

    start, ways = torch.randn(3, 5, generator=generator), torch.randn(4, 3, 5, generator=generator)
    theirs = start + torch.tensor([0.0, 0.3, 0.3, 0.3])[:, None, None] * ways
    pool = make_pool(prompts=theirs, target=start + 0.05 * ways[2], target_start=start)
    assert spot.weigh(pool).weights.tolist() == [1, 0, 0, 0]
    moved = spot.weigh(pool, similarity="moved")
    assert moved.weights.tolist() == [0, 0, 1, 0]
    assert moved.facts["similarities"][0] == 0  # what did not move points nowhere
    assert moved.facts["similarities"][2] == pytest.approx(1)


@pytest.mark.parametrize("similarity", ["tokens", "mean"])
@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_spot_weighs_the_nearest_by_their_similarity_and_none_below_zero(prompts, similarity, top):
    from vprompt.transfer import spot

    mix = spot.weigh(
        make_pool(prompts=prompts[0], target=prompts[1]), similarity=similarity, top=top
    )
    found = np.array(mix.facts["similarities"])
    assert (found < 0).any() and (found > 0).any()  # or this test proves little
    kept = np.zeros(4)
    for row in np.argsort(-found)[:top]:
        kept[row] = max(found[row], 0)
    assert mix.weights.tolist() == pytest.approx((kept / kept.sum()).tolist(), abs=1e-12)


def test_spot_falls_back_on_the_nearest_where_none_is_alike(generator):
    from vprompt.transfer import spot

    own = torch.ones(3, 5)
    theirs = torch.stack([-own - 2, -own + 0.1 * torch.randn(3, 5, generator=generator)])
    mix = spot.weigh(make_pool(features=sources(2)[0], prompts=theirs, target=own), top=2)
    assert max(mix.facts["similarities"]) < 0
    assert mix.weights.tolist() == [0.0, 1.0]


# Scores


def test_proportional_weights_are_scores_by_their_sum():
    from vprompt.metrics.hscore import score
    from vprompt.transfer import proportional

    pool = make_pool()
    scores = [score(features, pool.labels) for features in pool.features]
    found = proportional.weigh(pool).weights.tolist()
    assert found == pytest.approx([each / sum(scores) for each in scores], abs=1e-12)


def test_negative_scores_have_no_proportions(refused):
    from vprompt.transfer import proportional

    with refused("scores of at least 0, but gbc gave -", "hscore"):
        proportional.weigh(make_pool(), metric="gbc")
    with refused("No metric called 'hscor'"):
        proportional.plan(metric="hscor")


# Validation


def test_the_oracle_takes_the_source_that_is_best_on_validation():
    from vprompt.models.heads import closed_form
    from vprompt.transfer import best_validation

    features, labels = sources(count=4, images=80, signal=3.0)
    pool = make_pool(
        features=features[:, :60],
        labels=labels[:60],
        val_features=features[:, 60:].float(),
        val_labels=labels[60:],
    )
    mix = best_validation.weigh(pool)
    right = []
    for train, val in zip(pool.features, pool.val_features, strict=True):
        said = closed_form(train, pool.labels, 4).logits(val).argmax(1)
        right.append(np.mean((said == pool.val_labels).numpy()))
    assert mix.facts["val_accuracies"] == pytest.approx(right)
    assert mix.weights[int(np.argmax(right))] == 1 and max(right) > min(right)
    assert "oracle" in mix.facts
    assert best_validation.plan().validation


def test_the_oracle_needs_validation_images(refused):
    from vprompt.transfer import best_validation

    with refused("needs validation images"):
        best_validation.weigh(make_pool())


# Chance


def test_random_weights_are_a_dirichlet_draw():
    from vprompt.transfer import random_weights

    pool = make_pool()
    draws = np.array(
        [random_weights.weigh(pool, seed=seed).weights.tolist() for seed in range(400)]
    )
    # Mean 1/M and variance (M - 1) / (M^2 (M + 1)) of every weight, M = 4.
    assert draws.mean(0) == pytest.approx([0.25] * 4, abs=0.04)
    assert draws.var(0) == pytest.approx([3 / 80] * 4, rel=0.25)
    near = [random_weights.weigh(pool, seed=s, concentration=100.0).weights for s in range(50)]
    assert np.std([each.tolist() for each in near]) < 0.04


def test_random_weights_follow_names_and_seed(refused):
    from vprompt.transfer import random_weights

    pool = make_pool()
    first = random_weights.weigh(pool, seed=3).weights
    assert torch.equal(random_weights.weigh(pool, seed=3).weights, first)
    assert not torch.equal(random_weights.weigh(pool, seed=4).weights, first)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        random_weights.weigh(pool.select(order), seed=3).weights, first[order]
    )
    with refused("concentration above 0"):
        random_weights.weigh(pool, concentration=0.0)


# PANDA


def test_tasks_are_compared_by_their_centred_embeddings(generator):
    from vprompt.transfer.panda import task_similarities

    theirs = torch.randn(4, 7, generator=generator) + 5
    own = torch.randn(7, generator=generator) + 5
    centre = theirs.double().mean(0)
    by_hand = [cosine(each.double() - centre, own.double() - centre) for each in theirs]
    found = task_similarities(theirs, own)
    assert found.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert found.min() < 0 < found.max()  # without the centre all would be near 1
    [single] = task_similarities(theirs[:1], own).tolist()
    assert single == pytest.approx(cosine(theirs[0].double(), own.double()))


def test_panda_weighs_the_nearest_tasks_by_softmax(generator):
    from vprompt.transfer import panda

    pool = make_pool(task_embeddings=torch.randn(4, 10, generator=generator))
    similarities = panda.task_similarities(pool.task_embeddings, pool.plain.mean(0))
    order = similarities.argsort(descending=True)
    one = panda.weigh(pool)
    assert one.weights[order[0]] == 1 and one.facts["similarities"] == similarities.tolist()
    shares = np.exp(similarities[order[:3]].numpy())
    found = panda.weigh(pool, teachers=3).weights
    assert found[order[:3]].tolist() == pytest.approx((shares / shares.sum()).tolist())
    assert found[order[3]] == 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"teachers": 0}, "at least one teacher"),
        ({"distillation": "l1"}, "There are: kl, mse, published"),
        ({"student": "old"}, "There are: fresh, source"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"strength": -1.0}, "strength of at least 0"),
    ],
)
def test_settings_of_panda_that_make_no_sense_are_refused(refused, settings, words):
    from vprompt.transfer import panda

    with refused(words):
        panda.plan(**settings)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"target": "last"}, "There are: first, mean, zeros"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"bottleneck": 0}, "bottleneck of at least 1"),
        ({"attention_rate": 0.0}, "attention_rate above 0"),
    ],
)
def test_settings_of_attempt_that_make_no_sense_are_refused(refused, settings, words):
    from vprompt.transfer import attempt

    with refused(words):
        attempt.plan(**settings)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"use": "worst"}, "There are: average, best"),
        ({"similarity": "token"}, "Did you mean 'tokens'"),
        ({"top": 0}, "at least one source"),
        ({"epochs": 0}, "at least one epoch"),
    ],
)
def test_settings_of_spot_that_make_no_sense_are_refused(refused, settings, words):
    from vprompt.transfer import spot

    with refused(words):
        spot.plan(**settings)
