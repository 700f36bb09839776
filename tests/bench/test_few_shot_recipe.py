"""The recipe of the eleven few-shot data sets: expanded on generated folders, and run on a CLIP."""

import json
from pathlib import Path

import pytest
from PIL import Image

RECIPE = Path(__file__).parents[2] / "benchmarks" / "recipes" / "few-shot-11.yaml"
COUNTS = {"train": 3, "val": 2, "test": 2}
CLASSES = ("apple", "bear", "cat")


@pytest.fixture(scope="module")
def eleven(tmp_path_factory):
    """All eleven data sets in CoOp's folders, three classes each."""
    from vprompt.tasks._coop import PLACES

    root = tmp_path_factory.mktemp("coop")
    Image.new("RGB", (8, 8), "red").save(root / "one.png")
    picture = (root / "one.png").read_bytes()

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)

    for name, place in PLACES.items():
        folder = root / place.folder
        splits = {
            split: [
                [f"{text}/{split}{number}.jpg", label, text]
                for label, text in enumerate(CLASSES)
                for number in range(count)
            ]
            for split, count in COUNTS.items()
        }
        if name == "imagenet":
            for part, count in (("train", 5), ("val", 2)):
                for number in ("n01", "n02"):
                    for index in range(count):
                        put(folder / "images" / part / number / f"{index}.JPEG")
            (folder / "classnames.txt").write_text("n01 tench\nn02 goldfish\n")
            continue
        for items in splits.values():
            for path, _, _ in items:
                put(folder / place.images / path)
        if name == "fgvc_aircraft":
            for split, items in splits.items():
                lines = [f"{path.removesuffix('.jpg')} {text}" for path, _, text in items]
                (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
            (folder / "variants.txt").write_text("\n".join(CLASSES) + "\n")
        else:
            (folder / place.split).write_text(json.dumps(splits))
    return root


def test_the_recipe_is_the_protocol(eleven, tmp_path):
    from vprompt.bench import jobs, recipe

    read = recipe.read(RECIPE)
    every = jobs.expand(read, data=eleven, output=tmp_path)
    assert len(read.tasks) == 11 * 5 and len(every) == 11 * 5 * 3 * len(read.methods)
    assert len({job.id for job in every}) == len(every)
    verbs = {method.name: (method.command, method.spec(1)) for method in read.methods}
    for name in ("zero-shot CLIP", "linear probe", "CoOp", "VPT", "IVLP", "MaPLe", "DPL"):
        assert name in verbs
    assert verbs["DPL"] == ("search", "clip_dpl(preset=paper, prompt_init_seed=1)")
    published = {job.method: job.train for job in every}
    for name, epochs, lr in (("CoOp", 200, 0.002), ("MaPLe", 5, 0.0035), ("DPL", 40, 0.0035)):
        assert (published[name]["epochs"], published[name]["lr"]) == (epochs, lr)
    equal = {job.train["epochs"] for job in every if job.method.endswith("40 epochs")}
    assert equal == {40} == {published["DPL, robust"]["epochs"]}
    # Every seed draws its own images, and the test split is whole.
    dtd = {job.seed: job for job in every if (job.task, job.method) == ("dtd 1", "CoOp")}
    assert len({job.data_digest for job in dtd.values()}) > 1
    assert all(job.counts["test"] == 6 and job.counts["train"] == 3 for job in dtd.values())
    assert "seed=2" in dtd[2].data and str(eleven) in dtd[2].data


def test_the_dry_run_says_what_it_would_cost(eleven, tmp_path, vprompt, fails):
    few = ["--tasks", "dtd 4", "--tasks", "eurosat 1", "--seeds", "1", "--dry-run"]
    words = ["bench", "run", RECIPE, "--output", tmp_path / "out"]
    code, out, err = vprompt(*words, "--data", eleven, *few)
    assert code == 0, err
    assert "24 runs, 0 finished" in out and "hours =" in out
    fails(*words, *few, saying=["--data DIR"])


def test_a_search_runs_like_any_method(eleven, tmp_path):
    from vprompt.bench import estimate, jobs, recipe, runner
    from vprompt.bench.store import Store

    values = {
        "name": "little",
        "backbone": {"model": "tiny_clip"},
        "seeds": [1],
        "train": {"epochs": 1, "precision": "fp32", "keep": "last"},
        "tasks": [
            {
                "name": "dtd {shots}",
                "data": "few_shot(root='{data}', dataset=dtd, shots={shots}, seed={seed})",
                "each": {"shots": [1, 2]},
            }
        ],
        "methods": [
            {
                "name": "DPL",
                "search": "clip_dpl(lengths=[0, 1], alpha_init=1.0)",
                "search_train": {"epochs": 1, "precision": "fp32"},
            },
            {"name": "zero-shot", "learn": "zero_shot", "train": {"epochs": 0}},
        ],
    }
    every = jobs.expand(
        recipe.from_values(values, where="here"), data=eleven, output=tmp_path / "out"
    )
    assert [job.task for job in every] == ["dtd 1", "dtd 1", "dtd 2", "dtd 2"]
    searched, learned = estimate.count(every[2:3]), estimate.count(every[3:4])
    assert estimate.total(searched).both == 6 + (6 + 2 * 16)  # learning, then the two levels
    assert estimate.total(learned).both == 0
    store = Store(tmp_path / "out")
    report = runner.run(every[:1], store)
    assert not report.failed and len(report.done) == 1
    record = store.read(every[0].id)
    assert record["command"] == "search" and record["search"]["alpha_data"] == "val"
    assert set(record["search"]["found"]) == {"image", "text"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learn": "linear"}, ("either `learn` or `combine` or `search`",)),
        ({"safeguard": True}, ("for methods that combine",)),
        ({"search_train": {"epoch": 1}}, ("methods.0", "'epoch'")),
        ({"search": "clip_dlp"}, ("methods.0", "clip_dpl")),
    ],
)
def test_a_wrong_search_names_the_key(changes, words, refused):
    from vprompt.bench import recipe

    method = {"name": "x", "search": "clip_dpl", **changes}
    with refused(*words):
        read = recipe.from_values(
            {"name": "x", "tasks": ["a"], "methods": [method]}, where="The recipe"
        )
        recipe.check(read, where="The recipe")
