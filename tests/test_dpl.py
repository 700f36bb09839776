"""DPL: the exact mixture over candidate lengths, and the search that moves its weights."""

import pytest
import torch
from exact import relative

torch.set_num_threads(1)  # steps this small only wait for a second thread
SIZES = (0, 1, 3)


@pytest.fixture
def sets(generator):
    """Queries, a block's own keys and values, and those of all candidates side by side."""
    from vprompt.attention import KeyValue

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = KeyValue(draw(2, 3, 5, 4), draw(2, 3, 5, 4))
    count = sum(SIZES)
    return draw(2, 3, 5, 4), own, KeyValue(draw(1, 3, count, 4), draw(1, 3, count, 4))


@pytest.fixture(params=[False, True])
def mask(request):
    if not request.param:
        return None
    return torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)


def weights_of(*values):
    return torch.tensor(values, dtype=torch.float64)


def candidate(prompt, index):
    from vprompt.attention import KeyValue

    at = slice(sum(SIZES[:index]), sum(SIZES[: index + 1]))
    return KeyValue(prompt.key[:, :, at], prompt.value[:, :, at])


# The mixture


def test_a_mixture_is_the_sum_of_whole_attentions(sets, mask):
    from vprompt.attention import joint, mixture

    query, own, prompt = sets
    weights = weights_of(0.2, 0.5, 0.3)
    plain = joint(fused=False)
    expected = sum(
        weight * plain(query, own, candidate(prompt, index), 0.5, mask)
        for index, weight in enumerate(weights)
    )
    assert relative(mixture(weights, SIZES)(*sets, 0.5, mask), expected) < 1e-12


@pytest.mark.parametrize("chosen", range(3))
def test_all_weight_on_a_candidate_is_that_candidate(sets, mask, chosen):
    from vprompt.attention import joint, mixture

    query, own, prompt = sets
    weights = torch.eye(3, dtype=torch.float64)[chosen]
    expected = joint(fused=False)(query, own, candidate(prompt, chosen), 0.5, mask)
    assert relative(mixture(weights, SIZES)(*sets, 0.5, mask), expected) < 1e-12


def test_candidates_of_no_key_are_plain_attention(sets, mask):
    from vprompt.attention import KeyValue, joint, mixture

    query, own, _ = sets
    none = KeyValue(own.key[:1, :, :0], own.value[:1, :, :0])
    found = mixture(weights_of(0.4, 0.6), (0, 0))(query, own, none, 0.5, mask)
    assert relative(found, joint(fused=False)(query, own, none, 0.5, mask)) < 1e-12


def test_a_mixture_stays_finite_where_keys_are_worlds_apart(sets):
    from vprompt.attention import KeyValue, mixture

    query, own, prompt = (part for part in sets)
    far = KeyValue(prompt.key.float() * 1e4, prompt.value.float())
    near = KeyValue(own.key.float(), own.value.float())
    found = mixture(torch.tensor([0.2, 0.5, 0.3]), SIZES)(query.float(), near, far, 1.0, None)
    assert torch.isfinite(found).all()


def test_gradients_of_a_mixture_are_finite_differences(sets):
    from vprompt.attention import KeyValue, mixture

    query, own, prompt = sets

    def value(weights, key, values):
        attend = mixture(weights, SIZES)
        return attend(query, own, KeyValue(key, values), 0.5, None).square().sum()

    given = [weights_of(0.2, 0.5, 0.3), prompt.key, prompt.value]
    assert torch.autograd.gradcheck(value, [part.clone().requires_grad_() for part in given])


def test_a_mixture_needs_a_weight_per_candidate(refused):
    from vprompt.attention import mixture

    with refused("2 weights and 3 sizes"):
        mixture(torch.ones(2), SIZES)


# Nested banks


def test_survival_gates_sum_to_the_expected_length():
    from vprompt.attention import survival

    weights = weights_of(0.1, 0.2, 0.7)
    gates = survival(weights, (0, 2, 5))
    assert gates.tolist() == pytest.approx([0.9, 0.9, 0.7, 0.7, 0.7])
    assert float(gates.sum()) == pytest.approx(0.2 * 2 + 0.7 * 5)


@pytest.mark.parametrize("chosen", range(3))
def test_a_nested_bank_with_one_weight_is_its_first_keys(sets, mask, chosen):
    from vprompt.attention import KeyValue, gated, joint, survival

    query, own, prompt = sets
    sizes = (0, 2, 4)
    first = KeyValue(prompt.key[:, :, : sizes[chosen]], prompt.value[:, :, : sizes[chosen]])
    gates = survival(torch.eye(3, dtype=torch.float64)[chosen], sizes)
    found = gated(gates)(query, own, prompt, 0.5, mask)
    assert relative(found, joint(fused=False)(query, own, first, 0.5, mask)) < 1e-12
