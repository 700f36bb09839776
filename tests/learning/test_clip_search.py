"""Search on a CLIP, both stages: fair halves, the found lengths learned, and distillation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # steps this small only wait for a second thread
CLASSES = ("red square", "green square", "blue square")


@pytest.fixture(scope="module")
def clip():
    from vprompt.backbones import tiny_clip

    return tiny_clip.load()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A few-shot data set of three coloured squares."""
    folder = tmp_path_factory.mktemp("few") / "data"
    rng, splits = np.random.default_rng(0), {}
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        splits[split] = []
        for label, name in enumerate(CLASSES):
            for number in range(count):
                pixels = rng.integers(0, 100, (32, 32, 3))
                pixels[8:24, 8:24, label] += 140
                path = folder / str(label) / f"{split}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                splits[split].append([f"{label}/{path.name}", label, name])
    (folder / "squares.json").write_text(json.dumps(splits))
    return folder


def spec(root, shots=4):
    return f"few_shot(root='{root}', dataset='squares.json', shots={shots})"


def config(**changes):
    from vprompt import TrainConfig

    given = {"epochs": 1, "batch_size": 6, "precision": "fp32", "keep": "last", **changes}
    return TrainConfig(**given)


SEARCH = "clip_dpl(lengths=[0, 1, 2], alpha_init=1.0, alpha_warmup=0, distill=0.25)"


# Both stages


def test_the_search_sees_half_of_the_shots_and_the_training_all(root, tmp_path):
    from vprompt import load_artifact
    from vprompt.searching import search

    done = search(
        spec(root),
        model="tiny_clip",
        method=SEARCH,
        search_config=config(),
        config={"epochs": 1, "precision": "fp32"},
        output=tmp_path / "it",
    )
    record = json.loads((tmp_path / "it" / "run.json").read_text())
    found, searched = record["search"]["found"], record["search"]["task"]
    assert record["search"]["alpha_data"] == "half" and record["search"]["labelled_images"] == 12
    assert {n: s["images"] for n, s in searched["splits"].items()} == {"train": 6, "val": 6}
    assert searched["train_images_per_class"] == [2, 2, 2]
    assert record["task"]["splits"]["train"]["images"] == 12
    assert record["settings"]["distill"] == 0.25 and record["train"]["batch_size"] == 4
    assert record["method"].startswith("clip_deep(")
    loaded = load_artifact(tmp_path / "it")
    assert (
        loaded.prompt.counts(4) == found["image"] and loaded.text.prompt.counts(3) == found["text"]
    )
    assert set(done.test) == {"zero-shot", "no prompt", "learned"}


def test_one_shot_cannot_be_halved_so_alpha_sees_the_validation_shot(root):
    from vprompt import open_task
    from vprompt.searching import choose_alpha_data, split_for_alpha

    one, four = open_task(spec(root, 1)), open_task(spec(root, 4))
    assert choose_alpha_data(one, "auto", "clip_dpl") == "val"
    assert choose_alpha_data(four, "auto", "clip_dpl") == "half"
    assert choose_alpha_data(four, "auto", "clip_dpl(preset=paper)") == "val"
    assert choose_alpha_data(four, "auto", "dpl") == "val"
    assert choose_alpha_data(four, "val", "clip_dpl") == "val"
    split = split_for_alpha(one, "val", 1)
    assert (len(split.train), len(split.val), split.test) == (3, 3, None)
    halved = split_for_alpha(four, "half", 1)
    both = [set(map(str, part.images)) for part in (halved.train, halved.val)]
    assert not both[0] & both[1] and both[0] | both[1] == set(map(str, four.train.images))


def test_only_a_search_searches(root, refused):
    from vprompt.searching import search

    with refused("'coop' searches no lengths", "clip_dpl"):
        search(spec(root), model="tiny_clip", method="coop")


def test_the_command_line_searches_towers(root, tmp_path, vprompt, fails):
    words = ["search", spec(root, 2), "--model", "tiny_clip", "--towers", "text", "--epochs", "1"]
    words += ["--search-epochs", "1", "--max-prompts", "5", "--output", tmp_path / "it"]
    code, _, err = vprompt(*words, "--report", tmp_path / "it.html")
    assert code == 0, err
    assert "How long each block" in (tmp_path / "it.html").read_text()
    record = json.loads((tmp_path / "it" / "run.json").read_text())["search"]
    assert record["method"] == "clip_dpl(max_prompts=5, towers=text)"
    assert list(record["found"]) == ["text"] and sum(record["found"]["text"]) <= 5
    assert record["train"]["epochs"] == 1 and record["train"]["batch_size"] == 4
    fails("search", spec(root, 2), "--model", "demo", "--towers", "both", saying=["text tower"])


@pytest.mark.parametrize("towers", ["both", "text"])
def test_the_published_preset_searches_and_learns_on_parts_of_images(root, monkeypatch, towers):
    from vprompt.data.augment import Cropped
    from vprompt.learning.train_config import TrainConfig
    from vprompt.searching import search
    from vprompt.stages import training_defaults

    cut, batches = [], Cropped.batches

    def counted(self, size, order=None):
        cut.append(len(self) if order is None else len(order))
        return batches(self, size, order)

    monkeypatch.setattr(Cropped, "batches", counted)
    method = f"clip_dpl(preset=paper, towers={towers}, alpha_init=1.0)"
    few = {**training_defaults(method), "epochs": 2}
    found = search(
        spec(root),
        model="tiny_clip",
        method=method,
        search_config=TrainConfig.checked(few),
        config={"epochs": 2},
        test=False,
    ).run
    assert sum(cut) == 2 * 12 + 2 * 12  # both stages, twice through twelve images
    assert found["search"]["train"]["augment"] == found["train"]["augment"] == "crop_flip"
    rates = [record["lr"] for record in found["tuning"]["history"]]
    assert rates == pytest.approx([0, 1e-5, 0.0035])


