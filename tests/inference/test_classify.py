"""Classify: an artefact as a torch module, and images in every form that Python holds them in."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """An artefact that knows digits, a little."""
    from vprompt import TrainConfig, learn, open_task

    target = tmp_path_factory.mktemp("pool") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = open_task("digits").few_shot(4, seed=0)
        config = TrainConfig(epochs=1, keep="last")
        learn(task, model=tiny, config=config, output=target, test=False)
    return target


@pytest.fixture(scope="module")
def classifier(folder, tiny):
    from vprompt import load

    return load(folder, model=tiny, precision="fp32")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two colour images of 40 x 50 pixels, as files and as arrays."""
    place = tmp_path_factory.mktemp("photographs")
    arrays = [np.random.default_rng(n).integers(0, 256, (40, 50, 3), np.uint8) for n in (0, 1)]
    paths = [place / f"{n}.png" for n in (0, 1)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return paths, arrays


def test_a_classifier_is_a_module_whose_logits_are_those_of_predict(
    classifier, folder, tiny, photographs
):
    from vprompt import predict

    paths, _ = photographs
    logits = classifier(paths)
    found = predict(paths, artifact=folder, model=tiny, precision="fp32")
    assert isinstance(classifier, torch.nn.Module) and logits.shape == (2, 10)
    for prediction, shares in zip(found, logits.softmax(1), strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-6)
    assert classifier.predict(paths) == found
    assert [classifier.classes[n] for n in logits.argmax(1)] == [p.label for p in found]


def as_tensors(arrays):
    return [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]


FORMS = {
    "paths": lambda paths, arrays: [str(path) for path in paths],
    "Pillow": lambda paths, arrays: [Image.open(path) for path in paths],
    "arrays": lambda paths, arrays: arrays,
    "one array": lambda paths, arrays: np.stack(arrays),
    "int64": lambda paths, arrays: np.stack(arrays).astype(np.int64),
    "floats to 1": lambda paths, arrays: np.stack(arrays) / 255,
    "tensors": lambda paths, arrays: as_tensors(arrays),
    "one tensor": lambda paths, arrays: torch.stack(as_tensors(arrays)).float() / 255,
    "mixed": lambda paths, arrays: (image for image in (paths[0], as_tensors(arrays)[1])),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_has_one_answer_in_whatever_form_it_comes(classifier, photographs, form):
    paths, arrays = photographs
    wanted = [p.probabilities for p in classifier.predict(paths)]
    found = classifier.predict(FORMS[form](paths, arrays))
    assert [p.probabilities for p in found] == wanted
    if form != "mixed":
        prepared = classifier.preprocess(FORMS[form](paths, arrays))
        torch.testing.assert_close(prepared, classifier.preprocess(paths), atol=0, rtol=0)


def test_an_image_alone_is_preprocessed_alone_and_labelled_in_a_list_of_one(
    classifier, photographs
):
    paths, arrays = photographs
    assert classifier.preprocess(paths[0]).shape == (3, 32, 32)
    assert classifier.preprocess([paths[0]]).shape == (1, 3, 32, 32)
    torch.testing.assert_close(classifier(paths[0]), classifier(classifier.preprocess(paths[0])))
    [found] = classifier.predict(arrays[0])
    assert found.image == "image 0" and found.label in classifier.classes


def test_greys_alpha_and_orientation_are_read_as_in_a_file(classifier, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    alpha = np.dstack([grey, grey, grey, np.full_like(grey, 128)])
    turned = Image.fromarray(grey)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    for in_memory, name in (
        (Image.open(tmp_path / "turned.png"), "turned.png"),
        (alpha, "alpha.png"),
        (torch.from_numpy(alpha).permute(2, 0, 1), "alpha.png"),
    ):
        wanted = classifier.preprocess(tmp_path / name)
        torch.testing.assert_close(classifier.preprocess(in_memory), wanted, atol=0, rtol=0)
    once = classifier.preprocess(grey)
    for other in (grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        torch.testing.assert_close(classifier.preprocess(other), once, atol=0, rtol=0)


def test_deep_greys_are_scaled_by_the_range_of_the_artefact(folder, tiny):
    from dataclasses import replace

    from vprompt import load, load_artifact
    from vprompt.data.preprocessing import Values

    loaded = load_artifact(folder)
    config = replace(loaded.data_config, values=Values(integer=(0.0, 4095.0), real=(0.0, 2.0)))
    deep = replace(loaded, config={**loaded.config, "data_config": config.to_json()})
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.float64)
    plain = deep.preprocess(np.dstack([grey] * 3).astype(np.uint8))
    for scaled in ((grey / 255 * 4095).round().astype(np.uint16), (grey / 255 * 2)):
        assert (deep.preprocess(scaled) - plain).abs().max() < 0.02
    assert load(deep, model=tiny)(scaled).shape == (1, 10)


WRONG = {
    "channels first": (lambda a: a.transpose(2, 0, 1), "channels stand first", "transpose"),
    "channels last": (lambda a: torch.from_numpy(a), "channels stand last", "permute"),
    "two channels": (lambda a: a[..., :2], "array of shape", r"\[40, 50, 2\]"),
    "a column": (lambda a: a[0, :, 0], "array of shape", r"\[50\]"),
    "nothing": (lambda a: a[:0], "no image", r"\[0, 50, 3\]"),
    "no list": (lambda a: [], "no images", ""),
    "a number": (lambda a: 7, "path, a Pillow image", "got int"),
    "truth": (lambda a: a > 7, "whole numbers", "got bool"),
    "floats to 255": (lambda a: a.astype(np.float32), "from 0 to 1, but got", "Divide by 255"),
    "normalised": (lambda a: a / 127.5 - 1, "normalised already", r"classifier\(...\)"),
    "not finite": (lambda a: a / np.float64("nan"), "not finite", ""),
    "beyond a byte": (lambda a: a.astype(np.int32) * 9, "from 0 to 255, but got", ""),
    "absent": (lambda a: "nowhere.png", "No image file", "nowhere.png"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_shape_or_range_ends_in_a_sentence(classifier, photographs, refused, what):
    make, *words = WRONG[what]
    image = make(photographs[1][0])
    with refused(*words):
        classifier.preprocess(image)
    with refused(*words[:1]):
        classifier.predict(image)


def test_a_broken_file_is_named(classifier, tmp_path, refused):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with refused("broken.png cannot be read"):
        classifier.preprocess(tmp_path / "broken.png")


def test_the_place_of_a_wrong_image_among_many_is_said(classifier, photographs, refused):
    with refused("Image 1: ", "Divide by 255"):
        classifier.predict([photographs[1][0], photographs[1][1].astype(np.float32)])


def test_floats_that_were_not_normalised_are_refused(classifier, photographs, refused, monkeypatch):
    pixels = torch.stack(as_tensors(photographs[1])).float()[:, :, :32, :32]
    for wrong in (pixels, pixels / 255, pixels / 255 * 4 - 2, pixels[0] / 255, pixels / 0):
        with refused("floats|finite", "preprocess|"):
            classifier(wrong)
    monkeypatch.setattr(classifier, "check", False)
    assert classifier(pixels / 255).shape == (2, 10)


def test_bright_images_that_were_normalised_pass(classifier):
    bright = np.random.default_rng(0).integers(128, 256, (32, 32, 3), np.uint8)
    prepared = classifier.preprocess(bright)
    assert prepared.min() >= 0 and prepared.max() <= 1  # as if they were not
    assert classifier(prepared).shape == classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("shape", [(1, 3, 40, 40), (3, 40, 40), (1, 1, 32, 32), (32, 32, 3), (5,)])
def test_tensors_of_another_shape_say_what_is_taken(classifier, refused, shape):
    with refused(r"\[batch, 3, 32, 32\]", "preprocess"):
        classifier(torch.rand(shape) - 0.5)


def test_a_backbone_says_what_it_takes_in_place_of_an_assertion(tiny, refused):
    from vprompt import extract

    with refused(r"takes normalised floats \[batch, 3, 32, 32\]", r"\[1, 3, 40, 40\]"):
        extract(tiny, torch.rand(1, 3, 40, 40))


def test_it_goes_into_ones_own_program(classifier, photographs):
    pixels = classifier.preprocess(photographs[0]).requires_grad_()
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    torch.nn.Sequential(classifier, torch.nn.Softmax(1))(pixels)[:, 0].sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert not classifier.train().backbone.training
    assert "10 classes, 32 px" in repr(classifier)
    images = torch.randn(2, 3, 32, 32).clamp(-1, 1)
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(
        classifier.eval(), (images,), dynamic_shapes=({0: batch},), strict=False
    )
    images = torch.randn(5, 3, 32, 32).clamp(-1, 1)
    torch.testing.assert_close(program.module()(images), classifier(images), atol=1e-5, rtol=1e-5)


def test_artefacts_without_a_prompt_are_called_as_well(tiny, tmp_path, photographs):
    from vprompt import TrainConfig, learn, load, open_task

    task = open_task("digits").few_shot(2, seed=0)
    for method in ("linear", "bias"):
        made = learn(task, model=tiny, method=method, config=TrainConfig(epochs=1), test=False)
        classifier = load(made.artifact, model=tiny, precision="fp32")
        shares = classifier(photographs[0]).softmax(1)
        for found, wanted in zip(classifier.predict(photographs[0]), shares, strict=True):
            assert list(found.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-6)


def test_tab_completion_shows_the_public_names_alone():
    import vprompt

    public = {name for name in dir(vprompt) if not name.startswith("__")}
    assert public == set(vprompt.__all__) and {"load", "predict", "Classifier"} <= public
