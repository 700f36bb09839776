"""Evidence: features and gradients of every source, from one pass, kept for the next time."""

import numpy as np
import pytest
import torch
from torch.nn import functional

CLASSES = 3


def features_only():
    from vprompt.pooling.mix import Plan

    return Plan()


def make_examples(seed=0, count=10, labels=None):
    """Random 32-pixel images with labels, and the digest that a task would give them."""
    from vprompt.core.files import digest
    from vprompt.data.task import Examples

    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    chosen = torch.arange(count) % CLASSES if labels is None else labels
    return Examples(pixels, chosen, digest(pixels.tobytes(), str(chosen.tolist())))


@pytest.fixture
def examples():
    return make_examples()


@pytest.fixture
def collect(tiny, examples):
    """Return a function that gathers in full precision, for `tiny` and the examples by default."""
    from vprompt.pooling.evidence import gather
    from vprompt.pooling.mix import Plan

    def run(sources, given=None, backbone=tiny, plan=None, **settings):
        plan = Plan("base") if plan is None else plan
        given = given or examples
        return gather(backbone, sources, given, CLASSES, plan, precision="fp32", **settings)

    return run


@pytest.fixture
def passes(monkeypatch):
    """A list of the prompts that were passed over a batch of images."""
    import vprompt.pooling.probe as module

    seen, own = [], module.extract

    def counted(backbone, images, prompt=None, tokens=None):
        seen.append(None if prompt is None else len(prompt.tokens))
        return own(backbone, images, prompt, tokens)

    monkeypatch.setattr(module, "extract", counted)
    return seen


def test_features_equal_a_direct_pass(collect, tiny, pool, examples):
    from vprompt.models.backbone import extract

    found = collect(pool, batch_size=4)
    images = tiny.normalise(torch.from_numpy(examples.pixels))
    assert found.names == tuple(pool) and len(found) == len(pool)
    assert found.features.shape == (4, 10, 64)
    for features, prompt in zip(found.features, pool.values(), strict=True):
        torch.testing.assert_close(features, extract(tiny, images, prompt))
    torch.testing.assert_close(found.plain, extract(tiny, images))
    assert torch.equal(found.labels, examples.labels)
    assert not found.features.requires_grad


