"""Compose: the weighted sum of tokens that correspond, written out by hand."""

import pytest
import torch


def draw(count, blocks=None, sources=3, persist=True, seed=0, dim=8):
    from vprompt.prompts.prompt import Prompt

    randomness = torch.Generator().manual_seed(seed)
    blocks = torch.zeros(count, dtype=torch.long) if blocks is None else torch.tensor(blocks)
    return [
        Prompt(torch.randn(count, dim, generator=randomness), blocks, persist)
        for _ in range(sources)
    ]


WEIGHTS = (0.5, 0.3, 0.2)


def test_the_published_sum_is_the_weighted_sum_of_tokens():
    from vprompt.prompts.compose import combine

    a, b, c = draw(4)
    got = combine([a, b, c], torch.tensor(WEIGHTS), scale="none")
    torch.testing.assert_close(got.tokens, 0.5 * a.tokens + 0.3 * b.tokens + 0.2 * c.tokens)
    assert torch.equal(got.blocks, a.blocks) and got.persist == a.persist
    assert got.tokens.dtype == torch.float32


def test_token_norm_gives_every_token_the_weighted_mean_of_its_sources_norms():
    from vprompt.prompts.compose import combine

    prompts = draw(4)
    got = combine(prompts, torch.tensor(WEIGHTS), scale="token_norm").tokens
    for token in range(4):
        parts = [prompt.tokens[token] for prompt in prompts]
        mixed = sum(w * part for w, part in zip(WEIGHTS, parts, strict=True))
        wanted = sum(w * part.norm() for w, part in zip(WEIGHTS, parts, strict=True))
        torch.testing.assert_close(got[token], mixed / mixed.norm() * wanted)


def test_ln_standardises_before_the_sum_and_restores_the_mean_spread():
    from vprompt.prompts.compose import combine

    prompts = draw(4)
    got = combine(prompts, torch.tensor(WEIGHTS), scale="ln").tokens
    for token in range(4):
        parts = [prompt.tokens[token] for prompt in prompts]
        standard = [(p - p.mean()) / p.std(correction=0) for p in parts]
        mixed = sum(w * part for w, part in zip(WEIGHTS, standard, strict=True))
        wanted = sum(w * p.std(correction=0) for w, p in zip(WEIGHTS, parts, strict=True))
        torch.testing.assert_close(got[token], mixed / mixed.std(correction=0) * wanted)


def test_ln_does_not_see_the_scale_and_shift_of_a_source():
    from vprompt.prompts.compose import combine

    first, second, third = draw(4)
    weights = torch.tensor(WEIGHTS)
    other = second.with_tokens(7 * second.tokens + 3)
    plain = combine([first, second, third], weights, scale="ln").tokens
    moved = combine([first, other, third], weights, scale="ln").tokens
    torch.testing.assert_close(*(t / t.norm(dim=1, keepdim=True) for t in (plain, moved)))


@pytest.mark.parametrize("persist, named", [(True, "token_norm"), (False, "ln")])
def test_auto_is_token_norm_for_prompts_that_travel_on_and_ln_for_those_dropped(persist, named):
    from vprompt.prompts.compose import combine

    prompts, weights = draw(4, persist=persist), torch.tensor(WEIGHTS)
    automatic = combine(prompts, weights).tokens
    assert torch.equal(automatic, combine(prompts, weights, scale=named).tokens)
    assert not torch.equal(automatic, combine(prompts, weights, scale="none").tokens)


@pytest.mark.parametrize("scale", ["none", "token_norm"])
def test_all_weight_on_one_source_gives_that_source_back(scale):
    from vprompt.prompts.compose import combine

    prompts = draw(4)
    got = combine(prompts, torch.tensor([0.0, 1.0, 0.0]), scale=scale)
    torch.testing.assert_close(got.tokens, prompts[1].tokens)


