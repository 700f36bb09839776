"""The lists in docs/model-lists.md are what the libraries' own names give."""

import importlib.metadata
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "model-lists.md").read_text(encoding="utf-8")
# One family of each answer, and a small model of it.
TRIED = {
    "vision_transformer": "test_vit",
    "deit": "deit_tiny_distilled_patch16_224",
    "eva": "eva02_tiny_patch14_224",
    "vitamin": "vitamin_small_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "naflexvit": "naflexvit_base_patch16_gap",
    "hiera": "hiera_tiny_224",
    "resnet": "test_resnet",
}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "benchmarks" / "model_lists.py"))


def test_every_family_of_timm_stands_in_the_list(script):
    for family in script["families"]():
        assert f"| `{family}` |" in PAGE, "run: python -m benchmarks model_lists"


@pytest.mark.parametrize("family", TRIED)
def test_a_family_s_answer_is_the_one_that_the_list_gives(script, family):
    kind, reason = script["answer"](family, TRIED[family])
    assert f"| {kind} | {reason or 'accepted'} |" in PAGE


def test_every_config_of_open_clip_is_accepted_or_refused_in_a_sentence(script):
    import open_clip

    names = open_clip.list_models()
    cheap = [
        n for n in names if not open_clip.get_model_config(n)["vision_cfg"].get("timm_model_name")
    ]
    assert importlib.metadata.version("open_clip_torch") in PAGE
    for name in cheap:
        answer = script["open_clip_answer"](name) or "accepted"
        [line] = [line for line in PAGE.splitlines() if f"`{name}`" in line]
        assert line.startswith(f"| {answer} |")
