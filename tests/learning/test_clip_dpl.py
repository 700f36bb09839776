"""DPL on two towers: the mixture in both, the steps of both levels, and what is kept of alpha."""

import json

import numpy as np
import pytest
import torch
from exact import awake, relative
from squares import squares

torch.set_num_threads(1)  # steps this small only wait for a second thread
CLASSES = ("red square", "green_square", "blue square")
SMALL = "lengths=[0, 1, 3], alpha_warmup=0, alpha_batch=4, alpha_lr=0.1"


@pytest.fixture(scope="module")
def clip():
    from vprompt.backbones import tiny_clip

    return tiny_clip.load()


@pytest.fixture(scope="module")
def exact():
    """The same in float64, with weights large enough for prompts to matter."""
    from vprompt.backbones import tiny_clip

    return awake(tiny_clip.load(seed=2))


@pytest.fixture
def pictures(generator):
    return torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def task():
    """Coloured squares, 4 + 2 + 4 of each colour."""
    return squares(CLASSES, 4, 2)


def make(backbone, settings="", method="clip_dpl"):
    from vprompt.core import registry

    adapter = registry.build("adapters", f"{method}({settings})")(backbone)
    adapter.name_classes(CLASSES, ())
    return adapter


def wake(adapter, generator):
    """Give alpha values that differ."""
    adapter.alpha.copy_(torch.randn(adapter.alpha.shape, generator=generator))
    return adapter


def tuned(adapter, task, clip, *, checkpoint=None, **changes):
    """Tune on the squares, for two epochs of two steps unless told."""
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    given = {"epochs": 2, "batch_size": 6, "precision": "fp32", "keep": "last", **changes}
    train, val = (task.examples(part, clip.data_config) for part in (task.train, task.val))
    return tune(adapter, train, val, 3, TrainConfig(**given), checkpoint=checkpoint)


# The mixture


@pytest.mark.parametrize("towers", ["image", "text", "both"])
def test_the_mixture_is_the_sum_of_all_subnets_attentions(
    exact, pictures, generator, towers, monkeypatch
):
    """Block by block: the attention that a block sees is the weighted sum over the candidates."""
    from vprompt.models.attention import KeyValue, joint

    adapter = wake(make(exact, f"lengths=[0, 1, 3], towers={towers}").double(), generator)
    sizes, plain = (0, 1, 3), joint(fused=False)
    weights = {tower: rows.detach() for tower, rows in adapter.weights().items()}

    def explicit(tower):
        def of_block(index):
            def attend(query, own, prompt, scale, mask):
                keys, values = prompt.key.split(sizes, 2), prompt.value.split(sizes, 2)
                return sum(
                    weight * plain(query, own, KeyValue(key, value), scale, mask)
                    for weight, key, value in zip(weights[tower][index], keys, values, strict=True)
                )

            return attend

        return of_block

    found = adapter.features(pictures, generator=generator), adapter.own_head(generator=generator)
    for tower, bank in adapter.searched().items():
        monkeypatch.setattr(bank, "attend", lambda weights, tower=tower: explicit(tower))
    expected = adapter.features(pictures, generator=generator)
    assert relative(found[0], expected) < 1e-12
    assert relative(found[1][0], adapter.own_head(generator=generator)[0]) < 1e-12


@pytest.mark.parametrize("bank", ["separate", "nested"])
@pytest.mark.parametrize("towers", ["image", "text", "both"])
def test_one_hot_is_the_subnet_as_an_artefact_has_it(exact, pictures, generator, bank, towers):
    from vprompt import extract
    from vprompt.models.two_tower import text_head

    settings = f"lengths=[0, 1, 3], bank={bank}, towers={towers}"
    adapter = wake(make(exact, settings).double(), generator)
    found = adapter.found()
    assert set(found) == set(adapter.banks) and all(sum(counts) for counts in found.values())
    image, text = adapter.prompt(), adapter.text().prompt
    assert (image is None) == (towers == "text") and (text is None) == (towers == "image")
    if image is not None:
        assert image.counts(exact.depth) == found["image"] and not image.persist
    if text is not None:
        assert text.counts(exact.text.depth) == found["text"] and not text.persist
    features, head = extract(exact, pictures, image), text_head(exact, CLASSES, adapter.text())
    adapter.alpha.copy_(1e4 * torch.nn.functional.one_hot(adapter.alpha.argmax(1), 3))
    for mode in (None, generator):  # the choice, and a mixture with all weight on one
        seen = adapter.features(pictures, generator=mode)
        assert relative(seen, features) < (1e-6 if image is None else 1e-10)  # frozen ones are fp32
        assert relative(adapter.own_head(generator=mode)[0], head.weight) < 1e-10


