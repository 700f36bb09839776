"""Recipe: a combination as a file, in the keys that users of mergekit know.

    merge_method: hgprompt(preset=robust)
    base_model: demo
    models:
      - model: pools/demo            # a pool, or one artefact
      - model: prompts/mine
    target: {data: elpv, shots: 25}
    parameters: {scale: ln}          # of the sum; other keys are settings of the method
    train: {epochs: 5}

`merge_method: linear` takes its weights from `parameters: {weight: 0.6}` of each model, which then
is one artefact, on this disk or `hf-hub:user/name`; a list such as `[0.1, 0.9]` is a gradient over
layers. Every combined artefact holds its own recipe: give its folder in place of a file to run it
again on the same files.
"""

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vprompt.artifacts import artifact, hub
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.learning.train_config import TrainConfig, combining_defaults
from vprompt.pooling.mix import plan_of
from vprompt.pooling.settings import METHOD, SUM

_ALIASES = {"mean": "uniform"}  # mergekit's name
_FLOW = (*SUM, "include_self", "screen")  # what `parameters` say that is no method's setting
_LARGEST = 1 << 20
_SHOWN = 80  # characters of a value in an error


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Strict):
    """One source, or a pool of them; `digest` is checked where it is given."""

    model: str
    digest: str | None = None
    parameters: dict[str, float | list[float]] = Field(default_factory=dict)


class Target(_Strict):
    """The task that the sum is for, and how many of its images are drawn.

    `digest` is that of the drawn images and labels at the backbone's size, checked where given.
    """

    data: str | None
    split: Literal["train", "train800"] = "train"
    shots: int | None = Field(None, ge=1)
    draw: int = 0
    digest: str | None = None


class Recipe(_Strict):
    """What `combine` needs, as plain values."""

    merge_method: str = METHOD
    base_model: str | None = None
    models: list[Model] = Field(min_length=1)
    target: Target
    parameters: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32"] = "float32"

    def arguments(self, **given: Any) -> dict[str, Any]:
        """Return the arguments of `flow.combine`, every one of them checked.

        What is `given` goes first, also among the training settings of `config`; whoever names
        other images means them, so their digest is not held against the recipe's.
        """
        method = self._method()
        registry.build("transfer", method)
        plan = plan_of(method, **{k: v for k, v in self.parameters.items() if k in SUM})
        TrainConfig.of(self.train, combining_defaults(method, plan.form))
        if self.target.data is None:
            raise VPromptError(
                "The recipe names no data: it was made in Python for a Task. Write target.data."
            )
        for model in self.models:
            _check_digest(model)
        config = given.get("config", {})
        other = {"task", "shots", "draw", "model"} & set(given)
        return {
            "task": self.target.data,
            "pool": [model.model for model in self.models],
            "method": method,
            "model": self.base_model,
            "shots": self.target.shots,
            "draw": self.target.draw,
            "train_digest": None if other else self.target.digest,
            **{key: self.parameters[key] for key in _FLOW if key in self.parameters},
            **given,
            "config": config if isinstance(config, TrainConfig) else {**self.train, **config},
        }

    def _method(self) -> str:
        spec = registry.parse(_ALIASES.get(self.merge_method, self.merge_method))
        settings = {k: v for k, v in self.parameters.items() if k not in _FLOW}
        given = [model for model in self.models if model.parameters]
        if given:
            for model in given:
                if set(model.parameters) != {"weight"}:
                    raise VPromptError(
                        f"The model {model.model!r} has the parameters "
                        f"{sorted(model.parameters)}, but only `weight` is known."
                    )
            if spec.name != "linear" or len(given) < len(self.models):
                raise VPromptError(
                    "Weights of models are for `merge_method: linear`, and then every model needs "
                    "one. Other methods find them."
                )
                local = not hub.is_hub(model.model)
                if local and not (Path(model.model) / artifact.CONFIG).is_file():
                    raise VPromptError(
                        f"The model {model.model!r} has a weight, so it must be one artefact, but "
                        "it is none. Name the artefact's own folder."
                    )
            by_name = sorted(self.models, key=lambda model: hub.folder_of(model.model).name)
            settings["weights"] = [model.parameters["weight"] for model in by_name]
        return str(registry.Spec(spec.name, {**spec.settings, **settings}))


def read(path: Path | str) -> Recipe:
    """Read a YAML or JSON recipe, or the recipe of a combined artefact; check its form."""
    path = hub.folder_of(path)
    if path.is_dir():
        values: Any = artifact.read_config(path).get("recipe", {}).get("replay")
        if values is None:
            raise VPromptError(f"{path} was not combined, so it holds no recipe to run again.")
        # A stranger's file may say what to combine, not which code or weights to fetch for it.
        values = {**values, "base_model": None} if isinstance(values, dict) else values
    else:
        values = parse_file(path)
    _check_dialect(path, values)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        given = "" if first["type"] == "missing" else f", but got {_short(first['input'])}"
        raise VPromptError(
            f"The recipe {path} is wrong at {where}: {first['msg']}{given}. "
            f"It has the keys {', '.join(Recipe.model_fields)}."
        ) from None


def _check_dialect(path: Path, values: Any) -> None:
    """Name what a recipe of mergekit's own asks for, and what it would be here."""
    if not isinstance(values, dict):
        raise VPromptError(
            f"The recipe {path} is {_short(values)}, and not keys with values. It has the keys "
            f"{', '.join(Recipe.model_fields)}."
        )
    keys, methods = Recipe.model_fields, [*registry.names("transfer"), *_ALIASES]
    asked = [
        f"The key {_short(key)} is not known.{registry.suggest(str(key), keys, listed=False)}"
        for key in values
        if key not in keys
    ]
    method = values.get("merge_method", Recipe.model_fields["merge_method"].default)
    named = isinstance(method, str) and not registry.is_spec(method)
    if named and method.replace("-", "_") not in methods:
        asked.append(f"No merge_method {_short(method)}.{registry.suggest(method, methods)}")
    if asked:
        raise VPromptError(
            f"The recipe {path} cannot be followed. {' '.join(asked)} Prompts are added up whole: "
            f"list them under `models`, and name the images under `target`. A recipe has the keys "
            f"{', '.join(keys)}."
        )


def _short(value: Any) -> str:
    """Return a value as text that fits into a sentence."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def parse_file(path: Path) -> Any:
    """Read a small YAML or JSON file; what is in it is not checked."""
    if not path.is_file():
        raise VPromptError(f"No recipe at {path}. Give a .yml file or the folder of an artefact.")
    if path.stat().st_size > _LARGEST:
        raise VPromptError(f"The recipe {path} is larger than 1 MiB: that is no recipe.")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2020-99-99
        raise VPromptError(
            f"The recipe {path} cannot be read: {str(error).splitlines()[0]}."
        ) from None


def _check_digest(model: Model) -> None:
    if model.digest is None:
        return
    found = artifact.load(hub.folder_of(model.model)).digest
    if found != model.digest:
        raise VPromptError(
            f"The source {model.model} is not the one of the recipe: its digest is {found}, not "
            f"{model.digest}. Leave the digest out to combine it all the same."
        )
