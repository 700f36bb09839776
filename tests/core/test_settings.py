"""Settings: declared once, called by name, checked when they are typed, old names understood."""

import inspect
from typing import Annotated, ClassVar

import pytest
from pydantic import Field

from vprompt.core.settings import OUTPUT, Flag, Settings, takes
from vprompt.verbs import CombineSettings, LearnSettings, ScoreSettings, SearchSettings

VERBS = [LearnSettings, CombineSettings, SearchSettings, ScoreSettings]


class Colour(Settings):
    """Settings of a function."""

    OLD: ClassVar = {"hue": "tone"}

    tone: Annotated[str, Flag("Which one.", OUTPUT)] = "red"
    depth: Annotated[int, Field(ge=0)] = 3
    weights: list[float] | None = None


@takes(Colour)
def paint(wall: str, settings: Colour) -> tuple[str, str, int]:
    """Paint a wall."""
    return wall, settings.tone, settings.depth


def test_a_function_is_called_with_the_fields_of_its_settings_or_with_a_value():
    assert paint("north", depth=4) == ("north", "red", 4)
    assert paint("north", Colour(tone="blue")) == paint(wall="north", tone="blue")
    assert list(inspect.signature(paint).parameters) == ["wall", "tone", "depth", "weights"]
    assert inspect.signature(paint).parameters["depth"].default == 3
    assert paint.__doc__.startswith("Paint a wall.")


def test_what_is_no_setting_or_is_missing_is_a_type_error_as_of_any_function():
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        paint("north", colour="red")
    with pytest.raises(TypeError, match="missing a required argument: 'wall'"):
        paint(depth=1)


def test_a_wrong_name_is_answered_with_the_right_one():
    import vprompt

    with pytest.raises(TypeError, match=r"'epochs': write config=\{'epochs': \.\.\.\}"):
        vprompt.combine("digits", pool=".", epochs=0)
    with pytest.raises(TypeError, match="'img_size': did you mean 'image_size'"):
        vprompt.learn("digits", img_size=32)


@pytest.mark.parametrize("given, wanted", [({"tone": 3}, "--tone"), ({"depth": -1}, "depth")])
def test_a_wrong_value_is_one_sentence_that_names_the_setting_as_it_is_typed(given, wanted):
    from vprompt import VPromptError

    with pytest.raises(VPromptError, match=f"^{wanted}: .*, but got") as failed:
        paint("north", **given)
    assert "\n" not in str(failed.value)


def test_an_old_name_is_understood_with_a_note_and_never_beside_the_new():
    from vprompt import VPromptError

    with pytest.warns(DeprecationWarning, match="hue is tone now"):
        assert paint("north", hue="blue") == ("north", "blue", 3)
    with pytest.raises(VPromptError, match="both are given"):
        paint("north", hue="blue", tone="red")


def test_a_method_s_settings_are_those_of_the_registry():
    from vprompt.core import registry
    from vprompt.transfer.hgprompt import HGPrompt

    assert list(registry.settings("transfer", "hgprompt")) == list(HGPrompt.model_fields)
    bound = registry.build("transfer", "hgprompt(lambda_=2, members=3)").keywords
    assert bound == {"lambda_": 2.0, "members": 3}


def test_combine_still_knows_its_pool_by_the_old_name():
    from vprompt import VPromptError, combine

    with (
        pytest.warns(DeprecationWarning, match="pool_folder is pool now"),
        pytest.raises(VPromptError, match="No transfer method called 'nothing'"),
    ):
        combine("digits", pool_folder="nowhere", method="nothing")


def test_a_task_still_knows_the_seed_of_its_cut_by_the_old_name():
    from vprompt import open_task

    with pytest.warns(DeprecationWarning, match="seed is split_seed now"):
        old = open_task("digits(seed=3)")
    assert old.train.labels == open_task("digits", split_seed=3).train.labels
    assert old.train.labels != open_task("digits").train.labels
    assert old.facts["split_seed"] == 3


def test_a_task_of_fixed_splits_has_no_seed_of_a_cut(tmp_path):
    from vprompt import VPromptError, open_task

    with pytest.raises(VPromptError, match="comes in splits of its own"):
        open_task(f"vtab(root='{tmp_path}', name=cifar)", split_seed=1)


@pytest.mark.parametrize("settings", VERBS, ids=lambda each: each.__name__)
def test_python_and_command_line_know_the_same_settings(settings):
    """Whatever has a flag is an option of the verb under its own name, and nothing is left out."""
    from vprompt import flow, searching
    from vprompt.cli import combine, learn, score, search
    from vprompt.learning.train_config import TrainConfig

    verb = settings.__name__.removesuffix("Settings").lower()
    called = getattr(searching if verb == "search" else flow, verb)
    assert list(inspect.signature(called).parameters) == ["task", *settings.model_fields]
    command = {"combine": combine, "learn": learn, "score": score, "search": search}[verb]
    options = inspect.signature(getattr(command, verb)).parameters
    flagged = {name for name in settings.model_fields if settings.flag(name)}
    assert flagged <= set(options)
    trained = {name for name in TrainConfig.model_fields if TrainConfig.flag(name)}
    assert trained <= set(options) or verb == "score"


def test_a_sum_is_described_once_for_combine_recipe_and_benchmark():
    from vprompt.bench.recipe import MethodEntry
    from vprompt.pooling.settings import SUM, Sum

    assert issubclass(MethodEntry, Sum) and issubclass(CombineSettings, Sum)
    entry = MethodEntry(name="x", combine="uniform", move_scale=2, form="sum")
    assert entry.options == {"move_scale": 2.0, "form": "sum"} and set(entry.options) <= set(SUM)


def test_what_predict_and_evaluate_can_be_told_is_said_once():
    import inspect

    from vprompt.inference import evaluation, prediction
    from vprompt.verbs import EvaluateSettings, PredictSettings, TableSettings

    for function, settings in (
        (prediction.predict, PredictSettings),
        (prediction.predict_table, TableSettings),
        (evaluation.evaluate, EvaluateSettings),
    ):
        _, *told = inspect.signature(function).parameters
        assert set(told) == set(settings.model_fields)
