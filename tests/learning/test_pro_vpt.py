"""PRO-VPT: scores are what they claim, tokens move as the rules say, and a stop changes nothing."""

import itertools
import json
import math

import pytest
import torch
from exact import awake, relative
from test_tune import CLASSES, StopAfter, draw
from torch.nn import functional

torch.set_num_threads(1)  # steps this small only wait for a second thread
STEPS = 3  # of 22 images in batches of 8


@pytest.fixture
def settings():
    from vprompt.learning.train_config import TrainConfig

    small = {"batch_size": 8, "precision": "fp32", "lr": 0.05, "head_lr": 0.01, "keep": "last"}
    return lambda **changes: TrainConfig(**{**small, "epochs": 8, **changes})


@pytest.fixture
def build(tiny):
    """Return a function that builds the method on the tiny backbone, two tokens a block."""
    from vprompt.core import registry

    def call(backbone=tiny, method="pro_vpt", **changes):
        given = {"num_virtual_tokens": 2, **changes}
        return registry.build("adapters", registry.Spec(method, given))(backbone)

    return call


@pytest.fixture
def run():
    from vprompt.learning.tune import tune

    def call(adapter, config, **options):
        return tune(adapter, draw(22, 1), draw(12, 2), CLASSES, config, **options)

    return call


@pytest.fixture
def problem(build, generator):
    """Return a prompt in float64 and a function from a probe to the loss of eight images."""
    from vprompt.backbones import tiny

    backbone = tiny.load()
    adapter = build(backbone, prompt_init="vpt_uniform", score="taylor_norm", exact=False).double()
    awake(backbone)
    images = torch.randn(8, 3, 32, 32, generator=generator).double()
    labels = torch.arange(8) % CLASSES
    head = torch.randn(CLASSES, backbone.feature_dim, generator=generator).double()

    def loss(probe=None, prompt=adapter):
        prompt.probe = probe
        logits = prompt.features(images) @ head.T
        prompt.probe = None
        return functional.cross_entropy(logits, labels)

    return adapter, loss


def slopes_of(adapter, loss, **changes):
    """Return a probe's slopes, and the gradient of the tokens, on the problem's images."""
    probe = adapter.new_probe(changes.pop("candidates", None))
    for name, value in changes.items():
        setattr(probe, name, value)
    found = torch.autograd.grad(loss(probe), [adapter.tokens, *probe.leaves.values()])
    return found[0], dict(zip(probe.leaves, found[1:], strict=True))


def by_difference(adapter, loss, name, index, at, step=1e-5, candidates=None):
    """Return the slope of the loss along one gate by a central difference."""
    values = []
    for sign in (1, -1):
        probe = adapter.new_probe(candidates)
        gate = getattr(probe, name).detach().clone()
        assert float(gate[index]) == at
        gate[index] += sign * step
        setattr(probe, name, gate)
        values.append(loss(probe).item())
    return (values[0] - values[1]) / (2 * step)


def bits(tuned):
    prompt = tuned.adapter.prompt()
    tensors = [tuned.head.weight, tuned.head.bias, prompt.tokens, prompt.blocks]
    return [t.tolist() for t in tensors], tuned.history, tuned.kept_epoch


def decisions(tuned):
    return tuned.adapter.memory["placement"]["decisions"]


def distribution(tuned):
    return tuned.adapter.memory["placement"]["distribution"]


# Relocation off


@pytest.mark.parametrize("off", [{"moves_per_epoch": 0}, {"window": [0.0, 0.0]}], ids=str)
@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_relocation_off_is_vpt_deep_bit_for_bit(run, build, settings, off, opt):
    config = settings(epochs=3, opt=opt)
    plain = run(build(method="vpt", prompt_dropout=0.3), config)
    assert bits(run(build(prompt_dropout=0.3, **off), config)) == bits(plain)


def test_a_probe_changes_no_feature(build, images):
    for score in ("mask", "taylor_norm"):
        adapter = build(score=score)
        before = adapter.features(images)
        adapter.probe = adapter.new_probe(adapter.candidates(0, 1))
        torch.testing.assert_close(adapter.features(images), before, rtol=1e-4, atol=1e-5)


# Scores


def test_the_mask_score_is_the_finite_difference(problem):
    adapter, loss = problem
    _, slopes = slopes_of(adapter, loss)
    for index in range(len(adapter.tokens)):
        expected = by_difference(adapter, loss, "gates", index, at=1)
        assert slopes["gates"][index].item() == pytest.approx(expected, rel=1e-6, abs=1e-10)


def ablations(adapter, loss):
    """Return the fall of the loss when each token is taken out of the sequence."""
    from vprompt.prompts.prompt import Prompt

    whole, before = adapter.prompt(), loss().item()
    found = []
    for index in range(len(whole.tokens)):
        kept = torch.arange(len(whole.tokens)) != index
        left = Prompt(whole.tokens[kept], whole.blocks[kept], False)
        other = type(adapter)(adapter.backbone, left, adapter.rules, adapter.allocator)
        found.append(before - loss(prompt=other).item())
    return torch.tensor(found, dtype=torch.float64)


