"""Recipe: a combination as a file, checked before anything runs, and run again from its card."""

import json
from pathlib import Path

import pytest
import torch
import yaml


@pytest.fixture
def folder(tmp_path, tiny, pool):
    """A pool of three artefacts on disk."""
    from vprompt.artifacts import artifact
    from vprompt.models.heads import Head

    for name in ("apples", "birds", "cars"):
        config = artifact.make_config(tiny, pool[name], ("x", "y"), prompt_init=None)
        made = artifact.Artifact(
            pool[name], Head(torch.zeros(2, 64), torch.zeros(2)), torch.zeros(64), config, "card"
        )
        artifact.save(made, tmp_path / "pool" / name)
    return tmp_path / "pool"


@pytest.fixture
def write(tmp_path, folder):
    """Return a function that writes a recipe, sound unless it is told otherwise."""

    def make(**changes):
        values = {
            "merge_method": "hgprompt(bootstrap=0)",
            "models": [{"model": str(folder)}],
            "target": {"data": "digits", "shots": 3},
            "train": {"epochs": 1},
            **changes,
        }
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return path

    return make


def test_a_recipe_is_the_arguments_of_combine(write, folder):
    from vprompt.pooling import recipe

    path = write(parameters={"scale": "none", "score": "trace_ratio"})
    arguments = recipe.read(path).arguments()
    assert arguments["method"] == "hgprompt(bootstrap=0, score=trace_ratio)"
    assert arguments["scale"] == "none" and arguments["shots"] == 3
    assert arguments["pool"] == [str(folder)]
    assert arguments["config"] == {"epochs": 1}


def test_weights_of_models_are_those_of_linear_in_the_order_of_names(write, folder):
    from vprompt.pooling import recipe

    models = [
        {"model": str(folder / name), "parameters": {"weight": weight}}
        for name, weight in (("cars", 0.7), ("apples", 0.3))
    ]
    found = recipe.read(write(merge_method="linear", models=models)).arguments()
    assert found["method"] == "linear(weights=[0.3, 0.7])"


def test_a_list_of_weights_is_a_gradient_over_the_layers(write, tmp_path, tiny, deep_pool):
    from vprompt import flow
    from vprompt.artifacts import artifact
    from vprompt.models.heads import Head
    from vprompt.pooling import recipe

    given = {"birds": [0.1, 0.9], "apples": [1.0, 0.0, 1.0], "cars": 0.5}
    for name in given:
        config = artifact.make_config(tiny, deep_pool[name], ("x", "y"), prompt_init=None)
        head = Head(torch.zeros(2, 64), torch.zeros(2))
        made = artifact.Artifact(deep_pool[name], head, torch.zeros(64), config, "card")
        artifact.save(made, tmp_path / "deep" / name)
    models = [
        {"model": str(tmp_path / "deep" / name), "parameters": {"weight": weight}}
        for name, weight in given.items()
    ]
    path = write(merge_method="linear", models=models, parameters={"align": "none"})
    outcome = flow.combine(**{**recipe.read(path).arguments(), "model": tiny}, test=False)
    found = {s["name"]: s for s in outcome.run["transfer"]["sources"]}
    last = tiny.depth - 1
    wanted = {name: [] for name in given}
    for block in range(tiny.depth):
        t = block / last
        raw = {
            "birds": 0.1 + 0.8 * t,
            "apples": 1 - 2 * t if t <= 0.5 else 2 * t - 1,
            "cars": 0.5,
        }
        for name, value in raw.items():
            wanted[name].append(value / sum(raw.values()))
    for name, rows in wanted.items():
        assert found[name]["layer_weights"] == pytest.approx(rows)
        assert found[name]["weight"] == pytest.approx(sum(rows) / tiny.depth)


@pytest.mark.parametrize(
    "weights, words",
    [
        ([[1.0, 0.0], 0.5, 0.5], ("enter one block", "deep prompts")),
        ([[1.0, -1.0], [-1.0, 1.0], 0.0], ("sum to 0 in block 0",)),
        ([[], 1.0, 1.0], ("a list of at least one",)),
    ],
)
def test_gradients_over_layers_that_mean_nothing_are_refused(folder, tiny, weights, words, refused):
    from vprompt import flow

    with refused(*words):
        flow.combine(
            "digits",
            pool=folder,
            method=f"linear(weights={weights})",
            model=tiny,
            shots=2,
            test=False,
        )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"merge_metod": "hgprompt"}, ("merge_metod", "merge_method")),
        ({"target": None}, ("target", "required")),
        ({"models": []}, ("models", "at least 1")),
        ({"target": {"data": "digits", "shots": 0}}, ("target.shots", "greater than")),
        ({"merge_method": "hgpromt"}, ("hgpromt", "Did you mean 'hgprompt'")),
        ({"parameters": {"scor": 1}}, ("no setting 'scor'", "Did you mean 'score'")),
        ({"train": {"epoch": 3}}, ("no training setting 'epoch'", "epochs")),
        ({"train": {"lr": -1}}, ("--lr", "greater than 0")),
        ({"models": [{"model": "x", "parameters": {"weight": 1}}]}, ("merge_method: linear",)),
        ({"models": [{"model": "x", "parameters": {"density": 1}}]}, ("density", "weight")),
        ({"models": [{"model": "nowhere", "digest": "abc"}]}, ("nowhere",)),
    ],
)
def test_everything_is_checked_before_anything_runs(write, changes, words, refused):
    from vprompt.pooling import recipe

    with refused(*words):
        recipe.read(write(**changes)).arguments()