def test_ln_of_one_source_differs_only_by_the_mean_that_no_layer_norm_sees():
    from vprompt.prompts.compose import combine

    (prompt,) = draw(4, sources=1)
    got = combine([prompt], torch.tensor([1.0]), scale="ln").tokens
    torch.testing.assert_close(got, prompt.tokens - prompt.tokens.mean(1, keepdim=True))


@pytest.mark.parametrize("scale", ["none", "token_norm", "ln"])
def test_the_order_of_the_pool_does_not_matter(scale):
    from vprompt.prompts.compose import combine

    prompts, order = draw(4, [0, 0, 2, 2]), [2, 0, 1]
    weights = torch.tensor(WEIGHTS)
    plain = combine(prompts, weights, scale=scale)
    shuffled = combine([prompts[i] for i in order], weights[order], scale=scale)
    torch.testing.assert_close(shuffled.tokens, plain.tokens)


@pytest.mark.parametrize("scale", ["token_norm", "ln"])
def test_where_sources_cancel_the_heaviest_ones_token_is_kept(scale):
    from vprompt.prompts.compose import combine

    first, second, _ = draw(3)
    opposite = second.tokens.clone()
    opposite[1] = -first.tokens[1]
    second = second.with_tokens(opposite)
    got = combine([second, first], torch.tensor([0.5, 0.5], dtype=torch.float64), scale=scale)
    assert got.tokens.isfinite().all()
    torch.testing.assert_close(got.tokens[1], opposite[1])
    assert not torch.allclose(got.tokens[0], second.tokens[0])


@pytest.mark.parametrize("scale", ["none", "token_norm", "ln"])
def test_tokens_of_zeros_stay_zeros(scale):
    from vprompt.prompts.compose import combine

    prompts = [prompt.with_tokens(torch.zeros(2, 8)) for prompt in draw(2)]
    assert torch.equal(
        combine(prompts, torch.tensor(WEIGHTS), scale=scale).tokens, torch.zeros(2, 8)
    )


def test_combining_leaves_the_sources_as_they_were():
    from vprompt.prompts.compose import combine

    prompts = draw(4)
    before = [prompt.tokens.clone() for prompt in prompts]
    for scale in ("none", "token_norm", "ln"):
        combine(prompts, torch.tensor(WEIGHTS), scale=scale)
    assert all(torch.equal(p.tokens, b) for p, b in zip(prompts, before, strict=True))


def test_an_unknown_scale_is_answered_with_those_there_are(refused):
    from vprompt.prompts.compose import combine

    with refused("No scale called 'norm'", "auto, none, token_norm, ln"):
        combine(draw(2), torch.tensor(WEIGHTS), scale="norm")


# Weights of layers.


@pytest.mark.parametrize("scale", ["none", "token_norm", "ln"])
def test_weights_of_layers_are_a_sum_of_its_own_in_every_block(scale, generator):
    from vprompt.prompts.compose import combine
    from vprompt.prompts.prompt import Prompt

    prompts = draw(6, [0, 0, 2, 3, 3, 3], persist=False)
    layers = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    layers = layers / layers.sum(1, keepdim=True)
    got = combine(prompts, layers, scale=scale)
    for block in (0, 2, 3):
        rows = (prompts[0].blocks == block).nonzero().flatten()
        parts = [Prompt(p.tokens[rows], p.blocks[rows], False) for p in prompts]
        alone = combine(parts, layers[block], scale=scale)
        torch.testing.assert_close(got.tokens[rows], alone.tokens)
    same = torch.tensor(WEIGHTS, dtype=torch.float64).expand(5, 3)
    assert torch.equal(
        combine(prompts, same, scale=scale).tokens, combine(prompts, same[0], scale=scale).tokens
    )


def test_where_a_layer_cancels_the_heaviest_of_that_layer_is_kept():
    from vprompt.prompts.compose import combine

    first, second = draw(2, [0, 1], sources=2)
    second = second.with_tokens(-first.tokens)
    layers = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    got = combine([first, second], layers, scale="token_norm").tokens
    torch.testing.assert_close(got, torch.stack([first.tokens[0], second.tokens[1]]))