def test_with_the_exact_displacement_the_mask_score_is_close_to_ablation(problem):
    adapter, loss = problem
    truth = ablations(adapter, loss)
    plain, exact = (slopes_of(adapter, loss, exact=e)[1]["gates"] for e in (False, True))
    assert (exact - truth).norm() < 0.15 * truth.norm()
    assert (exact - truth).norm() < (plain - truth).norm()
    assert torch.corrcoef(torch.stack([exact, truth]))[0, 1] > 0.99


def test_in_the_last_block_the_exact_displacement_leaves_only_the_rest_of_the_network(problem):
    """As the displacement shrinks with the value, its error falls with the square."""
    adapter, loss = problem
    last = (adapter.blocks == adapter.depth - 1).nonzero().flatten()
    truth = ablations(adapter, loss)[last]
    exact = slopes_of(adapter, loss, exact=True)[1]["gates"][last]
    assert relative(exact, truth) < 0.1


@pytest.fixture
def candidates(tiny, generator):
    return torch.randn(2, tiny.depth, tiny.dim, generator=generator).double()


def test_the_insertion_gain_is_minus_the_finite_difference_at_zero(problem, candidates):
    adapter, loss = problem
    _, slopes = slopes_of(adapter, loss, candidates=candidates)
    for index in [(0, 0), (1, 2), (0, adapter.depth - 1)]:
        expected = by_difference(adapter, loss, "inserted", index, at=0, candidates=candidates)
        assert slopes["inserted"][index].item() == pytest.approx(expected, rel=1e-6, abs=1e-10)


def test_with_the_exact_displacement_the_gain_is_close_to_inserting(problem, candidates):
    from vprompt.prompts.prompt import Prompt

    adapter, loss = problem
    plain, gains = (
        -slopes_of(adapter, loss, candidates=candidates, exact=exact)[1]["inserted"]
        for exact in (False, True)
    )
    whole, before = adapter.prompt(), loss().item()
    truth = torch.zeros_like(gains)
    for one in range(2):
        for block in range(adapter.depth):
            tokens = torch.cat([whole.tokens, candidates[one, block][None]])
            blocks = torch.cat([whole.blocks, torch.tensor([block])])
            order = torch.argsort(blocks, stable=True)
            more = Prompt(tokens[order], blocks[order], False)
            other = type(adapter)(adapter.backbone, more, adapter.rules, adapter.allocator)
            truth[one, block] = before - loss(prompt=other).item()
    assert (gains - truth).norm() < min(0.25 * truth.norm(), (plain - truth).norm())
    assert torch.corrcoef(torch.stack([gains.flatten(), truth.flatten()]))[0, 1] > 0.97


def test_the_published_score_is_the_other_times_what_the_layer_norm_lets_through(problem):
    from vprompt.adapters._placement import scores

    adapter, loss = problem
    with torch.no_grad():  # spread the norms over four orders of magnitude
        adapter.tokens *= torch.logspace(-3, 1, len(adapter.tokens))[:, None].double()
    gradient, slopes = slopes_of(adapter, loss)
    variance = adapter.tokens.detach().var(1, unbiased=False)
    eps = adapter.backbone.vit.blocks[0].norm1.eps
    factor = eps / (variance + eps)
    assert float(factor.min()) < 1e-4 and float(factor.max()) > 0.3
    published = scores.taylor(adapter.tokens, gradient)
    assert relative(published / factor, slopes["scales"]) < 1e-6


def test_the_corrected_score_is_the_slope_along_the_normalised_vector(problem):
    """Against a difference in the keys and values of scaled normalised vectors, by hand."""
    adapter, loss = problem
    _, slopes = slopes_of(adapter, loss)
    for index in (0, 5, len(adapter.tokens) - 1):
        expected = by_difference(adapter, loss, "scales", index, at=1)
        assert slopes["scales"][index].item() == pytest.approx(expected, rel=1e-6, abs=1e-10)


def test_the_published_score_of_a_large_token_is_lost_in_single_precision(problem):
    """Undoing the factor by hand cannot bring back what fp32 has rounded away; the probe can."""
    from vprompt.adapters._placement import scores

    adapter, loss = problem
    with torch.no_grad():
        adapter.tokens *= 100
    gradient, slopes = slopes_of(adapter, loss)
    variance = adapter.tokens.detach().var(1, unbiased=False)
    rounded = scores.taylor(adapter.tokens.float(), gradient.float()).double()
    undone = rounded * (variance + 1e-6) / 1e-6
    assert relative(undone, slopes["scales"]) > 0.05


def test_norm_shares_are_of_the_own_block():
    from vprompt.adapters._placement import scores

    tokens = torch.tensor([[3.0, 4.0], [0.0, 5.0], [0.0, 1.0], [2.0, 0.0]])
    found = scores.norm_share(tokens, torch.tensor([0, 2, 0, 0]))
    assert found.tolist() == pytest.approx([-5 / 8, -1.0, -1 / 8, -2 / 8])


def test_scores_are_clipped_together_with_other_gradients():
    from vprompt.adapters._placement import scores

    own, other = torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])
    assert scores.clip_factor(own, [other], 0.25).item() == pytest.approx(0.05)
    assert scores.clip_factor(own, [other], 6.0).item() == 1.0