def test_another_source_under_the_same_name_is_refused(write, folder, refused):
    from vprompt.artifacts import artifact
    from vprompt.pooling import recipe

    digest = artifact.load(folder / "cars").digest
    sound = [{"model": str(folder / "cars"), "digest": digest}]
    recipe.read(write(models=sound)).arguments()
    with refused("is not the one of the recipe", digest):
        recipe.read(write(models=[{"model": str(folder / "birds"), "digest": digest}])).arguments()


@pytest.mark.parametrize(
    "text",
    ["[", "a: [", "\x00", "!!python/object:os.system {}", "a: 2020-99-99", "a: " + "9" * 5000],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, refused):
    from vprompt.pooling import recipe

    path = tmp_path / "recipe.yml"
    path.write_text(text)
    with refused("recipe.yml"):
        recipe.read(path)
    with refused("No recipe at"):
        recipe.read(tmp_path / "none.yml")


def test_the_card_holds_a_recipe_that_makes_the_same_artefact_again(write, tmp_path, tiny):
    from vprompt import flow
    from vprompt.pooling import recipe

    first = flow.combine(
        **{**recipe.read(write()).arguments(), "model": tiny}, output=tmp_path / "one", test=False
    )
    again = recipe.read(tmp_path / "one").arguments()
    second = flow.combine(**{**again, "model": tiny}, test=False)
    assert first.artifact.config["method"] == second.artifact.config["method"]
    assert torch.equal(first.artifact.state["tokens"], second.artifact.state["tokens"])
    assert torch.equal(first.artifact.head.weight, second.artifact.head.weight)
    card = (tmp_path / "one" / "README.md").read_text()
    block = card.split("```yaml\n")[1].split("```")[0]
    shown = yaml.safe_load(block)
    places = [entry["model"] for entry in first.run["replay"]["models"]]
    assert [entry.pop("model") for entry in shown["models"]] == [Path(p).name for p in places]
    assert not any(place in card for place in places)  # a card can be published as it is
    models = [{"digest": entry["digest"]} for entry in first.run["replay"]["models"]]
    assert shown == {**first.run["replay"], "models": models}
    assert json.loads(json.dumps(first.run["replay"])) == first.run["replay"]


def test_other_training_images_than_the_recipes_are_refused(write, tmp_path, tiny, refused):
    from vprompt import flow
    from vprompt.pooling import recipe

    outcome = flow.combine(
        **{**recipe.read(write()).arguments(), "model": tiny}, output=tmp_path / "one", test=False
    )
    target = outcome.run["replay"]["target"]
    assert target["digest"] == outcome.run["task"]["splits"]["train"]["digest"]
    again = recipe.read(tmp_path / "one").arguments()
    assert again["train_digest"] == target["digest"]
    with refused("not those of the recipe", target["digest"], "name the TASK", "leave `digest`"):
        flow.combine(**{**again, "model": tiny, "draw": 1}, test=False)
    # A digest of other images in a file is refused in the same way, before any source is passed.
    with refused("not those of the recipe", "sha256:abc"):
        path = write(target={"data": "digits", "shots": 3, "digest": "sha256:abc"})
        flow.combine(**{**recipe.read(path).arguments(), "model": tiny}, test=False)


@pytest.mark.parametrize("given", [{"task": "elpv"}, {"shots": 5}, {"draw": 2}, {"model": "tiny"}])
def test_whoever_names_other_images_means_them(write, given):
    from vprompt.pooling import recipe

    path = write(target={"data": "digits", "shots": 3, "digest": "sha256:abc"})
    assert recipe.read(path).arguments(method="uniform")["train_digest"] == "sha256:abc"
    found = recipe.read(path).arguments(**given)
    assert found["train_digest"] is None
    assert all(found[key] == value for key, value in given.items())


def test_a_learned_artefact_holds_no_recipe_to_run_again(folder, refused):
    from vprompt.pooling import recipe

    with refused("was not combined"):
        recipe.read(folder / "cars")


def test_a_stranger_does_not_choose_the_backbone(write, tmp_path, tiny):
    from vprompt import flow
    from vprompt.pooling import recipe

    flow.combine(
        **{**recipe.read(write()).arguments(), "model": tiny}, output=tmp_path / "one", test=False
    )
    assert recipe.read(tmp_path / "one").arguments()["model"] is None
