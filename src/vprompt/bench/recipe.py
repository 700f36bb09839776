"""Recipe of a benchmark: tasks, methods, seeds and budget as a file, checked before anything runs.

    name: mini-vtab
    protocol: 200 training images, validation as large, test once
    backbone: {model: demo, image_size: 70}
    pools: [pools/demo]                     # the target's own prompts are left out
    seeds: [0, 1, 2]
    train: {epochs: 10}                     # the budget of every method
    tasks:
      - {name: cifar100, shots: 2, group: natural}
    methods:
      - {name: VPT-Deep, learn: vpt(num_virtual_tokens=10)}
      - {name: HGPrompt, combine: hgprompt, safeguard: false, train: {lr: 0.001}}

A task is a folder of `--data`, or else a built-in one such as `digits`, or what its `data` says;
there `{data}` stands for the folder of `--data` and `{seed}` for the run's seed, as it does in a
method. `each: {shots: [1, 4]}` in a task
makes one of every value, or of every combination, with `{shots}` filled into its texts. Where
`protocol` is a name of `vprompt list protocols`, every record says in which points the run departs
from it; any other text just stands above the table. With `selection: {grid: {lr: [0.001, 0.01]}}`
the training settings are chosen per task and method on validation images, then every seed is
trained on `train800val200`. With `sources`, a prompt of every task is learned first and is the pool
of the others. `search: dpl` searches lengths and learns a prompt of those.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.learning import ending
from vprompt.learning.train_config import TrainConfig, combining_defaults
from vprompt.pooling import recipe as recipes
from vprompt.pooling.mix import plan_of
from vprompt.pooling.settings import Sum
from vprompt.stages import training_defaults

SEED, DATA = "{seed}", "{data}"
Command = Literal["learn", "combine", "search"]
Side: TypeAlias = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneEntry(_Strict):
    """The frozen model, and its image size where it is not the model's own."""

    model: str = "demo"
    image_size: Side | tuple[Side, Side] | None = None  # of a square, or (height, width)


class TaskEntry(_Strict):
    """One target; `data` opens something else than the folder of that name, as `elpv` does."""

    name: str
    data: str | None = None
    shots: int | None = Field(None, ge=1)
    group: str | None = None
    exclude: list[str] = Field(default_factory=list)

    def at(self, data: Path | None, seed: int) -> "TaskEntry":
        """Return the entry with the folder of `--data` and a seed in what opens it."""
        text = self.data or ""
        if DATA in text and data is None:
            raise VPromptError(f"The task {self.name!r} needs the folder of its data: --data DIR.")
        made = text.replace(DATA, str(data)).replace(SEED, str(seed))
        return self.model_copy(update={"data": made})

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class MethodEntry(Sum):
    """One row of the table: a plug-in of `adapters/` or of `transfer/` with its settings.

    `search` is one that looks for lengths first; `train` is then about learning what it found, and
    `search_train` about the search.
    """

    name: str
    learn: str | None = None
    combine: str | None = None
    search: str | None = None
    search_train: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[float]] | None = None
    group: str | None = None
    anchor: str | list[str] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "MethodEntry":
        if sum(verb is not None for verb in (self.learn, self.combine, self.search)) != 1:
            raise ValueError("a method has either `learn` or `combine` or `search`")
        given = list(self.of_sum())
        if self.combine is None and given:
            raise ValueError(f"`{given[0]}` is for methods that combine")
        if self.search is None and self.search_train:
            raise ValueError("`search_train` is for methods that search")
        return self

    @property
    def anchors(self) -> list[str]:
        """Return the names that the method has in published tables."""
        if isinstance(self.anchor, list):
            return self.anchor
        return [self.anchor or self.name]

    @property
    def command(self) -> Command:
        """Which verb runs it."""
        if self.search is not None:
            return "search"
        return "combine" if self.learn is None else "learn"

    def spec(self, seed: int) -> str:
        """Return the plug-in with its settings, in canonical form."""
        text = self.learn or self.combine or self.search or ""
        return str(registry.parse(text.replace(SEED, str(seed))))

    @property
    def options(self) -> dict[str, Any]:
        """Return what is said about the sum of prompts, or about the search."""
        about = {"search_train": self.search_train_of()} if self.search is not None else {}
        return about | self.of_sum()

    def search_train_of(self) -> dict[str, Any]:
        """Return the training settings of the search: what it works best with, and its own."""
        return {**training_defaults(self.spec(0)), **self.search_train}


class Selection(_Strict):
    """Choose training settings on validation images, then train on `then` for every seed."""

    grid: dict[str, list[float]]
    then: Literal["train", "trainval"] = "trainval"
    seed: int | None = None


class Sources(_Strict):
    """The pool, learned first: one prompt for each of `tasks`, by default the recipe's."""

    learn: str
    tasks: list[TaskEntry] | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    train_on: Literal["train", "trainval"] = "trainval"
    seed: int = 0