def test_no_length_anywhere_is_plain_clip(clip, images):
    adapter = make(clip)
    assert adapter.found() == {"image": [0] * 4, "text": [0] * 3}
    assert adapter.prompt() is None and adapter.text().prompt is None
    torch.testing.assert_close(adapter.features(images), clip.clip.encode_image(images))
    ids = clip.text.tokenise([f"a photo of a {n.replace('_', ' ')}." for n in CLASSES], 32)
    own = torch.nn.functional.normalize(clip.clip.encode_text(ids), dim=1)
    torch.testing.assert_close(adapter.own_head()[0], clip.scale * own)
    assert adapter.learns_as() == "zero_shot"


def test_the_text_mixture_knows_no_order_of_keys_and_no_padding(exact, generator):
    """Keys are seen from everywhere, and what stands behind the end token cannot be seen."""
    from vprompt.models.two_tower import encode_texts

    adapter = wake(make(exact, "lengths=[0, 1, 3], towers=text").double(), generator)
    bank, weights, tower = adapter.searched()["text"], adapter.weights()["text"], exact.text
    texts, prompt = adapter.texts, bank.whole()
    cut = encode_texts(tower, texts.ids, texts.ends, prompt, bank.attend(weights))
    long = tower.tokenise([f"a photo of a {n.replace('_', ' ')}." for n in CLASSES], 32)
    assert long.shape[1] > texts.ids.shape[1] and torch.equal(tower.ends(long), texts.ends)
    whole = encode_texts(tower, long, texts.ends, prompt, bank.attend(weights))
    assert relative(cut, whole) < 1e-12
    tokens = prompt.tokens.unflatten(0, (tower.depth, 4))[:, [0, 3, 1, 2]].flatten(0, 1)
    turned = prompt.with_tokens(tokens)  # within the candidate of 3
    again = encode_texts(tower, texts.ids, texts.ends, turned, bank.attend(weights))
    assert relative(again, cut) < 1e-12


def test_gradients_of_the_image_mixture_equal_those_of_concatenation(exact, pictures, generator):
    """With all weight on one length, keys alone learn what rows among the patches would."""
    from vprompt import Prompt, extract
    from vprompt.models.backbone import _join

    adapter = make(exact, "lengths=[0, 2], towers=image").double()
    adapter.alpha.copy_(torch.tensor([-1e4, 1e4]).expand_as(adapter.alpha))
    way = torch.randn(2, exact.feature_dim, generator=generator, dtype=torch.float64)
    (adapter.features(pictures, generator=generator) * way).sum().backward()
    bank = adapter.searched()["image"]
    rows = bank.tokens.detach().clone().requires_grad_()
    sequence = exact.embed(pictures)
    for index, own in enumerate(rows.split(2)):
        _, sequence = _join(exact, sequence, own[None], index)
    (exact.pool(sequence) * way).sum().backward()
    assert relative(bank.tokens.grad, rows.grad) < 1e-10
    prompt = Prompt(rows.detach(), bank.blocks, False)
    assert relative(extract(exact, pictures, prompt), exact.pool(sequence)) < 1e-12


# Two levels


@pytest.mark.parametrize("towers", ["image", "text", "both"])
def test_each_step_moves_its_own_level_alone(clip, task, towers):
    adapter = make(clip, f"{SMALL}, towers={towers}")
    seen, move = [], adapter._move

    def watched(gradient):
        before = {n: p.detach().clone() for n, p in adapter.named_parameters() if p.requires_grad}
        alpha = adapter.alpha.clone()
        move(gradient)
        after = dict(adapter.named_parameters())
        seen.append(
            (
                all(torch.equal(value, after[name]) for name, value in before.items()),
                not torch.equal(alpha, adapter.alpha),
                all(after[name].grad is None for name in before) or len(seen) > 0,
            )
        )
        adapter.moved = adapter.alpha.clone()

    def unmoved(training):
        assert torch.equal(adapter.alpha, adapter.moved) and not adapter.alpha.requires_grad
        grads = [p.grad for p in adapter.parameters() if p.requires_grad]
        assert grads and all(g.abs().sum() > 0 for g in grads)

    adapter._move, adapter.after_backward = watched, unmoved
    tuned(adapter, task, clip)
    assert len(seen) == 4 and all(all(step) for step in seen)


