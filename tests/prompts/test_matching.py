"""Matching: prompts of different lengths in one sum, against every assignment and a hand loop."""

from itertools import permutations

import pytest
import torch

from vprompt.learning import classifier


def draw(blocks, seed, *, persist=True, dim=8):
    from vprompt.prompts.prompt import Prompt

    randomness = torch.Generator().manual_seed(seed)
    return Prompt(
        torch.randn(len(blocks), dim, generator=randomness), torch.tensor(blocks), persist
    )


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))


def test_a_short_prompt_takes_the_best_of_all_assignments_and_leaves_the_rest_empty():
    from vprompt.prompts.matching import differ_in_length, fill_slots

    short, long = draw([0] * 3, 1), draw([0] * 5, 2)
    assert differ_in_length([short, long]) and not differ_in_length([long, long])
    (placed, reference), facts = fill_slots([short, long], ["short", "long"])
    assert torch.equal(reference.tokens, long.tokens)
    assert facts == {"slots": 5, "filled": {"short": 3, "long": 5}}
    filled = [slot for slot in range(5) if not placed.tokens[slot].isnan().any()]
    rows = [
        next(r for r in range(3) if torch.equal(placed.tokens[s], short.tokens[r])) for s in filled
    ]
    assert sorted(rows) == [0, 1, 2]
    reached = sum(cosine(long.tokens[s], placed.tokens[s]) for s in filled)
    best = max(
        sum(cosine(long.tokens[slots[r]], short.tokens[r]) for r in range(3))
        for slots in permutations(range(5), 3)
    )
    assert reached == pytest.approx(best)


def test_the_reference_is_the_medoid_among_the_longest_in_every_block():
    from vprompt.prompts.matching import fill_slots

    prompts = [
        draw(b, s, persist=False) for s, b in enumerate(([0, 0, 3], [0, 0, 3, 3], [0, 3, 3]))
    ]
    placed, facts = fill_slots(prompts, "abc")
    assert placed[0].blocks.tolist() == [0, 0, 3, 3] and facts["filled"] == {"a": 3, "b": 4, "c": 3}
    for block, longest in ((0, (0, 1)), (3, (1, 2))):
        own = [p.tokens[p.blocks == block] for p in prompts]

        def total(index, own=own):
            return sum(
                sum(cosine(s, t) for s in own[index] for t in each) / len(own[index]) / len(each)
                for each in own
            )

        medoid = max(longest, key=total)
        found = placed[medoid].tokens[placed[medoid].blocks == block]
        assert torch.equal(found, own[medoid])


@pytest.mark.parametrize("scale", ["none", "token_norm", "ln"])
@pytest.mark.parametrize("layered", [False, True])
def test_every_slot_is_the_sum_over_those_that_fill_it(scale, layered):
    from vprompt.prompts.compose import combine
    from vprompt.prompts.matching import fill_slots
    from vprompt.prompts.prompt import Prompt

    prompts = [draw([0, 0, 1], 1), draw([0, 0, 0, 0, 1, 1], 2), draw([0, 1, 1, 1], 3)]
    placed, facts = fill_slots(prompts, "abc")
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    if layered:
        weights = torch.stack([weights, weights.flip(0)])
    got = combine(placed, weights, scale=scale)
    assert len(got.tokens) == facts["slots"] == 7
    for slot in range(7):
        block = int(got.blocks[slot])
        shares = weights[block] if layered else weights
        has = [i for i in range(3) if not placed[i].tokens[slot].isnan().any()]
        parts = [Prompt(placed[i].tokens[slot][None], torch.tensor([block])) for i in has]
        alone = combine(parts, shares[has] / shares[has].sum(), scale=scale)
        torch.testing.assert_close(got.tokens[slot], alone.tokens[0])


def test_all_weight_on_a_short_prompt_gives_its_own_tokens_and_no_more():
    from vprompt.prompts.compose import combine
    from vprompt.prompts.matching import fill_slots

    short, long = draw([0] * 3, 1), draw([0] * 5, 2)
    placed, _ = fill_slots([short, long], ["short", "long"])
    got = combine(placed, torch.tensor([1.0, 0.0]), scale="none")
    assert got.blocks.tolist() == [0, 0, 0]
    order = [row for s in got.tokens for row in range(3) if torch.equal(s, short.tokens[row])]
    assert sorted(order) == [0, 1, 2]


def test_weights_find_their_gradient_through_empty_slots(generator):
    from vprompt.prompts.compose import combine
    from vprompt.prompts.matching import fill_slots

    placed, _ = fill_slots([draw([0] * 3, 1), draw([0] * 5, 2), draw([0] * 4, 3)], "abc")
    direction = torch.randn(5, 8, generator=generator, dtype=torch.float64)

    def value(logits):
        return (combine(placed, logits.softmax(0), scale="ln").tokens.double() * direction).sum()

    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(logits), logits)
    for row in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[row] = 1e-2  # the sum is float32
        with torch.no_grad():
            numeric = (value(logits + step) - value(logits - step)) / 2e-2
        assert float(slope[row]) == pytest.approx(float(numeric), rel=1e-2, abs=1e-3)


