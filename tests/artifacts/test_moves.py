"""Moves: what prompts learned since their start, and sums of it."""

import pytest
import torch


@pytest.fixture
def grown(tiny, generator):
    """Three deep prompts that grew from one start, and the start."""
    from vprompt.prompts.prompt import Prompt, place

    blocks = place(2, tiny.depth, deep=True)
    start = Prompt(torch.randn(len(blocks), tiny.dim, generator=generator), blocks, False)
    moved = [
        start.with_tokens(start.tokens + 0.2 * torch.randn(start.tokens.shape, generator=generator))
        for _ in range(3)
    ]
    return start, moved


def test_a_sum_is_the_start_plus_coefficients_times_moves(grown):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    moves = measure(moved, [start] * 3, "abc")
    coefficients = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    expected = start.tokens.double()
    for row in range(3):
        expected = expected + coefficients[row] * (moved[row].tokens - start.tokens).double()
    torch.testing.assert_close(
        moves.sum(coefficients).tokens.double(), expected, rtol=1e-5, atol=1e-7
    )


def test_coefficients_of_sum_one_are_the_papers_convex_sum(grown):
    from vprompt.artifacts.moves import measure
    from vprompt.prompts.compose import combine

    start, moved = grown
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    summed = measure(moved, [start] * 3, "abc").sum(weights)
    torch.testing.assert_close(summed.tokens, combine(moved, weights, scale="none").tokens)


def test_a_row_of_coefficients_for_every_block_is_used_there(grown, tiny):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    moves = measure(moved, [start] * 3, "abc")
    rows = torch.zeros(tiny.depth, 3, dtype=torch.float64)
    rows[1, 0] = 1.0
    summed = moves.sum(rows).tokens
    there = start.blocks == 1
    torch.testing.assert_close(summed[there], moved[0].tokens[there])
    torch.testing.assert_close(summed[~there], start.tokens[~there])


def test_the_size_is_that_of_the_move_by_that_of_the_start(grown):
    from vprompt.artifacts.moves import measure, size_of

    start, moved = grown
    sizes = measure(moved, [start] * 3, "abc").sizes
    expected = (moved[1].tokens - start.tokens).norm() / start.tokens.norm()
    assert float(sizes[1]) == pytest.approx(float(expected), rel=1e-6)
    assert size_of(moved[1], start) == pytest.approx(float(expected), rel=1e-6)


def test_a_prompt_that_is_its_start_is_named(grown):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    assert measure([moved[0], start], [start] * 2, ("a", "b")).still() == ["b"]


def test_prompts_of_unknown_start_are_measured_from_the_mean_of_the_pool(grown):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    moves = measure(moved, [None] * 3, "abc")
    mean = torch.stack([prompt.tokens for prompt in moved]).mean(0)
    torch.testing.assert_close(moves.start.tokens, mean)
    assert moves.centred == ("a", "b", "c")
    assert float(moves.vectors.sum(0).abs().max()) < 1e-5
    mixed = measure(moved, [start, start, None], "abc")
    torch.testing.assert_close(mixed.start.tokens, start.tokens)
    assert mixed.centred == ("c",)


def test_different_starts_are_counted_and_their_mean_is_the_base(grown):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    other = start.with_tokens(start.tokens + 1.0)
    moves = measure(moved, [start, start, other], "abc")
    assert moves.starts == 2
    torch.testing.assert_close(moves.start.tokens, start.tokens + 1 / 3)


def test_a_slot_that_a_source_leaves_empty_does_not_move(grown):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    empty = moved[0].tokens.clone()
    empty[3] = torch.nan
    moves = measure([moved[0].with_tokens(empty), moved[1]], [start] * 2, ("a", "b"))
    assert float(moves.vectors[0, 3].abs().max()) == 0
    assert bool(torch.isfinite(moves.sum(torch.ones(2, dtype=torch.float64)).tokens).all())


