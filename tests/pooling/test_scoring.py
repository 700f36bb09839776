"""Scoring: metrics get what they name, from a pool or from the caller, or say what is missing."""

import numpy as np
import pytest
import torch


def known(count=30, width=6):
    randomness = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    features = torch.randn(count, width, generator=randomness) + 2 * torch.eye(3, width)[labels]
    return {"features": features, "labels": labels}


def test_a_metric_is_computed_from_arrays_by_name_and_with_settings():
    from vprompt.pooling import scoring

    arrays = {name: value.numpy() for name, value in known().items()}
    found = scoring.compute("knn(neighbours=3)", **arrays)
    assert found == scoring.compute("knn(neighbours=3)", **known())
    assert found != scoring.compute("knn", **known())


def test_what_a_metric_has_no_use_for_is_left_aside():
    from vprompt.pooling import scoring

    more = {**known(), "tokens": torch.ones(2, 3), "source_probabilities": torch.ones(30, 1)}
    assert scoring.compute("hscore", **more) == scoring.compute("hscore", **known())


def test_needs_are_the_names_before_the_star():
    from vprompt.pooling import scoring

    assert scoring.needs("hscore") == ("features", "labels")
    assert scoring.needs("leep") == ("source_probabilities", "labels")
    assert scoring.needs("prompt_cosine(similarity=mean)") == ("tokens", "target_tokens")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"feature": torch.ones(30, 6)}, ["computed from 'feature'", "Did you mean 'features'"]),
        ({"labels": torch.zeros(29).long()}, ["29 labels, 30 features"]),
        ({"labels": torch.zeros(30)}, ["labels are whole numbers", "float32"]),
        ({"labels": torch.zeros(30, 1).long()}, ["one per image", "30, 1"]),
        ({"features": torch.ones(30)}, ["features is a matrix of real numbers", "30"]),
        ({"features": torch.ones(30, 6).long()}, ["features is a matrix", "int64"]),
        ({"features": np.full((30, 6), np.inf)}, ["features holds values that are not finite"]),
    ],
)
def test_inputs_that_cannot_be_are_refused(change, words, refused):
    from vprompt.pooling import scoring

    with refused(*words):
        scoring.compute("hscore", **{**known(), **change})


def test_an_input_that_is_missing_is_named(refused):
    from vprompt.pooling import scoring

    with refused("leep needs source_probabilities, what the source's own head says"):
        scoring.compute("leep", **known())


def test_a_value_that_theory_forbids_is_an_error(monkeypatch, refused):
    from vprompt.metrics import knn
    from vprompt.pooling import scoring

    monkeypatch.setattr(knn, "RANGE", (0.0, 0.1))
    with refused("knn came out as", r"outside \[0, 0.1\]"):
        scoring.compute("knn", **known())


def test_a_ranking_puts_the_best_first_and_says_why_others_have_no_place():
    from vprompt.pooling import scoring

    noise = {**known(), "features": torch.randn(30, 6, generator=torch.Generator().manual_seed(1))}
    broken = {**known(), "features": torch.full((30, 6), float("nan"))}
    found = scoring.rank("hscore", {"noise": noise, "broken": broken, "good": known()})
    assert [name for name, _ in found.ranked] == ["good", "noise"]
    assert found.missing.keys() == {"broken"} and "not finite" in found.missing["broken"]
    assert found.seconds > 0


def test_metrics_that_want_different_prompts_on_the_target_are_computed_apart(refused):
    from vprompt.pooling import scoring

    assert scoring.plan_of(["hscore", "leep"]).target_epochs == 0
    assert scoring.plan_of(["hscore", "prompt_cosine"]).target_epochs == 5
    with refused(r"\[2, 5\] epochs", "one at a time"):
        scoring.plan_of(["prompt_cosine", "prompt_cosine(epochs=2)"])


def test_classes_with_one_image_are_told():
    from vprompt.pooling.scoring import rare_classes

    assert rare_classes(torch.tensor([0, 0, 1, 1])) == []
    assert "1 class has one image" in rare_classes(torch.tensor([0, 0, 1]))[0]
    assert "2 classes have one image" in rare_classes(torch.tensor([0, 2]))[0]


def test_the_documents_name_every_metric_and_what_it_needs():
    from pathlib import Path

    from vprompt.core import registry
    from vprompt.pooling import scoring

    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) == set(registry.names("metrics"))
    for metric, row in rows.items():
        assert ("source data" in row) == bool(scoring.SOURCE_DATA & set(scoring.needs(metric)))
        assert ("source prob" in row) == ("source_probabilities" in scoring.needs(metric))