def test_too_few_rows_of_layer_weights_are_refused(refused):
    from vprompt.prompts.compose import combine

    with refused("weights for 2 layers", "tokens in block 2"):
        combine(draw(2, [0, 2]), torch.full((2, 3), 1 / 3))


# Correspondence of tokens.


@pytest.mark.parametrize("blocks", [[0] * 12, [0] * 5 + [1] * 1 + [4] * 6])
def test_matching_recovers_a_random_permutation_exactly_in_every_block(blocks, generator):
    from vprompt.prompts.compose import match_tokens

    (original,) = draw(12, blocks, sources=1)
    placed = torch.tensor(blocks)
    shuffles, prompts = [], []
    for _ in range(5):
        order = torch.cat(
            [
                rows[torch.randperm(len(rows), generator=generator)]
                for rows in ((placed == b).nonzero().flatten() for b in placed.unique())
            ]
        )
        noise = 0.05 * torch.randn(12, 8, generator=generator)
        shuffles.append(order)
        prompts.append(original.with_tokens(original.tokens[order] + noise))
    found = match_tokens(prompts)
    for shuffle, order in zip(shuffles, found, strict=True):
        assert torch.equal(placed[order], placed)
        assert torch.equal(order.sort().values, torch.arange(12))
        # All tokens in a row now descend from the same original token.
        assert torch.equal(shuffle[order], shuffles[0][found[0]])


def test_matching_finds_the_best_of_all_assignments():
    from itertools import permutations

    from vprompt.prompts.compose import match_tokens

    first, second = draw(5, sources=2, seed=3)
    cosine = torch.nn.functional.cosine_similarity(
        first.tokens[:, None].double(), second.tokens[None].double(), dim=2
    )
    best = max(sum(cosine[row, p[row]] for row in range(5)) for p in permutations(range(5)))
    orders = match_tokens([first, second])
    paired = torch.nn.functional.cosine_similarity(
        first.tokens[orders[0]].double(), second.tokens[orders[1]].double(), dim=1
    )
    torch.testing.assert_close(paired.sum(), best)
    # One of the two is the reference, so its order is left as it is.
    assert any(torch.equal(order, torch.arange(5)) for order in orders)


def test_the_reference_is_the_medoid_in_whatever_place_it_stands():
    from vprompt.prompts.compose import match_tokens

    prompts = draw(4, sources=4, seed=1)
    centre = prompts[0].with_tokens(torch.stack([p.tokens for p in prompts]).sum(0))

    def similarity(one, other):
        return torch.stack(
            [
                torch.nn.functional.cosine_similarity(s.double(), t.double(), dim=0)
                for s in one.tokens
                for t in other.tokens
            ]
        ).sum()

    pool = [*prompts, centre]
    totals = [sum(similarity(one, other) for other in pool) for one in pool]
    medoid = max(range(5), key=totals.__getitem__)
    for shift in range(5):
        moved = pool[shift:] + pool[:shift]
        place = (medoid - shift) % 5
        assert torch.equal(match_tokens(moved)[place], torch.arange(4))


def test_matched_prompts_average_to_the_same_prompt_whatever_their_token_order(generator):
    from vprompt.prompts.compose import combine, match_tokens

    prompts, weights = draw(6), torch.tensor(WEIGHTS)

    def average(pool):
        orders = match_tokens(pool)
        aligned = [
            prompt.with_tokens(prompt.tokens[order])
            for prompt, order in zip(pool, orders, strict=True)
        ]
        tokens = combine(aligned, weights).tokens
        return tokens[tokens[:, 0].argsort()]

    moved = [
        prompt.with_tokens(prompt.tokens[torch.randperm(6, generator=generator)])
        for prompt in prompts
    ]
    torch.testing.assert_close(average(moved), average(prompts))


