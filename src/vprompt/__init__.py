"""vprompt: learn, combine and share visual prompts for frozen vision transformers.

Importing this package imports nothing heavy; torch comes with the first name that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vprompt.core import addresses
from vprompt.core.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.artifacts.artifact import Artifact
    from vprompt.artifacts.artifact import load as load_artifact
    from vprompt.artifacts.artifact import save as save_artifact
    from vprompt.data.task import Split, Task
    from vprompt.flow import combine, learn, score
    from vprompt.inference.classify import Classifier, load
    from vprompt.inference.evaluation import evaluate
    from vprompt.inference.prediction import Prediction, predict, predict_table
    from vprompt.inference.serving import PromptServer, serve
    from vprompt.learning.train_config import TrainConfig
    from vprompt.models.backbone import Backbone, extract, walk
    from vprompt.opening import open_backbone, open_task
    from vprompt.outcome import Outcome
    from vprompt.prompts.prompt import Prompt, PromptBatch
    from vprompt.report import write_report

__version__ = "0.1.0"

addresses.answer()

_HOMES = {
    "Artifact": ("vprompt.artifacts.artifact", "Artifact"),
    "Backbone": ("vprompt.models.backbone", "Backbone"),
    "Classifier": ("vprompt.inference.classify", "Classifier"),
    "Outcome": ("vprompt.outcome", "Outcome"),
    "Prediction": ("vprompt.inference.prediction", "Prediction"),
    "Prompt": ("vprompt.prompts.prompt", "Prompt"),
    "PromptBatch": ("vprompt.prompts.prompt", "PromptBatch"),
    "PromptServer": ("vprompt.inference.serving", "PromptServer"),
    "Split": ("vprompt.data.task", "Split"),
    "Task": ("vprompt.data.task", "Task"),
    "TrainConfig": ("vprompt.learning.train_config", "TrainConfig"),
    "combine": ("vprompt.flow", "combine"),
    "evaluate": ("vprompt.inference.evaluation", "evaluate"),
    "extract": ("vprompt.models.backbone", "extract"),
    "learn": ("vprompt.flow", "learn"),
    "load": ("vprompt.inference.classify", "load"),
    "load_artifact": ("vprompt.artifacts.artifact", "load"),
    "open_backbone": ("vprompt.opening", "open_backbone"),
    "open_task": ("vprompt.opening", "open_task"),
    "predict": ("vprompt.inference.prediction", "predict"),
    "predict_table": ("vprompt.inference.prediction", "predict_table"),
    "save_artifact": ("vprompt.artifacts.artifact", "save"),
    "score": ("vprompt.flow", "score"),
    "serve": ("vprompt.inference.serving", "serve"),
    "walk": ("vprompt.models.backbone", "walk"),
    "write_report": ("vprompt.report", "write_report"),
}

__all__ = [
    "Artifact",
    "Backbone",
    "Classifier",
    "Outcome",
    "Prediction",
    "Prompt",
    "PromptBatch",
    "PromptServer",
    "Split",
    "Task",
    "TrainConfig",
    "VPromptError",
    "combine",
    "evaluate",
    "extract",
    "learn",
    "load",
    "load_artifact",
    "open_backbone",
    "open_task",
    "predict",
    "predict_table",
    "save_artifact",
    "score",
    "serve",
    "walk",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vprompt' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, before they are imported too, and nothing else."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