def test_too_few_coefficients_are_refused(grown, refused):
    from vprompt.artifacts.moves import measure

    start, moved = grown
    with refused("3 moves needs as many coefficients"):
        measure(moved, [start] * 3, "abc").sum(torch.ones(2, dtype=torch.float64))


# Where a start comes from


@pytest.fixture
def learned(tmp_path, tiny):
    """Return a function that learns a prompt on drawings and returns its artefact."""
    from vprompt import flow
    from vprompt.learning.train_config import TrainConfig

    def learn(method="vpt(num_virtual_tokens=2)", epochs=2, name="a"):
        config = TrainConfig(epochs=epochs, keep="last", precision="fp32")
        task = "dsprites(train=64, val=32, test=0)"
        folder = tmp_path / "pool" / name
        made = flow.learn(task, model=tiny, method=method, config=config, output=folder)
        return made.artifact

    return learn


@pytest.mark.parametrize("init", ["blank", "vpt_uniform", "zeros"])
def test_a_start_is_computed_again_and_checked(learned, tiny, init):
    from vprompt.artifacts import artifact, origin

    made = artifact.load(learned(f"vpt(num_virtual_tokens=2, prompt_init={init})").folder)
    found = origin.of(made, tiny)
    assert found.how == "computed again, of the same digest"
    assert made.start is None
    moved = float((made.prompt.tokens - found.start.tokens).norm() / found.start.tokens.norm())
    assert made.config["prompt_init"]["move"] == pytest.approx(moved, abs=1e-5)


def test_a_start_equal_to_rounding_is_known_by_its_sketch(learned, tiny):
    from dataclasses import replace

    from vprompt.artifacts import origin

    made = learned()
    init = {**made.config["prompt_init"], "digest": "sha256:of-another-processor"}
    rounded = replace(made, config={**made.config, "prompt_init": init})
    assert origin.of(rounded, tiny).how == "computed again, equal to rounding"


def test_a_start_that_is_not_the_recorded_one_is_unknown(learned, tiny):
    from dataclasses import replace

    from vprompt.artifacts import origin

    made = learned()
    init = {**made.config["prompt_init"], "digest": "sha256:other", "sketch": [0.0] * 8}
    other = replace(made, config={**made.config, "prompt_init": init})
    found = origin.of(other, tiny)
    assert found.start is None and "not the start that the artefact records" in found.how


@pytest.mark.parametrize("init", [{"kind": "from a newer version", "seed": 0}, {"kind": 3}, {}])
def test_a_kind_that_cannot_be_computed_is_unknown(learned, tiny, init):
    from dataclasses import replace

    from vprompt.artifacts import origin

    made = learned()
    other = replace(made, config={**made.config, "prompt_init": init})
    assert origin.of(other, tiny).start is None


def test_a_start_without_name_and_seed_travels_along(learned, tiny):
    from vprompt.artifacts import artifact, origin

    first = learned()
    second = learned(f"vpt(start='{first.folder}')", name="b")
    read = artifact.load(second.folder)
    torch.testing.assert_close(read.start.tokens, first.prompt.tokens)
    assert origin.of(read, tiny).how == "stored with it"
    assert read.config["prompt_init"]["kind"] == "stored"


def test_tokens_that_moved_between_blocks_know_what_they_began_as(learned, tiny):
    from vprompt.artifacts import artifact, origin

    made = artifact.load(learned("pro_vpt(num_virtual_tokens=2)", epochs=4).folder)
    start = origin.of(made, tiny).start
    assert start is not None and start.tokens.shape == made.prompt.tokens.shape
    assert 0 < made.config["prompt_init"]["move"] < 1


def test_learning_that_ends_where_it_began_says_so(learned, tmp_path, tiny, capsys):
    from vprompt.artifacts import catalogue

    learned(epochs=0)
    [row] = catalogue.rows(tmp_path / "pool")
    assert row["move"] == "none: it is its start"
