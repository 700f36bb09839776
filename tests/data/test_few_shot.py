"""Few-shot protocol: who is drawn, which classes, and that no test image is ever among them."""

import json
import random

import pytest
from PIL import Image

CLASSES = ("apple", "bear_cub", "cat", "dog", "elk")
COUNTS = {"train": 20, "val": 6, "test": 9}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def write_split(root, splits=None, images="images", name="split_zhou_DescribableTextures.json"):
    """Write a data set in the form of `dtd` and return its split."""
    folder = root / "dtd"
    splits = splits or {
        split: [
            [f"{text}/{split}_{number}.png", label, text]
            for number in range(count)
            # Classes come interleaved and not in their order; one is rare in train.
            for label, text in [*enumerate(CLASSES)][::-1]
            if split != "train" or label != 2 or number < 3
        ]
        for split, count in COUNTS.items()
    }
    for items in splits.values():
        for path, _, _ in items:
            touch(folder / images / path)
    (folder / name).write_text(json.dumps(splits))
    return splits


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_split(folder)
    return folder


def load(root, **settings):
    from vprompt.tasks import few_shot

    return few_shot.load(root=str(root), **{"dataset": "dtd", "shots": 4, **settings})


def names(split, root, images="dtd/images"):
    return [str(path.relative_to(root / images)) for path in split.images]


def test_the_draw_is_that_of_coop_s_code(root):
    """The same loop with Python's global generator, as the published code runs it."""
    splits = json.loads((root / "dtd/split_zhou_DescribableTextures.json").read_text())
    for shots, seed in ((1, 1), (4, 2), (16, 3)):
        state, wanted = random.getstate(), {}
        try:
            random.seed(seed)
            for split, few in (("train", shots), ("val", min(shots, 4))):
                by_class = {}
                for item in splits[split]:
                    by_class.setdefault(item[1], []).append(item)
                wanted[split] = []
                for items in by_class.values():
                    wanted[split] += random.sample(items, few) if len(items) >= few else items
        finally:
            random.setstate(state)
        task = load(root, shots=shots, seed=seed)
        assert names(task.train, root) == [path for path, _, _ in wanted["train"]]
        assert names(task.val, root) == [path for path, _, _ in wanted["val"]]
        assert task.train.labels == tuple(label for _, label, _ in wanted["train"])


def test_a_class_with_fewer_images_is_taken_whole_and_val_is_at_most_four(root):
    task = load(root, shots=16)
    assert task.class_counts() == [16, 16, 3, 16, 16]
    assert len(task.val) == 4 * 5 and len(load(root, shots=2).val) == 2 * 5
    assert len(task.test) == 9 * 5
    assert task.classes == CLASSES and task.templates == ("{} texture.",)


def test_seeds_draw_differently_and_each_the_same_every_time(root):
    first, again, other = load(root), load(root), load(root, seed=2)
    assert first.train.images == again.train.images != other.train.images
    assert first.facts == again.facts


def test_base_and_new_classes_part_one_draw(root):
    whole, base, new = (load(root, subset=subset) for subset in ("all", "base", "new"))
    assert base.classes == CLASSES[:3] and new.classes == CLASSES[3:]
    assert (base.name, new.name) == ("dtd:base", "dtd:new")
    for part, classes in ((base, range(3)), (new, range(3, 5))):
        kept = [
            (path, label)
            for path, label in zip(whole.train.images, whole.train.labels, strict=True)
            if label in classes
        ]
        assert part.train.images == tuple(path for path, _ in kept)
        assert part.train.labels == tuple(label - classes[0] for _, label in kept)
        assert len(part.test) == 9 * len(classes)
        assert part.test.labels_present == frozenset(range(len(classes)))


