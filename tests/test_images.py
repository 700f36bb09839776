"""Images: every kind of file becomes RGB pixels, once, and nothing half-written is left behind."""

import os

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("VPROMPT_CACHE", str(folder))
    return folder


@pytest.fixture
def config():
    """Return a function that makes a DataConfig."""
    from vprompt.backbone import DataConfig

    def make(size=(8, 8), **settings):
        grey = (0.5, 0.5, 0.5)
        return DataConfig(
            (3, *size), settings.pop("interpolation", "bicubic"), grey, grey, **settings
        )

    return make


@pytest.fixture
def photos(tmp_path):
    """Four images of one colour each, so that a mistaken order shows."""
    paths = []
    for index, value in enumerate((10, 60, 110, 160)):
        paths.append(tmp_path / f"photo {index}.png")
        Image.new("RGB", (12, 10), (value, value, value)).save(paths[-1])
    return paths


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def corner(path):
    from vprompt.images import read_rgb

    image = read_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_grey_is_repeated_over_three_channels(tmp_path):
    assert corner(saved(tmp_path, Image.new("L", (4, 4), 77))) == (77, 77, 77)


def test_one_bit_becomes_black_and_white(tmp_path):
    assert corner(saved(tmp_path, Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert corner(saved(tmp_path, Image.new("1", (4, 4), 0))) == (0, 0, 0)


@pytest.mark.parametrize(
    "transparency, colour",
    [(0, (200, 100, 50)), (bytes([0, 128]), (227, 177, 152))],  # half of it on a white page
    ids=["index", "bytes"],
)
def test_a_palette_with_transparency_lies_on_white_without_a_warning(
    tmp_path, transparency, colour
):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    path = saved(tmp_path, image, transparency=transparency)
    assert corner(path) == colour


def test_rgba_drops_its_alpha(tmp_path):
    assert corner(saved(tmp_path, Image.new("RGBA", (4, 4), (200, 100, 50, 255)))) == (200, 100, 50)


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "ink.jpg")
    red, green, blue = corner(path)
    assert red < 10 and green > 245 and blue > 245


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
@pytest.mark.parametrize(("value", "expected"), [(32768, 127.5), (65535, 255), (257, 1)])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name, value, expected):
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), value, dtype=np.uint16)), name)
    assert corner(path) == pytest.approx((expected,) * 3, abs=0.6)


