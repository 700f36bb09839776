"""Many prompts, one batch: every image gets what its own prompt alone would give it."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from exact import awake, relative
from PIL import Image

torch.set_num_threads(1)


def draw(counts, persist, dim, generator):
    """A float64 prompt with `counts[b]` tokens at block b."""
    from vprompt.prompts.prompt import Prompt

    blocks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    tokens = torch.randn(len(blocks), dim, generator=generator, dtype=torch.float64)
    return Prompt(tokens, blocks, persist)


def assortment(depth, dim, generator):
    """Shallow, deep, ragged, late, gapped prompts, and none at all."""
    rest = [0] * (depth - 3)
    placements = {
        "shallow": ([4, 0, 0, *rest], True),
        "longer shallow": ([7, 0, 0, *rest], True),
        "deep": ([2, 2, 2, *[2] * (depth - 3)], False),
        "ragged": ([1, 5, 0, *range(depth - 3)], False),
        "late": ([0, 0, 3, *rest], False),
        "late and on": ([0, 3, 0, *rest], True),
        "replaced on the way": ([2, 0, 4, *rest], True),
        "gap, then dropped": ([3, 0, 0, *rest[:-1], 2], False),
        "nothing": ([0, 0, 0, *rest], True),
    }
    return {name: draw(*each, dim, generator) for name, each in placements.items()}


@pytest.fixture(scope="module", params=["test_vit", "test_vit2", "opaque", "clip"])
def model(request):
    """A float64 model with blocks of a size that matters: timm, one that hides them, a CLIP."""
    from vprompt.backbones import tiny, tiny_clip
    from vprompt.models.backbone import Backbone

    if request.param == "clip":
        return awake(tiny_clip.load())
    name = "test_vit" if request.param == "opaque" else request.param
    made = awake(tiny.load(model=name, image_size=32))
    if request.param == "opaque":
        hidden = type("Opaque", (type(made),), {})
        for method in ("prompted_block", "attend_each", "masked_block"):
            setattr(hidden, method, getattr(Backbone, method))
        made.__class__ = hidden
    return made


def pictures(model, count, generator):
    shape = (count, *model.data_config.input_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def one_by_one(model, images, prompts, which):
    from vprompt.models.backbone import extract

    rows = zip(images, which.tolist(), strict=True)
    return torch.cat([extract(model, image[None], prompts[index]) for image, index in rows])


def test_every_image_gets_what_its_prompt_alone_gives(model, generator):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import PromptBatch

    prompts = list(assortment(model.depth, model.dim, generator).values())
    which = torch.tensor([*range(len(prompts)), 2, 0])
    images = pictures(model, len(which), generator)
    with torch.no_grad():
        found = extract(model, images, PromptBatch(prompts, which))
        expected = one_by_one(model, images, prompts, which)
    assert relative(found, expected) < 1e-12
    plain = one_by_one(model, images, prompts, torch.full_like(which, len(prompts) - 1))
    changed = [relative(a, b) > 1e-4 for a, b in zip(expected, plain, strict=True)]
    assert changed == [index != len(prompts) - 1 for index in which.tolist()]


@pytest.mark.parametrize("names", [("deep", "ragged"), ("shallow", "longer shallow"), ("deep",)])
def test_a_few_alike_prompts_share_a_batch_too(model, generator, names):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import PromptBatch

    chosen = assortment(model.depth, model.dim, generator)
    prompts = [chosen[name] for name in names]
    which = torch.arange(4) % len(prompts)
    images = pictures(model, 4, generator)
    with torch.no_grad():
        found = extract(model, images, PromptBatch(prompts, which))
        assert relative(found, one_by_one(model, images, prompts, which)) < 1e-12


def test_gradients_of_every_prompt_are_its_own(generator):
    from vprompt.backbones import tiny
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import PromptBatch

    model = awake(tiny.load(image_size=32))
    chosen = assortment(model.depth, model.dim, generator)
    prompts = [chosen[name] for name in ("shallow", "deep", "ragged", "late and on")]
    which = torch.tensor([0, 1, 2, 3, 1, 0])
    images = pictures(model, len(which), generator)
    slope = torch.randn(len(which), model.feature_dim, generator=generator, dtype=torch.float64)
    leaves = [prompt.tokens.clone().requires_grad_() for prompt in prompts]
    own = [prompt.with_tokens(leaf) for prompt, leaf in zip(prompts, leaves, strict=True)]
    (extract(model, images, PromptBatch(own, which)) * slope).sum().backward()
    for index, prompt in enumerate(prompts):
        leaf = prompt.tokens.clone().requires_grad_()
        mine = which == index
        features = extract(model, images[mine], prompt.with_tokens(leaf))
        (features * slope[mine]).sum().backward()
        assert relative(leaves[index].grad, leaf.grad) < 1e-10


def test_prompts_of_several_widths_or_of_no_place_are_refused(tiny, generator, refused):
    from vprompt.prompts.prompt import PromptBatch

    narrow = draw([1, 0], False, 3, generator)
    with refused("one width", r"\[3, 5\]"):
        PromptBatch([narrow, draw([1, 0], False, 5, generator)], torch.zeros(2).long())
    with refused("one of the 1 prompts", r"\[0, 1\]"):
        PromptBatch([narrow], torch.tensor([0, 1]))


# Artefacts


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Three tasks of different classes: a deep prompt, a shallow one, one probe, one adapter."""
    from vprompt import TrainConfig, learn
    from vprompt.tasks import digits

    place = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        whole = digits.load().few_shot(3, seed=0)
        for name, classes, method in [
            ("deep", 10, "vpt(num_virtual_tokens=2, prompt_init=vpt_uniform)"),
            ("shallow", 4, "vpt(num_virtual_tokens=5, deep=False, prompt_init=vpt_uniform)"),
            ("probe", 3, "linear"),
            ("inside", 2, "bias"),
        ]:
            task = restricted(whole, classes)
            config = TrainConfig(epochs=1, keep="last", precision="fp32")
            call = {"method": method, "config": config, "test": False, "output": place / name}
            learn(task, model=tiny, **call)
    return place