def test_no_test_image_reaches_training_or_choosing(root, tmp_path):
    """Neither by the draw, nor by a draw file, nor by a split that lists one twice."""
    splits = json.loads((root / "dtd/split_zhou_DescribableTextures.json").read_text())
    tests = {path for path, _, _ in splits["test"]}
    for shots in (1, 2, 4, 8, 16):
        for seed in (1, 2, 3):
            for subset in ("all", "base", "new"):
                task = load(root, shots=shots, seed=seed, subset=subset)
                seen = {*names(task.train, root), *names(task.val, root)}
                assert seen and not seen & tests
                assert not {*names(task.train, root)} & {*names(task.val, root)}
                assert task.test.opened == 0


def test_a_split_that_shares_images_with_test_is_refused(root, refused):
    splits = write_split(root)
    for split in ("train", "val"):
        leaking = {**splits, split: [*splits[split], splits["test"][0]]}
        write_split(root, leaking)
        with refused("1 images both in", split, "and in test"):
            load(root)


def test_the_test_split_opens_for_measure_alone(root, refused):
    task = load(root)
    with refused("vprompt.results.measure alone"):
        task.test.open()


# Draw files


def test_a_draw_is_written_and_read_back(root, tmp_path):
    file = tmp_path / "draws" / "dtd_4_1.json"
    made = load(root, draw=str(file))
    text = file.read_text()
    found = json.loads(text)
    assert (found["shots"], found["seed"], found["dataset"]) == (4, 1, "dtd")
    assert [path for path, _, _ in found["train"]] == names(made.train, root)
    # What stands in the file counts, not what the generator would draw.
    found["train"].reverse()
    file.write_text(json.dumps(found))
    again = load(root, draw=str(file))
    assert again.train.images == made.train.images[::-1] and again.val.images == made.val.images
    assert load(root, draw=str(file), subset="new").classes == CLASSES[3:]


def test_a_draw_file_that_does_not_fit_is_refused(root, tmp_path, refused):
    file = tmp_path / "draw.json"
    load(root, draw=str(file))
    good = json.loads(file.read_text())
    for wrong, words in (
        ({**good, "shots": 8}, ("shots is 8, not 4",)),
        ({**good, "seed": 3}, ("seed is 3, not 1",)),
        ({**good, "split_digest": "x"}, ("split_digest is 'x'",)),
        ([], ("split_digest is None",)),
    ):
        file.write_text(json.dumps(wrong))
        with refused("another draw", *words):
            load(root, draw=str(file))
    splits = json.loads((root / "dtd/split_zhou_DescribableTextures.json").read_text())
    for part in ("train", "val"):
        leaking = {**good, part: [*good[part], splits["test"][3]]}
        file.write_text(json.dumps(leaking))
        with refused("test_", f"for {part}", "refused"):
            load(root, draw=str(file))
    relabelled = [[good["train"][0][0], 0, good["train"][0][2]], *good["train"][1:]]
    file.write_text(json.dumps({**good, "train": relabelled}))
    with refused("for train", "refused"):
        load(root, draw=str(file))


# Other data


def test_one_s_own_split_file_is_enough(tmp_path):
    items = {
        split: [
            [f"{text}/{split}{i}.png", n, text] for n, text in enumerate("ab") for i in range(3)
        ]
        for split in ("train", "test")
    }
    for listed in items.values():
        for path, _, _ in listed:
            touch(tmp_path / path)
    (tmp_path / "mine.json").write_text(json.dumps(items))
    task = load(tmp_path, dataset="mine.json", shots=2)
    assert (task.name, task.classes, task.templates) == ("mine", ("a", "b"), ("a photo of a {}.",))
    # Without validation images, they come from the training images that were not drawn.
    assert len(task.train) == 4 and len(task.val) == 2
    assert not set(task.train.images) & set(task.val.images)
    assert load(tmp_path, dataset="mine.json", shots=3).val is None


