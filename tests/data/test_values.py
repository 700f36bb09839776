"""Values: images of more than 8 bits are neither black nor white, by one range for a split."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def noise():
    """Values in [0, 1) that fill their range."""
    return np.random.default_rng(0).random((30, 40))


@pytest.fixture
def config():
    from vprompt.data.preprocessing import DataConfig

    grey = (0.5, 0.5, 0.5)
    return DataConfig((3, 30, 40), "nearest", grey, grey)


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def shown(path, given=None):
    from vprompt.data.decoding import read_rgb

    image = read_rgb(path) if given is None else read_rgb(path, given)
    assert image.mode == "RGB"
    return np.asarray(image)[..., 0].astype(float)


def spoiled(values, *spots):
    made = values.copy()
    for row, spot in enumerate(spots):
        made[row * 3 : row * 3 + 2, :] = spot
    return made


NO_DATA = [
    9999,
    99999.0,
    1e10,
    np.nan,
    np.inf,
    -np.inf,
    -9999,
    -99999.0,
    1e20,
    -3.4e38,
    3.4e38,
    9.96921e36,
    -32768,
]


@pytest.mark.parametrize("value", NO_DATA)
@pytest.mark.parametrize("whole", [False, True], ids=["a pixel", "rows"])
def test_what_is_no_number_changes_no_other_pixel(tmp_path, noise, value, whole):
    values = noise.astype("f4")
    if whole:
        values[:9] = value
    else:
        values[0, 0] = value
    found = shown(saved(tmp_path / "a.tif", values))
    with np.errstate(invalid="ignore"):
        rest = np.abs(values) < 10
    assert np.abs(found - np.round(noise * 255))[rest].max() <= 1
    # Black, but for a number above all others: a spot that is saturated looks the same.
    assert (found[~rest] == (255 if 10 < value < 1e19 else 0)).all()


def test_several_kinds_of_no_data_in_one_image(tmp_path, noise):
    values = spoiled(noise.astype("f4"), np.nan, -9999, np.inf, -32768)
    found = shown(saved(tmp_path / "a.tif", values))
    assert np.abs(found - np.round(noise * 255))[12:].max() <= 1


def test_an_image_of_nothing_but_no_data_is_black(tmp_path):
    for value in (np.nan, -9999.0, 0.0):
        assert (shown(saved(tmp_path / "a.tif", np.full((4, 4), value, "f4"))) == 0).all()


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_as_many_bits_as_there_are_fill_the_range(tmp_path, noise, bits, name):
    top = 2**bits - 1
    values = np.round(noise * top).astype("u2")
    values[0, 0], values[0, 1] = 0, top
    if name.endswith("pgm"):
        head = f"P5 40 30 {top}\n".encode()
        kind = ">u2" if bits > 8 else "u1"
        (tmp_path / name).write_bytes(head + values.astype(kind).tobytes())
    elif name.endswith("jp2"):
        saved(tmp_path / name, values, irreversible=False)
    else:
        saved(tmp_path / name, values)
    assert np.abs(shown(tmp_path / name) - values / top * 255).max() <= 1


@pytest.mark.parametrize("value", [65535, 32767])
def test_no_data_and_hot_pixels_of_whole_numbers_do_not_darken_the_rest(tmp_path, noise, value):
    values = (noise * 4095).astype("u2")
    values[:5] = value
    found = shown(saved(tmp_path / "a.png", values))
    assert np.abs(found - np.round(noise * 255))[5:].max() <= 1


def test_signed_values_span_their_own_range(tmp_path, noise):
    values = (noise * 4000 - 1000).astype("i4")
    values[0] = -32768
    found = shown(saved(tmp_path / "a.tif", values))
    assert np.abs(found - np.round(noise * 255))[1:].max() <= 2 and (found[0] == 0).all()


def test_32_bits_are_not_clipped(tmp_path, noise):
    found = shown(saved(tmp_path / "a.tif", (noise * (2**20 - 1)).astype("i4")))
    assert np.abs(found - np.round(noise * 255)).max() <= 1


def test_values_far_from_zero_span_their_own_range(tmp_path, noise):
    for values in ((270 + 30 * noise).astype("f4"), (7000 + 1500 * noise).astype("u2")):
        found = shown(saved(tmp_path / "a.tif", values))
        assert np.abs(found - np.round(noise * 255)).max() <= 2


@pytest.mark.parametrize("top", [1e-4, 0.03, 0.4, 1.0, 3.5, 255.0, 1e6])
def test_floats_of_any_size_are_not_black(tmp_path, noise, top):
    found = shown(saved(tmp_path / "a.tif", (noise * top).astype("f4")))
    assert found.std() > 60 and found.max() >= 250


def test_floats_up_to_one_are_taken_for_shares(tmp_path, noise):
    found = shown(saved(tmp_path / "a.tif", (noise * 0.8).astype("f4")))
    assert np.abs(found - np.round(noise * 0.8 * 255)).max() <= 1


def test_the_value_that_a_tiff_declares_is_no_data(tmp_path, noise):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[42113] = "0.5"
    values = noise.astype("f4")
    values[:15] = 0.5
    found = shown(saved(tmp_path / "a.tif", values, tiffinfo=tags))
    assert (found[:15] == 0).all() and found[15:].std() > 60


def test_twelve_bits_a_colour_are_not_black_and_warned_of(tmp_path, noise):
    """Pillow keeps the upper 8 bits of 16, so that 4 are left of 12."""
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    for bits, warned in ((12, True), (16, False)):
        values = np.repeat((noise * (2**bits - 1)).astype(">u2")[..., None], 3, axis=2)
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0))
        data = (
            b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )
        (tmp_path / "a.png").write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = shown(tmp_path / "a.png")
        assert np.abs(found - noise * 255).max() < (17 if warned else 1)
        assert bool(caught) == warned


# One range for a split


def splits(tmp_path, *arrays, name="a{}.png"):
    paths = tuple(saved(tmp_path / name.format(n), array) for n, array in enumerate(arrays))
    return paths


def test_one_range_is_used_for_all_images_of_a_split(tmp_path, noise, config):
    from vprompt.data.images import load_pixels
    from vprompt.data.preprocessing import Values

    dark = (noise * 200).astype("u2")
    paths = splits(tmp_path, (noise * 4095).astype("u2"), dark)
    pixels = load_pixels(paths, config)
    assert pixels.values == Values(integer=(0.0, 4095.0))
    assert np.abs(pixels.array[1, ..., 0] - dark / 4095 * 255).max() <= 1  # dark as it was
    again = load_pixels(paths, config)
    assert again.values == pixels.values and np.array_equal(again.array, pixels.array)
    alone = load_pixels(paths[1:], config, values=Values())
    assert alone.values == Values() and alone.array.max() > 190
    given = load_pixels(paths[1:], config, values=Values(integer=(0.0, 65535.0)))
    assert given.array.max() == 1


def test_the_range_is_that_of_the_training_images(tmp_path, noise, config):
    from vprompt.data.preprocessing import Values
    from vprompt.data.task import Split, Task

    bright, dark = (noise * 4095).astype("u2"), (noise * 500).astype("u2")
    paths = splits(tmp_path, bright, bright.T.copy(), dark, dark.T.copy())
    task = Task("t", ("a",) * 1 + ("b",), Split("train", paths[:2] * 2, (0, 0, 1, 1)))
    val = Split("val", paths[2:], (0, 1))
    found = task.examples(val, config)
    assert found.values == Values(integer=(0.0, 4095.0)) == task.examples(task.train, config).values
    assert found.pixels.max() <= 32


def test_images_of_eight_bits_have_no_range_and_old_caches_are_made_anew(tmp_path, config, cache):
    from vprompt.core import files
    from vprompt.data import images

    paths = splits(tmp_path, np.full((4, 4), 9, "u1"), np.full((4, 4), 99, "u1"))
    first = images.load_pixels(paths, config)
    assert first.values is None
    [folder] = (cache / "images").iterdir()
    index = files.read_json(folder / "index.json")
    assert "warned" in index
    files.write_json(folder / "index.json", {k: index[k] for k in ("kept", "digest")})  # of before
    images._is_sound.cache_clear()
    assert np.array_equal(images.load_pixels(paths, config).array, first.array)
    assert files.read_json(folder / "index.json") == index


def test_a_cache_of_before_is_not_used_for_more_than_eight_bits(tmp_path, noise, config, cache):
    from vprompt.core import files
    from vprompt.data import images

    paths = splits(tmp_path, (noise * 4095).astype("u2"))
    folder = images._folder(paths, config, False)
    with files.atomic_folder(folder) as draft:
        np.save(draft / "pixels.npy", np.zeros((1, 30, 40, 3), np.uint8))
        digest = images.pixel_files.digest_of_array(np.zeros((1, 30, 40, 3), np.uint8))
        files.write_json(draft / "index.json", {"kept": [0], "digest": digest})
    assert images.load_pixels(paths, config).array.max() == 255


@pytest.fixture
def learned(tmp_path, noise, tiny):
    """An artefact that learned from images of 12 bits, and the folder of those."""
    from vprompt import TrainConfig, learn

    for label, share in (("dark", 0.3), ("light", 1.0)):
        for number in range(8):
            path = tmp_path / "data" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            saved(path, (np.roll(noise, number) * share * 4095).astype("u2"))
    config = TrainConfig(epochs=0)
    made = learn(str(tmp_path / "data"), model=tiny, config=config, output=tmp_path / "it")
    return made, tmp_path / "data"


def test_the_range_is_part_of_an_artefact(learned, tmp_path, tiny):
    from vprompt import evaluate, load_artifact, predict

    made, data = learned
    config = json.loads((tmp_path / "it/adapter_config.json").read_text())
    assert config["data_config"]["value_range"] == {"integer": [0, 4095]}
    loaded = load_artifact(tmp_path / "it")
    assert loaded.data_config.values.integer == (0, 4095)
    # An image is labelled alike alone and beside brighter ones: the range is not of what is asked.
    paths = sorted((data / "dark").iterdir())
    [alone] = predict(paths[:1], artifact=loaded, model=tiny, precision="fp32")
    beside = predict([data], artifact=loaded, model=tiny, precision="fp32")
    same = next(each for each in beside if each.image == alone.image)
    assert same.label == alone.label == "dark"
    assert same.probability == pytest.approx(alone.probability, abs=1e-5)
    found = evaluate(str(data), artifact=loaded, model=tiny)["learned"]
    assert found.images == 16 and found.acc1 == 1.0
    assert made.run["task"]["value_range"] == {"integer": [0, 4095]}


def test_artefacts_of_two_ranges_share_a_table(learned, tmp_path, tiny):
    from vprompt import load_artifact, predict, predict_table

    _, data = learned
    other = tmp_path / "other"
    other.mkdir()
    for file in (tmp_path / "it").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    config["data_config"]["value_range"] = {"integer": [0, 65535]}
    del config["digests"]
    (other / "adapter_config.json").write_text(json.dumps(config))
    rows = [f"data/dark/{n}.png,{('it', 'other')[n % 2]}" for n in range(4)]
    (tmp_path / "l.csv").write_text("image,artifact\n" + "\n".join(rows))
    found = predict_table(tmp_path / "l.csv", model=tiny, precision="fp32")
    for number, each in enumerate(found):
        artifact = load_artifact(tmp_path / ("it", "other")[number % 2])
        path = data / "dark" / f"{number}.png"
        [wanted] = predict([path], artifact=artifact, model=tiny, precision="fp32")
        assert each.image == wanted.image
        assert each.probability == pytest.approx(wanted.probability, abs=1e-5)


@pytest.mark.parametrize("wrong", [[1, 0], [0, "a"], [0, 1e999], 3, [0, 1, 2], "x"])
def test_a_range_that_is_none_is_refused(learned, tmp_path, refused, wrong):
    from vprompt import load_artifact

    path = tmp_path / "it/adapter_config.json"
    config = json.loads(path.read_text())
    config["data_config"]["value_range"] = wrong if wrong == "x" else {"integer": wrong}
    path.write_text(json.dumps(config))
    with refused("data_config cannot be used"):
        load_artifact(tmp_path / "it")
