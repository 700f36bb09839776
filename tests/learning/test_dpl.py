"""DPL: the exact mixture over candidate lengths, and the search that moves its weights."""

import numpy as np
import pytest
import torch
from exact import awake, relative

torch.set_num_threads(1)  # steps this small only wait for a second thread
SIZES = (0, 1, 3)


@pytest.fixture
def sets(generator):
    """Queries, a block's own keys and values, and those of all candidates side by side."""
    from vprompt.models.attention import KeyValue

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
    from vprompt.models.attention import KeyValue

    at = slice(sum(SIZES[:index]), sum(SIZES[: index + 1]))
    return KeyValue(prompt.key[:, :, at], prompt.value[:, :, at])


# The mixture


def test_a_mixture_is_the_sum_of_whole_attentions(sets, mask):
    from vprompt.models.attention import joint, mixture

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
    from vprompt.models.attention import joint, mixture

    query, own, prompt = sets
    weights = torch.eye(3, dtype=torch.float64)[chosen]
    expected = joint(fused=False)(query, own, candidate(prompt, chosen), 0.5, mask)
    assert relative(mixture(weights, SIZES)(*sets, 0.5, mask), expected) < 1e-12


def test_candidates_of_no_key_are_plain_attention(sets, mask):
    from vprompt.models.attention import KeyValue, joint, mixture

    query, own, _ = sets
    none = KeyValue(own.key[:1, :, :0], own.value[:1, :, :0])
    found = mixture(weights_of(0.4, 0.6), (0, 0))(query, own, none, 0.5, mask)
    assert relative(found, joint(fused=False)(query, own, none, 0.5, mask)) < 1e-12


def test_a_mixture_stays_finite_where_keys_are_worlds_apart(sets):
    from vprompt.models.attention import KeyValue, mixture

    query, own, prompt = (part for part in sets)
    far = KeyValue(prompt.key.float() * 1e4, prompt.value.float())
    near = KeyValue(own.key.float(), own.value.float())
    found = mixture(torch.tensor([0.2, 0.5, 0.3]), SIZES)(query.float(), near, far, 1.0, None)
    assert torch.isfinite(found).all()


def test_gradients_of_a_mixture_are_finite_differences(sets):
    from vprompt.models.attention import KeyValue, mixture

    query, own, prompt = sets

    def value(weights, key, values):
        attend = mixture(weights, SIZES)
        return attend(query, own, KeyValue(key, values), 0.5, None).square().sum()

    given = [weights_of(0.2, 0.5, 0.3), prompt.key, prompt.value]
    assert torch.autograd.gradcheck(value, [part.clone().requires_grad_() for part in given])


def test_a_mixture_needs_a_weight_per_candidate(refused):
    from vprompt.models.attention import mixture

    with refused("2 weights and 3 sizes"):
        mixture(torch.ones(2), SIZES)


# Nested banks


def test_survival_gates_sum_to_the_expected_length():
    from vprompt.models.attention import survival

    weights = weights_of(0.1, 0.2, 0.7)
    gates = survival(weights, (0, 2, 5))
    assert gates.tolist() == pytest.approx([0.9, 0.9, 0.7, 0.7, 0.7])
    assert float(gates.sum()) == pytest.approx(0.2 * 2 + 0.7 * 5)


@pytest.mark.parametrize("chosen", range(3))
def test_a_nested_bank_with_one_weight_is_its_first_keys(sets, mask, chosen):
    from vprompt.models.attention import KeyValue, gated, joint, survival

    query, own, prompt = sets
    sizes = (0, 2, 4)
    first = KeyValue(prompt.key[:, :, : sizes[chosen]], prompt.value[:, :, : sizes[chosen]])
    gates = survival(torch.eye(3, dtype=torch.float64)[chosen], sizes)
    found = gated(gates)(query, own, prompt, 0.5, mask)
    assert relative(found, joint(fused=False)(query, own, first, 0.5, mask)) < 1e-12


