"""Ensemble: several prompts side by side under one head, saved and predicted as one artefact."""

import functools
import shutil

import pytest
import torch


@pytest.fixture
def prompts(tiny, generator):
    """Three deep prompts of one placement."""
    from vprompt.prompts.prompt import Prompt, place

    blocks = place(2, tiny.depth, deep=True)
    return [
        Prompt(0.3 * torch.randn(len(blocks), tiny.dim, generator=generator), blocks, False)
        for _ in range(3)
    ]


@pytest.mark.parametrize("plain", [True, False])
def test_features_are_those_of_every_prompt_side_by_side(tiny, prompts, images, plain):
    from vprompt.learning.ensemble import Ensemble
    from vprompt.models.backbone import extract

    made = Ensemble(tiny, prompts, plain=plain)
    expected = [extract(tiny, images, prompt) for prompt in prompts]
    if plain:
        expected.insert(0, extract(tiny, images))
    assert made.feature_dim == len(expected) * tiny.feature_dim
    torch.testing.assert_close(made.features(images), torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


def test_members_are_centred_and_brought_to_one_size(tiny, prompts, images, generator):
    from vprompt.learning.ensemble import Ensemble

    made = Ensemble(tiny, prompts[:2], plain=False)
    parts = [5 + 3 * torch.randn(20, 64, generator=generator), torch.randn(20, 64)]
    made.calibrate(parts)
    for part in made.join(parts).split(64, 1):
        assert float(part.mean(0).abs().max()) < 1e-5
        assert float(part.norm(dim=1).mean()) == pytest.approx(1.0, abs=1e-5)


def test_every_prompt_gets_its_gradient(tiny, prompts, images):
    from vprompt.learning.ensemble import Ensemble

    made = Ensemble(tiny, prompts, plain=True)
    made.features(images).square().sum().backward()
    assert bool((made.tokens.grad.flatten(1).norm(dim=1) > 0).all())


def test_prompts_of_different_placement_are_refused(tiny, prompts, refused):
    from dataclasses import replace

    from vprompt.learning.ensemble import Ensemble

    with refused("one placement"):
        Ensemble(tiny, [prompts[0], replace(prompts[1], persist=True)], plain=True)


def test_an_ensemble_by_itself_needs_a_pool(tiny, refused):
    from vprompt.core import registry

    with refused("--form ensemble"):
        registry.build("adapters", "ensemble")(tiny)


# In an artefact


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """Return a function that makes a pool and an ensemble of it, once for all tests."""
    from vprompt import flow
    from vprompt.learning.train_config import TrainConfig

    @functools.cache
    def make():
        folder = tmp_path_factory.mktemp("ensemble")
        config = TrainConfig(epochs=3, keep="last", precision="fp32")
        for seed in range(2):
            flow.learn(
                f"dsprites(split_seed={seed}, train=64, val=32, test=0)",
                model=tiny,
                method="vpt(num_virtual_tokens=2)",
                config=config,
                output=folder / "pool" / f"source{seed}",
            )
        return folder, flow.combine(
            "digits",
            pool=folder / "pool",
            model=tiny,
            shots=4,
            form="ensemble",
            move_scale=2.0,  # so that an ensemble is made of it, whatever held-out images say
            output=folder / "made",
        )

    return make


@pytest.fixture
def artefact(tmp_path, made):
    """An ensemble that `combine` made for digits, and its test accuracy."""
    folder, outcome = made()
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return outcome


def test_what_is_saved_predicts_what_was_measured(artefact, tmp_path, tiny):
    from vprompt.inference.evaluation import evaluate

    found = evaluate("digits", artifact=tmp_path / "made", model=tiny)
    assert found["learned"].acc1 == pytest.approx(artefact.test["result, untuned"].acc1, abs=0.003)
    assert artefact.run["form"] == "ensemble"
    assert artefact.run["moves"]["members"][0] == "no prompt"


def test_it_is_served_beside_prompts_of_another_width(artefact, tmp_path, tiny, refused):
    from vprompt.inference import serving

    places = [str(tmp_path / "made"), str(tmp_path / "pool" / "source0")]
    server = serving.serve(places, model=tiny)
    images = torch.randn(4, 3, 32, 32).clamp(-1, 1)
    names = [places[0], places[1], places[0], places[1]]
    logits = server.logits(images, names, precision="fp32")
    assert [len(row) for row in logits] == [10, 16, 10, 16]
    alone = server.logits(images[:1], places[:1], precision="fp32")
    torch.testing.assert_close(logits[0], alone[0], rtol=1e-3, atol=1e-3)
    with refused("64, 192"):
        server.features(images, names)


def test_a_head_of_another_width_is_damage(artefact, tmp_path, refused):
    import json

    from vprompt.artifacts import artifact

    path = tmp_path / "made" / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["format_version"] == 3
    del config["digests"]  # as a stranger's, who made it so
    path.write_text(json.dumps({**config, "head_features": 7}))
    with refused("head.weight"):
        artifact.load(tmp_path / "made")
    path.write_text(json.dumps({**config, "head_features": -1}))
    with refused("head_features is not a number"):
        artifact.load(tmp_path / "made")
