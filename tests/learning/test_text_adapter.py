"""Methods on two towers: what they start as, what they train, and where texts are encoded."""

import pytest
import torch
from exact import awake, relative
from squares import squares

CLASSES = ("red square", "green_square", "blue square")


@pytest.fixture(scope="module")
def clip():
    from vprompt.backbones import tiny_clip

    return tiny_clip.load()


@pytest.fixture
def task():
    """Coloured squares, 8 + 4 + 4 of each colour."""
    return squares(CLASSES, 8, 4)


@pytest.fixture
def build(clip):
    """Return a function that builds a method and tells it the classes."""
    from vprompt.core import registry

    def make(method, backbone=clip, templates=()):
        adapter = registry.build("adapters", method)(backbone)
        adapter.name_classes(CLASSES, templates)
        return adapter

    return make


@pytest.fixture
def learned(clip, task):
    """Return a function that learns on the squares and gives the outcome."""
    from vprompt import TrainConfig, learn

    def run(method, task=task, **config):
        settings = {"epochs": 2, "batch_size": 8, "lr": 0.01, "precision": "fp32", **config}
        return learn(task, model=clip, method=method, config=TrainConfig(**settings), device="cpu")

    return run


def zero_shot_weight(clip, template="a photo of a {}."):
    texts = [template.format(name.replace("_", " ")) for name in CLASSES]
    own = clip.clip.encode_text(clip.text.tokenise(texts, 32))
    return clip.scale * torch.nn.functional.normalize(own, dim=1)


# Starts


def test_zero_shot_is_open_clips_own(clip, task, learned, build, images):
    from vprompt import extract

    adapter = build("zero_shot")
    weight, bias = adapter.own_head()
    torch.testing.assert_close(weight, zero_shot_weight(clip))
    assert not bias.any() and adapter.prompt() is None
    outcome = learned("zero_shot", epochs=5)
    assert outcome.run["tuning"]["kept_epoch"] == 0 and len(outcome.run["tuning"]["history"]) == 1
    assert outcome.test["learned"].acc1 == outcome.test["zero-shot"].acc1
    assert outcome.run["tuning"]["parameters"] == {"prompt": 0, "head": 0}
    logits = outcome.artifact.head.logits(extract(clip, images))
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSES]
    theirs, _ = clip.clip.get_logits(images, clip.text.tokenise(texts, 32))
    torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-4)


def test_templates_are_asked_for_or_the_task_s(clip, build, tmp_path):
    assert build("zero_shot").text().templates == ("a photo of a {}.",)
    assert build("zero_shot", templates=("{} texture.",)).text().templates == ("{} texture.",)
    asked = build("zero_shot(templates='a {} here')", templates=("{} texture.",))
    torch.testing.assert_close(asked.own_head()[0], zero_shot_weight(clip, "a {} here"))
    assert len(build("zero_shot(templates=simple)").text().templates) == 7
    (tmp_path / "mine.txt").write_text("one {}\ntwo {}\n")
    adapter = build(f"zero_shot(templates='{tmp_path}/mine.txt')")
    assert adapter.text().templates == ("one {}", "two {}")


@pytest.mark.parametrize(
    "method", ["coop(context_init='a photo of a')", "ivlp(num_image_tokens=0, depth=1)"]
)
def test_context_that_starts_as_a_sentence_starts_as_zero_shot(clip, build, method):
    weight = build(method).own_head()[0].detach()
    torch.testing.assert_close(weight, zero_shot_weight(clip))


def test_coop_s_context_stands_before_the_class_name(clip, build):
    adapter = build("coop(num_context_tokens=5)")
    prompt = adapter.text().prompt
    assert prompt.tokens.shape == (5, clip.text.dim) and prompt.persist
    assert not prompt.blocks.any() and adapter.texts.slots == 5
    assert 0.01 < prompt.tokens.std() < 0.03
    assert adapter.text().templates == ("X X X X X {}.",)