# Lengths under a budget


def test_lengths_are_those_of_the_largest_sum_that_fits(generator):
    from itertools import product

    from vprompt.prompts.lengths import choose

    candidates = [0, 2, 5]
    for budget in (None, 0, 3, 7, 11, 20):
        scores = torch.randn(4, 3, generator=generator).tolist()
        allowed = [
            pick
            for pick in product(range(3), repeat=4)
            if budget is None or sum(candidates[i] for i in pick) <= budget
        ]
        best = max(allowed, key=lambda pick: sum(scores[b][i] for b, i in enumerate(pick)))
        assert choose(scores, candidates, budget) == list(best)


@pytest.mark.parametrize("exact", [False, True])
def test_tokens_of_several_widths_share_a_budget(generator, exact):
    from itertools import product

    from vprompt.prompts.lengths import choose

    candidates, widths = [0, 2, 5], [2, 2, 3, 3]
    for budget in (16, 30, 50):
        scores = torch.randn(4, 3, generator=generator).tolist()
        costs = {
            pick: sum(w * candidates[i] for w, i in zip(widths, pick, strict=True))
            for pick in product(range(3), repeat=4)
        }
        allowed = [
            p for p, cost in costs.items() if cost == budget or (cost < budget and not exact)
        ]
        best = max(allowed, key=lambda pick: sum(scores[b][i] for b, i in enumerate(pick)))
        found = choose(scores, candidates, budget, widths=widths, exact=exact)
        assert found == list(best)


def test_a_total_that_no_choice_has_is_refused(refused):
    from vprompt.prompts.lengths import choose

    with refused("exactly 7 tokens"):
        choose([[0.0, 0.0]] * 3, [0, 2], 7, exact=True)


def test_of_equal_choices_the_shorter_wins():
    from vprompt.prompts.lengths import choose

    for budget in (None, 5):
        assert choose([[0.0] * 3] * 4, [0, 2, 5], budget) == [0, 0, 0, 0]
    assert choose([[0.0, 1.0, 1.0]] * 2, [0, 2, 5], 6) == [1, 1]


@pytest.mark.parametrize("lengths", [[0, 5, 5], [3], [-1, 2]])
def test_candidates_are_different_lengths(lengths, refused):
    from vprompt.prompts.lengths import check_candidates

    with refused("at least two different numbers"):
        check_candidates(lengths)


def test_a_budget_that_no_choice_fits_is_refused(tiny, refused):
    with refused("At most 3 tokens", "Add 0"):
        make(tiny, "lengths=[2, 4], max_prompts=3")


# The search


def make(backbone, settings=""):
    from vprompt.core import registry

    return registry.build("adapters", f"dpl({settings})")(backbone)


def examples(count, seed):
    """Return images in which every class has a tint under much noise."""
    from vprompt.data.task import Examples

    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = 0.8 * rng.integers(0, 256, (count, 32, 32, 3))
    pixels[np.arange(count), :, :, labels] += 40
    return Examples(pixels.clip(0, 255).astype(np.uint8), torch.tensor(labels), f"{count} {seed}")


def tuned(adapter, *, val=True, checkpoint=None, **changes):
    """Tune on 16 examples with 10 for alpha, for two epochs of two steps unless told."""
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    given = {"epochs": 2, "batch_size": 8, "precision": "fp32", "keep": "last", "head": "zero"}
    config = TrainConfig(**{**given, **changes})
    held = examples(10, 2) if val else None
    return tune(adapter, examples(16, 1), held, 3, config, checkpoint=checkpoint)


def hand_over(adapter, val, **changes):
    """Return what a hook sees, with a loss that notes which images it was asked about."""
    from vprompt.learning.adapter import Training

    seen = []

    def loss(part, rows, generator):
        seen.append((part, rows, generator))
        return adapter.features(torch.ones(1, 3, 32, 32), generator=generator).square().sum()

    given = {"seed": 0, "batch_size": 8, "epochs": 2, "steps_per_epoch": 5, **changes}
    optimizer = torch.optim.SGD([adapter.tokens], lr=0.1)
    return Training(val, val, optimizer, loss, lambda *_: None, **given), seen