def test_alpha_s_gradient_is_a_finite_difference_in_both_towers(exact, pictures, generator):
    adapter = wake(make(exact, "lengths=[0, 1, 3]").double(), generator)

    def value(alpha):
        adapter._leaf = alpha
        features = adapter.features(pictures, generator=generator)
        return (features @ adapter.own_head(generator=generator)[0].T).square().sum()

    leaf = adapter.alpha.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    assert slope.abs().sum(1).gt(0).all()
    way = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        high, low = (value(leaf + sign * 1e-5 * way) for sign in (1, -1))
    assert float((slope * way).sum()) == pytest.approx(float(high - low) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("settings", ["towers=both", "towers=text", "bank=nested"])
def test_a_search_is_the_same_every_time_and_after_a_stop(clip, task, tmp_path, settings):
    class Stop(Exception):
        pass

    def stop_in_the_second_epoch(training):
        if training.step == 3:
            raise Stop

    settings = f"{SMALL}, {settings}"
    whole, again = (tuned(make(clip, settings), task, clip) for _ in range(2))
    stopped = make(clip, settings)
    stopped.after_backward = stop_in_the_second_epoch
    with pytest.raises(Stop):
        tuned(stopped, task, clip, checkpoint=tmp_path)
    resumed = tuned(make(clip, settings), task, clip, checkpoint=tmp_path)
    for other in (again, resumed):
        assert whole.adapter.memory == other.adapter.memory
        state, others = whole.adapter.state(), other.adapter.state()
        assert all(torch.equal(value, others[name]) for name, value in state.items())
        assert torch.equal(whole.head.weight, other.head.weight)


def test_alpha_keeps_its_branches(clip, task, tmp_path):
    """The towers differ in depth, so that exchanged rows could not pass unnoticed."""
    from vprompt import TrainConfig, learn, load_artifact

    short = TrainConfig(epochs=1, batch_size=6, precision="fp32", keep="last")
    method = f"clip_dpl({SMALL}, alpha_init=1.0)"
    done = learn(task, model=clip, method=method, config=short, output=tmp_path / "it")
    memory = json.loads((tmp_path / "it" / "run.json").read_text())["tuning"]["memory"]
    assert memory["branches"] == ["image", "text"] and memory["candidates"] == [0, 1, 3]
    depths = {"image": clip.depth, "text": clip.text.depth}
    for alpha, found in zip(memory["alpha"], memory["found"], strict=True):
        for tower, depth in depths.items():
            assert len(alpha[tower]) == len(found[tower]) == depth
            best = np.argmax(alpha[tower], axis=1)
            assert found[tower] == [(0, 1, 3)[index] for index in best]
    loaded = load_artifact(tmp_path / "it")
    assert loaded.prompt.counts(clip.depth) == memory["found"][-1]["image"]
    assert loaded.text.prompt.counts(clip.text.depth) == memory["found"][-1]["text"]
    assert done.run["tuning"]["memory"] == memory
    assert memory["gap"]["gap"] == memory["gap"]["mixture"] - memory["gap"]["found"]


# What a choice may cost


def test_budgets_count_tokens_or_parameters_of_both_towers(clip, generator):
    free = wake(make(clip, SMALL), generator)
    wide = {"image": clip.dim, "text": clip.text.dim}
    for name, price in (("max_prompts", dict.fromkeys(wide, 1)), ("max_params", wide)):
        for limit in (0, 3 * price["text"], 7 * price["image"]):
            bound = make(clip, f"{SMALL}, {name}={limit}")
            bound.alpha.copy_(free.alpha)
            found = bound.found()
            cost = sum(price[tower] * sum(counts) for tower, counts in found.items())
            assert cost <= limit
            expected = sum(float(price[t] * n.sum()) for t, n in bound.expected().items())
            assert expected == pytest.approx(limit, rel=1e-4, abs=1e-3)  # less than all want
            prices = bound._prices()
            for tower, rows in bound.by_tower(bound.alpha).items():
                paid = rows - prices[tower] * rows.new_tensor([0, 1, 3])
                torch.testing.assert_close(bound.weights()[tower], paid.softmax(1))
    assert sum(map(sum, free.found().values())) > 7


def test_expected_lengths_are_weights_times_lengths(clip, generator):
    adapter = wake(make(clip, f"{SMALL}, length_penalty=0.5"), generator)
    total = 0.0
    for tower, rows in adapter.weights().items():
        by_hand = torch.stack([row[1] + 3 * row[2] for row in rows])
        torch.testing.assert_close(adapter.expected()[tower], by_hand)
        total += float(by_hand.sum())
    assert float(adapter._penalty()) == pytest.approx(0.5 * total, rel=1e-5)


# Settings


def test_presets_are_as_documented(clip):
    paper, robust = make(clip, "preset=paper"), make(clip)
    assert paper.alpha.abs().max() < 0.01 and bool(paper.alpha.any()) and not robust.alpha.any()
    image, text = (paper.banks[tower].tokens.detach() for tower in ("image", "text"))
    assert float(text.min()) >= 0 and 0.4 < float(text.mean()) < 0.6
    assert abs(float(image.mean())) < 0.1 and 0.9 < float(image.std()) < 1.1
    for bank in robust.banks.values():
        rms = bank.tokens.detach().square().mean(1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms))
        assert len(bank.tokens) == bank.depth * (2 + 4 + 6)
    assert paper.settings.lengths == (0, 1, 2, 3, 4, 5, 6)
    assert robust.settings.lengths == (0, 2, 4, 6)
    assert make(clip, "preset=paper, lengths=[0, 3]").settings.lengths == (0, 3)
    paper.alpha[:, 1] = 1.0
    assert "prompt_init=small" in paper.learns_as()
    assert "a photo of a {}." in paper.learns_as()


