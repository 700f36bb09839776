"""vprompt: learn, combine and share visual prompts for frozen vision transformers.

Importing this package imports nothing heavy; torch comes with the first name that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vprompt.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.artifact import Artifact
    from vprompt.artifact import load as load_artifact
    from vprompt.artifact import save as save_artifact
    from vprompt.backbone import Backbone, extract, walk
    from vprompt.evaluation import evaluate
    from vprompt.flow import combine, learn, score
    from vprompt.opening import open_backbone, open_task
    from vprompt.outcome import Outcome
    from vprompt.prediction import Prediction, predict, predict_table
    from vprompt.prompt import Prompt, PromptBatch
    from vprompt.report import write_report
    from vprompt.serving import PromptServer, serve
    from vprompt.task import Split, Task
    from vprompt.train_config import TrainConfig

__version__ = "0.1.0"

_HOMES = {
    "Artifact": ("vprompt.artifact", "Artifact"),
    "Backbone": ("vprompt.backbone", "Backbone"),
    "Outcome": ("vprompt.outcome", "Outcome"),
    "Prediction": ("vprompt.prediction", "Prediction"),
    "Prompt": ("vprompt.prompt", "Prompt"),
    "PromptBatch": ("vprompt.prompt", "PromptBatch"),
    "PromptServer": ("vprompt.serving", "PromptServer"),
    "Split": ("vprompt.task", "Split"),
    "Task": ("vprompt.task", "Task"),
    "TrainConfig": ("vprompt.train_config", "TrainConfig"),
    "combine": ("vprompt.flow", "combine"),
    "evaluate": ("vprompt.evaluation", "evaluate"),
    "extract": ("vprompt.backbone", "extract"),
    "learn": ("vprompt.flow", "learn"),
    "load_artifact": ("vprompt.artifact", "load"),
    "open_backbone": ("vprompt.opening", "open_backbone"),
    "open_task": ("vprompt.opening", "open_task"),
    "predict": ("vprompt.prediction", "predict"),
    "predict_table": ("vprompt.prediction", "predict_table"),
    "save_artifact": ("vprompt.artifact", "save"),
    "score": ("vprompt.flow", "score"),
    "serve": ("vprompt.serving", "serve"),
    "walk": ("vprompt.backbone", "walk"),
    "write_report": ("vprompt.report", "write_report"),
}

__all__ = [
    "Artifact",
    "Backbone",
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