SMALL = "lengths=[0, 1, 3], alpha_warmup=0, alpha_batch=4, alpha_lr=0.1"


@pytest.mark.parametrize("bank", ["separate", "nested"])
def test_features_are_those_of_the_found_prompt_exactly(generator, bank):
    from vprompt.backbones import tiny
    from vprompt.models.backbone import extract

    backbone = awake(tiny.load())
    adapter = make(backbone, f"lengths=[0, 1, 3], bank={bank}, prompt_init=normal").double()
    adapter.alpha.copy_(torch.randn(adapter.alpha.shape, generator=generator))
    assert sum(adapter.found()) > 0 and len(set(adapter.found())) > 1
    pictures = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    prompt = adapter.prompt()
    assert prompt.counts(backbone.depth) == adapter.found()
    assert relative(adapter.features(pictures), extract(backbone, pictures, prompt)) < 1e-12


def test_training_sees_the_mixture_of_all_candidates(generator):
    from vprompt.backbones import tiny

    backbone = awake(tiny.load())
    adapter = make(backbone, "lengths=[0, 1, 3], prompt_init=normal").double()
    pictures = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    mixed = adapter.features(pictures, generator=generator)
    assert relative(mixed, adapter.features(pictures)) > 1e-6
    adapter.alpha.copy_(torch.eye(3)[torch.arange(backbone.depth) % 3] * 1e4)  # all but one-hot
    found = adapter.features(pictures)
    assert relative(adapter.features(pictures, generator=generator), found) < 1e-12


def test_no_length_anywhere_is_the_plain_backbone(tiny, images):
    from vprompt import extract

    adapter = make(tiny)
    assert adapter.prompt() is None and sum(adapter.found()) == 0
    torch.testing.assert_close(adapter.features(images).detach(), extract(tiny, images))


def test_the_step_of_alpha_moves_nothing_but_alpha(tiny):
    adapter = make(tiny, SMALL)
    training, seen = hand_over(adapter, examples(10, 2))
    tokens, alpha = adapter.tokens.detach().clone(), adapter.alpha.clone()
    adapter.begin_step(training)
    assert not torch.equal(adapter.alpha, alpha)
    assert torch.equal(adapter.tokens, tokens) and adapter.tokens.grad is None
    [(part, _, _)] = seen
    assert part is training.val


def test_the_step_of_the_prompts_cannot_reach_alpha(tiny, images, generator):
    adapter = make(tiny, SMALL)
    adapter.features(images, generator=generator).square().sum().backward()
    assert adapter.tokens.grad.abs().sum() > 0
    assert not adapter.alpha.requires_grad and adapter.alpha.grad is None


def test_alpha_moves_as_torch_s_adam_moves_it(tiny, generator):
    adapter = make(tiny, SMALL)
    other = torch.nn.Parameter(adapter.alpha.clone())
    adam = torch.optim.Adam([other], lr=0.1, betas=(0.5, 0.999))
    for _ in range(3):
        other.grad = torch.randn(other.shape, generator=generator)
        adam.step()
        adapter._move(other.grad)
        torch.testing.assert_close(adapter.alpha, other.detach())