def test_ivlp_and_maple_place_tokens_at_the_first_blocks_of_both_towers(clip, build):
    for method, image, text in (
        ("ivlp", [2] * 4, [2] * 3),
        ("ivlp(num_image_tokens=3, num_text_tokens=1, depth=2)", [3, 3, 0, 0], [1, 1, 0]),
        ("maple(depth=2)", [2, 2, 0, 0], [2, 2, 0]),
        ("maple", [2, 2, 2, 0], [2, 2, 2]),
        ("clip_vpt(num_virtual_tokens=[0, 1, 0, 2])", [0, 1, 0, 2], None),
    ):
        adapter = build(method)
        assert adapter.prompt().counts(4) == image
        read = adapter.text().prompt
        assert (read and read.counts(3)) == text
        if text:
            assert adapter.prompt().persist and read.persist


def test_parameters_are_as_published(clip, build):
    """The count that holds at tiny widths gives the published ones at those of ViT-B/16."""

    def ivlp(count, blocks, width):
        return count * blocks * width

    def maple(count, depth, image, text):
        return depth * (count * text + (text + 1) * image)

    def trained(method):
        return sum(p.numel() for p in build(method).parameters() if p.requires_grad)

    assert trained("ivlp") == ivlp(2, clip.depth, clip.dim) + ivlp(
        2, clip.text.depth, clip.text.dim
    )
    assert trained("maple(depth=3)") == maple(2, 3, clip.dim, clip.text.dim)
    assert ivlp(2, 12, 768) + ivlp(2, 12, 512) == 30_720
    assert maple(2, 9, 768, 512) == 3_555_072


def test_a_method_that_reads_needs_two_towers(tiny, refused, build, clip):
    from vprompt.core import registry

    for method in ("zero_shot", "coop", "ivlp", "maple", "clip_vpt"):
        with refused(f"'{method}' reads class names", "tiny", "ViT-B-16,openai"):
            registry.build("adapters", method)(tiny)
    with refused("was given none", "name_classes"):
        registry.build("adapters", "zero_shot")(clip).own_head()
    with refused("4 words before the class name", "5 text tokens"):
        build("ivlp(num_text_tokens=5)")
    with refused("depth is 1 to 4"):
        build("ivlp(depth=9)")
    with refused("at least one tower"):
        build("ivlp(num_image_tokens=0, num_text_tokens=0)")
    with refused("at least one context token"):
        build("coop(num_context_tokens=0)")


# Forward passes against MaPLe's own order of things


def test_the_image_tower_of_maple_is_as_released(generator):
    """Tokens join before the first norm, are overwritten down to `depth`, and travel on behind."""
    from vprompt.backbones import tiny_clip
    from vprompt.core import registry

    clip = awake(tiny_clip.load(seed=2))
    adapter = registry.build("adapters", "maple(depth=2)")(clip).double()
    images = torch.randn(2, 3, 32, 32, generator=generator).double()
    vision, rows = clip.clip.visual, []
    for index, layer in enumerate(adapter.couplings):
        rows.append(adapter.text_tokens[2 * index : 2 * index + 2] @ layer.weight.T + layer.bias)
    x = vision.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([vision.class_embedding.expand(2, 1, -1), x], dim=1)
    x = x + vision.positional_embedding
    x = vision.ln_pre(torch.cat([x, rows[0].expand(2, -1, -1)], dim=1))  # at the end, in MaPLe
    for index, block in enumerate(vision.transformer.resblocks):
        if index == 1:
            x = torch.cat([x[:, :-2], rows[1].expand(2, -1, -1)], dim=1)
        x = block(x)
    expected = vision.ln_post(x[:, 0]) @ vision.proj
    assert relative(adapter.features(images), expected) < 1e-12


# Training


