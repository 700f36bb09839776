"""Prefix cache: the same bits with and without, for less work; bounded and keyed by content."""

import os

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny():
    """The smallest backbone at 160 px: 101 tokens.

    With the 5 tokens of 32 px, an image's rows depend on where in a batch they stand: matrix
    products that small take other paths at their edges, with a cache or without.
    """
    from vprompt.backbones import tiny

    return tiny.load(image_size=160)


@pytest.fixture
def examples(generator):
    """Twenty-two images, three classes: two full batches of eight and a rest."""
    from vprompt.data.task import Examples

    pixels = torch.randint(0, 256, (22, 160, 160, 3), generator=generator, dtype=torch.uint8)
    return Examples(pixels.numpy(), torch.arange(22) % 3, "twenty-two")


@pytest.fixture
def images(generator):
    """Four normalised images."""
    return torch.randn(4, 3, 160, 160, generator=generator)


@pytest.fixture
def late(tiny, generator):
    """A prompt of two tokens at every block from the fourth."""
    from vprompt.prompts.prompt import Prompt, place

    blocks = place([0, 0, 0, *[2] * (tiny.depth - 3)], tiny.depth, deep=True)
    return Prompt(torch.randn(len(blocks), tiny.dim, generator=generator), blocks, False)


@pytest.fixture
def embedded(tiny, monkeypatch):
    """The number of images that were embedded so far, as the only entry of a list."""
    count, embed = [0], tiny.embed

    def counted(images):
        count[0] += len(images)
        return embed(images)

    monkeypatch.setattr(tiny, "embed", counted)
    return count


def trained(tiny, prompt, examples, **settings):
    from vprompt.learning.adapter import PromptAdapter

    return fitted(PromptAdapter(tiny, prompt, prompt_dropout=0.1), examples, **settings)


def fitted(adapter, examples, **settings):
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "precision": "fp32", **settings})
    return tune(adapter, examples, examples, 3, config)