# The best single source, by any metric


def make_evidence(**more):
    from vprompt.pooling.evidence import Evidence

    features, labels = known()["features"], known()["labels"]
    return Evidence(
        names=("plain", "turned"),
        features=torch.stack([features, -features]),
        gradients=torch.zeros(2, 0, 6),
        labels=labels,
        plain=features,
        **more,
    )


def test_best_takes_a_metric_of_heads_or_prompts():
    from vprompt.transfer import best

    sure = torch.nn.functional.one_hot(known()["labels"]).double()
    evidence = make_evidence(
        probabilities=(torch.full((30, 2), 0.5).double(), sure),
        prompts=torch.stack([torch.ones(2, 6), -torch.ones(2, 6)]),
        target=-torch.ones(2, 6),
    )
    for metric in ("leep", "nce", "prompt_cosine"):
        assert best.weigh(evidence, metric=metric).weights.tolist() == [0, 1]
    assert best.plan(metric="prompt_cosine(epochs=2)").target_epochs == 2
    turned = evidence.select([1, 0])
    assert best.weigh(turned, metric="leep").weights.tolist() == [1, 0]


def test_best_refuses_a_metric_of_images_that_a_pool_does_not_hold(refused):
    from vprompt.transfer import best

    with refused("otce needs the sources' own images"):
        best.plan(metric="otce")


# From a pool


@pytest.fixture
def write_pool(tiny, tmp_path):
    """Return a function that writes prompts of different lengths as artefacts, without training."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt, place

    def write(tasks):
        randomness = torch.Generator().manual_seed(0)
        for length, (name, task) in enumerate(tasks.items(), start=2):
            tokens = torch.randn(length, tiny.dim, generator=randomness)
            prompt = Prompt(tokens, place(length, tiny.depth, deep=False))
            weight = torch.randn(length, tiny.feature_dim, generator=randomness)
            classes = tuple("abcdefgh"[:length])
            config = make_config(tiny, prompt, classes, task={"name": task})
            head = Head(weight, torch.zeros(length))
            made = Artifact(prompt, head, torch.zeros(tiny.feature_dim), config)
            save_artifact(made, tmp_path / "pool" / name)
        return tmp_path / "pool"

    return write


def folder_task(root, name, count=8):
    from PIL import Image

    rng = np.random.default_rng(len(name))
    for label in ("left", "right"):
        for index in range(count):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            pixels[:, : 4 if label == "left" else 8] //= 4
            path = root / name / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root / name


def test_every_metric_finds_what_it_needs_in_a_pool(tiny, write_pool, tmp_path):
    from vprompt import score
    from vprompt.core import registry

    pool = write_pool({"one": "sides", "two": "elsewhere", "three": "../sides"})
    target = folder_task(tmp_path / "data", "target")
    folder_task(tmp_path / "data", "sides")
    found = score(
        str(target),
        pool=pool,
        model=tiny,
        metric=registry.names("metrics"),
        source_data=tmp_path / "data",
    )
    assert set(found) == set(registry.names("metrics"))
    for metric, scores in found.items():
        ranked = {name for name, _ in scores.ranked}
        if metric == "otce":  # the other two have no images there, or lead out of the folder
            assert ranked == {"one"} and "needs source data" in scores.missing["two"]
        elif metric in ("leep", "nce", "prompt_cosine"):
            assert ranked == {"one", "two", "three"}
        else:
            assert ranked == {"one", "two", "three", "(no prompt)"}


def test_leep_in_a_pool_is_that_of_the_source_s_head_on_the_target(tiny, write_pool, tmp_path):
    from vprompt import extract, load_artifact, open_task, score
    from vprompt.pooling import scoring

    pool = write_pool({"one": "sides"})
    target = folder_task(tmp_path / "data", "target")
    [(name, found)] = score(str(target), pool=pool, model=tiny, metric="leep")
    source, task = load_artifact(pool / "one"), open_task(str(target))
    examples = task.examples(task.train, tiny.data_config)
    [(pixels, labels)] = examples.batches(len(examples))
    with torch.no_grad():
        features = extract(tiny, tiny.normalise(pixels), source.prompt)
        theta = torch.softmax(features @ source.head.weight.T + source.head.bias, 1)
    expected = scoring.compute("leep", source_probabilities=theta, labels=labels)
    assert name == "one" and found == pytest.approx(expected, rel=1e-3)