def test_negative_weights_of_prompts_of_different_lengths_are_refused(refused):
    from vprompt.prompts.compose import combine
    from vprompt.prompts.matching import fill_slots

    placed, _ = fill_slots([draw([0] * 3, 1), draw([0] * 5, 2)], ["a", "b"])
    with refused("different lengths", "at least 0"):
        combine(placed, torch.tensor([-0.5, 1.5]))


@pytest.fixture
def mixed_pool(tmp_path, tiny):
    """Three shallow artefacts of 2, 4 and 3 tokens."""
    from vprompt.artifacts import artifact
    from vprompt.models.heads import Head

    for seed, (name, count) in enumerate((("apples", 2), ("birds", 4), ("cars", 3))):
        prompt = draw([0] * count, seed, dim=tiny.dim)
        config = artifact.make_config(tiny, prompt, ("x", "y"), prompt_init=None)
        head = Head(torch.zeros(2, 64), torch.zeros(2))
        made = artifact.Artifact(prompt, head, torch.zeros(64), config, "card")
        artifact.save(made, tmp_path / "pool" / name)
    return tmp_path / "pool"


def test_a_pool_of_different_lengths_combines_and_says_who_fills_what(mixed_pool, tiny):
    from vprompt import TrainConfig, flow

    outcome = flow.combine(
        "digits",
        pool=mixed_pool,
        method="hgprompt(bootstrap=0, refine=1)",
        model=tiny,
        config=TrainConfig(epochs=1),
        shots=3,
        test=False,
    )
    wanted = {"slots": 4, "filled": {"apples": 2, "birds": 4, "cars": 3}}
    assert outcome.run["aligned"] == wanted
    assert len(outcome.artifact.prompt.tokens) <= 4
    assert bool(outcome.artifact.prompt.tokens.isfinite().all())


def test_gradients_stand_in_the_slots_of_their_tokens(mixed_pool, tiny):
    """By finite differences of the loss along one token of the source's own prompt."""
    from vprompt import TrainConfig, open_task, stages
    from vprompt.artifacts import artifact
    from vprompt.core.progress import SILENT
    from vprompt.pooling import combining
    from vprompt.pooling.mix import Plan
    from vprompt.pooling.probe import base_head

    setting = stages.prepare(
        tiny, open_task("digits"), TrainConfig(), 2, 0, skip_bad=False, progress=SILENT
    )
    sources = [artifact.load(mixed_pool / name) for name in ("apples", "birds", "cars")]
    prompts, slots, _ = combining.align_sources(sources, "auto")
    plan = Plan("base", reference=True, variances=True)
    evidence = combining.gather_evidence(setting, sources, prompts, plan, slots)
    assert evidence.gradients.shape == (3, 4, tiny.dim) == evidence.variances.shape
    assert evidence.reference.shape == (4, tiny.dim)
    labels = setting.train.labels
    head = base_head(evidence.plain, labels, len(setting.task.classes))
    for row, (source, slot) in enumerate(zip(sources, slots, strict=True)):
        for place in range(4):
            gradient = evidence.gradients[row, place]
            if bool(slot.tokens[place].isnan().any()):
                assert not bool(gradient.any())
                continue
            own = next(
                r for r, t in enumerate(source.prompt.tokens) if torch.equal(t, slot.tokens[place])
            )
            step = torch.zeros_like(source.prompt.tokens)
            step[own] = 0.05 * gradient / gradient.norm()
            losses = []
            for sign in (1, -1):
                moved = source.prompt.with_tokens(source.prompt.tokens + sign * step)
                features = classifier.features_of(tiny, moved, setting.train, precision="fp32")
                logits = head.logits(features)
                losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
            slope = (losses[0] - losses[1]) / 0.1
            assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize("alignment", ["uniform", "reference", "variance"])
def test_alignments_work_on_slots(mixed_pool, tiny, alignment):
    from vprompt import TrainConfig, flow

    outcome = flow.combine(
        "digits",
        pool=mixed_pool,
        method=f"hgprompt(alignment={alignment}, bootstrap=0)",
        model=tiny,
        config=TrainConfig(epochs=1),
        shots=2,
        test=False,
    )
    assert len(outcome.run["transfer"]["gradient_cosines"]) == 3


def test_a_pool_of_different_lengths_is_scored(mixed_pool, tiny):
    from vprompt import flow

    ranked = flow.score("digits", pool=mixed_pool, model=tiny, shots=2)
    assert {"apples", "birds", "cars"} <= {name for name, _ in ranked}


@pytest.mark.parametrize(
    "method, align, words",
    [
        ("spot", None, ("different lengths", "hgprompt")),
        ("uniform", "none", ("same placement",)),
    ],
)
def test_what_needs_corresponding_tokens_is_refused(
    mixed_pool, tiny, method, align, words, refused
):
    from vprompt import flow

    with refused(*words):
        flow.combine("digits", pool=mixed_pool, method=method, align=align, model=tiny, shots=2)
