"""Configurations: controls have as many parameters, and differ from what they control for."""

from collections import Counter
from itertools import product

import pytest

FOUND = {"image": [0, 5, 10, 5, 0, 20]}
WIDTHS = {"image": 8}
BOTH = {"text": [2, 0, 4], "image": [0, 2, 0]}
OF_BOTH = {"text": 2, "image": 3}


def test_parameters_are_tokens_times_width():
    from vprompt.prompts.configurations import parameters

    assert parameters(FOUND, WIDTHS) == 8 * 40
    assert parameters(BOTH, OF_BOTH) == 2 * 6 + 3 * 2


def test_uniform_has_as_many_parameters_and_no_block_stands_out():
    from vprompt.prompts.configurations import parameters, uniform

    assert uniform(FOUND, WIDTHS) == {"image": [6, 7, 7, 6, 7, 7]}
    assert uniform({"image": [0, 0, 30]}, WIDTHS) == {"image": [10, 10, 10]}
    for text, image in product(range(9), repeat=2):
        given = {"text": [text, 0, 0], "image": [0, image, 0]}
        even = uniform(given, OF_BOTH)
        rest = parameters(given, OF_BOTH) - parameters(even, OF_BOTH)
        lengths = even["text"] + even["image"]
        assert max(lengths) - min(lengths) <= 1
        assert 0 <= rest < 2 and [len(row) for row in even.values()] == [3, 3]


def test_random_configurations_are_all_of_that_count_and_equally_probable():
    from vprompt.prompts.configurations import random_of_equal_count

    given = {"text": [4, 0], "image": [2, 2]}
    fit = {
        pick for pick in product((0, 2, 4), repeat=4) if 2 * sum(pick[:2]) + 3 * sum(pick[2:]) == 20
    }
    drawn = Counter()
    for seed in range(400):
        found = random_of_equal_count(given, [4, 2, 0], OF_BOTH, seed=seed)
        drawn[(*found["text"], *found["image"])] += 1
    assert set(drawn) == fit and len(fit) > 4
    expected = 400 / len(fit)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())


def test_a_random_configuration_follows_from_its_seed():
    from vprompt.prompts.configurations import random_of_equal_count

    one, two, other = (
        random_of_equal_count(FOUND, [0, 5, 10, 20], WIDTHS, seed=seed) for seed in (3, 3, 4)
    )
    assert one == two != other


def test_a_count_that_no_candidates_reach_is_refused(refused):
    from vprompt.prompts.configurations import random_of_equal_count

    with refused("No configuration of the lengths", "0, 7", "320 parameters", "candidates"):
        random_of_equal_count(FOUND, [0, 7], WIDTHS, seed=0)


def test_shuffled_lengths_are_the_same_at_other_blocks():
    from vprompt.prompts.configurations import shuffled

    for seed in range(20):
        found = shuffled(BOTH, seed=seed)
        assert found == shuffled(BOTH, seed=seed)
        for branch, lengths in BOTH.items():
            assert sorted(found[branch]) == sorted(lengths) and found[branch] != lengths
    assert shuffled({"image": [3, 3]}, seed=0) == {"image": [3, 3]}


def test_swapped_branches_exchange_their_lengths(refused):
    from vprompt.prompts.configurations import swapped

    assert swapped(BOTH) == {"text": [0, 2, 0], "image": [2, 0, 4]}
    with refused("Two branches", "image"):
        swapped(FOUND)
    with refused("'text': 1"):
        swapped({"text": [1], "image": [1, 2]})


@pytest.mark.parametrize("widths", [{}, {"text": 4}])
def test_a_branch_without_a_width_is_refused(widths, refused):
    from vprompt.prompts.configurations import parameters

    with refused("width of every branch", "image"):
        parameters(FOUND, widths)