def restricted(task, classes):
    """The task of the first classes alone."""
    rows = [row for row, label in enumerate(task.train.labels) if label < classes]
    train = task.train.subset(rows, f"first {classes}")
    return replace(task, classes=task.classes[:classes], train=train, val=None, test=None)


def test_a_served_batch_gives_every_image_its_own_head(folder, tiny, images, refused):
    from vprompt import extract, load_artifact, serve

    names = ["deep", "shallow", "probe", "deep"]
    places = {name: str(folder / name) for name in names}
    server = serve([folder / name for name in names], model=tiny)
    with refused("floats from -", "artifact.preprocess", "check=False"):
        server.logits(images, [places[name] for name in names])
    images = images.clamp(-1, 1)
    found = server.logits(images, [places[name] for name in names], precision="fp32")
    assert [len(logits) for logits in found] == [10, 4, 3, 10]
    for image, name, logits in zip(images, names, found, strict=True):
        loaded = load_artifact(folder / name)
        with torch.no_grad():
            features = extract(tiny, image[None], loaded.prompt)
        assert logits.tolist() == pytest.approx(
            loaded.head.logits(features)[0].tolist(), rel=1e-4, abs=1e-4
        )


def test_a_served_method_without_a_prompt_runs_beside_the_others(folder, tiny, images):
    from vprompt import serve

    places = [str(folder / name) for name in ("inside", "deep", "inside", "shallow")]
    server = serve(places, model=tiny, check=False)
    found = server.features(images, places, precision="fp32")
    for row, place in enumerate(places):
        alone = server.features(images[row : row + 1], [place], precision="fp32")[0]
        assert found[row].tolist() == pytest.approx(alone.tolist(), rel=1e-4, abs=1e-4)