def kept(cache):
    return sorted(path.name for path in (cache / "prefix").glob("[!.]*"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_has_the_same_bits_with_and_without(tiny, late, examples, cache, precision):
    without = trained(tiny, late, examples, prefix_cache=0, precision=precision)
    assert not kept(cache)
    filling = trained(tiny, late, examples, precision=precision)
    assert len(kept(cache)) == 1
    reading = trained(tiny, late, examples, precision=precision)
    for found in (filling, reading):
        assert torch.equal(found.adapter.tokens, without.adapter.tokens)
        assert torch.equal(found.head.weight, without.head.weight)
        assert found.history == without.history


def test_every_image_is_embedded_once(tiny, late, examples, embedded):
    trained(tiny, late, examples)
    assert embedded[0] == len(examples) + 1  # one more to learn how much room they need
    trained(tiny, late, examples)
    assert embedded[0] == len(examples) + 1
    trained(tiny, late, examples, prefix_cache=0)
    assert embedded[0] == (len(examples) + 1) + 8 * len(examples)  # 3 epochs, 4 judgements, a head


def test_blocks_that_partial_leaves_frozen_are_run_once(tiny, examples, cache, embedded):
    from vprompt.core.registry import build

    make = build("adapters", "partial(num_blocks=2)")
    without = fitted(make(tiny), examples, prefix_cache=0, keep="last")
    adapter, before = make(tiny), embedded[0]
    found = fitted(adapter, examples, keep="last")
    assert embedded[0] - before == len(examples) + 1
    names = [name for name, p in found.adapter.named_parameters() if p.requires_grad]
    assert len(names) > 20 and kept(cache)
    for name in names:
        assert torch.equal(found.adapter.state()[name], without.adapter.state()[name])
    assert found.history == without.history


@pytest.mark.parametrize("blocks", ["first", "all"])
def test_a_prompt_from_block_0_leaves_everything_as_it_was(
    tiny, late, examples, cache, embedded, blocks
):
    from vprompt.prompts.prompt import Prompt, place

    here = place(1, tiny.depth, deep=blocks == "all")
    prompt = Prompt(late.tokens[: len(here)], here, blocks == "first")
    prompt = Prompt(late.tokens[:1].expand(len(here), -1).clone(), here, prompt.persist)
    trained(tiny, prompt, examples)
    assert not kept(cache)
    assert embedded[0] == 8 * len(examples)


def test_a_single_epoch_and_tokens_that_move_keep_nothing(tiny, late, examples, cache):
    from vprompt.core.registry import build

    trained(tiny, late, examples, epochs=1)
    assert not kept(cache)
    moving = build("adapters", "pro_vpt(num_virtual_tokens=2)")(tiny)
    assert moving.constant_blocks == 0


def test_evidence_has_the_same_bits_for_less_work(tiny, late, examples, cache, embedded):
    from vprompt.pooling.evidence import gather
    from vprompt.pooling.mix import Plan

    later = late.blocks.clone()
    later[:2] += 1
    others = {
        "late": late,
        "other": late.with_tokens(late.tokens.flip(0)),
        "later": type(late)(late.tokens, later, False),
    }
    plan = Plan("base", reference=True, variances=True)
    average = late.with_tokens(late.tokens / 2)
    call = {"plan": plan, "average": average, "batch_size": 8, "precision": "fp32"}
    without = gather(tiny, others, examples, 3, use_cache=False, **call)
    before = embedded[0]
    found = gather(tiny, others, examples, 3, **call)
    assert embedded[0] - before == len(examples) + 1
    assert len(kept(cache)) == 1
    for name in ("features", "gradients", "plain", "half_gradients", "reference", "variances"):
        assert torch.equal(getattr(found, name), getattr(without, name)), name
    again = gather(tiny, others, examples, 3, **call)  # all of it from the cache of evidence
    assert torch.equal(again.gradients, without.gradients)


def test_features_read_what_training_left_and_leave_nothing(tiny, late, examples, cache, embedded):
    from vprompt.models.features import features_of

    call = {"batch_size": 8, "precision": "fp32"}
    expected = features_of(tiny, late, examples, **call)
    assert not kept(cache)
    trained(tiny, late, examples)
    for path in (cache / "evidence").iterdir():
        path.unlink()
    before = embedded[0]
    assert torch.equal(features_of(tiny, late, examples, **call), expected)
    assert embedded[0] == before


def test_what_is_kept_is_what_enters_the_block_read_in_any_order(tiny, late, examples):
    from vprompt.models import prefix
    from vprompt.models.backbone import enter

    [found] = prefix.keep(tiny, [examples], 3, precision="fp32", batch_size=8)
    order = torch.tensor([5, 2, 21, 2])
    [(inputs, labels)] = list(found.batches(4, order))
    images = tiny.normalise(torch.from_numpy(examples.pixels[order.numpy()]))
    assert inputs.block == 3
    assert torch.allclose(inputs.tokens, enter(tiny, images, 3).tokens, atol=1e-6)
    assert labels.tolist() == examples.labels[order].tolist()


def test_every_part_of_the_key_counts(tiny, late, examples, cache):
    from vprompt.backbones import tiny as tinies
    from vprompt.data.task import Examples
    from vprompt.models import prefix

    other = Examples(examples.pixels, examples.labels, "others")
    for backbone, split, block, precision in [
        (tiny, examples, 3, "fp32"),
        (tiny, examples, 2, "fp32"),
        (tiny, examples, 3, "bf16"),
        (tiny, other, 3, "fp32"),
        (tinies.load(image_size=160, seed=1), examples, 3, "fp32"),
        (tiny, examples, 3, "fp32"),
    ]:
        [found] = prefix.keep(backbone, [split], block, precision=precision)
        next(found.batches(4))
    assert len(kept(cache)) == 5


def test_the_bound_holds_and_the_oldest_makes_room(tiny, examples, cache):
    from vprompt.data.task import Examples
    from vprompt.models import prefix

    size = len(examples) * 101 * tiny.dim * 4 / 2**30

    def ask(name, limit):
        split = Examples(examples.pixels, examples.labels, name)
        [found] = prefix.keep(tiny, [split], 2, precision="fp32", limit=limit)
        return next(found.batches(4))[0]

    assert isinstance(ask("a", 0.9 * size), torch.Tensor)  # pixels: there is no room
    assert not kept(cache)
    ask("a", 2.1 * size)
    ask("b", 2.1 * size)
    assert len(kept(cache)) == 2
    [of_b] = [name for name in kept(cache) if name != _folder(tiny, examples, "a").name]
    os.utime(cache / "prefix" / of_b / "index.json", (1, 1))
    ask("c", 2.1 * size)
    assert len(kept(cache)) == 2
    assert of_b not in kept(cache)


def _folder(backbone, examples, name):
    from vprompt.data.task import Examples
    from vprompt.models import prefix

    split = Examples(examples.pixels, examples.labels, name)
    [found] = prefix.keep(backbone, [split], 2, precision="fp32")
    return found.shelf.folder(split)


def test_splits_of_one_run_do_not_push_one_another_out(tiny, examples, cache):
    from vprompt.data.task import Examples
    from vprompt.models import prefix

    size = len(examples) * 101 * tiny.dim * 4 / 2**30
    other = Examples(examples.pixels, examples.labels, "others")
    splits = prefix.keep(tiny, [examples, None, other], 2, precision="fp32", limit=1.5 * size)
    assert splits[1] is None
    kinds = [type(next(split.batches(4))[0]).__name__ for split in (splits[0], splits[2])]
    assert kinds == ["Entering", "Tensor"]
    assert len(kept(cache)) == 1


@pytest.mark.parametrize("damage", ["short", "flipped", "index"])
def test_a_damaged_file_is_computed_again(tiny, late, examples, cache, damage_told, damage):
    expected = trained(tiny, late, examples)
    [name] = kept(cache)
    path = cache / "prefix" / name / ("index.json" if damage == "index" else "tokens.bin")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 2
    path.write_bytes(b"short" if damage == "short" else bytes(data))
    with damage_told():
        again = trained(tiny, late, examples)
    assert torch.equal(again.adapter.tokens, expected.adapter.tokens)


def test_a_pass_that_is_stopped_leaves_nothing(tiny, examples, cache, monkeypatch):
    from vprompt.models import prefix

    calls = []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return entered(*arguments)

    entered = prefix.enter
    monkeypatch.setattr(prefix, "enter", failing)
    [found] = prefix.keep(tiny, [examples], 3, precision="fp32", batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        next(found.batches(4))
    assert not list((cache / "prefix").iterdir())


def test_a_prompt_that_enters_earlier_is_refused(tiny, late, images, refused):
    from vprompt.models.backbone import enter, extract
    from vprompt.prompts.prompt import PromptBatch

    with torch.no_grad():
        begun = enter(tiny, images, 4)
        with refused("enters at block 3", "enters block 4"):
            extract(tiny, begun, late)
        with refused("enters at block 3"):
            extract(tiny, begun, PromptBatch([late], torch.zeros(4, dtype=torch.long)))
        whole, rest = extract(tiny, images, late), extract(tiny, enter(tiny, images, 3), late)
    assert torch.equal(whole, rest)


def test_the_setting_changes_no_record_and_survives_a_grid():
    from vprompt.learning.train_config import TrainConfig
    from vprompt.stages import grid_points

    config = TrainConfig(prefix_cache=5)
    assert "prefix_cache" not in config.model_dump()
    assert [p.prefix_cache for p in grid_points(config, {"lr": [0.1, 0.2]})] == [5, 5]
    assert TrainConfig().prefix_cache == 2