def test_a_token_of_zeros_can_be_matched():
    from vprompt.prompts.compose import match_tokens

    prompts = draw(3)
    tokens = prompts[1].tokens.clone()
    tokens[2] = 0
    orders = match_tokens([prompts[0], prompts[1].with_tokens(tokens), prompts[2]])
    assert all(torch.equal(order.sort().values, torch.arange(3)) for order in orders)


# Placement.


@pytest.mark.parametrize("different", ["blocks", "count", "persist", "dim"])
def test_prompts_of_different_placement_are_refused_and_both_are_named(different, refused):
    from vprompt.prompts.compose import check_same_place

    (first,) = draw(2, [0, 0], sources=1)
    other = {
        "blocks": lambda: draw(2, [0, 1]),
        "count": lambda: draw(3, [0, 0, 0]),
        "persist": lambda: draw(2, [0, 0], persist=False),
        "dim": lambda: draw(2, [0, 0], dim=6),
    }[different]()[0]
    with refused("same placement", "'birds'", "'apples'", "--exclude"):
        check_same_place([first, first, other], ["apples", "cars", "birds"])


def test_the_refusal_shows_what_differs(refused):
    from vprompt.prompts.compose import check_same_place

    first, second = draw(3, [0, 0, 1])[0], draw(3, [0, 2, 2])[0]
    with refused("'b' has", "3 tokens", r"\{0: 1, 2: 2\}", "'a' has", r"\{0: 2, 1: 1\}"):
        check_same_place([first, second], ["a", "b"])


def test_the_refusal_shows_a_difference_in_persistence(refused):
    from vprompt.prompts.compose import check_same_place

    kept, dropped = draw(2)[0], draw(2, persist=False)[0]
    with pytest.raises(ValueError) as caught:
        check_same_place([kept, dropped], ["a", "b"])
    # Nothing else differs: the two descriptions must not read the same.
    text = str(caught.value)
    second = text.split("'b' has ")[1].split(" and 'a' has ")
    assert second[0] != second[1].split(". Leave")[0]