# Distillation


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_distillation_is_kl_from_the_teacher(generator, reduction):
    from vprompt.adapters._distill import Teacher

    learned, taught = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    p, q = (taught / 3).softmax(1), (learned / 3).softmax(1)
    summed = float((p * (p.log() - q.log())).sum())
    count = 5 if reduction == "batchmean" else 5 * 4
    found = Teacher(0.7, 3.0, reduction).loss(learned, taught)
    assert float(found) == pytest.approx(0.7 * 9 * summed / count)
    assert float(Teacher(0.7, 3.0, reduction).loss(taught, taught)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("tokens", ["", "num_image_tokens=0, "])
def test_without_a_weight_no_teacher_ever_runs(clip, root, monkeypatch, tmp_path, tokens):
    """Counted at both towers: the weight adds one pass over images and texts, 0 adds none."""
    from vprompt import open_task
    from vprompt.core import registry
    from vprompt.learning.text_adapter import of_towers
    from vprompt.learning.tune import tune

    task = open_task(spec(root))
    train, calls, counted = task.examples(task.train, clip.data_config), [], []
    embed, pool = clip.embed, clip.text.pool
    monkeypatch.setattr(clip, "embed", lambda *given: calls.append("image") or embed(*given))
    monkeypatch.setattr(clip.text, "pool", lambda *given: calls.append("text") or pool(*given))

    def count(adapter):
        adapter.name_classes(task.classes, task.templates)
        calls.clear()
        monkeypatch.setenv("VPROMPT_CACHE", str(tmp_path / f"empty {len(counted)}"))
        counted.append(adapter)
        tune(adapter, train, None, 3, config())
        return {tower: calls.count(tower) for tower in ("image", "text")}

    def deep(weight):
        return registry.build("adapters", f"clip_deep({tokens}distill={weight})")(clip)

    same = deep(0.0)
    plain = count(of_towers(clip, same.prompt(), same.text().prompt, None))
    assert count(same) == plain
    taught = count(deep(1.0))
    again = 0 if tokens else 1  # the frozen images of a text prompt are there already
    assert taught == {"image": plain["image"] + again, "text": plain["text"] + 1}


def test_distillation_holds_the_learned_logits_to_zero_shot(clip, root):
    from vprompt import open_task
    from vprompt.adapters._distill import Teacher
    from vprompt.core import registry
    from vprompt.learning.tune import tune

    task, away = open_task(spec(root)), []
    train = task.examples(task.train, clip.data_config)
    for weight in (0.0, 10.0):
        adapter = registry.build("adapters", f"clip_deep(distill={weight})")(clip)
        adapter.name_classes(task.classes, task.templates)
        done = tune(adapter, train, None, 3, config(epochs=15, lr=0.02))
        pixels, _ = next(train.batches(len(train)))
        logits = done.head.logits(adapter.features(clip.normalise(pixels)).detach())
        if not away:
            texts = [f"a photo of a {name}." for name in CLASSES]
            ids = clip.text.tokenise(texts, 32)
            taught, _ = clip.clip.get_logits(clip.normalise(pixels), ids)
        away.append(float(Teacher(1.0).loss(logits, taught.detach())))
    assert away[1] < 0.5 * away[0]


def test_a_teacher_reads_its_own_templates(clip, root, refused):
    from vprompt import open_task
    from vprompt.core import registry

    task = open_task(spec(root))
    train, taught = task.examples(task.train, clip.data_config), []
    for templates in ("'a {} here'", "simple"):
        method = f"clip_deep(distill=1.0, teacher_templates={templates})"
        adapter = registry.build("adapters", method)(clip)
        adapter.name_classes(task.classes, task.templates)
        adapter.begin(train, config())
        taught.append(adapter._taught)
    ids = clip.text.tokenise([f"a {name} here" for name in CLASSES], 32)
    pixels, _ = next(train.batches(len(train)))
    theirs, _ = clip.clip.get_logits(clip.normalise(pixels), ids)
    torch.testing.assert_close(taught[0], theirs, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(taught[0], taught[1])
    with refused("temperature above 0", "-1"):
        registry.build("adapters", "clip_deep(distill=1.0, temperature=-1.0)")(clip)


# Inherited prompts


def test_learning_goes_on_from_what_a_search_has_learned(clip, root, tmp_path, refused):
    from vprompt import learn
    from vprompt.core import registry

    done = learn(
        spec(root), model=clip, method=SEARCH, config=config(), output=tmp_path / "searched"
    )
    inherited = registry.build("adapters", f"clip_deep(start='{tmp_path}/searched')")(clip)
    for now, then in (
        (inherited.prompt(), done.artifact.prompt),
        (inherited.text().prompt, done.artifact.text.prompt),
    ):
        assert torch.equal(now.tokens, then.tokens) and torch.equal(now.blocks, then.blocks)
    learn(spec(root), model=clip, method="ivlp", config=config(), output=tmp_path / "ivlp")
    with refused("travels on", "clip_deep"):
        registry.build("adapters", f"clip_deep(start='{tmp_path}/ivlp')")(clip)
    with refused("learn nothing", "zero_shot"):
        registry.build("adapters", "clip_deep(num_image_tokens=0, num_text_tokens=0)")(clip)