@pytest.mark.parametrize("score", ["mask", "taylor", "taylor_norm"])
def test_scores_of_training_steps_are_those_of_a_pass_of_their_own(run, build, settings, score):
    still = settings(epochs=3, lr=1e-30, head_lr=0.0, weight_decay=0.0)
    own = {"score": score, "score_every": 1, "tau": 1e9, "prompt_init": "vpt_uniform"}
    steps = run(build(**own), still)
    apart = run(build(score_source="extra_pass", **own), still)
    assert steps.adapter.idle.abs().max() > 0
    assert relative(steps.adapter.idle, apart.adapter.idle) < 1e-3
    # Gains are of the second epoch's candidates, read before the third and before the second.
    ours, theirs = (torch.tensor(decisions(t)[i]["gains"]) for t, i in ((steps, 1), (apart, 0)))
    assert relative(ours, theirs) < 1e-3


def test_the_mean_over_epochs_starts_with_the_first_and_anew_after_a_move(run, build, settings):
    seen = []

    def remember(adapter, training):
        now = adapter.meter.means().get("mask")
        seen.append((now, adapter.idle.clone(), adapter.moved_at.clone()))

    adapter = build(score_every=1, cooldown=0, accept="always")
    original = adapter.end_epoch
    adapter.end_epoch = lambda training: (original(training), remember(adapter, training))
    run(adapter, settings(epochs=5))
    now, idle, _ = seen[0]
    assert torch.equal(idle, now)
    for epoch, ((_, before, _), (now, after, moved)) in enumerate(
        itertools.pairwise(seen[:3]), start=2
    ):
        expected = torch.where(moved == epoch, now, 0.9 * before + 0.1 * now)
        assert relative(after, expected) < 1e-5


# Moves


def test_the_number_of_tokens_never_changes_and_places_are_in_the_state(run, build, settings):
    tuned = run(build(accept="always", moves_per_epoch=2, cooldown=0), settings())
    assert {sum(counts) for counts in distribution(tuned)} == {12}
    assert sum(d["moved"] for d in decisions(tuned)) >= 4
    assert "blocks" in tuned.adapter.state_dict() and "blocks" in tuned.adapter.state()
    assert tuned.adapter.prompt().counts(6) == distribution(tuned)[-1] == tuned.adapter.counts()
    assert not tuned.adapter.keeps_places


def test_every_decision_is_written_down(run, build, settings):
    tuned = run(build(accept="always"), settings())
    json.dumps(tuned.adapter.memory, allow_nan=False)
    assert len(distribution(tuned)) == 9  # the start and eight epochs
    # 10 % to 75 % of eight epochs are those after which 1 to 6 are done.
    assert {d["epoch"] for d in decisions(tuned)} <= {2, 3, 4, 5, 6, 7}
    for decision in decisions(tuned):
        assert decision["score"] > 0 and len(decision["gains"]) == 6
        before, after = (distribution(tuned)[decision["epoch"] + i] for i in (-1, 0))
        moved = torch.zeros(6, dtype=torch.long)
        moved[decision["from"]] -= 1
        moved[decision["to"]] += 1
        assert (torch.tensor(before) + moved).tolist() == after == decision["counts"]
        others = [g for b, g in enumerate(decision["gains"]) if b != decision["from"]]
        assert decision["gains"][decision["to"]] == max(others)


def test_a_move_without_gain_is_refused(run, build, settings):
    tuned = run(build(tau=1e9), settings(epochs=4))
    assert {d["why"] for d in decisions(tuned)} == {"no gain"}
    assert distribution(tuned)[0] == distribution(tuned)[-1] and tuned.adapter.keeps_places


@pytest.mark.parametrize("prompt_init", ["blank", "vpt_uniform"])
def test_explored_candidates_are_random_but_for_one(build, prompt_init):
    adapter = build(prompt_init=prompt_init, explore=True)
    seen = adapter.candidates(7, 3)
    assert seen.shape == (4, 6, 64) and torch.equal(seen, adapter.candidates(7, 3))
    assert not torch.equal(seen, adapter.candidates(7, 4))
    uniform = seen if prompt_init == "vpt_uniform" else seen[1:]
    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    assert 0.9 * bound < uniform.abs().max() <= bound
    assert torch.equal(uniform[:, 0], uniform[:, 5])  # one draw, tried in every block
    if prompt_init == "blank":
        assert not torch.equal(seen[0, 0], seen[0, 5])  # each block's own empty patch


def test_candidates_are_empty_patches_as_the_start_is(build):
    from vprompt.adapters._start import blank_patches

    adapter = build()
    seen, patches = adapter.candidates(7, 3), torch.stack(blank_patches(adapter.backbone))
    assert seen.shape == (4, 6, 64) and torch.equal(seen, adapter.candidates(7, 3))
    for candidate in seen:  # one position, as it is at each block
        same = (patches == candidate[:, None]).all(2)
        assert same.all(0).any()