def head_by_hand(plain, labels):
    """Shrunk LDA on prompt-free features: scikit-learn's intensity, the rest written out."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    x = plain.double()
    means = torch.stack([x[labels == c].mean(0) for c in range(CLASSES)])
    within = x - means[labels]
    rho = min(max(ledoit_wolf_shrinkage(within.numpy(), assume_centered=True), 1e-3), 1 - 1e-3)
    covariance = within.T @ within / (len(x) - CLASSES)
    width = x.shape[1]
    shrunk = (1 - rho) * covariance + rho * covariance.trace() / width * torch.eye(width).double()
    weight = torch.linalg.solve(shrunk, means.T).T
    counts = torch.bincount(labels).double()
    return weight, (counts / len(x)).log() - (weight * means).sum(1) / 2


@pytest.mark.parametrize("kind", ["pool", "deep_pool"])
def test_gradients_are_those_of_the_mean_loss_over_all_images(
    collect, tiny, examples, kind, request
):
    from vprompt.models.backbone import extract

    sources = request.getfixturevalue(kind)
    found = collect(sources, batch_size=3)
    images = tiny.normalise(torch.from_numpy(examples.pixels))
    weight, bias = head_by_hand(extract(tiny, images), examples.labels)
    for gradient, prompt in zip(found.gradients, sources.values(), strict=True):
        tokens = prompt.tokens.clone().requires_grad_()
        features = extract(tiny, images, prompt.with_tokens(tokens))
        loss = functional.cross_entropy(features.double() @ weight.T + bias, examples.labels)
        (expected,) = torch.autograd.grad(loss, tokens)
        assert (gradient - expected).norm() < 5e-3 * expected.norm()


def test_one_image_of_every_class_gives_gradients_of_an_ordinary_size(collect, pool):
    found = collect(pool, make_examples(count=CLASSES))
    assert found.gradients.isfinite().all()
    assert 0 < found.gradients.abs().max() < 1e4


def test_the_batch_size_does_not_matter(collect, pool):
    whole = collect(pool, batch_size=64, use_cache=False)
    for size in (1, 4):
        parts = collect(pool, batch_size=size, use_cache=False)
        torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-4)
        assert (parts.gradients - whole.gradients).norm() < 1e-4 * whole.gradients.norm()


def test_gathering_leaves_prompts_and_backbone_as_they_were(collect, tiny, pool):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    tokens = [prompt.tokens.clone() for prompt in pool.values()]
    collect(pool)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    for prompt, own in zip(pool.values(), tokens, strict=True):
        assert torch.equal(prompt.tokens, own) and prompt.tokens.grad is None
        assert not prompt.tokens.requires_grad


def test_without_gradients_there_are_none(collect, pool):
    found = collect(pool, plan=features_only())
    assert found.gradients.shape == (4, 0, 64)


# The cache.


def test_the_second_time_nothing_is_computed_and_everything_is_the_same(collect, pool, passes):
    first = collect(pool)
    assert passes == [None, 3, 3, 3, 3]
    passes.clear()
    second = collect(pool)
    assert passes == []
    for name in ("features", "gradients", "plain", "labels"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_a_source_more_costs_one_pass_more(collect, pool, passes):
    collect({name: pool[name] for name in ("birds", "cars")})
    passes.clear()
    found = collect({name: pool[name] for name in ("apples", "birds", "cars")})
    assert passes == [3]
    assert found.names == ("apples", "birds", "cars")
    fresh = collect({name: pool[name] for name in ("apples", "birds", "cars")}, use_cache=False)
    assert torch.equal(found.features, fresh.features)
    assert torch.equal(found.gradients, fresh.gradients)


def test_another_name_for_the_same_prompt_costs_nothing(collect, pool, passes):
    collect(pool)
    passes.clear()
    renamed = collect({f"my {name}": prompt for name, prompt in reversed(pool.items())})
    assert passes == []
    assert torch.equal(renamed.features, collect(pool).features.flip(0))


def test_the_batch_size_is_no_part_of_the_key(collect, pool, passes):
    collect(pool, batch_size=4)
    passes.clear()
    collect(pool, batch_size=5)
    assert passes == []


def test_without_the_cache_everything_is_computed_and_nothing_written(collect, pool, passes, cache):
    for _ in range(2):
        passes.clear()
        collect(pool, use_cache=False)
        assert len(passes) == 5
    assert not cache.exists()


@pytest.mark.parametrize("changed", ["labels", "images", "tokens", "placement", "persist"])
def test_whatever_the_result_depends_on_is_part_of_the_key(collect, pool, passes, changed):
    from dataclasses import replace

    one = {"apples": pool["apples"]}
    collect(one)
    passes.clear()
    prompt, given = pool["apples"], None
    if changed == "labels":
        given = make_examples(labels=torch.arange(10).flip(0) % CLASSES)
    elif changed == "images":
        given = make_examples(seed=1)
    elif changed == "tokens":
        tokens = prompt.tokens.clone()
        tokens[2, 5] += 1e-6
        prompt = prompt.with_tokens(tokens)
    elif changed == "placement":
        prompt = replace(prompt, blocks=torch.tensor([0, 0, 1]))
    else:
        prompt = replace(prompt, persist=False)
    collect({"apples": prompt}, given)
    assert 3 in passes
    assert (None in passes) == (changed in ("labels", "images"))


def test_other_weights_are_another_key(collect, pool, passes):
    from vprompt.backbones import tiny

    collect(pool)
    passes.clear()
    other = tiny.load()
    with torch.no_grad():
        other.vit.blocks[0].mlp.fc1.bias[0] += 0.1
    collect(pool, backbone=other)
    assert len(passes) == 5


def test_another_number_of_classes_is_another_key(tiny, pool, examples, passes):
    from vprompt.pooling.evidence import gather
    from vprompt.pooling.mix import Plan

    gather(tiny, pool, examples, CLASSES, Plan("base"), precision="fp32")
    passes.clear()
    gather(tiny, pool, examples, CLASSES + 1, Plan("base"), precision="fp32")
    assert passes == [3, 3, 3, 3]  # gradients are under another head, features are the same


def test_features_do_not_depend_on_the_number_of_classes(tiny, pool, examples, passes):
    from vprompt.pooling.evidence import gather

    gather(tiny, pool, examples, CLASSES, features_only(), precision="fp32")
    passes.clear()
    gather(tiny, pool, examples, CLASSES + 1, features_only(), precision="fp32")
    assert passes == []


def test_another_precision_is_another_key(tiny, pool, examples, passes):
    from vprompt.pooling.evidence import gather

    gather(tiny, pool, examples, CLASSES, features_only(), precision="fp32")
    passes.clear()
    found = gather(tiny, pool, examples, CLASSES, features_only(), precision="bf16")
    assert len(passes) == 5
    assert found.features.dtype == torch.float32


def test_gradients_are_added_where_only_features_were_known(collect, pool, passes):
    features = collect(pool, plan=features_only()).features
    passes.clear()
    found = collect(pool)
    assert passes == [3, 3, 3, 3]  # the prompt-free features were known
    torch.testing.assert_close(found.features, features)
    assert torch.equal(found.gradients, collect(pool, use_cache=False).gradients)


def test_features_alone_are_read_where_both_are_known(collect, pool, passes):
    both = collect(pool)
    passes.clear()
    found = collect(pool, plan=features_only())
    assert passes == []
    assert torch.equal(found.features, both.features)
    assert found.gradients.shape == (4, 0, 64)


@pytest.mark.parametrize("at", [None, 12, -3])
def test_a_broken_file_in_the_cache_is_computed_again(collect, pool, cache, damage_told, at):
    expected = collect(pool)
    for path in (cache / "evidence").iterdir():
        data = bytearray(path.read_bytes())
        if at is not None:
            data[at] ^= 2
        path.write_bytes(bytes(data) if at is not None else bytes(data[:20]))
    with damage_told():
        found = collect(pool)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.gradients, expected.gradients)


def test_a_source_of_huge_tokens_is_named(collect, pool, refused):
    huge = {**pool, "huge": pool["birds"].with_tokens(pool["birds"].tokens * 1e38)}
    with refused("'huge'", "no numbers", "--exclude"):
        collect(huge)


def test_the_pass_tells_how_far_it_is(collect, pool):
    import contextlib

    class Listener:
        def __init__(self):
            self.total, self.done, self.notes = 0, 0, set()

        @contextlib.contextmanager
        def step(self, description, total):
            self.total = total
            yield self

        def advance(self, amount=1, note=""):
            self.done += amount
            self.notes.add(note)

        def say(self, text):
            pass

    for _ in range(2):  # computed, then read
        listener = Listener()
        collect(pool, progress=listener)
        assert listener.done == listener.total == 5 * 10
        assert listener.notes == {"", *pool}


# Correspondence of tokens.


def test_permuted_prompts_give_the_permuted_evidence(collect, pool):
    order = torch.tensor([2, 0, 1])
    plain = collect(pool)
    found = collect({name: p.with_tokens(p.tokens[order]) for name, p in pool.items()})
    torch.testing.assert_close(found.features, plain.features, atol=1e-5, rtol=1e-4)
    expected = plain.gradients[:, order]
    assert (found.gradients - expected).norm() < 1e-4 * expected.norm()


def test_an_empty_pool_is_refused(collect, refused):
    with refused("source"):
        collect({})


# Which gradient: heads, halves, single images.


def gradient_by_hand(tiny, examples, prompt, loss_of):
    from vprompt.models.backbone import extract

    images = tiny.normalise(torch.from_numpy(examples.pixels))
    tokens = prompt.tokens.clone().requires_grad_()
    features = extract(tiny, images, prompt.with_tokens(tokens))
    (found,) = torch.autograd.grad(loss_of(features), tokens)
    return found


def own_head_loss(features, labels):
    weight, bias = head_by_hand(features.detach(), labels)
    return functional.cross_entropy(features.double() @ weight.T + bias, labels)


def nearest_mean_loss(features, labels):
    x = features.detach().double()
    means = torch.stack([x[labels == c].mean(0) for c in range(CLASSES)])
    within = x - means[labels]
    variance = within.square().sum() / (len(x) - CLASSES) / x.shape[1]
    distance = (features.double()[:, None] - means).square().sum(2)
    prior = (torch.bincount(labels).double() / len(x)).log()
    return functional.cross_entropy(-distance / (2 * variance) + prior, labels)


def hscore_loss(features, labels):
    from vprompt.core.linalg import ledoit_wolf_intensity

    x = features.double()
    x = x - x.mean(0)
    rho = ledoit_wolf_intensity(x.detach())
    sigma = x.T @ x / (len(x) - 1)
    means = torch.stack([x[labels == label].mean(0) for label in labels])
    shrunk = (1 - rho) * sigma + rho * sigma.trace() / len(sigma) * torch.eye(len(sigma)).double()
    return -(1 - rho) * torch.linalg.solve(shrunk, means.T @ means / (len(x) - 1)).trace()


@pytest.mark.parametrize(
    "head, loss_of",
    [("own", own_head_loss), ("ncm", nearest_mean_loss), ("hscore", hscore_loss)],
)
def test_a_sources_own_head_gives_the_gradient_of_its_own_loss(collect, tiny, pool, head, loss_of):
    from vprompt.pooling.mix import Plan

    examples = make_examples(count=90)  # with fewer, the head fits them all and nothing is left
    found = collect(pool, examples, plan=Plan(head), batch_size=20)
    for gradient, prompt in zip(found.gradients, pool.values(), strict=True):
        expected = gradient_by_hand(
            tiny, examples, prompt, lambda features: loss_of(features, examples.labels)
        )
        direction = torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0)
        assert direction > 0.999
    again = collect(pool, examples, plan=Plan(head))
    assert torch.equal(found.features, again.features)


def test_a_random_head_is_the_same_for_all_and_every_time(collect, pool):
    from vprompt.pooling.mix import Plan

    first = collect(pool, plan=Plan("random"), use_cache=False)
    assert torch.equal(first.gradients, collect(pool, plan=Plan("random")).gradients)
    assert not torch.equal(first.gradients, collect(pool).gradients)


def test_a_sources_learned_head_is_used_only_where_the_classes_agree(collect, pool, refused):
    from vprompt.models.heads import Head
    from vprompt.pooling.mix import Plan

    heads = {name: Head(torch.randn(CLASSES, 64), torch.zeros(CLASSES)) for name in pool}
    found = collect(pool, plan=Plan("source"), source_heads=heads)
    assert found.gradients.abs().max() > 0
    heads.pop("cars")
    with refused("gradient_head=source", "'cars'", "gradient_head=base"):
        collect(pool, plan=Plan("source"), source_heads=heads)


def test_halves_add_up_to_the_whole_and_hold_every_class(collect, pool, examples):
    from vprompt.pooling.mix import Plan
    from vprompt.pooling.probe import stratified_halves

    whole = collect(pool)
    average = next(iter(pool.values()))
    found = collect(pool, plan=Plan("base", reference=True), average=average)
    torch.testing.assert_close(found.gradients, whole.gradients, atol=1e-6, rtol=1e-3)
    first, second = stratified_halves(examples.labels)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    assert set(examples.labels[first].tolist()) == set(examples.labels[second].tolist())
    # At the first source itself, the two halves are all there is.
    torch.testing.assert_close(
        found.half_gradients[0] + found.reference, whole.gradients[0], atol=1e-6, rtol=1e-3
    )


def test_variances_are_those_of_single_images_gradients(collect, tiny, pool, examples):
    from vprompt.models.backbone import extract
    from vprompt.pooling.mix import Plan

    found = collect(pool, plan=Plan("base", variances=True), batch_size=4)
    images = tiny.normalise(torch.from_numpy(examples.pixels))
    weight, bias = head_by_hand(extract(tiny, images), examples.labels)
    prompt = next(iter(pool.values()))
    each = []
    for row in range(len(images)):
        tokens = prompt.tokens.clone().requires_grad_()
        features = extract(tiny, images[row : row + 1], prompt.with_tokens(tokens))
        logits = features.double() @ weight.T + bias
        loss = functional.cross_entropy(logits, examples.labels[row : row + 1])
        each.append(torch.autograd.grad(loss, tokens)[0])
    expected = torch.stack(each).var(0, unbiased=False)
    assert (found.variances[0] - expected).norm() < 1e-2 * expected.norm()
    torch.testing.assert_close(found.gradients, collect(pool).gradients, atol=1e-6, rtol=1e-3)