def test_unknown_names_and_lists_of_another_length_are_refused(folder, tiny, images, refused):
    from vprompt import serve

    server = serve([folder / "deep"], model=tiny)
    with refused("No artefact 'deeper' is served", "deep"):
        server.features(images, ["deeper"] * 4)
    with refused("4 images and 1 names"):
        server.features(images, [str(folder / "deep")])
    with refused("no artefacts"):
        serve([])


@pytest.fixture
def table(folder, tmp_path):
    """Six rows of (image, artefact), the artefacts mixed, beside the images."""
    from vprompt.tasks import digits

    names = ["deep", "shallow", "deep", "probe", "shallow", "deep"]
    (tmp_path / "pool").symlink_to(folder)
    lines = ["image,artifact"]
    for row, name in enumerate(names):
        Image.fromarray(digits.load().val.images[row]).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,pool/{name}")
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_is_predicted_row_by_row_as_one_by_one(table, folder, tiny):
    from vprompt import predict, predict_table

    found = predict_table(table, model=tiny, precision="fp32", batch_size=4)
    assert [p.image for p in found] == [str(table.parent / f"{row}.png") for row in range(6)]
    for one in found:
        [alone] = predict([one.image], artifact=one.artifact, model=tiny, precision="fp32")
        assert (one.label, alone.artifact) == (alone.label, None)
        assert one.probabilities == pytest.approx(alone.probabilities, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_a_list_may_have_any_form(table, tiny, suffix):
    from vprompt import predict_table

    wanted = predict_table(table, model=tiny, precision="fp32")
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    other = table.with_name(f"other.{suffix}")
    if suffix == "jsonl":
        rows = [json.dumps({"file_name": image, "artifact": name}) for image, name in rows]
        other.write_text("\n".join(rows))
    else:
        other.write_text("sep=;\nfilepath;artefact\n" + "\n".join(map(";".join, rows)))
    assert predict_table(other, model=tiny, precision="fp32") == wanted


def test_the_command_writes_a_row_per_row(table, vprompt):
    target = table.parent / "labels.csv"
    code, out, err = vprompt("predict", table, "--output", target, "--quiet")
    assert code == 0, err
    assert "6 predictions" in out
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "artifact", "label", "probability"]
    assert [row["artifact"].split("/")[-1] for row in rows][:3] == ["deep", "shallow", "deep"]
    code, out, _ = vprompt("predict", table, "--json", "--quiet")
    assert code == 0
    assert [len(each["probabilities"]) for each in json.loads(out)] == [10, 4, 10, 3, 4, 10]
    assert "deep" in vprompt("predict", table, "--quiet")[1]


def test_artefacts_of_two_backbones_are_refused_by_name(table, folder, fails):
    other = table.parent / "other"
    other.mkdir()
    for file in (folder / "deep").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    config["base_model_fingerprint"] = "sha256:another"
    config["base_model_name_or_path"] = "another"
    del config["digests"]
    (other / "adapter_config.json").write_text(json.dumps(config))
    with table.open("a") as file:
        file.write("0.png,other\n")
    fails("predict", table, "--quiet", saying=["share", "deep", "'another'", "other", "32 px"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("photo,artifact\n0.png,pool/deep\n", ["columns", "needs `image` and `artifact`"]),
        ("image,artifact\n", ["lists no images"]),
        ("image,artifact\n0.png,\n", ["line 2", "empty"]),
        ("image,artifact\n0.png,pool/nothing\n", ["No artefact folder", "nothing"]),
        ("image,artefact\nlost.png,pool/deep\n", ["line 2", "no image file", "lost.png"]),
    ],
)
def test_a_table_that_cannot_be_used_says_why(table, fails, text, words):
    table.write_text(text)
    fails("predict", table, "--quiet", saying=words)


def test_a_table_that_is_no_text_says_so(table, fails):
    table.write_bytes(b"image,artifact\n\xe9.png,pool/deep\n")
    fails("predict", table, "--quiet", saying=["not UTF-8"])


def test_images_without_an_artefact_ask_for_one(table, fails):
    fails("predict", table.parent / "0.png", saying=["--artifact", "image and artifact"])
    fails("predict", table.parent / "nowhere.csv", saying=["No file at"])