def after_two_steps(adapter, opt):
    """Return a Training before epoch 2 whose optimiser remembers two steps of noise."""
    from vprompt.learning.adapter import Training

    rates = {"lr": 0.1, "weight_decay": 0.0}
    if opt == "sgd":
        optimizer = torch.optim.SGD([adapter.tokens], momentum=0.9, **rates)
    else:
        optimizer = torch.optim.AdamW([adapter.tokens], **rates)
    for seed in (1, 2):
        noise = torch.Generator().manual_seed(seed)
        adapter.tokens.grad = torch.randn(adapter.tokens.shape, generator=noise)
        optimizer.step()
    loss = lambda examples, rows, generator: adapter.tokens.sum()  # noqa: E731
    no_logits = lambda *given: None  # noqa: E731
    return Training(draw(22, 1), None, optimizer, loss, no_logits, 0, 8, 10, STEPS, epoch=2)


def force(adapter, row, target):
    """Make one token the most idle, and one block the best for it."""
    adapter.idle.fill_(0.1)
    adapter.idle[row] = 1.0
    adapter.removal.fill_(1.0)
    adapter.measured.fill_(1)
    adapter.gains.fill_(-1.0)
    adapter.gains[2, target] = 1.0


def relocated(adapter, training):
    from vprompt.adapters._placement.relocation import relocate

    place = {"decisions": [], "loss": None}
    relocate(adapter, training, place)
    return place["decisions"]


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_a_move_resets_the_optimiser_s_row_of_that_token_and_no_other(build, opt):
    adapter = build()
    training = after_two_steps(adapter, opt)
    state = training.optimizer.state[adapter.tokens]
    before = {k: v.clone() for k, v in state.items() if v.dim() == 2}
    tokens = adapter.tokens.detach().clone()
    force(adapter, row=5, target=0)
    [decision] = relocated(adapter, training)
    assert (decision["token"], decision["from"], decision["to"]) == (5, 2, 0)
    others = torch.arange(12) != 5
    assert torch.equal(adapter.tokens[others], tokens[others])
    assert torch.equal(adapter.tokens[5], adapter.candidates(0, 1)[2, 0])
    assert adapter.blocks.tolist() == [0, 0, 1, 1, 2, 0, 3, 3, 4, 4, 5, 5]
    for name, value in before.items():
        assert torch.equal(state[name][others], value[others])
        if name == "exp_avg_sq":
            assert torch.equal(state[name][5], value[[0, 1]].mean(0))
        else:
            assert not state[name][5].any() and value[5].any()
    first_step = adapter.tokens.detach().clone()
    adapter.tokens.grad = torch.ones_like(adapter.tokens)
    training.optimizer.step()
    moved = (adapter.tokens.detach() - first_step)[5].abs().max()
    assert moved <= (0.1 + 1e-6 if opt == "sgd" else 0.2)  # not 3.2 times the rate


def test_published_moves_keep_direction_and_momentum(build):
    adapter = build(preset="paper", alloc="random")
    training = after_two_steps(adapter, "sgd")
    momentum = training.optimizer.state[adapter.tokens]["momentum_buffer"].clone()
    force_scores = torch.linspace(-1, 1, 12)
    adapter.idle.copy_(force_scores)
    adapter.measured.fill_(1)
    token = adapter.tokens.detach()[11].clone()
    [decision] = relocated(adapter, training)
    assert decision["token"] == 11 and decision["moved"]
    torch.testing.assert_close(adapter.tokens[11], 1e-3 * token)
    assert torch.equal(training.optimizer.state[adapter.tokens]["momentum_buffer"], momentum)


def test_a_token_may_keep_its_vector_and_its_gain_is_measured_with_it(run, build, settings):
    adapter = build(move_init="keep", accept="always", move_optim="keep")
    tuned = run(adapter, settings(epochs=3, lr=1e-30, weight_decay=0.0))
    moved = [d for d in decisions(tuned) if d["moved"]]
    assert moved and len(moved[0]["gains"]) == 6
    row, target = moved[0]["token"], moved[0]["to"]
    assert int(adapter.blocks[row]) == target
    start = build(move_init="keep").tokens
    torch.testing.assert_close(adapter.tokens[row], start[row], rtol=1e-4, atol=1e-6)


def test_none_makes_the_idle_token_anew_where_it_is(run, build, settings):
    tuned = run(build(alloc="none"), settings(lr=1e-30, weight_decay=0.0))
    made = decisions(tuned)
    assert made and all(d["from"] == d["to"] and d["moved"] for d in made)
    assert distribution(tuned)[0] == distribution(tuned)[-1]
    changed = (tuned.adapter.tokens - build().tokens).abs().sum(1) > 1e-3
    assert set(changed.nonzero().flatten().tolist()) <= {d["token"] for d in made}
    assert changed.any() and not tuned.adapter.keeps_places


def test_a_random_destination_is_another_block_and_all_of_them_in_time(run, build, settings):
    from vprompt.adapters._placement.allocators import Random, Situation

    sums, room = torch.zeros(6), torch.ones(6, dtype=torch.bool)
    situation = Situation(2, sums, torch.ones(6), room)
    drawn = {Random().choose(situation, 0, f"move {i}") for i in range(60)}
    assert drawn == {0, 1, 3, 4, 5}
    tuned = run(build(alloc="random"), settings())
    assert decisions(tuned) and all(d["from"] != d["to"] for d in decisions(tuned))
    assert all(d["gains"] is None for d in decisions(tuned))


