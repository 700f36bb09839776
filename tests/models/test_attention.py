"""Attention over a prompt's keys: gates remove, insert and weigh keys exactly."""

import pytest
import torch
from exact import awake, relative


@pytest.fixture
def sets(generator):
    """Queries, a block's own keys and values, and those of a prompt shared by all images."""
    from vprompt.models.attention import KeyValue

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = KeyValue(draw(2, 3, 5, 4), draw(2, 3, 5, 4))
    return draw(2, 3, 5, 4), own, KeyValue(draw(1, 3, 4, 4), draw(1, 3, 4, 4))


def by_hand(query, own, prompt, scale, mask, gates):
    """Attention over the prompt's keys, then the block's own, one query after the other."""
    out = torch.zeros_like(query)
    for image in range(query.shape[0]):
        row = gates if gates.dim() == 1 else gates[image]
        for head in range(query.shape[1]):
            keys = torch.cat([prompt.key[0, head], own.key[image, head]])
            values = torch.cat([prompt.value[0, head], own.value[image, head]])
            for position in range(query.shape[2]):
                weights = (scale * keys @ query[image, head, position]).exp()
                weights[: len(row)] *= row
                if mask is not None:
                    weights[len(row) :] *= mask[position].exp()
                out[image, head, position] = weights @ values / weights.sum()
    return out


@pytest.fixture(params=[False, True])
def mask(request):
    if not request.param:
        return None
    return torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)


@pytest.mark.parametrize("fused", [True, False])
def test_joint_attention_is_softmax_over_both_sets(sets, mask, fused):
    from vprompt.models.attention import joint

    query, own, prompt = sets
    found = joint(fused=fused)(query, own, prompt, 0.5, mask)
    expected = by_hand(query, own, prompt, 0.5, mask, torch.ones(4).double())
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("length", [7, 160, 400])
def test_joint_attention_in_bf16_is_close_whichever_kernel_runs(
    monkeypatch, generator, length, amx
):
    from vprompt.models import attention
    from vprompt.models.attention import KeyValue, joint

    monkeypatch.setattr(attention, "has_amx", lambda: amx)

    def draw(count):
        return torch.randn(1, 2, count, 16, generator=generator).bfloat16()

    sets = draw(length), KeyValue(draw(length), draw(length)), KeyValue(draw(4), draw(4))
    wide = [KeyValue(s.key.double(), s.value.double()) for s in sets[1:]]
    expected = joint(fused=False)(sets[0].double(), *wide, 0.25, None)
    assert relative(joint()(*sets, 0.25, None).double(), expected) < 0.02


def test_gates_multiply_the_weight_of_a_key(sets, mask, generator):
    from vprompt.models.attention import gated

    query, own, prompt = sets
    for shape in ((4,), (2, 4)):
        gates = torch.rand(shape, generator=generator, dtype=torch.float64)
        found = gated(gates)(query, own, prompt, 0.5, mask)
        assert relative(found, by_hand(query, own, prompt, 0.5, mask, gates)) < 1e-12


def test_a_gate_of_zero_is_exact_removal_and_of_one_the_plain_key(sets):
    from vprompt.models.attention import KeyValue, gated, joint

    query, own, prompt = sets
    plain = joint(fused=False)
    assert relative(gated(torch.ones(4))(*sets, 0.5, None), plain(*sets, 0.5, None)) < 1e-12
    gates = torch.tensor([1.0, 0.0, 1.0, 0.0])
    kept = KeyValue(prompt.key[:, :, [0, 2]], prompt.value[:, :, [0, 2]])
    left = gated(gates)(query, own, prompt, 0.5, None)
    assert relative(left, plain(query, own, kept, 0.5, None)) < 1e-12


def test_the_slope_at_both_ends_is_finite_and_right(sets):
    from vprompt.models.attention import gated

    query, own, prompt = sets
    for at in (0.0, 1.0):
        gates = torch.full((4,), at, dtype=torch.float64, requires_grad=True)
        gated(gates)(query, own, prompt, 0.5, None).square().sum().backward()
        for index in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[index] = 1e-6
            high, low = (
                gated(gates.detach() + sign * step)(query, own, prompt, 0.5, None).square().sum()
                for sign in (1, -1)
            )
            assert gates.grad[index].item() == pytest.approx((high - low).item() / 2e-6, rel=1e-6)