@pytest.mark.parametrize(
    "method, epochs",
    [
        ("clip_dpl(preset=paper)", 80),
        ("dpl(preset=paper)", 80),
        ("clip_deep(prompt_init=small)", 40),
    ],
)
def test_both_stages_of_the_preset_train_as_released(method, epochs):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.stages import training_defaults

    config = TrainConfig.checked(training_defaults(method))
    assert (config.opt, config.lr, config.weight_decay) == ("sgd", 0.0035, 5e-4)
    assert (config.sched, config.first_epoch_lr, config.min_lr) == ("cosine_by_epoch", 1e-5, 0)
    assert (config.epochs, config.batch_size, config.keep) == (epochs, 4, "last")
    assert (config.augment, config.precision) == ("crop_flip", "fp32")


@pytest.mark.parametrize("method", ["clip_dpl", "dpl", "clip_deep", "coop", "maple", "pro_vpt"])
def test_images_stay_whole_unless_a_published_preset_cuts_them(method):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.stages import training_defaults

    config = TrainConfig.checked(training_defaults(method))
    assert config.augment == "none"
    assert (config.first_epoch_lr == 1e-5) == (method in ("coop", "maple"))


def test_what_is_found_is_learned_by_its_lengths(clip):
    adapter = make(clip, f"{SMALL}, towers=text, distill=0.5, prompt_init_seed=3")
    adapter.alpha[1, 2] = adapter.alpha[2, 1] = 1.0
    assert adapter.found() == {"text": [0, 3, 1]}
    after = make(clip, adapter.learns_as().removeprefix("clip_deep(")[:-1], "clip_deep")
    assert after.prompt() is None and after.teacher.weight == 0.5
    assert after.text().prompt.counts(3) == [0, 3, 1]


def test_swapped_branches_need_towers_of_one_depth(clip, refused):
    adapter = make(clip, f"{SMALL}, swap_branches=True")
    adapter.alpha[0, 1] = 1.0
    with refused("as many blocks"):
        adapter.learns_as()


def test_what_cannot_be_searched_is_refused(clip, tiny, refused):
    from vprompt.core import registry

    with refused("'clip_dpl' reads class names"):
        registry.build("adapters", "clip_dpl")(tiny)
    with refused("no preset 'papre'", "paper"):
        make(clip, "preset=papre")
    with refused("either the tokens", "not both"):
        make(clip, "max_prompts=3, max_params=90")
    with refused("no bank 'nest'", "nested"):
        make(clip, "bank=nest")
    with refused("at least two different numbers"):
        make(clip, "lengths=[2, 2]")
    with refused("No start of tokens called 'blank'"):
        make(clip, "prompt_init=blank")
    with refused("image", "text", "both"):
        make(clip, "towers=all")
    with refused("At most 3 tokens"):
        make(clip, "lengths=[2, 4], max_prompts=3")