def test_exif_orientation_is_applied(tmp_path):
    from vprompt.images import read_rgb

    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise: left becomes top
    upright = read_rgb(saved(tmp_path, image, "turned.jpg", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 200 and upright.getpixel((10, 35))[0] < 50


def test_squash_keeps_everything_and_center_cuts_the_middle(config):
    from vprompt.images import fit

    image = Image.new("RGB", (96, 32), "red")
    image.paste("lime", (32, 0, 64, 32))
    squashed = fit(image, config((32, 24), crop_mode="squash", interpolation="nearest"))
    assert squashed.shape == (32, 24, 3)
    assert squashed[16, 2].tolist() == [255, 0, 0] and squashed[16, 12].tolist() == [0, 255, 0]
    centered = fit(image, config((32, 32), crop_mode="center", interpolation="nearest"))
    assert centered.shape == (32, 32, 3) and (centered == [0, 255, 0]).all()


@pytest.mark.parametrize("image_size", [(7, 90), (90, 7), (33, 33), (1, 1)])
@pytest.mark.parametrize("crop_mode", ["squash", "center"])
def test_any_shape_of_image_gives_the_asked_height_and_width(config, image_size, crop_mode):
    from vprompt.images import fit

    settings = config((16, 24), crop_mode=crop_mode, crop_pct=0.875)
    assert fit(Image.new("RGB", image_size), settings).shape == (16, 24, 3)


def test_crop_pct_leaves_a_margin_out(config):
    from vprompt.images import fit

    image = Image.new("RGB", (64, 64), "red")
    image.paste("lime", (16, 16, 48, 48))
    cut = fit(image, config((32, 32), crop_mode="center", crop_pct=0.5, interpolation="nearest"))
    assert (cut == [0, 255, 0]).all()


def test_unknown_crop_mode_and_interpolation_list_what_there_is(config):
    from vprompt.errors import VPromptError
    from vprompt.images import fit

    with pytest.raises(VPromptError, match=r"No crop_mode called 'border'.*center, squash"):
        fit(Image.new("RGB", (4, 4)), config(crop_mode="border"))
    with pytest.raises(VPromptError, match=r"No interpolation called 'cubic'.*bicubic, bilinear"):
        fit(Image.new("RGB", (4, 4)), config(interpolation="cubic"))


def test_an_unreadable_file_is_named_with_what_to_type(photos, config):
    from vprompt.errors import VPromptError
    from vprompt.images import load_pixels

    photos[2].write_bytes(b"not an image")
    with pytest.raises(
        VPromptError, match=r"1 of 4 images cannot be read.*photo 2\.png.*--skip-bad"
    ):
        load_pixels(photos, config())


def test_skip_bad_leaves_unreadable_files_out_and_keeps_labels_aligned(photos, config):
    from vprompt.task import Split, Task

    photos[1].write_bytes(b"not an image")
    task = Task("four", ("a", "b"), Split("train", tuple(photos), (0, 1, 1, 0)), allow_absent=True)
    examples = task.examples(task.train, config(), skip_bad=True)
    assert examples.labels.tolist() == [0, 1, 0]
    assert examples.pixels[:, 0, 0, 0].tolist() == [10, 110, 160]
    again = task.examples(task.train, config(), skip_bad=True)  # the cache remembers which
    assert again.labels.tolist() == [0, 1, 0] and again.digest == examples.digest


def test_no_readable_file_at_all_is_an_error_even_with_skip_bad(photos, config):
    from vprompt.errors import VPromptError
    from vprompt.images import load_pixels

    for path in photos:
        path.write_bytes(b"")
    with pytest.raises(VPromptError, match=r"None of 4 images can be read.*photo 0\.png"):
        load_pixels(photos, config(), skip_bad=True)


def test_a_truncated_jpeg_is_an_error_not_a_half_grey_image(tmp_path, config):
    from vprompt.errors import VPromptError
    from vprompt.images import load_pixels

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "cut.jpg")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(VPromptError, match=r"cut\.jpg.*truncated"):
        load_pixels([path], config())


def test_a_missing_file_is_named(tmp_path, config):
    from vprompt.errors import VPromptError
    from vprompt.images import load_pixels

    with pytest.raises(VPromptError, match=r"No image file at .*gone\.png"):
        load_pixels([tmp_path / "gone.png"], config())


def test_the_second_load_decodes_nothing(photos, config, monkeypatch):
    from vprompt import images

    first = images.load_pixels(photos, config())

    def refuse(path):
        raise AssertionError(f"{path} was decoded a second time")

    monkeypatch.setattr(images, "read_rgb", refuse)
    second = images.load_pixels(photos, config())
    assert np.array_equal(first.array, second.array)
    assert second.kept == (0, 1, 2, 3) and second.digest == first.digest


def test_a_changed_file_is_decoded_again(photos, config):
    from vprompt.images import load_pixels

    before = load_pixels(photos, config())
    Image.new("RGB", (12, 10), (240, 240, 240)).save(photos[0])
    later = photos[0].stat().st_mtime_ns + 1_000_000
    os.utime(photos[0], ns=(later, later))
    after = load_pixels(photos, config())
    assert before.array[0, 0, 0, 0] == 10 and after.array[0, 0, 0, 0] == 240
    assert before.digest != after.digest


def test_another_size_or_crop_has_a_cache_of_its_own(photos, config):
    from vprompt.images import load_pixels

    assert load_pixels(photos, config((8, 8))).array.shape == (4, 8, 8, 3)
    assert load_pixels(photos, config((16, 16))).array.shape == (4, 16, 16, 3)
    assert load_pixels(photos, config((8, 8), crop_mode="center")).array.shape == (4, 8, 8, 3)


def test_the_order_of_files_is_part_of_the_cache(photos, config):
    from vprompt.images import load_pixels

    load_pixels(photos, config())
    assert load_pixels(photos[::-1], config()).array[:, 0, 0, 0].tolist() == [160, 110, 60, 10]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_cache_that_could_not_be_finished_leaves_nothing_behind(
    photos, config, cache, monkeypatch, failure
):
    from vprompt.errors import VPromptError
    from vprompt.images import load_pixels

    def half(path, array, **_):
        path.write_bytes(array.tobytes()[:10])
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        expected = VPromptError if isinstance(failure, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            load_pixels(photos, config())
    if isinstance(failure, OSError):
        assert "No space left" in str(caught.value) and "half-written" in str(caught.value)
    assert list((cache / "images").iterdir()) == []
    assert load_pixels(photos, config()).array.shape == (4, 8, 8, 3)


def test_drawn_pixels_are_resized_without_a_cache(config, cache):
    from vprompt.images import load_pixels

    drawn = np.full((3, 20, 20, 3), 90, dtype=np.uint8)
    pixels = load_pixels(drawn, config())
    assert pixels.array.shape == (3, 8, 8, 3) and (pixels.array == 90).all()
    assert pixels.kept == (0, 1, 2) and not cache.exists()


def test_batches_are_copies_that_may_be_written_to(photos, config):
    from vprompt.task import Split, Task

    task = Task("four", ("a", "b"), Split("train", tuple(photos), (0, 1, 1, 0)))
    examples = task.examples(task.train, config())
    for pixels, labels in examples.batches(2):
        assert len(pixels) == len(labels) == 2
        pixels.zero_()
    assert examples.pixels[:, 0, 0, 0].tolist() == [10, 60, 110, 160]


def test_no_rows_make_no_batch(photos, config):
    """One of several processes may have none, of fewer images than there are in a batch."""
    from vprompt.task import Split, Task

    task = Task("four", ("a", "b"), Split("train", tuple(photos), (0, 1, 1, 0)))
    examples = task.examples(task.train, config())
    assert not list(examples.batches(2, torch.arange(0)))
    assert [len(labels) for _, labels in examples.batches(3)] == [3, 1]