def test_aircraft_is_read_from_its_official_lists(tmp_path, refused):
    folder = tmp_path / "fgvc_aircraft"
    for split in ("train", "val", "test"):
        lines = []
        for number, name in enumerate(["707-320", "DC-3", "Falcon 900", "707-320"]):
            touch(folder / "images" / f"{split}{number}.jpg")
            lines.append(f"{split}{number} {name}")
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    (folder / "variants.txt").write_text("707-320\nDC-3\nFalcon 900\n")
    task = load(tmp_path, dataset="fgvc_aircraft", shots=1)
    assert task.classes == ("707-320", "DC-3", "Falcon 900") and task.class_counts() == [1, 1, 1]
    assert len(task.test) == 4 and task.templates == ("a photo of a {}, a type of aircraft.",)
    (folder / "variants.txt").write_text("707-320\nDC-3\n")
    with refused("images_variant_train.txt", "Falcon 900", "no variant"):
        load(tmp_path, dataset="fgvc_aircraft")


def test_imagenet_chooses_on_training_images_and_tests_on_its_val(tmp_path):
    folder = tmp_path / "imagenet"
    for part, count in (("train", 6), ("val", 3)):
        for number in ("n02", "n01"):
            for index in range(count):
                touch(folder / "images" / part / number / f"{number}_{index}.JPEG")
    (folder / "classnames.txt").write_text("n02 goldfish\nn01 tench\n")
    task = load(tmp_path, dataset="imagenet", shots=2)
    assert task.classes == ("tench", "goldfish")
    assert len(task.train) == 4 and len(task.val) == 4 and len(task.test) == 6
    for split in (task.train, task.val):
        assert all(name.startswith("train/") for name in names(split, folder, "images"))
    assert not set(task.train.images) & set(task.val.images)


WORDNET = {"n01": "tench", "n02": "goldfish", "n03": "shark"}
VARIANT_FOLDERS = {
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", ("0", "1", "2")),
    "imagenet_sketch": ("imagenet-sketch/images", ("n01", "n02", "n03")),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", ("n01", "n03")),
    "imagenet_r": ("imagenet-rendition/imagenet-r", ("n02", "n03")),
}


@pytest.fixture
def variant(tmp_path):
    """Return a function that makes a variant of ImageNet of three classes, or two of them."""

    def make(dataset):
        below, folders = VARIANT_FOLDERS[dataset]
        for folder in folders:
            for index in range(2):
                touch(tmp_path / below / folder / f"{index}.JPEG")
        (tmp_path / below / "README.txt").write_text("about")
        names = tmp_path / below.partition("/")[0] / "classnames.txt"
        names.write_text("".join(f"{n} {name}\n" for n, name in reversed(WORDNET.items())))
        return folders

    return make


@pytest.mark.parametrize("dataset", VARIANT_FOLDERS)
def test_the_variants_of_imagenet_are_for_measuring(tmp_path, variant, dataset, refused, tiny):
    from vprompt import learn

    folders = variant(dataset)
    task = load(tmp_path, dataset=dataset)
    wanted = [WORDNET.get(f) or list(WORDNET.values())[int(f)] for f in folders]
    assert list(task.classes) == wanted and len(task.test) == 2 * len(folders)
    assert task.only_test and not len(task.train) and task.val is None
    with refused("test images alone", "vprompt evaluate"):
        learn(task, model=tiny)


@pytest.mark.parametrize("dataset", ["ImageNetV2", "imagenet-v2", "imagenet_v2", "imagenetv2"])
def test_a_data_set_goes_by_the_names_of_other_programs(tmp_path, variant, dataset, root):
    variant("imagenetv2")
    assert load(tmp_path, dataset=dataset).name == "imagenetv2"
    for name in ("DescribableTextures", "DTD"):
        assert load(root, dataset=name).name == "dtd"