def test_alpha_s_gradient_is_a_finite_difference(generator):
    from vprompt.backbones import tiny

    adapter = make(awake(tiny.load()), "lengths=[0, 1, 3], prompt_init=normal").double()
    pictures = torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float64)

    def value(alpha):
        adapter._leaf = alpha
        return adapter.features(pictures, generator=generator).square().sum()

    leaf = adapter.alpha.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    way = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        high, low = (value(leaf + sign * 1e-5 * way) for sign in (1, -1))
    assert float((slope * way).sum()) == pytest.approx(float(high - low) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("count", [10, 4, 3])
def test_alpha_sees_every_validation_image_once_per_cycle(tiny, count):
    adapter, seen = make(tiny, SMALL), []
    for step in range(2 * count):
        adapter.alpha_steps.fill_(step)
        seen += adapter.alpha_rows(count, 7).tolist()
    whole = len(seen) // count
    assert whole > 1
    orders = [seen[cycle * count : (cycle + 1) * count] for cycle in range(whole)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_the_paper_s_alpha_always_sees_the_same_images(tiny):
    adapter = make(tiny, "preset=paper, alpha_batch=4")
    for step in (0, 1, 5):
        adapter.alpha_steps.fill_(step)
        assert adapter.alpha_rows(10, 7).tolist() == [0, 1, 2, 3]


def test_the_candidates_are_those_of_the_released_search_or_ours(tiny):
    assert make(tiny, "preset=paper").settings.lengths == (0, 1, 2, 3, 4, 5, 6)
    assert make(tiny, "").settings.lengths == (0, 5, 10, 20)


def test_alpha_rests_while_the_prompts_warm_up(tiny):
    adapter = make(tiny, "lengths=[0, 1, 3], alpha_warmup=0.3")
    training, seen = hand_over(adapter, examples(10, 2))
    for training.step in range(10):
        adapter.begin_step(training)
    assert len(seen) == 7


def test_expected_lengths_are_weights_times_lengths(tiny, generator):
    adapter = make(tiny, SMALL)
    adapter.alpha.copy_(torch.randn(adapter.alpha.shape, generator=generator))
    rows = [sum(w * n for w, n in zip(row, (0, 1, 3), strict=True)) for row in adapter.weights()]
    torch.testing.assert_close(adapter.expected(), torch.stack(rows))


def test_a_price_holds_the_expected_cost_to_a_limit(generator):
    from vprompt.adapters._budget import priced

    alpha = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    costs = weights_of(0, 2, 7).expand(5, 3)
    free = float((alpha.softmax(1) * costs).sum())
    for limit in (0.5, 3.0, 0.9 * free):
        weights, price = priced(alpha, costs, limit)
        assert float((weights * costs).sum()) == pytest.approx(limit, rel=1e-9) and price > 0
        assert relative(weights, (alpha - price * costs).softmax(1)) < 1e-12
    weights, price = priced(alpha, costs, free + 1e-9)
    assert torch.equal(weights, alpha.softmax(1)) and price == 0
    weights, _ = priced(alpha, costs, 0.0)
    assert float(weights[:, 0].min()) == pytest.approx(1)
    assert torch.isfinite(priced(alpha.float() * 100, costs, 1e-6)[0]).all()


@pytest.mark.parametrize("limit", [4.0, 1e3])
def test_weights_under_a_price_have_their_exact_gradient(generator, limit):
    from vprompt.adapters._budget import priced

    alpha = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    costs = torch.tensor([[0, 2, 7], [0, 2, 7], [0, 3, 9], [0, 3, 9]], dtype=torch.float64)
    aim = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def value(alpha):
        return (priced(alpha, costs, limit)[0] * aim).square().sum()

    assert torch.autograd.gradcheck(value, alpha.clone().requires_grad_())


def test_a_budget_holds_the_mixture_and_binds_the_choice(tiny, generator):
    bound = make(tiny, f"{SMALL}, max_prompts=4")
    for alpha in (torch.zeros_like(bound.alpha), torch.randn(bound.alpha.shape)):
        bound.alpha.copy_(alpha)
        assert float(bound.expected().sum()) == pytest.approx(4, rel=1e-4)
    bound.alpha.copy_(torch.eye(3)[2].expand(bound.alpha.shape))  # all want the longest
    assert sum(bound.found()) == 3  # not none, though each block alone would rather pay nothing
    assert bound.memory["prices"][0]["image"] > 0
    free = make(tiny, f"{SMALL}, max_prompts=100")
    assert free.memory["prices"] == [{"image": 0.0}]


def test_what_a_token_is_worth_decides_which_blocks_keep_theirs_under_a_budget(tiny):
    adapter = make(tiny, "lengths=[0, 2], alpha_warmup=0, alpha_lr=0.05, max_prompts=4")
    worth = torch.tensor([0.001, 0.1, 0.002, 0.0, 0.05, 0.001])[: tiny.depth]
    training, _ = hand_over(adapter, examples(10, 2))
    training.loss = lambda *_: -(adapter.weights()[:, 1] * worth).sum()
    for _ in range(60):
        adapter.begin_step(training)
    best = sorted(range(tiny.depth), key=lambda block: -worth[block])[:2]
    assert [block for block, length in enumerate(adapter.found()) if length] == sorted(best)


def test_a_search_needs_validation_images(tiny, refused):
    with refused("validation images", "vprompt search"):
        tuned(make(tiny, SMALL), val=False)


def test_a_bound_on_parameters_is_one_on_tokens(tiny, refused):
    width = tiny.dim
    assert make(tiny, f"{SMALL}, max_params={5 * width - 1}").settings.max_prompts == 4
    with refused("either the tokens", "not both"):
        make(tiny, f"{SMALL}, max_params={width}, max_prompts=4")


@pytest.mark.parametrize("extra", ["bank=separate", "bank=nested", "max_prompts=4"])
def test_a_search_is_the_same_every_time_and_after_a_stop(tiny, tmp_path, extra):
    class Stop(Exception):
        pass

    def stop_in_the_second_epoch(training):
        if training.step == 3:
            raise Stop

    settings = f"{SMALL}, {extra}"
    whole, again = (tuned(make(tiny, settings)) for _ in range(2))
    stopped = make(tiny, settings)
    stopped.after_backward = stop_in_the_second_epoch
    with pytest.raises(Stop):
        tuned(stopped, checkpoint=tmp_path)
    resumed = tuned(make(tiny, settings), checkpoint=tmp_path)
    assert len(whole.adapter.memory["alpha"]) == 3
    for other in (again, resumed):
        assert whole.adapter.memory == other.adapter.memory
        state, others = whole.adapter.state(), other.adapter.state()
        assert all(torch.equal(value, others[name]) for name, value in state.items())


def test_a_search_stops_when_its_choice_has_settled(tiny):
    found = tuned(make(tiny, "lengths=[0, 1], length_penalty=1e6, patience=2"), epochs=10)
    memory = found.adapter.memory
    assert found.ended == "method"
    assert memory["stopped"] == found.history[-1].epoch == 4  # two of warm-up, two unchanged
    assert len(memory["alpha"]) == len(memory["found"]) == 5
    assert found.history[-1].val_accuracy is not None


def test_a_search_that_runs_out_of_patience_says_what_its_choice_loses(tiny):
    far = {"lr": 50.0, "head_lr": 5.0, "head": "closed_form"}  # the start stays the best
    found = tuned(make(tiny, SMALL), epochs=9, patience=1, **far)
    memory, last = found.adapter.memory, found.history[-1]
    assert (found.ended, memory["stopped"]) == ("patience", None) and last.epoch < 9
    assert memory["gap"]["found"] == pytest.approx(last.val_accuracy)


def test_a_search_keeps_its_story(tiny):
    found = tuned(make(tiny, SMALL))
    memory = found.adapter.memory
    assert memory["branch"] == "image" and memory["candidates"] == [0, 1, 3]
    assert memory["alpha"][-1] == found.adapter.alpha.tolist()
    assert memory["found"][-1] == found.adapter.found()
    gap = memory["gap"]
    assert gap["gap"] == gap["mixture"] - gap["found"]
    assert gap["found"] == pytest.approx(found.history[-1].val_accuracy)