def test_limits_per_block_hold(run, build, settings):
    limits = {"min_per_block": 1, "max_per_block": 3}
    free = {"moves_per_epoch": 3, "cooldown": 0, "accept": "always", "score": "norm"}
    tuned = run(build(**limits, **free), settings())
    assert any(d["moved"] for d in decisions(tuned))
    for counts in distribution(tuned):
        assert min(counts) >= 1 and max(counts) <= 3


def test_where_no_block_has_room_nothing_moves(run, build, settings):
    tuned = run(build(max_per_block=2, accept="always"), settings(epochs=3))
    assert {d["why"] for d in decisions(tuned)} == {"no room"}


def test_a_moved_token_rests(run, build, settings):
    free = {"accept": "always", "score": "norm", "min_per_block": 0}
    for cooldown in (0, 2):
        tuned = run(build(cooldown=cooldown, **free), settings(epochs=10))
        last = {}
        for decision in decisions(tuned):
            before = last.get(decision["token"], -99)
            assert decision["epoch"] - before > cooldown
            last[decision["token"]] = decision["epoch"]


@pytest.mark.parametrize("moves, wanted", [(0, 0), (2, 2), (0.25, 3), (0.01, 1), (0.0, 0)])
def test_moves_are_a_number_or_a_share_of_all_tokens(build, moves, wanted):
    assert build(moves_per_epoch=moves).moves == wanted


def test_the_window_is_of_finished_epochs(build):
    rules = build().rules
    assert [done for done in range(101) if rules.is_open(done, 100)] == [*range(10, 76)]
    assert [done for done in range(11) if rules.is_open(done, 10)] == [*range(1, 8)]
    paper = build(preset="paper").rules
    assert [done for done in range(5) if paper.is_open(done, 4)] == [1, 2, 3]


@pytest.mark.parametrize("block", range(6))
def test_a_block_may_be_empty(build, images, tiny, block, tmp_path):
    from vprompt.artifacts import artifact
    from vprompt.models.backbone import extract
    from vprompt.models.heads import Head

    counts = [2] * 6
    counts[block] = 0
    adapter = build(num_virtual_tokens=counts)
    prompt = adapter.prompt()
    assert prompt.counts(6) == counts and not prompt.persist
    adapter.probe = probe = adapter.new_probe(adapter.candidates(0, 1))
    adapter.features(images).square().sum().backward()
    adapter.probe = None
    assert probe.inserted.grad[:, block].abs().min() > 0  # and may be filled again
    head = Head(torch.randn(CLASSES, tiny.feature_dim), torch.zeros(CLASSES))
    config = artifact.make_config(tiny, prompt, ("a", "b", "c"))
    made = artifact.Artifact(prompt, head, torch.zeros(tiny.feature_dim), config)
    artifact.save(made, tmp_path / "one")
    again = artifact.load(tmp_path / "one").prompt
    with torch.no_grad():
        assert torch.equal(extract(tiny, images, again), adapter.features(images))


def test_the_order_of_tokens_in_a_block_does_not_matter(problem):
    adapter, loss = problem
    before = loss().item()
    order = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    for _ in range(2):
        with torch.no_grad():
            adapter.tokens.copy_(adapter.tokens[order].clone())
            adapter.blocks.copy_(adapter.blocks[order].clone())
        assert loss().item() == pytest.approx(before, rel=1e-12)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))


def test_it_works_for_every_backbone(run, build, settings, backbones):
    with_norm = run(build(backbones, score="taylor_norm", accept="always"), settings(epochs=3))
    tuned = run(build(backbones, accept="always"), settings(epochs=3, precision="bf16"))
    for found in (with_norm, tuned):
        assert len(decisions(found)) >= 1
        assert sum(found.adapter.prompt().counts(backbones.depth)) == 2 * backbones.depth


# Cost


def passes(backbone, monkeypatch):
    """Count the images that enter the backbone, and the blocks that look through gates."""
    seen = {"images": 0, "gated": 0}
    embed, block = type(backbone).embed, type(backbone).prompted_block

    def counted(self, images):
        seen["images"] += len(images) if torch.is_grad_enabled() else 0
        return embed(self, images)

    def looked(self, index, tokens, prompt, attend=None, *, reads=None):
        seen["gated"] += attend is not None
        return block(self, index, tokens, prompt, attend, reads=reads)

    monkeypatch.setattr(type(backbone), "embed", counted)
    monkeypatch.setattr(type(backbone), "prompted_block", looked)
    return seen


def test_scores_come_from_some_of_the_ordinary_steps(run, build, settings, tiny, monkeypatch):
    adapter = build(score_every=2)
    seen = passes(tiny, monkeypatch)
    run(adapter, settings(epochs=8))
    assert seen["images"] == 8 * 22  # no pass of its own
    # Two of three steps in the six epochs whose scores can still move a token.
    assert seen["gated"] == 6 * 6 * 2


