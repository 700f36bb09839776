"""Prompt: placement is data, the initialisation is VPT's, mistakes are told in full sentences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def test_a_shallow_number_is_all_tokens_before_the_first_block():
    from vprompt.prompts.prompt import place

    assert place(3, 4, deep=False).tolist() == [0, 0, 0]


def test_a_deep_number_is_that_many_tokens_before_every_block():
    from vprompt.prompts.prompt import place

    assert place(2, 3, deep=True).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("deep", [False, True])
def test_a_list_names_the_count_of_every_block_whatever_deep_says(deep):
    from vprompt.prompts.prompt import place

    assert place([1, 0, 3], 3, deep=deep).tolist() == [0, 2, 2, 2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any))
def test_counting_a_placement_gives_back_the_counts_it_was_made_from(counts):
    from vprompt.prompts.prompt import Prompt, place

    blocks = place(counts, len(counts), deep=False)
    expected = [block for block, count in enumerate(counts) for _ in range(count)]
    assert blocks.tolist() == expected
    assert Prompt(torch.zeros(len(blocks), 2), blocks).counts(len(counts)) == counts


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, 3, 4], [1, -1, 2]])
def test_a_list_of_another_length_or_with_a_negative_count_is_refused(counts, refused):
    from vprompt.prompts.prompt import place

    with refused("one count of at least 0", "3 blocks", "got"):
        place(counts, 3, deep=True)


def test_a_negative_number_of_tokens_is_refused(refused):
    from vprompt.prompts.prompt import place

    with refused("count of at least 0", r"-2"):
        place(-2, 3, deep=True)


@pytest.mark.parametrize("nothing", [0, [0, 0, 0]])
def test_no_tokens_at_all_are_refused_with_what_to_use_instead(nothing, refused):
    from vprompt.prompts.prompt import place

    with refused("no tokens learns nothing", "num_virtual_tokens", "`linear`"):
        place(nothing, 3, deep=False)


def test_a_prompt_of_no_tokens_is_still_a_value():
    from vprompt.prompts.prompt import Prompt

    empty = Prompt(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    assert empty.dim == 8
    assert empty.counts(3) == [0, 0, 0]


def test_moving_a_token_is_changing_one_integer():
    from vprompt.prompts.prompt import Prompt

    tokens = torch.zeros(3, 4)
    before = Prompt(tokens, torch.tensor([0, 0, 1]))
    after = Prompt(tokens, torch.tensor([0, 1, 1]))
    assert (before.counts(2), after.counts(2)) == ([2, 1], [1, 2])


def test_a_prompt_with_tokens_and_blocks_of_different_number_is_refused():
    from vprompt.prompts.prompt import Prompt

    # The shape check of the test run may speak before the prompt itself does; both say the sizes.
    with pytest.raises((ValueError, TypeError), match=r"(?s)2|count"):
        Prompt(torch.zeros(3, 4), torch.tensor([0, 0]))


def test_the_number_of_blocks_is_checked_even_where_shapes_are_not(refused):
    from vprompt.prompts.prompt import Prompt

    prompt = Prompt(torch.zeros(3, 4), torch.tensor([0, 0, 1]))
    object.__setattr__(prompt, "blocks", torch.tensor([0, 0]))
    with refused("one block per token", "3 tokens", "2 blocks"):
        prompt.__post_init__()


@pytest.mark.parametrize("blocks", [[1, 0], [0, 2, 1], [-1, 0]])
def test_blocks_out_of_order_are_refused(blocks, refused):
    from vprompt.prompts.prompt import Prompt

    with refused("rising order from 0", r"\[", "Sort tokens and blocks together"):
        Prompt(torch.zeros(len(blocks), 4), torch.tensor(blocks))


def test_a_block_that_the_backbone_lacks_is_named(refused):
    from vprompt.prompts.prompt import Prompt

    with refused("tokens for block 5", "only 4 blocks", "0 to 3"):
        Prompt(torch.zeros(2, 4), torch.tensor([0, 5])).counts(4)


def test_other_tokens_keep_the_placement_and_leave_the_first_prompt_alone():
    from vprompt.prompts.prompt import Prompt

    first = Prompt(torch.zeros(2, 4), torch.tensor([0, 3]), persist=False)
    second = first.with_tokens(torch.ones(2, 4))
    assert torch.equal(second.blocks, first.blocks) and second.persist is False
    assert torch.equal(first.tokens, torch.zeros(2, 4))
    assert torch.equal(second.tokens, torch.ones(2, 4))


def test_a_prompt_cannot_be_edited():
    from vprompt.prompts.prompt import Prompt

    prompt = Prompt(torch.zeros(2, 4), torch.tensor([0, 0]))
    with pytest.raises(AttributeError):
        prompt.persist = False


def test_the_bound_of_the_initialisation_is_a_sixteenth_for_a_base_model(generator):
    from vprompt.prompts.prompt import place, vpt_uniform

    # sqrt(6 / (3 * 16 * 16 + 768)) = sqrt(6 / 1536) = 1 / 16.
    tokens = vpt_uniform(place(50, 12, deep=True), 768, (16, 16), generator=generator)
    assert tokens.shape == (600, 768) and tokens.dtype == torch.float32
    assert tokens.abs().max() <= 0.0625
    assert tokens.abs().max() > 0.0624
    # A uniform law on (-v, v) has mean 0 and standard deviation v / sqrt(3).
    assert abs(tokens.mean()) < 5 * 0.0625 / 3**0.5 / tokens.numel() ** 0.5
    assert abs(tokens.std() - 0.0625 / 3**0.5) < 1e-4


@pytest.mark.parametrize("patch, dim", [((14, 14), 384), ((32, 16), 192)])
def test_the_bound_follows_patch_size_and_width(patch, dim, generator):
    from vprompt.prompts.prompt import place, vpt_uniform

    bound = (6 / (3 * patch[0] * patch[1] + dim)) ** 0.5
    tokens = vpt_uniform(place(200, 1, deep=False), dim, patch, generator=generator)
    assert 0.999 * bound < tokens.abs().max() <= bound


def test_the_same_generator_state_draws_the_same_tokens():
    from vprompt.prompts.prompt import place, vpt_uniform

    blocks = place(3, 2, deep=True)

    def draw(seed):
        return vpt_uniform(blocks, 8, (4, 4), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_drawing_tokens_leaves_the_global_randomness_alone(generator):
    from vprompt.prompts.prompt import place, vpt_uniform

    before = torch.get_rng_state()
    vpt_uniform(place(3, 2, deep=True), 8, (4, 4), generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