class BenchRecipe(_Strict):
    """A whole benchmark as plain values."""

    name: str
    protocol: str = ""
    backbone: BackboneEntry = Field(default_factory=lambda: BackboneEntry())
    tasks: list[TaskEntry] = Field(min_length=1)
    methods: list[MethodEntry] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    shots: int | None = Field(None, ge=1)
    train: dict[str, Any] = Field(default_factory=dict)
    train_on: Literal["train", "trainval"] = "train"
    selection: Selection | None = None
    pools: list[str] = Field(default_factory=list)
    sources: Sources | None = None
    baseline: str | None = None
    allow_absent: bool = False
    skip_bad: bool = False

    @model_validator(mode="before")
    @classmethod
    def _each(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("tasks"), list):
            return values
        return {
            **values,
            "tasks": [made for task in values["tasks"] for made in _one_of_each(task)],
        }

    @model_validator(mode="after")
    def _unique(self) -> "BenchRecipe":
        named: dict[str, list[Any]] = {
            "tasks": [task.name for task in self.tasks],
            "methods": [method.name for method in self.methods],
            "seeds": list(self.seeds),
        }
        for what, names in named.items():
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{what}: {twice!r} is there twice")
        if self.baseline is not None and self.baseline not in {m.name for m in self.methods}:
            raise ValueError(f"baseline: no method is called {self.baseline!r}")
        return self

    def grid_of(self, method: MethodEntry) -> dict[str, list[float]]:
        """Return the settings to choose from for a method; none without a selection."""
        if self.selection is None:
            return {}
        return self.selection.grid if method.grid is None else method.grid

    def train_of(self, method: MethodEntry) -> dict[str, Any]:
        """Return a method's training settings: what it works best with, the budget, its own."""
        if method.command == "combine":
            spec = method.spec(0)
            form = plan_of(spec, **method.options).form
            return {**combining_defaults(spec, form), **self.train, **method.train}
        spec = method.spec(0)
        if method.command == "search":
            ask = registry.beside("adapters", spec, "learned_by")
            spec = "vpt" if ask is None else ask()
        return {**training_defaults(spec), **self.train, **method.train}

    def train_of_sources(self) -> dict[str, Any]:
        """Return the training settings of the pool's prompts."""
        if self.sources is None:
            return {}
        base = training_defaults(self.sources.learn)
        return {**base, **self.train, **self.sources.train}


def _one_of_each(task: Any) -> list[Any]:
    """Return a task for every combination of the values in its `each`, filled into its texts."""
    if not isinstance(task, dict) or not isinstance(task.get("each"), dict):
        return [task]
    plain = {key: value for key, value in task.items() if key != "each"}
    found = []
    for values in itertools.product(*task["each"].values()):
        made = dict(plain)
        for name, value in zip(task["each"], values, strict=True):
            made = {
                key: text.replace(f"{{{name}}}", str(value)) if isinstance(text, str) else text
                for key, text in made.items()
            }
        found.append(made)
    return found


def read(path: Path | str) -> BenchRecipe:
    """Read a YAML or JSON recipe and check all of it; an error names the key that is wrong."""
    path = Path(path)
    recipe = from_values(recipes.parse_file(path), where=f"The recipe {path}")
    check(recipe, where=f"The recipe {path}")
    return recipe


def from_values(values: Any, *, where: str) -> BenchRecipe:
    """Read plain values; keys and types are checked, methods are not."""
    try:
        return BenchRecipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        got = json.dumps(first["input"], default=str)
        got = f", but got {got}" if len(got) < 200 and first["type"] != "missing" else ""
        reason = first["msg"].removeprefix("Value error, ")
        known = ", ".join(BenchRecipe.model_fields)
        raise VPromptError(
            f"{where} is wrong at {place}: {reason}{got}. A recipe has the keys {known}."
        ) from None


def check(recipe: BenchRecipe, *, where: str) -> None:
    """Check every method, its settings, its training settings and its grid."""
    if "seed" in {*recipe.train, *(key for method in recipe.methods for key in method.train)}:
        raise VPromptError(f"{where} is wrong at train.seed: write `seeds: [0, 1, 2]` instead.")
    for index, method in enumerate(recipe.methods):
        try:
            _check_method(recipe, method)
        except VPromptError as error:
            raise VPromptError(
                f"{where} is wrong at methods.{index} ({method.name}): {error}"
            ) from None
    if recipe.sources is not None:
        try:
            registry.build("adapters", recipe.sources.learn)
            train = TrainConfig.checked(recipe.train_of_sources())
            ending.check_patience(train, recipe.sources.train_on == "train")
        except VPromptError as error:
            raise VPromptError(f"{where} is wrong at sources: {error}") from None


def _check_method(recipe: BenchRecipe, method: MethodEntry) -> None:
    spec = method.spec(recipe.seeds[0])
    if method.command != "combine":
        registry.build("adapters", spec)
        if method.command == "search":
            TrainConfig.checked(method.search_train_of())
            if recipe.train_on != "train" or recipe.selection is not None:
                raise VPromptError("It searches, which goes with `train_on: train` alone.")
    else:
        registry.build("transfer", spec)
        plan_of(spec, **method.options)
        if not recipe.pools and recipe.sources is None:
            raise VPromptError("It combines, but the recipe names neither `pools` nor `sources`.")
    if method.grid is not None and recipe.selection is None:
        raise VPromptError("It has a `grid`, but the recipe has no `selection` to choose from it.")
    train = recipe.train_of(method)
    _check_patience(recipe, train)
    for key, values in recipe.grid_of(method).items():
        if not values:
            raise VPromptError(f"The grid names no values for {key!r}.")
        for value in values:
            _check_patience(recipe, {**train, key: value})


def _check_patience(recipe: BenchRecipe, train: dict[str, Any]) -> None:
    """Check training settings; with `trainval` nothing is left that patience could be lost over."""
    selection = recipe.selection
    last = recipe.train_on if selection is None else selection.then
    ending.check_patience(TrainConfig.checked(train), last == "train")


def check_known(what: str, asked: Iterable[Any], known: Sequence[Any]) -> None:
    """Raise VPromptError where something is asked for that the recipe does not have."""
    for each in asked:
        if each not in known:
            listing = ", ".join(str(name) for name in dict.fromkeys(known))
            raise VPromptError(f"The recipe has no {what} {each!r}. It has: {listing}.")
