"""Images: every kind of file becomes RGB pixels, once, and nothing half-written is left behind."""

import os

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def config():
    """Return a function that makes a DataConfig."""
    from vprompt.models.backbone import DataConfig

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
    from vprompt.data.images import read_rgb

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
    from vprompt.data.decoding import read_rgb
    from vprompt.data.preprocessing import Values

    path = saved(tmp_path, Image.fromarray(np.full((4, 4), value, dtype=np.uint16)), name)
    shown = read_rgb(path, Values(integer=(0.0, 65535.0))).getpixel((0, 0))
    assert shown == pytest.approx((expected,) * 3, abs=0.6)


def test_exif_orientation_is_applied(tmp_path):
    from vprompt.data.images import read_rgb

    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise: left becomes top
    upright = read_rgb(saved(tmp_path, image, "turned.jpg", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 200 and upright.getpixel((10, 35))[0] < 50


def test_squash_keeps_everything_and_center_cuts_the_middle(config):
    from vprompt.data.images import fit

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
    from vprompt.data.images import fit

    settings = config((16, 24), crop_mode=crop_mode, crop_pct=0.875)
    assert fit(Image.new("RGB", image_size), settings).shape == (16, 24, 3)


def test_crop_pct_leaves_a_margin_out(config):
    from vprompt.data.images import fit

    image = Image.new("RGB", (64, 64), "red")
    image.paste("lime", (16, 16, 48, 48))
    cut = fit(image, config((32, 32), crop_mode="center", crop_pct=0.5, interpolation="nearest"))
    assert (cut == [0, 255, 0]).all()


def test_unknown_crop_mode_and_interpolation_list_what_there_is(config):
    from vprompt.core.errors import VPromptError
    from vprompt.data.images import fit

    with pytest.raises(VPromptError, match=r"No crop_mode called 'border'.*center, squash"):
        fit(Image.new("RGB", (4, 4)), config(crop_mode="border"))
    with pytest.raises(VPromptError, match=r"No interpolation called 'cubic'.*bicubic, bilinear"):
        fit(Image.new("RGB", (4, 4)), config(interpolation="cubic"))


def test_an_unreadable_file_is_named_with_what_to_type(photos, config):
    from vprompt.core.errors import VPromptError
    from vprompt.data.images import load_pixels

    photos[2].write_bytes(b"not an image")
    with pytest.raises(
        VPromptError, match=r"1 of 4 images cannot be read.*photo 2\.png.*--skip-bad"
    ):
        load_pixels(photos, config())


def test_skip_bad_leaves_unreadable_files_out_and_keeps_labels_aligned(photos, config):
    from vprompt.data.task import Split, Task

    photos[1].write_bytes(b"not an image")
    task = Task("four", ("a", "b"), Split("train", tuple(photos), (0, 1, 1, 0)), allow_absent=True)
    examples = task.examples(task.train, config(), skip_bad=True)
    assert examples.labels.tolist() == [0, 1, 0]
    assert examples.pixels[:, 0, 0, 0].tolist() == [10, 110, 160]
    again = task.examples(task.train, config(), skip_bad=True)  # the cache remembers which
    assert again.labels.tolist() == [0, 1, 0] and again.digest == examples.digest


def test_no_readable_file_at_all_is_an_error_even_with_skip_bad(photos, config):
    from vprompt.core.errors import VPromptError
    from vprompt.data.images import load_pixels

    for path in photos:
        path.write_bytes(b"")
    with pytest.raises(VPromptError, match=r"None of 4 images can be read.*photo 0\.png"):
        load_pixels(photos, config(), skip_bad=True)


def test_a_truncated_jpeg_is_an_error_not_a_half_grey_image(tmp_path, config):
    from vprompt.core.errors import VPromptError
    from vprompt.data.images import load_pixels

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "cut.jpg")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(VPromptError, match=r"cut\.jpg.*truncated"):
        load_pixels([path], config())


def test_a_missing_file_is_named(tmp_path, config):
    from vprompt.core.errors import VPromptError
    from vprompt.data.images import load_pixels

    with pytest.raises(VPromptError, match=r"No image file at .*gone\.png"):
        load_pixels([tmp_path / "gone.png"], config())


def test_the_second_load_decodes_nothing(photos, config, monkeypatch):
    from vprompt.data import images

    first = images.load_pixels(photos, config())

    def refuse(path):
        raise AssertionError(f"{path} was decoded a second time")

    monkeypatch.setattr(images, "read_rgb", refuse)
    second = images.load_pixels(photos, config())
    assert np.array_equal(first.array, second.array)
    assert second.kept == (0, 1, 2, 3) and second.digest == first.digest


def test_a_changed_file_is_decoded_again(photos, config):
    from vprompt.data.images import load_pixels

    before = load_pixels(photos, config())
    Image.new("RGB", (12, 10), (240, 240, 240)).save(photos[0])
    later = photos[0].stat().st_mtime_ns + 1_000_000
    os.utime(photos[0], ns=(later, later))
    after = load_pixels(photos, config())
    assert before.array[0, 0, 0, 0] == 10 and after.array[0, 0, 0, 0] == 240
    assert before.digest != after.digest


def test_another_size_or_crop_has_a_cache_of_its_own(photos, config):
    from vprompt.data.images import load_pixels

    assert load_pixels(photos, config((8, 8))).array.shape == (4, 8, 8, 3)
    assert load_pixels(photos, config((16, 16))).array.shape == (4, 16, 16, 3)
    assert load_pixels(photos, config((8, 8), crop_mode="center")).array.shape == (4, 8, 8, 3)


def test_the_order_of_files_is_part_of_the_cache(photos, config):
    from vprompt.data.images import load_pixels

    load_pixels(photos, config())
    assert load_pixels(photos[::-1], config()).array[:, 0, 0, 0].tolist() == [160, 110, 60, 10]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_cache_that_could_not_be_finished_leaves_nothing_behind(
    photos, config, cache, monkeypatch, failure
):
    """A full disk stops no run: what it has no room for is not kept, and that is said."""
    from vprompt.core.errors import CacheWarning
    from vprompt.data.images import load_pixels
    from vprompt.data.pixel_files import PixelFile

    def half(self, image):
        self.file.write(image.tobytes()[:10])
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(PixelFile, "append", half)
        if isinstance(failure, OSError):
            with pytest.warns(CacheWarning, match="No space left.*VPROMPT_CACHE"):
                pixels = load_pixels(photos, config())
            assert pixels.array[:, 0, 0, 0].tolist() == [10, 60, 110, 160]
        else:
            with pytest.raises(KeyboardInterrupt):
                load_pixels(photos, config())
    assert list((cache / "images").iterdir()) == []
    assert load_pixels(photos, config()).array.shape == (4, 8, 8, 3)


def test_drawn_pixels_are_resized_without_a_cache(config, cache):
    from vprompt.data.images import load_pixels

    drawn = np.full((3, 20, 20, 3), 90, dtype=np.uint8)
    pixels = load_pixels(drawn, config())
    assert pixels.array.shape == (3, 8, 8, 3) and (pixels.array == 90).all()
    assert pixels.kept == (0, 1, 2) and not cache.exists()


def test_batches_are_copies_that_may_be_written_to(photos, config):
    from vprompt.data.task import Split, Task

    task = Task("four", ("a", "b"), Split("train", tuple(photos), (0, 1, 1, 0)))
    examples = task.examples(task.train, config())
    for pixels, labels in examples.batches(2):
        assert len(pixels) == len(labels) == 2
        pixels.zero_()
    assert examples.pixels[:, 0, 0, 0].tolist() == [10, 60, 110, 160]


def test_no_rows_make_no_batch(photos, config):
    """One of several processes may have none, of fewer images than there are in a batch."""
    from vprompt.data.task import Split, Task

    task = Task("four", ("a", "b"), Split("train", tuple(photos), (0, 1, 1, 0)))
    examples = task.examples(task.train, config())
    assert not list(examples.batches(2, torch.arange(0)))
    assert [len(labels) for _, labels in examples.batches(3)] == [3, 1]


# Large images


def test_large_images_are_used_and_pillows_own_bound_is_left_as_it_was(
    photos, config, monkeypatch, tmp_path
):
    """Pillow refuses twice its bound and warns above it; both are ours to decide."""
    from vprompt.data.images import load_pixels

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # so that 120 pixels are an attack
    assert load_pixels(photos, config()).array[:, 0, 0, 0].tolist() == [10, 60, 110, 160]
    assert Image.MAX_IMAGE_PIXELS == 50


def test_the_limit_is_told_and_can_be_raised(photos, config, monkeypatch, tmp_path, refused):
    from vprompt.data.images import load_pixels

    monkeypatch.setenv("VPROMPT_MAX_MEGAPIXELS", "0.0002")
    big = tmp_path / "big.png"
    Image.new("L", (20, 20), 7).save(big)
    with refused(
        r"1 of 5 images are larger than 0\.0002 megapixels", r"big\.png has 20 x 20"
    ) as it:
        load_pixels([*photos, big], config())
    assert "VPROMPT_MAX_MEGAPIXELS" in str(it.value) and "Mend" not in str(it.value)
    assert len(load_pixels([*photos, big], config(), skip_bad=True)) == 4
    monkeypatch.setenv("VPROMPT_MAX_MEGAPIXELS", "1")
    assert len(load_pixels([*photos, big], config(), skip_bad=True)) == 5  # not what was kept
    for wrong in ("many", "0", "-1", "nan"):
        monkeypatch.setenv("VPROMPT_MAX_MEGAPIXELS", wrong)
        with refused("VPROMPT_MAX_MEGAPIXELS is a number"):
            load_pixels(photos, config())


def test_the_usual_limit_lets_a_map_of_two_hundred_megapixels_through(monkeypatch):
    from vprompt.data.decoding import megapixel_limit

    monkeypatch.delenv("VPROMPT_MAX_MEGAPIXELS", raising=False)
    assert megapixel_limit() >= 200


# Warnings


def test_warnings_are_counted_with_names_and_kept(photos, config, monkeypatch):
    import warnings

    from vprompt.core.progress import Silent
    from vprompt.data import images

    class Listener(Silent):
        said = ()

        def say(self, text):
            self.said = (*self.said, text)

    read = images.read_rgb

    def warning(path, *rest):
        if "photo 0" not in path.name:
            warnings.warn("Corrupt EXIF data.", stacklevel=1)
        return read(path, *rest)

    monkeypatch.setattr(images, "read_rgb", warning)
    for _ in range(2):  # the second time from the cache
        listener = Listener()
        found = images.load_pixels(photos, config(), progress=listener)
        assert found.warned == tuple((row, "Corrupt EXIF data.") for row in (1, 2, 3))
        assert listener.said == (
            f"warnings on 3 of 4 images, first {photos[1]}: Corrupt EXIF data.",
        )


# A damaged cache


@pytest.mark.parametrize("damage", ["index", "header", "pixels", "cut", "empty", "gone"])
def test_a_damaged_cache_is_decoded_again(photos, config, cache, damage, damage_told):
    from vprompt.data import images

    first = np.array(images.load_pixels(photos, config()).array)
    [folder] = (cache / "images").iterdir()
    path = folder / ("index.json" if damage == "index" else "pixels.npy")
    data = bytearray(path.read_bytes())
    place = {"index": 12, "header": 40, "pixels": len(data) - 5}.get(damage)
    if place is not None:
        data[place] ^= 0x80
        path.write_bytes(bytes(data))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(data[: len(data) // 2 if damage == "cut" else 0]))
    later = folder.stat().st_mtime_ns + 1_000_000_000
    if path.exists():
        os.utime(path, ns=(later, later))
    with damage_told():
        assert np.array_equal(images.load_pixels(photos, config()).array, first)
    assert np.array_equal(np.load(folder / "pixels.npy"), first)  # and mended


def test_an_image_replaced_with_the_same_size_and_time_is_noticed(photos, config):
    from vprompt.data import images

    first = images.load_pixels(photos, config()).array.copy()
    one, other = photos[0], photos[1]
    stat, size = one.stat(), one.stat().st_size
    data = bytearray(other.read_bytes())
    one.write_bytes(bytes(data) + b"\0" * max(0, size - len(data)))
    with one.open("r+b") as file:
        file.truncate(size if size >= len(data) else len(data))
    if one.stat().st_size == size:  # as `cp -p` of another picture of that size does
        os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not np.array_equal(images.load_pixels(photos, config()).array[0], first[0])


def test_decoding_holds_no_split_in_memory(photos, config, cache):
    from vprompt.data import images, pixel_files

    found = images.load_pixels(photos, config())
    [folder] = (cache / "images").iterdir()
    assert isinstance(found.array, np.memmap)
    assert found.digest == pixel_files.digest_of_array(np.array(found.array))
    assert found.digest == pixel_files.digest_of_file(folder / "pixels.npy")
    parts = list(pixel_files.batches(found.array, [[1, 0], [2]]))
    assert np.array_equal(parts[0][1], np.array(found.array)[[1, 0]])
