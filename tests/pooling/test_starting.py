"""Starting: what `combine` trains where a method puts something in place of the summed prompt."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_flow import few, quick

torch.set_num_threads(1)  # steps this small only wait for a second thread
SOURCES = ("apples", "birds", "cars")


@pytest.fixture
def folder(tiny, pool, tmp_path):
    """A pool of three shallow prompts, with task embeddings and heads of ten classes."""
    return write(tiny, {name: pool[name] for name in SOURCES}, tmp_path / "pool")


def write(tiny, prompts, folder):
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head

    randomness = torch.Generator().manual_seed(7)
    classes = tuple(str(label) for label in range(10))
    for name, prompt in prompts.items():
        config = make_config(
            tiny,
            prompt,
            classes,
            prompt_init={"kind": "vpt_uniform", "seed": 3},
            task={"name": name},
        )
        head = Head(torch.zeros(10, tiny.feature_dim), torch.zeros(10))
        embedding = torch.randn(tiny.feature_dim, generator=randomness)
        save_artifact(Artifact(prompt, head, embedding, config), folder / name)
    return folder


@pytest.fixture
def combine(folder, tiny):
    """Return a function that combines the pool for a few digits, a step per epoch in fp32."""
    from vprompt import combine

    def call(method, config=None, **given):
        config = config or quick(epochs=2, batch_size=64)
        given = {"pool": folder, "model": tiny, "config": config, **given}
        return combine(few(), method=method, **given)

    return call


def examples(count=9, seed=0):
    from vprompt.data.task import Examples

    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 3
    pixels = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return Examples(pixels, labels, f"{count} {seed}")


# PANDA


@pytest.fixture
def distilled(tiny, pool, generator):
    """Return a function that makes a student of random teacher logits: `(adapter, logits)`."""
    from vprompt.learning.adapter import PromptAdapter
    from vprompt.transfer.panda import Distilled

    def make(**given):
        teacher = torch.randn(12, 3, generator=generator)
        settings = {"weight": 0.7, "loss": "kl", "temperature": 2.0, **given}
        return Distilled(PromptAdapter(tiny, pool["cars"]), teacher, **settings), teacher

    return make


def test_the_distillation_by_hand(distilled, generator):
    rows = torch.tensor([5, 0, 11, 2])
    logits = torch.randn(4, 3, generator=generator)

    def softmax(values):
        powers = np.exp(np.asarray(values, dtype=np.float64) / 2.0)
        return powers / powers.sum()

    adapter, teacher = distilled()
    total = 0.0
    for own, row in zip(logits, rows, strict=True):
        p, q = softmax(teacher[row]), softmax(own)
        total += float((p * np.log(p / q)).sum()) / 4
    assert adapter.extra_loss(logits, rows).item() == pytest.approx(0.7 * 4 * total, rel=1e-5)

    adapter, teacher = distilled(loss="mse")
    square = float((logits.double() - teacher[rows].double()).square().sum()) / 12
    assert adapter.extra_loss(logits, rows).item() == pytest.approx(0.7 * square, rel=1e-5)

    adapter, teacher = distilled(loss="published", weight=0.01)
    square = float((logits.double() - teacher[rows].double()).square().sum()) / 12
    assert adapter.extra_loss(logits, rows).item() == pytest.approx(0.01 * square / 4, rel=1e-5)


@pytest.mark.parametrize("loss", ["kl", "mse", "published"])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_lose(distilled, loss):
    adapter, teacher = distilled(loss=loss)
    logits = teacher[:4].clone().requires_grad_()
    lost = adapter.extra_loss(logits, torch.arange(4))
    lost.backward()
    assert lost.item() == pytest.approx(0, abs=1e-6) and logits.grad.abs().max() < 1e-6
    assert not adapter.teacher.requires_grad
    assert "teacher" not in adapter.state()


def test_the_teacher_is_the_nearest_source_trained_on_the_target(combine, tiny, pool, folder):
    from vprompt.learning.adapter import PromptAdapter
    from vprompt.learning.tune import tune
    from vprompt.results.measure import features_of
    from vprompt.transfer import panda

    seen = []
    own = panda.Distilled

    class Watched(own):
        def __init__(self, student, teacher, *rest):
            super().__init__(student, teacher, *rest)
            seen.append((student, teacher, *rest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panda, "Distilled", Watched)
        outcome = combine("panda")
    transfer = outcome.run["transfer"]
    similarities = transfer["solution"]["similarities"]
    best = int(np.argmax(similarities))
    assert [s["weight"] for s in transfer["sources"]] == [float(i == best) for i in range(3)]
    [(name, accuracy)] = transfer["solution"]["teachers"].items()
    assert name == SOURCES[best] and 0 <= accuracy <= 1
    # The same by hand: train from the source on the target, and keep its logits.
    task = few()
    train, val = (part.subset(range(len(part)), "") for part in (task.train, task.val))
    train, val = (task.examples(part, tiny.data_config) for part in (train, val))
    config = quick(epochs=2, batch_size=64)
    tuned = tune(PromptAdapter(tiny, pool[name]), train, val, 10, config)
    features = features_of(tiny, tuned.adapter.prompt(), train, precision="fp32")
    [(student, teacher, weight, loss, temperature)] = seen
    torch.testing.assert_close(teacher, tuned.head.logits(features), rtol=1e-4, atol=1e-4)
    assert (loss, temperature) == ("kl", 2.0)
    assert weight == pytest.approx(max(similarities[best], 0))
    # The student is fresh: the start that the pool's prompts say they grew from.
    from vprompt.core import registry

    init = "num_virtual_tokens=3, deep=False, prompt_init=vpt_uniform, prompt_init_seed=3"
    fresh = registry.build("adapters", f"vpt({init})")(tiny)
    assert torch.equal(student.prompt().tokens, fresh.prompt().tokens)
    assert outcome.run["started_from"] == "as panda does"


def test_pandas_settings_change_what_is_trained(combine):
    config = quick(epochs=1, batch_size=64, keep="last")
    published = combine("panda(distillation=published)", config=config)
    several = combine("panda(teachers=3, distillation=mse)", config=config)
    source = combine("panda(student=source)", config=config)
    assert len({o.run["tuning"]["prompt_digest"] for o in (published, several, source)}) == 3
    weights = [s["weight"] for s in several.run["transfer"]["sources"]]
    assert min(weights) > 0 and len(several.run["transfer"]["solution"]["teachers"]) == 3
    assert published.run["transfer"]["solution"]["distillation_weight"] == pytest.approx(0.01)
    json.dumps(several.run, allow_nan=False)


# ATTEMPT


def mixture(tiny, pool, names=SOURCES, own="doors", **given):
    from vprompt.learning.mixture import InstanceMixture

    return InstanceMixture(tiny, [pool[name] for name in names], pool[own], **given)


def test_the_attention_by_hand(tiny, pool, images):
    from vprompt import extract

    adapter = mixture(tiny, pool, temperature=3.0, bottleneck=5)
    prompts = [pool[name].tokens.numpy() for name in (*SOURCES, "doors")]
    down, up = adapter.down.detach().numpy(), adapter.up.detach().numpy()
    assert down.shape == (5, 64) and up.shape == (64, 5)
    attention = adapter.attention(images).detach().numpy()
    for row, image in enumerate(images):
        embedded = tiny.embed(image[None])[0].numpy()
        query = embedded.max(0)
        hidden = down @ query
        hidden = up @ (hidden / (1 + np.exp(-hidden)))
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        logits = np.array([tokens.max(0) @ hidden for tokens in prompts]) / 3.0
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        assert attention[row] == pytest.approx(weights, abs=1e-5)
        mixed = prompts[3] + sum(w * tokens for w, tokens in zip(weights, prompts, strict=True))
        alone = extract(tiny, image[None], pool["doors"].with_tokens(torch.tensor(mixed)))
        found = adapter.features(images)[row].detach()
        torch.testing.assert_close(found, alone[0], rtol=1e-4, atol=1e-4)


def test_every_image_has_weights_of_its_own(tiny, pool, images):
    attention = mixture(tiny, pool, temperature=1.0).attention(images)
    assert attention.shape == (4, 4) and (attention[0] - attention[1]).abs().max() > 1e-3
    torch.testing.assert_close(attention.sum(1), torch.ones(4))


def test_the_published_temperature_averages_prompts_of_the_size_of_vpts(tiny, images, generator):
    from vprompt.prompts.prompt import Prompt, place, vpt_uniform

    blocks = place(50, tiny.depth, deep=False)
    pool = {
        name: Prompt(vpt_uniform(blocks, 64, (16, 16), generator=generator), blocks)
        for name in (*SOURCES, "doors")
    }
    attention = mixture(tiny, pool, temperature=2087.0).attention(images)
    assert (attention - 1 / 4).abs().max() < 1e-4


def test_without_a_temperature_the_logits_vary_by_one(tiny, pool):
    from vprompt.learning.train_config import TrainConfig

    train = examples(20)
    for scale in (0.01, 1.0, 100.0):
        scaled = {name: p.with_tokens(scale * p.tokens) for name, p in pool.items()}
        adapter = mixture(tiny, scaled)
        adapter.begin(train, TrainConfig(precision="fp32"))
        pixels, _ = next(train.batches(20))
        logits = adapter.logits(tiny.normalise(pixels)).detach() / adapter.temperature
        assert logits.var(1, correction=0).mean().sqrt().item() == pytest.approx(1, rel=1e-4)
        given = mixture(tiny, scaled, temperature=5.0)
        given.begin(train, TrainConfig(precision="fp32"))
        assert given.temperature.item() == 5.0


def test_prompt_and_attention_are_trained_and_the_sources_are_not(tiny, pool, images):
    adapter = mixture(tiny, pool, temperature=1.0, attention_rate=0.25, bottleneck=7)
    trained = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    assert {name: p.numel() for name, p in trained.items()} == {
        "tokens": 3 * 64,
        "down": 7 * 64,
        "up": 7 * 64,
    }
    assert set(adapter.state()) == {*trained, "sources", "blocks", "temperature"}
    features = adapter.features(images)
    (features * torch.randn(features.shape)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    # Every group reaches the optimiser, each at its rate: the public code's never did.
    from vprompt.learning.classifier import Classifier, start_head
    from vprompt.learning.goals import OneClass
    from vprompt.learning.optimizing import optimizer_of
    from vprompt.learning.train_config import TrainConfig

    config = TrainConfig(precision="fp32", lr=0.4, head="zero")
    classifier = Classifier(adapter, *start_head(adapter, examples(), OneClass(3), config))
    rates = {
        id(p): g["lr"] for g in optimizer_of(classifier, config).param_groups for p in g["params"]
    }
    assert {name: rates[id(p)] for name, p in trained.items()} == pytest.approx(
        {"tokens": 0.4, "down": 0.1, "up": 0.1}
    )


@pytest.mark.parametrize("target", ["first", "mean", "zeros"])
def test_the_targets_prompt_starts_as_asked(combine, pool, target):
    outcome = combine(f"attempt(target={target}, temperature=1.0)", config=quick(epochs=0))
    stacked = torch.stack([pool[name].tokens for name in SOURCES])
    wanted = {"first": stacked[0], "mean": stacked.mean(0), "zeros": 0 * stacked[0]}[target]
    torch.testing.assert_close(outcome.artifact.state["tokens"].cpu(), wanted)


def test_the_record_says_what_the_attention_came_to(combine):
    outcome = combine("attempt", config=quick(epochs=2, keep="last"))
    memory = outcome.run["tuning"]["memory"]
    assert len(memory["weights"]) == len(memory["own_share"]) == 3  # the start and two epochs
    kept = outcome.run["tuning"]["kept_epoch"]
    weights = [s["weight"] for s in outcome.run["transfer"]["sources"]]
    assert weights == pytest.approx(memory["weights"][kept])
    assert sum(weights) == pytest.approx(1) and max(weights) > min(weights)
    before = [s["weight_before_refining"] for s in outcome.run["transfer"]["sources"]]
    assert before == pytest.approx([1 / 3] * 3)
    assert outcome.run["tuning"]["parameters"]["adapter"] == 3 * 64 + 2 * 100 * 64


@pytest.mark.parametrize("deep", [False, True])
def test_an_attempt_is_an_artefact_that_needs_no_pool(tiny, pool, deep_pool, tmp_path, deep):
    from PIL import Image

    from vprompt import combine, predict
    from vprompt.artifacts import artifact
    from vprompt.data.images import load_pixels
    from vprompt.data.task import Examples
    from vprompt.opening import open_adapter
    from vprompt.results.measure import features_of

    write(tiny, deep_pool if deep else pool, tmp_path / "sources")
    call = {"model": tiny, "config": quick(epochs=1), "pool": tmp_path / "sources"}
    outcome = combine(few(), method="attempt", output=tmp_path / "made", **call)
    loaded = artifact.load(tmp_path / "made")
    assert loaded.prompt is None and loaded.config["method"].startswith("attempt(")
    assert all(torch.equal(v, outcome.artifact.state[k]) for k, v in loaded.state.items())
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file, image in zip(files, few().train.images, strict=False):
        Image.fromarray(image).save(file)
    pixels = load_pixels(files, tiny.data_config).array
    opened = open_adapter(outcome.artifact, tiny)
    assert opened.persist == (not deep)
    shown = Examples(pixels, torch.zeros(3, dtype=torch.long), "shown")
    features = features_of(tiny, opened, shown, precision="fp32")
    shares = outcome.artifact.head.logits(features).softmax(1).max(1).values
    found = predict(files, artifact=tmp_path / "made", model=tiny, precision="fp32")
    assert [each.probability for each in found] == shares.tolist()


def test_without_a_pool_attempt_says_what_to_type(tiny, refused):
    from vprompt import learn

    with refused("prompts of a pool", "vprompt combine"):
        learn(few(), model=tiny, method="attempt")


# SPoT


def test_spots_best_is_the_source_that_ends_best_on_validation(combine, tiny, pool, monkeypatch):
    from vprompt import stages

    trained = []
    own = stages.tune

    def watched(*arguments, **given):
        tuned = own(*arguments, **given)
        trained.append(tuned)
        return tuned

    monkeypatch.setattr(stages, "tune", watched)
    outcome = combine("spot(top=2, use=best, epochs=1)")
    first, *candidates, final = trained
    assert len(candidates) == 2 and len(first.history) == 2  # the target's own, and the two
    facts = outcome.run["transfer"]["solution"]
    nearest = np.argsort(-np.array(facts["similarities"]))[:2]
    assert set(facts["val_accuracies"]) == {SOURCES[row] for row in nearest}
    reached = [tuned.record(tuned.kept_epoch) for tuned in candidates]
    best = max(reached, key=lambda record: (record.val_accuracy, -record.val_loss))
    assert final.record(final.kept_epoch) == best  # trained once: the second time it was done
    [chosen] = [s["name"] for s in outcome.run["transfer"]["sources"] if s["weight"] == 1]
    assert facts["val_accuracies"][chosen] == best.val_accuracy


def test_the_oracle_in_full_tunes_every_source_and_keeps_the_best(combine, pool):
    outcome = combine("best_validation(tuned=True)")
    facts = outcome.run["transfer"]["solution"]
    reached = facts["val_accuracies"]
    assert set(reached) == set(SOURCES) and facts["oracle"] == "chosen on validation"
    [chosen] = [s["name"] for s in outcome.run["transfer"]["sources"] if s["weight"] == 1]
    assert reached[chosen] == max(reached.values())
    kept = outcome.run["tuning"]["history"][outcome.run["tuning"]["kept_epoch"]]
    assert kept["val_accuracy"] == reached[chosen]


def test_spots_best_needs_validation_images(folder, tiny, refused):
    from vprompt import combine

    call = {"pool": folder, "model": tiny, "config": quick(epochs=1)}
    with refused("use=average"):
        combine(replace(few(), val=None), method="spot(use=best, epochs=1)", **call)


def test_the_validation_oracle_sees_validation_and_says_so(combine, folder, tiny, refused):
    outcome = combine("best_validation")
    facts = outcome.run["transfer"]["solution"]
    assert facts["oracle"] == "chosen on validation" and len(facts["val_accuracies"]) == 3
    from vprompt import combine as combine_any

    with refused("chooses on validation images"):
        call = {"pool": folder, "model": tiny}
        combine_any(replace(few(), val=None), method="best_validation", **call)


def test_methods_may_want_rates_of_their_own():
    from vprompt.learning.train_config import COMBINE, combining_defaults

    assert combining_defaults("uniform") == COMBINE
    assert combining_defaults("panda")["lr"] == combining_defaults("attempt")["lr"] == 5e-3
    assert combining_defaults("panda(teachers=2)")["batch_size"] == COMBINE["batch_size"]


# Stopping and going on


@pytest.mark.parametrize("method, before", [("panda", 4), ("attempt", 0)])
def test_a_stopped_combination_continues_with_the_same_result(combine, method, before, tmp_path):
    from stopping import StopAfter

    config = quick(epochs=2, batch_size=32, keep="last")
    whole = combine(method, config=config, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # in the second epoch, after the teacher's steps
        combine(method, config=config, progress=StopAfter(before + 3))
    again = combine(method, config=config)
    assert again.run["tuning"]["history"] == whole.run["tuning"]["history"]
    assert again.run["tuning"]["memory"] == whole.run["tuning"]["memory"]
    assert again.run["tuning"]["prompt_digest"] == whole.run["tuning"]["prompt_digest"]
    state = whole.artifact.state
    assert all(torch.equal(v, state[name]) for name, v in again.artifact.state.items())