def test_the_published_pass_doubles_the_work(run, build, settings, tiny, monkeypatch):
    adapter = build(preset="paper")
    seen = passes(tiny, monkeypatch)
    run(adapter, settings(epochs=4))
    assert seen["images"] == 2 * 4 * 22 and seen["gated"] == 0


# Allocators that learn


def test_two_normalised_returns_know_only_the_sign_of_the_first_reward():
    """The property that makes the published signal carry nothing (docs/placement.md)."""
    from vprompt.adapters._placement.ppo import normalised_returns

    for first in (-3.0, -1e-3, 0.02, 5.0):
        for second in (-7.0, 0.0, 1e-3, 4.0):
            found = normalised_returns(torch.tensor([first, second], dtype=torch.float64))
            half = math.copysign(math.sqrt(0.5), first)
            assert found.tolist() == pytest.approx([half, -half], rel=1e-3)


def situations(count):
    from vprompt.adapters._placement.allocators import Situation

    for index in range(count):
        noise = torch.Generator().manual_seed(index)
        counts = torch.full((6,), 2)
        room = torch.ones(6, dtype=torch.bool)
        yield Situation(index % 6, torch.randn(6, generator=noise), counts, room)


def test_a_policy_updates_after_every_second_reward_and_ignores_the_second():
    from vprompt.adapters._placement.ppo import PPO

    updated = []
    for second in (-4.0, 9.0):
        policy = PPO(6, seed=3)
        before = policy.weights.clone()
        for situation, reward in zip(situations(2), (0.5, second), strict=True):
            assert torch.equal(policy.weights, before)
            assert policy.choose(situation, 0, "a move") in range(6)
            policy.learn(reward)
        updated.append(policy.weights)
        assert int(policy.steps) == 60 and int(policy.filled) == 0
        assert not torch.equal(policy.weights, before)
    torch.testing.assert_close(updated[0], updated[1], rtol=1e-4, atol=1e-6)


def test_small_rewards_are_normalised_as_published():
    """std + 1e-8, which counts where rewards are near 1e-5."""
    from vprompt.adapters._placement.ppo import normalised_returns

    for size in (1e-3, 1e-5, 1e-7):
        rewards = torch.tensor([0.7, -0.4], dtype=torch.float64) * size
        returns = [0.3 * size, -0.4 * size]
        mean = sum(returns) / 2
        spread = math.sqrt(sum((each - mean) ** 2 for each in returns))  # over n - 1 = 1
        expected = [(each - mean) / (spread + 1e-8) for each in returns]
        assert normalised_returns(rewards).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_a_policy_s_steps_are_those_of_torch_s_adam(size):
    """Twelve moves, six updates: networks, returns, loss and optimiser written out anew."""
    from vprompt.adapters._placement import ppo

    policy = ppo.PPO(6, seed=3)
    twin = policy.weights.clone()
    cut = policy.policy_size
    parts = [twin[:cut].clone().requires_grad_(), twin[cut:].clone().requires_grad_()]
    groups = [{"params": [p], "lr": r} for p, r in zip(parts, (3e-4, 1e-3), strict=True)]
    adam = torch.optim.Adam(groups)
    rewards = size * torch.randn(12, generator=torch.Generator().manual_seed(5))
    for number, (situation, reward) in enumerate(zip(situations(12), rewards, strict=True)):
        policy.choose(situation, 0, f"move {number}")
        policy.learn(float(reward))
        if number % 2 == 0:
            continue
        actions, before, values, stored = policy.facts.clone().T
        assert stored.tolist() == pytest.approx(rewards[number - 1 : number + 1].tolist())
        returns = torch.stack([stored.sum(), stored[1]])
        returns = (returns - returns.mean()) / (returns.std() + 1e-8)
        for _ in range(60):
            logits, value = policy.judge(torch.cat(parts), policy.states)
            chosen = torch.distributions.Categorical(logits=logits)
            ratio = (chosen.log_prob(actions) - before).exp()
            gain = returns - values
            surrogate = torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
            loss = -surrogate + 0.5 * (value - returns).square().mean()
            loss = loss - 0.01 * chosen.entropy()
            adam.zero_grad()
            loss.mean().backward()
            adam.step()
    torch.testing.assert_close(policy.weights, torch.cat(parts).detach(), rtol=1e-3, atol=1e-4)


def test_the_state_of_the_policy_is_the_published_one():
    from vprompt.adapters._placement.allocators import Situation
    from vprompt.adapters._placement.ppo import state_of

    sums, counts = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([4, 5, 1])
    found = state_of(Situation(1, sums, counts, torch.ones(3, dtype=torch.bool)))
    spread = (sums - 3) / math.sqrt((4 + 1 + 9) / 3)
    expected = [*spread.tolist(), 4 / 9, 4 / 9, 1 / 9, 0, 1, 0]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_thompson_counts_successes_and_comes_to_prefer_what_works():
    from vprompt.adapters._placement.allocators import Thompson

    arms, chosen = Thompson(6), []
    for number in range(150):
        block = arms.choose(next(situations(1)), 0, f"move {number}")
        arms.learn(0.0 if block == 4 else -1e-9)
        chosen.append(block)
    assert chosen[-30:].count(4) > 20 and len(set(chosen)) == 6
    assert int(arms.successes.sum() + arms.failures.sum()) == 150
    assert arms.successes.tolist() == [0, 0, 0, 0, chosen.count(4), 0]