def test_gates_of_a_whole_model_remove_tokens_exactly(generator):
    from vprompt.backbones import tiny
    from vprompt.models.attention import gated
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import Prompt, place

    backbone = awake(tiny.load())
    pictures = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    blocks = place(3, backbone.depth, deep=True)
    tokens = torch.randn(len(blocks), backbone.dim, generator=generator, dtype=torch.float64)
    gates = torch.ones(len(blocks), dtype=torch.float64)
    gates[torch.tensor([1, 4, 5])] = 0
    kept = gates > 0
    found = extract(
        backbone,
        pictures,
        Prompt(tokens, blocks, False),
        attend=lambda block: gated(gates[blocks == block]),
    )
    expected = extract(backbone, pictures, Prompt(tokens[kept], blocks[kept], False))
    assert relative(found, expected) < 1e-12


def test_a_block_that_cannot_be_looked_into_refuses_gates(tiny, images, generator, refused):
    from vprompt.models.attention import gated
    from vprompt.models.backbone import Backbone

    rows = torch.randn(1, 2, tiny.dim, generator=generator)
    with refused("cannot be reached", "vit_"):
        Backbone.prompted_block(tiny, 0, tiny.embed(images), rows, gated(torch.ones(2)))


def test_exact_slopes_are_the_whole_change_of_an_output_when_a_gate_is_turned_over(sets, mask):
    from vprompt.models.attention import gated

    start = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    query, own, prompt = sets
    before = gated(start)(query, own, prompt, 0.5, mask)
    direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(3)).double()
    gates = start.clone().requires_grad_()
    found = gated(gates, exact=True)(query, own, prompt, 0.5, mask)
    assert torch.equal(found, before)  # the forward pass is that of plain gates
    (found * direction).sum().backward()
    for index in range(4):
        turned = start.clone()
        turned[index] = 1 - turned[index]
        change = ((gated(turned)(query, own, prompt, 0.5, mask) - before) * direction).sum()
        sign = 1 if start[index] == 0 else -1
        assert sign * gates.grad[index].item() == pytest.approx(change.item(), rel=1e-9)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("present", [0.0, 1.0])
def test_a_key_that_towers_above_all_others_leaves_finite_values(sets, exact, present):
    """A weight of 1 leaves a rest of 0 in fp32; behind a closed gate it counts for nothing."""
    from vprompt.models.attention import KeyValue, gated

    query = sets[0].float()
    own, prompt = (KeyValue(s.key.float(), s.value.float()) for s in sets[1:])
    tower = KeyValue(prompt.key.clone(), prompt.value)
    tower.key[:, :, 1] = 0
    query[..., 0], tower.key[:, :, 1, 0] = 1.0, 1000.0
    gates = torch.tensor([1.0, present, 1.0, 1.0], requires_grad=True)
    found = gated(gates, exact=exact)(query, own, tower, 0.5, None)
    others = [0, 2, 3]
    rest = KeyValue(prompt.key[:, :, others], prompt.value[:, :, others])
    alone = tower.value[:, :, 1:2].expand_as(found)
    expected = alone if present else gated(torch.ones(3))(query, own, rest, 0.5, None)
    assert relative(found, expected) < 1e-6
    found.square().sum().backward()
    assert gates.grad.isfinite().all()


def test_exact_slopes_leave_the_gradients_of_keys_and_values_as_they_are(sets):
    from vprompt.models.attention import KeyValue, gated

    query, own, prompt = sets
    grads = []
    for exact in (False, True):
        leaves = [query, own.key, own.value, prompt.key, prompt.value]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        gates = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
        attend = gated(gates, exact=exact)
        out = attend(leaves[0], KeyValue(*leaves[1:3]), KeyValue(*leaves[3:]), 0.5, None)
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    assert all(relative(a, b) < 1e-12 for a, b in zip(*grads, strict=True))
