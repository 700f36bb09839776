"""Augment: parts of training images, the same for one seed, epoch and image, whoever asks."""

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def examples():
    """Ten images of 24 x 40 pixels, each a plane that rises to the right and to the bottom."""
    from vprompt.data.task import Examples

    rows, columns = np.mgrid[:24, :40]
    one = np.stack([4 * rows, 6 * columns, np.full_like(rows, 100)], -1).astype(np.uint8)
    pixels = np.stack([one] * 10)
    return Examples(pixels, torch.arange(10) % 2, "ten planes")


@pytest.fixture
def cropped(examples):
    """Return a function that cuts the ten images for a seed and an epoch."""
    from vprompt.data.augment import Cropped
    from vprompt.data.preprocessing import DataConfig

    config = DataConfig((3, 24, 40), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return lambda seed=0, epoch=1: Cropped.of(examples, config, seed, epoch)


def test_boxes_are_those_of_torchvision_s_random_resized_crop():
    """Not the same draws, but the same distribution of area, ratio and place."""
    transforms = pytest.importorskip("torchvision.transforms")
    from vprompt.data.augment import crop_box

    generator = torch.Generator().manual_seed(0)
    ours = [crop_box(50, 80, generator) for _ in range(3000)]
    image, theirs = torch.zeros(3, 50, 80), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(3000):
            top, left, tall, wide = transforms.RandomResizedCrop.get_params(
                image, (0.08, 1.0), (3 / 4, 4 / 3)
            )
            theirs.append((left, top, left + wide, top + tall))
    one, other = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    assert (one[:, :2] >= 0).all() and (one[:, 2] <= 80).all() and (one[:, 3] <= 50).all()

    def facts(boxes):
        wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        return [wide * tall / 4000, np.log(wide / tall), boxes[:, 0] / 80, boxes[:, 1] / 50]

    for mine, published in zip(facts(one), facts(other), strict=True):
        assert np.quantile(mine, [0.1, 0.5, 0.9]) == pytest.approx(
            np.quantile(published, [0.1, 0.5, 0.9]), abs=0.03
        )


def test_an_image_too_narrow_for_any_ratio_is_cut_in_its_middle():
    from vprompt.data.augment import crop_box

    generator = torch.Generator().manual_seed(0)
    assert crop_box(2, 100, generator) == (48, 0, 51, 2)
    assert crop_box(100, 2, generator) == (0, 48, 2, 51)


def test_a_part_is_enlarged_as_torchvision_does(cropped, examples):
    functional = pytest.importorskip("torchvision.transforms.functional")
    from PIL import Image

    from vprompt.core.randomness import stream
    from vprompt.data.augment import crop_box

    found = cropped()
    for row in range(10):
        drawn = stream(0, f"crop, epoch 1, image {row}")
        left, top, right, bottom = crop_box(24, 40, drawn)
        expected = functional.resized_crop(
            Image.fromarray(examples.pixels[row]),
            top,
            left,
            bottom - top,
            right - left,
            [24, 40],
            functional.InterpolationMode.BICUBIC,
        )
        if torch.rand((), generator=drawn) < 0.5:
            expected = functional.hflip(expected)
        assert (found.cut(row) == np.asarray(expected)).all()


def test_a_part_depends_on_seed_epoch_and_image_alone(cropped, examples):
    whole = next(cropped().batches(10))[0]
    again = next(cropped().batches(3, torch.tensor([7, 2, 5])))
    assert torch.equal(again[0], whole[[7, 2, 5]]) and again[1].tolist() == [1, 0, 1]
    assert not torch.equal(whole[0], whole[1])
    for other in (cropped(seed=1), cropped(epoch=2)):
        assert not torch.equal(next(other.batches(10))[0], whole)
    before = examples.pixels.copy()
    assert whole.shape == (10, 24, 40, 3) and (examples.pixels == before).all()
    mirrored = [bool((image[:, 0, 1] > image[:, -1, 1]).all()) for image in whole]
    assert 0 < sum(mirrored) < 10


@pytest.fixture
def run(tiny):
    """Return a function that trains a method on twelve digits and returns what was tuned."""
    from vprompt import open_task
    from vprompt.core import registry
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    task = open_task("digits").few_shot(2, seed=0)
    small = {"epochs": 3, "precision": "fp32", "batch_size": 8, "keep": "last"}
    sets = [task.examples(split, tiny.data_config) for split in (task.train, task.val)]

    def call(method="vpt(num_virtual_tokens=2)", *, checkpoint=None, progress=None, **changes):
        adapter = registry.build("adapters", method)(tiny)
        config = TrainConfig(**{**small, **changes})
        more = {} if progress is None else {"progress": progress}
        return tune(adapter, *sets, 10, config, checkpoint=checkpoint, **more)

    return call


@pytest.mark.parametrize("method", ["vpt(num_virtual_tokens=2)", "mlp", "pro_vpt(preset=paper)"])
def test_training_sees_other_parts_in_every_epoch_and_judges_whole_images(run, monkeypatch, method):
    from vprompt.data.augment import Cropped

    seen = []
    batches = Cropped.batches
    monkeypatch.setattr(
        Cropped,
        "batches",
        lambda self, size, order=None: seen.append(self.epoch) or batches(self, size, order),
    )
    whole = run(method)
    assert not seen
    cut = run(method, augment="crop_flip")
    assert set(seen) == {1, 2, 3}
    assert cut.history[0] == whole.history[0]  # the start is judged on whole images
    assert cut.history[-1].train_loss != whole.history[-1].train_loss
    assert cut.head.weight.tolist() == run(method, augment="crop_flip").head.weight.tolist()


def test_a_late_prompt_is_trained_on_parts_though_its_prefix_is_kept(run, tiny):
    late = f"vpt(num_virtual_tokens={[0] * (tiny.depth - 1) + [2]})"
    cut, again = (run(late, augment="crop_flip", prefix_cache=size) for size in (2.0, 0.0))
    assert [r.train_loss for r in cut.history] == [r.train_loss for r in again.history]
    assert cut.history[-1].train_loss != run(late).history[-1].train_loss


def test_a_teacher_sees_the_parts_that_its_pupil_sees():
    from vprompt import open_task
    from vprompt.backbones import tiny_clip
    from vprompt.core import registry
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune
    from vprompt.models.backbone import extract
    from vprompt.models.two_tower import TextPrompt, text_head

    clip = tiny_clip.load()
    task = open_task("digits").few_shot(1, seed=0)
    train = task.examples(task.train, clip.data_config)
    adapter = registry.build("adapters", "clip_deep(distill=1.0, prompt_init_seed=1)")(clip)
    adapter.name_classes(task.classes, task.templates)
    told, loss = [], adapter.teacher.loss

    def listen(learned, taught):
        told.append(taught)
        return loss(learned, taught)

    object.__setattr__(adapter.teacher, "loss", listen)
    config = TrainConfig(epochs=1, precision="fp32", batch_size=10, augment="crop_flip", seed=4)
    tune(adapter, train, None, 10, config)
    from vprompt.core.randomness import stream
    from vprompt.data.augment import Cropped

    order = torch.randperm(10, generator=stream(4, "order, epoch 1"))
    pixels, _ = next(Cropped.of(train, clip.data_config, 4, 1).batches(10, order))
    with torch.no_grad():
        features = extract(clip, clip.normalise(pixels))
    head = text_head(clip, task.classes, TextPrompt(adapter.read))
    torch.testing.assert_close(told[0], head.logits(features))


def test_an_estimate_counts_the_passes_that_cutting_needs(tiny):
    from vprompt.core import registry
    from vprompt.data.task import Examples
    from vprompt.learning.train_config import TrainConfig
    from vprompt.results.cost import training_estimate

    pixels = np.zeros((8, 32, 32, 3), dtype=np.uint8)
    examples = Examples(pixels, torch.arange(8) % 2, "eight")
    adapter = registry.build("adapters", "linear")(tiny)
    said = str(training_estimate(adapter, examples, TrainConfig(epochs=7)))
    assert "one pass over 8 images" in said
    said = str(training_estimate(adapter, examples, TrainConfig(epochs=7, augment="crop_flip")))
    assert "7 epochs x 8 images" in said


# Of torchvision


@pytest.fixture
def varied(examples):
    """Return a function that varies the ten images for a kind, a seed and an epoch."""
    pytest.importorskip("torchvision")
    from vprompt.data.augment import varied
    from vprompt.data.preprocessing import DataConfig

    config = DataConfig((3, 24, 40), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return lambda kind, seed=0, epoch=1: varied(kind, examples, config, seed, epoch)


@pytest.mark.parametrize("kind", ["weak", "randaug"])
def test_an_image_is_varied_alike_whoever_asks_and_nothing_global_is_drawn(varied, kind):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = varied(kind)
    whole, labels = next(one.batches(10))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    few, some = next(varied(kind).batches(3, torch.tensor([7, 2, 5])))
    assert torch.equal(few, whole[[7, 2, 5]]) and torch.equal(some, labels[[7, 2, 5]])
    assert whole.shape == (10, 24, 40, 3) and whole.dtype == torch.uint8
    for other in (varied(kind, epoch=2), varied(kind, seed=1)):
        assert not torch.equal(next(other.batches(10))[0], whole)


@pytest.mark.parametrize("kind", ["weak", "randaug"])
def test_it_is_torchvision_s_v2(varied, examples, kind):
    from torchvision.transforms import v2

    from vprompt.core.randomness import stream

    change = [v2.RandomCrop((24, 40), padding=[5, 3], padding_mode="reflect")]
    change += [v2.RandomHorizontalFlip()]
    change += [v2.RandAugment(2, 9)] if kind == "randaug" else []
    found, _ = next(varied(kind).batches(10))
    for row in range(10):
        image = torch.from_numpy(examples.pixels[row]).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(0, f"augment, epoch 1, image {row}").initial_seed())
            theirs = v2.Compose(change)(image)
        assert torch.equal(found[row], theirs.permute(1, 2, 0))


def test_weak_shifts_by_up_to_an_eighth_and_mirrors_every_other_time(varied, examples):
    mirrored, shifts = 0, set()
    for epoch in range(1, 21):
        found, _ = next(varied("weak", epoch=epoch).batches(10))
        for image in found.numpy().astype(int):
            rising = image[12, 20, 1] < image[12, 21, 1]
            mirrored += not rising
            level = image[12, 20 if rising else 19, 1] / 6
            shifts.add(round(level - 20))
    assert 70 < mirrored < 130 and {-5, 5} <= shifts <= set(range(-5, 6))


def test_an_image_of_one_pixel_can_be_varied(varied):
    from vprompt.data.augment import varied as vary
    from vprompt.data.preprocessing import DataConfig
    from vprompt.data.task import Examples

    examples = Examples(np.full((2, 1, 1, 3), 9, np.uint8), torch.tensor([0, 1]), "dots")
    config = DataConfig((3, 1, 1), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found, _ = next(vary("weak", examples, config, 0, 1).batches(2))
    assert found.shape == (2, 1, 1, 3)


def test_without_torchvision_there_is_a_sentence(monkeypatch, refused):
    import sys

    from vprompt.data import augment

    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with refused("need torchvision", r"pip install 'vprompt\[data\]'", "crop_flip"):
        augment._transforms()


def test_every_kind_of_the_settings_is_there_and_is_recorded():
    from typing import get_args

    from vprompt.data.augment import KINDS
    from vprompt.learning.train_config import TrainConfig

    words = get_args(TrainConfig.model_fields["augment"].annotation)
    assert set(words) == {"none", *KINDS}
    assert TrainConfig(augment="randaug").model_dump()["augment"] == "randaug"
    assert TrainConfig().augment == "none"