@pytest.mark.parametrize("reward", ["coded", "pruned"])
@pytest.mark.parametrize("source", ["train_steps", "extra_pass"])
def test_a_reward_is_the_fall_of_the_loss_less_what_the_rules_say(
    run, build, settings, reward, source
):
    told, asked = [], []
    own = {"score_source": source, "reward": reward, "reward_loss": "mean", "score_every": 1}
    adapter = build(alloc="thompson", cooldown=0, **own)
    adapter.allocator.learn = told.append
    original = adapter.begin_epoch

    def begin(training):
        before = adapter.memory.get("placement", {}).get("pending")
        original(training)
        place = adapter.memory["placement"]
        asked.append((before, place["loss"], float(adapter.idle.max()), place["pending"]))

    adapter.begin_epoch = begin
    tuned = run(adapter, settings(epochs=6))
    assert len(told) >= 3
    heard = [entry for entry in asked if entry[0] is not None]
    for value, (pending, loss, _, _) in zip(told, heard, strict=True):
        if reward == "pruned":
            assert value == pytest.approx(pending["loss"] - loss - pending["score"])
    if source == "train_steps":  # then the loss is that of the training curve
        losses = [record.train_loss for record in tuned.history[1:]]
        found = [entry[3]["loss"] for entry in asked if entry[3] is not None]
        assert found == pytest.approx(losses[: len(found)], rel=1e-4)


def test_the_coded_loss_divides_every_batch_by_its_size_once_more():
    from vprompt.adapters._placement.meter import Meter
    from vprompt.adapters._placement.rules import Rules

    loss = torch.tensor(1.0)
    for kind, expected in (("coded", 15 / 64 + 1 / 40), ("mean", 1.0)):
        meter = Meter(Rules.of("paper", reward_loss=kind, **DEFAULTS))
        for images in [64] * 15 + [40]:
            meter.add_loss(loss, images)
        assert meter.loss() == pytest.approx(expected, rel=1e-5)


DEFAULTS = {
    "tau": 0.0,
    "move_scale": 1e-3,
    "candidates": 4,
    "min_per_block": 0,
    "self_move": "noop",
}


@pytest.mark.parametrize("self_move, factor", [("noop", 1.0), ("scale", 1e-3)])
def test_the_same_block_as_a_choice_changes_nothing_unless_asked(build, self_move, factor):
    adapter = build(preset="paper", self_move=self_move)
    training = after_two_steps(adapter, "sgd")
    adapter.allocator.choose = lambda situation, seed, purpose: situation.origin
    adapter.idle.copy_(torch.linspace(-1, 1, 12))
    adapter.measured.fill_(1)
    before = adapter.tokens.detach().clone()
    [decision] = relocated(adapter, training)
    assert decision["why"] == "same block" and not decision["moved"]
    before[11] *= factor
    torch.testing.assert_close(adapter.tokens.detach(), before)


# A run that was stopped


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"preset": "paper"},
        {"alloc": "thompson", "score": "taylor", "prompt_dropout": 0.2},
        {"move_init": "keep", "moves_per_epoch": 2, "score": "taylor_norm", "accept": "always"},
    ],
    ids=str,
)
def test_a_run_stopped_among_its_moves_continues_with_the_same_bits(
    run, build, settings, tmp_path, given
):
    config = settings(opt="sgd" if given.get("preset") else "adamw")
    whole = run(build(**given), config)
    assert len(decisions(whole)) >= 2
    for batches in (4, 11):  # each time in the middle of an epoch
        with pytest.raises(KeyboardInterrupt):
            run(build(**given), config, checkpoint=tmp_path, progress=StopAfter(batches, 24))
    continued = run(build(**given), config, checkpoint=tmp_path)
    assert bits(continued) == bits(whole)
    assert continued.adapter.memory == whole.adapter.memory
    state = whole.adapter.state()
    assert all(torch.equal(value, state[name]) for name, value in continued.adapter.state().items())


def test_other_rules_do_not_continue_another_run(run, build, settings, tmp_path):
    config = settings(epochs=4)
    with pytest.raises(KeyboardInterrupt):
        run(build(), config, checkpoint=tmp_path, progress=StopAfter(7, 12))
    found = run(build(alloc="random"), config, checkpoint=tmp_path)
    assert bits(found) == bits(run(build(alloc="random"), config))


# Settings


def test_the_presets_are_those_of_the_specification(build):
    paper, robust = build(preset="paper").rules, build().rules
    assert (paper.score, paper.alloc, paper.score_source) == ("taylor", "ppo", "extra_pass")
    assert (paper.score_clip, paper.score_ema, paper.accept) == (0.25, 0.0, "always")
    assert (paper.reward, paper.reward_loss) == ("coded", "coded")
    assert (paper.move_init, paper.move_scale, paper.move_optim) == ("scale", 1e-3, "keep")
    assert (paper.moves_per_epoch, paper.cooldown, paper.min_per_block) == (1, 0, 0)
    assert (paper.prompt_init, paper.prompt_dropout) == ("vpt_uniform", 0.1)
    assert (robust.score, robust.alloc, robust.score_source) == ("mask", "grad", "train_steps")
    assert (robust.score_clip, robust.score_ema, robust.accept) == (0.0, 0.9, "gain")
    assert robust.exact and not paper.exact
    assert (robust.move_init, robust.move_optim, robust.tau) == ("fresh", "reset_row", 0.0)
    assert (robust.window, robust.cooldown, robust.moves_per_epoch) == ([0.1, 0.75], 3, 1)
    assert robust.max_per_block is paper.max_per_block is None