def test_a_variant_without_names_or_images_says_so(tmp_path, variant, refused):
    variant("imagenet_a")
    names = tmp_path / "imagenet-adversarial/classnames.txt"
    text = names.read_text()
    names.write_text("n01 tench\n")
    with refused("n03 is a class that classnames.txt does not name"):
        load(tmp_path, dataset="imagenet_a")
    names.unlink()
    with refused("No file at", "classnames.txt"):
        load(tmp_path, dataset="imagenet_a")
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/classnames.txt").write_text(text)  # ImageNet's own will do
    assert load(tmp_path, dataset="imagenet_a").classes == ("tench", "shark")


def test_a_split_written_on_windows_is_read(tmp_path):
    items = {
        split: [[f"{text}\\{split}{i}.png", n, text] for n, text in enumerate("ab") for i in (0, 1)]
        for split in ("train", "test")
    }
    for path, _, _ in items["train"] + items["test"]:
        touch(tmp_path / path.replace("\\", "/"))
    (tmp_path / "mine.json").write_text(json.dumps(items))
    task = load(tmp_path, dataset="mine.json", shots=2)
    assert task.train.images[0] == tmp_path / "a/train0.png" and len(task.test) == 4


def test_fewer_images_than_shots_are_told(root):
    text = "\n".join(load(root, shots=16).census().sentences())
    assert "16 images of each class drawn by seed 1" in text
    assert "have fewer than 16 images to learn from" in text


def test_all_eleven_data_sets_are_known_by_folder_split_and_template():
    from vprompt.data import sentences
    from vprompt.tasks._coop import PLACES, VARIANTS

    assert len(PLACES) == 11 and not set(PLACES) & set(VARIANTS)
    for place in PLACES.values():
        sentences.check([place.template])
    assert PLACES["stanford_cars"].images == "" and PLACES["oxford_flowers"].images == "jpg"


# What is refused


def test_what_is_missing_is_named(root, refused):
    with refused("No folder at", "nowhere"):
        load(root / "nowhere")
    with refused("No few-shot data set called 'dtdd'", "Did you mean 'dtd'"):
        load(root, dataset="dtdd")
    with refused("No folder at", "eurosat"):
        load(root, dataset="eurosat")
    with refused("shots is at least 1"):
        load(root, shots=0)
    (root / "dtd/images/apple/test_0.png").unlink()
    with refused("1 of 45 test images", "apple/test_0.png", "Unpack"):
        load(root)
    (root / "dtd/split_zhou_DescribableTextures.json").unlink()
    with refused("No file at", "split_zhou_DescribableTextures.json"):
        load(root)


@pytest.mark.parametrize(
    "text, words",
    [
        ("[", "not a split"),
        ("[]", "not a split"),
        ('{"train": [["a.png", 0]], "test": []}', "not a split"),
        ('{"train": [["a.png", "x", "a"]], "test": []}', "not a split"),
        ('{"train": [["a.png", 0, "a"]]}', "lists no test images"),
        ('{"train": [["a.png", 1, "a"]], "test": [["b.png", 2, "b"]]}', "without a gap"),
        ('{"train": [["a.png", 0, "a"]], "test": [["b.png", 0, "b"]]}', "'a' and 'b'"),
    ],
)
def test_a_broken_split_file_is_one_sentence(root, refused, text, words):
    (root / "dtd/split_zhou_DescribableTextures.json").write_text(text)
    with refused(words):
        load(root)


def test_a_task_is_typed_like_any_other(root):
    from vprompt import open_task

    task = open_task(f"few_shot(root='{root}', dataset=dtd, shots=2, seed=3, subset=base)")
    assert task.classes == CLASSES[:3] and task.facts["few_shot"]["seed"] == 3
    json.dumps(task.facts)


def test_the_harmonic_mean_of_base_and_new():
    from vprompt.results.measure import harmonic_mean

    assert harmonic_mean(0.8228, 0.7514) == pytest.approx(0.7855, abs=1e-4)  # MaPLe's row
    assert harmonic_mean(0.6934, 0.7422) == pytest.approx(0.7170, abs=1e-4)  # CLIP's
    assert harmonic_mean(0.0, 0.0) == 0