def test_combine_refuses_prompts_of_different_placement(refused):
    from vprompt.prompts.compose import combine

    with refused("same placement"):
        combine([draw(2, [0, 0])[0], draw(2, [0, 1])[0]], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("scale", ["token_norm", "ln"])
def test_a_negative_weight_of_a_large_source_does_not_turn_the_sum(scale, generator):
    from vprompt.prompts.compose import combine
    from vprompt.prompts.prompt import Prompt

    blocks = torch.zeros(3, dtype=torch.long)
    one = torch.randn(3, 8, generator=generator)
    one = one - one.mean(1, keepdim=True)
    prompts = [Prompt(6 * one, blocks), Prompt(one.flip(0), blocks)]
    weights = torch.tensor([-0.1, 1.1]).double()
    found = combine(prompts, weights, scale=scale).tokens
    kept = combine([Prompt(one, blocks), prompts[1]], weights, scale=scale).tokens
    if scale == "ln":  # lengths of the sources do not matter for the direction
        cosine = torch.cosine_similarity(found.flatten(), kept.flatten(), dim=0)
        assert cosine > 0.99  # each token has a length of its own
    raw = combine(prompts, weights, scale="none" if scale == "token_norm" else "ln").tokens
    assert (torch.cosine_similarity(found, raw, dim=1) > 0.99).all()


# Prompts of different placements


def moved(prompt, moves, generator):
    """Return a prompt in which some rows stand in other blocks with new vectors."""
    from vprompt.prompts.prompt import Prompt

    tokens, blocks = prompt.tokens.clone(), prompt.blocks.clone()
    for row, block in moves:
        tokens[row] = torch.randn(tokens.shape[1], generator=generator)
        blocks[row] = block
    order = torch.argsort(blocks, stable=True)
    return Prompt(tokens[order], blocks[order], False)


@pytest.fixture
def family(generator):
    """Four prompts that grew from one start of three tokens in each of four blocks."""
    from vprompt.prompts.prompt import Prompt, place

    blocks = place(3, 4, deep=True)
    start = torch.randn(len(blocks), 16, generator=generator)
    grown = [start + 0.1 * torch.randn(start.shape, generator=generator) for _ in range(4)]
    return [Prompt(tokens, blocks, False) for tokens in grown]


def test_one_placement_in_another_order_is_matched_and_every_token_is_its_source_s_own(
    family, generator
):
    from vprompt.prompts.compose import align_places, match_tokens

    shuffled = []
    for prompt in family:
        order = torch.cat([torch.randperm(3, generator=generator) + 3 * b for b in range(4)])
        shuffled.append(prompt.with_tokens(prompt.tokens[order]))
    aligned, facts = align_places(shuffled)
    assert facts == {"slots": 12, "kept": 12, "own": [1.0] * 4}
    orders = match_tokens(aligned)  # nothing is left to match
    assert all(order.tolist() == [*range(12)] for order in orders)
    for before, after in zip(shuffled, aligned, strict=True):
        assert torch.equal(before.blocks, after.blocks)
        assert sorted(before.tokens.tolist()) == sorted(after.tokens.tolist())


def test_slots_that_most_sources_fill_are_kept_and_others_take_their_mean(family, generator):
    from vprompt.prompts.compose import align_places, check_same_place

    # Two of four moved a token from block 0 to block 3; one of them moved another to block 1.
    sources = list(family)
    sources[2] = moved(family[2], [(0, 3)], generator)
    sources[3] = moved(family[3], [(0, 3), (7, 1)], generator)
    aligned, facts = align_places(sources)
    check_same_place(aligned, "abcd")
    assert facts["slots"] == 14 and facts["kept"] == 12
    # Block 0's third slot has support 2, block 3's fourth 2, block 1's fourth only 1, block 2's
    # third 3: eleven slots of support 3 or more, and the better agreeing of two with support 2.
    assert aligned[0].counts(4) in ([3, 3, 3, 3], [2, 3, 3, 4])
    assert aligned[0].counts(4) == [3, 3, 3, 3]  # two that grew from one start agree better
    assert facts["own"] == pytest.approx([1.0, 1.0, 11 / 12, 10 / 12])
    own = {tuple(token) for token in sources[3].tokens.tolist()}
    [lost] = [token for token in aligned[3].tokens[:3] if tuple(token.tolist()) not in own]
    givers = torch.stack([family[0].tokens[0], family[1].tokens[0]])
    mean = (givers - givers.mean(1, keepdim=True)).mean(0)  # as a LayerNorm sees them
    assert torch.nn.functional.cosine_similarity(lost, mean, dim=0) > 0.999


def test_the_order_of_the_pool_does_not_matter_to_the_common_placement(family, generator):
    from vprompt.prompts.compose import align_places

    sources = [moved(p, [(i, 3)], generator) for i, p in enumerate(family)]
    aligned, _ = align_places(sources)
    turned, _ = align_places(sources[::-1])
    for one, other in zip(aligned, turned[::-1], strict=True):
        assert torch.equal(one.blocks, other.blocks)
        torch.testing.assert_close(one.tokens.sum(0), other.tokens.sum(0))


def test_the_refusal_of_different_placements_says_how_to_align_them(family, generator, refused):
    from vprompt.prompts.compose import align_places, check_same_place
    from vprompt.prompts.prompt import Prompt, place

    with refused("same placement", "--align placement"):
        check_same_place([family[0], moved(family[1], [(0, 2)], generator)], ["a", "b"])
    shallow = Prompt(torch.randn(3, 16, generator=generator), place(3, 4, deep=False))
    with refused("Only deep prompts", "--exclude"):
        align_places([family[0], shallow])