def test_the_published_recipe_of_training_comes_with_the_preset():
    from vprompt.learning.train_config import TrainConfig
    from vprompt.stages import training_defaults

    assert (
        training_defaults("pro_vpt") == training_defaults("vpt") == {"lr": 0.1, "lr_unit": "start"}
    )
    paper = TrainConfig.checked(training_defaults("pro_vpt(preset=paper, alloc=random)"))
    assert (paper.opt, paper.lr, paper.head_lr, paper.weight_decay) == ("sgd", 2.5, 2.5, 1e-4)
    assert (paper.sched, paper.clip_grad, paper.epochs, paper.keep) == (
        "constant",
        0.25,
        100,
        "last",
    )
    assert paper.decay_bias and paper.batch_size == 64


@pytest.mark.parametrize("preset, tokens", [("paper", 20), ("robust", 10)])
def test_a_block_starts_with_as_many_tokens_as_the_preset_says(tiny, preset, tokens):
    from vprompt.core import registry

    counts = registry.build("adapters", f"pro_vpt(preset={preset})")(tiny).counts()
    assert counts == [tokens] * tiny.depth
    given = registry.build("adapters", f"pro_vpt(preset={preset}, num_virtual_tokens=3)")(tiny)
    assert given.counts() == [3] * tiny.depth


def test_the_published_reward_is_the_fall_of_the_loss_less_the_highest_score(build):
    adapter = build(preset="paper")
    told = []
    adapter.allocator.learn = told.append
    adapter.idle.copy_(torch.linspace(-1, 0.25, 12))
    adapter._reward({"loss": 1.25, "pending": {"loss": 2.0, "score": 9.0}})
    assert told == [pytest.approx(2.0 - 1.25 - 0.25)]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"preset": "papr"}, ("papr", "'paper'")),
        ({"score": "tailor"}, ("tailor", "'taylor'")),
        ({"alloc": "gradient_"}, ("No alloc", "grad")),
        ({"accept": "gain", "alloc": "random"}, ("accept=gain", "alloc=grad")),
        ({"alloc": "ppo", "moves_per_epoch": 2}, ("learns", "moves_per_epoch=1")),
        ({"window": [0.8, 0.2]}, ("window", "rising")),
        ({"score_ema": 1.5}, ("score_ema", "1.5")),
        ({"max_per_block": 1, "min_per_block": 2}, ("max_per_block",)),
    ],
    ids=str,
)
def test_a_wrong_setting_is_answered_with_the_right_ones(build, refused, wrong, words):
    with refused(*words):
        build(**wrong)


class Closed:
    """Mixed into a backbone: nobody sees into its blocks."""

    def prompted_block(self, index, tokens, prompt, attend=None, *, reads=None):
        from vprompt.models.backbone import Backbone

        return Backbone.prompted_block(self, index, tokens, prompt, attend, reads=reads)


def test_blocks_that_cannot_be_reached_leave_what_needs_no_gates(run, build, settings, refused):
    from vprompt.backbones import tiny

    backbone = tiny.load()
    backbone.__class__ = type("ClosedViT", (Closed, type(backbone)), {})
    for given in ({}, {"score": "taylor"}, {"score": "taylor_norm", "alloc": "random"}):
        with refused("cannot be reached", "score=taylor", "alloc=random"):
            build(backbone, **given)
    for given in ({"score": "taylor", "alloc": "random"}, {"score": "norm", "alloc": "thompson"}):
        assert decisions(run(build(backbone, **given), settings(epochs=3)))
    assert decisions(run(build(backbone, preset="paper"), settings(epochs=3)))


def test_scores_that_are_no_number_stop_the_run(run, build, settings, refused):
    adapter = build()
    original = adapter.after_backward

    def poisoned(training):
        if adapter.probe is not None:
            adapter.probe.gates.grad[3] = math.inf
        original(training)

    adapter.after_backward = poisoned
    with refused("'mask'", "not finite in epoch 1", "--lr"):
        run(adapter, settings())


def test_moved_tokens_do_not_claim_to_correspond(tiny, tmp_path, settings):
    from vprompt import learn, open_task

    task = open_task("digits").few_shot(3, 0)
    for given, kind in (("accept=always", "stored"), ("moves_per_epoch=0", "blank")):
        method = f"pro_vpt(num_virtual_tokens=1, prompt_init=blank, {given})"
        outcome = learn(task, model=tiny, method=method, config=settings(epochs=2), test=False)
        init = outcome.artifact.config["prompt_init"]
        assert init["kind"] == kind
        assert outcome.run["tuning"]["memory"]["placement"]["distribution"]