METHODS = {
    "coop(num_context_tokens=3)": {"text_tokens"},
    "clip_vpt(num_virtual_tokens=2)": {"image_tokens"},
    "ivlp": {"image_tokens", "text_tokens"},
    "maple": {"text_tokens", "couplings"},
    "clip_deep(num_image_tokens=[0, 1, 0, 2], distill=0.5)": {"image_tokens", "text_tokens"},
    "clip_deep(num_image_tokens=0, num_text_tokens=[1, 0, 3])": {"text_tokens"},
}


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_the_tokens_and_lowers_the_loss(clip, build, learned, method):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    outcome = learned(method, epochs=4, keep="last")
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    trained = outcome.run["tuning"]["trained"]
    assert {name.split(".")[0] for name in trained} == METHODS[method]
    start = build(method)
    for now, then in (
        (outcome.artifact.prompt, start.prompt()),
        (outcome.artifact.text.prompt, start.text().prompt),
    ):
        assert (now is None) == (then is None)
        if now is not None:
            assert not torch.equal(now.tokens, then.tokens)
            assert torch.equal(now.blocks, then.blocks)
    losses = [record["train_loss"] for record in outcome.run["tuning"]["history"][1:]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_an_artefact_predicts_as_its_method_did(clip, task, learned, method, tmp_path):
    from vprompt import extract, load_artifact, save_artifact

    outcome = learned(method)
    save_artifact(outcome.artifact, tmp_path / "it")
    found = load_artifact(tmp_path / "it")
    pixels = torch.from_numpy(task.val.images)
    images = clip.normalise(pixels)
    logits = found.head.logits(extract(clip, images, found.prompt))
    history = outcome.run["tuning"]["history"]
    kept = next(r for r in history if r["epoch"] == outcome.run["tuning"]["kept_epoch"])
    labels = torch.tensor(task.val.labels)
    assert (logits.argmax(1) == labels).double().mean().item() == kept["val_accuracy"]
    loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    assert loss == pytest.approx(kept["val_loss"], rel=1e-4)


def test_vpt_and_a_linear_probe_work_on_the_image_tower_as_on_any_backbone(learned):
    for method in ("vpt(num_virtual_tokens=2)", "linear"):
        outcome = learned(method)
        assert list(outcome.test) == ["no prompt", "learned"]
        assert outcome.artifact.text is None and not outcome.artifact.head.cosine


def test_the_test_split_encodes_no_text_and_an_epoch_each_text_once(
    clip, task, learned, monkeypatch
):
    """Class features do not depend on the image: once per evaluation, not once per batch."""
    from vprompt.results import measure

    tower, seen = clip.text, []
    pool, judge = tower.pool, measure.test_accuracy

    def counted(tokens, ends):
        seen.append((len(tokens), torch.is_grad_enabled()))
        return pool(tokens, ends)

    def measured(*given, **options):
        seen.append("test")
        found = judge(*given, **options)
        seen.append("over")
        return found

    monkeypatch.setattr(tower, "pool", counted)
    monkeypatch.setattr(measure, "test_accuracy", measured)
    outcome = learned("coop(num_context_tokens=2)", epochs=3)
    assert seen.index("over") == seen.index("test") + 1
    steps = 3 * len(task.train) // 8
    assert seen.count((len(CLASSES), True)) == steps
    # The start head, the start and three epochs judged, the kept head, and zero-shot beside it.
    assert seen.count((len(CLASSES), False)) == 1 + 4 + 1 + 1
    assert outcome.test["learned"].images == len(task.test)


def test_texts_that_are_not_trained_are_encoded_once(clip, build, monkeypatch):
    tower, seen, pool = clip.text, [], clip.text.pool
    monkeypatch.setattr(tower, "pool", lambda *given: seen.append(1) or pool(*given))
    adapter = build("clip_vpt")
    for _ in range(3):
        adapter.own_head()
    assert len(seen) == 1


@pytest.mark.parametrize("method", ["coop(num_context_tokens=2)", "maple"])
def test_a_stopped_run_continues_with_the_same_bits(clip, task, build, tmp_path, method):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    config = TrainConfig(epochs=3, batch_size=8, opt="sgd", lr=0.01, keep="last")
    train = task.examples(task.train, clip.data_config)
    val = task.examples(task.val, clip.data_config)
    whole = tune(build(method), train, val, 3, config)

    class Stopped(Exception):
        pass

    class Stopping(type(build(method))):
        def begin_epoch(self, training):
            if training.epoch == 3:
                raise Stopped

    adapter = build(method)
    name = type(adapter).__name__
    adapter.__class__ = Stopping
    Stopping.__name__ = name  # a checkpoint is found by what determines the run
    with pytest.raises(Stopped):
        tune(adapter, train, val, 3, config, checkpoint=tmp_path)
    resumed = tune(build(method), train, val, 3, config, checkpoint=tmp_path)
    assert torch.equal(resumed.head.weight, whole.head.weight)
    assert resumed.history == whole.history


def test_the_checkpoint_knows_its_classes_and_templates(build):
    first, other = build("zero_shot"), build("zero_shot", templates=("{} texture.",))
    assert first.identity() != other.identity()
    assert build("coop").identity() == build("coop").identity()
