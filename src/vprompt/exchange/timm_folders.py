"""Folders of timm: plain weights with a head, for methods that leave nothing beside the weights."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vprompt.artifacts.artifact import Artifact
from vprompt.backbones import _timm_folders as timms
from vprompt.core.errors import VPromptError
from vprompt.data.targets import CLASS
from vprompt.exchange.whole import Whole


def write(artifact: Artifact, whole: Whole, folder: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` opens.

    Raises VPromptError where a prompt or a layer of a method's own is left, which timm has not.
    """
    other = "Export it with --to onnx or --to torch, which hold everything."
    if artifact.prompt is not None:
        raise VPromptError(
            f"The artefact has a prompt of {len(artifact.prompt.blocks)} tokens, and timm's model "
            f"has no place for tokens among its weights. {other}"
        )
    if artifact.head.target != CLASS:
        raise VPromptError(
            f"The artefact gives the target `{artifact.head.target}`, and whoever opens a model of "
            f"timm's reads it as one class an image. {other}"
        )
    if artifact.head.cosine:
        raise VPromptError(f"The head compares directions, and timm's heads do not. {other}")
    adapter = whole.classifier.adapter
    plain = whole.backbone if adapter is None else adapter.merged()
    if plain is None:
        method = artifact.config.get("method", "this method")
        raise VPromptError(
            f"{method} leaves layers beside the backbone's weights, and timm's model has no place "
            f"for them. {other}"
        )
    if artifact.head.weight.shape[1] != plain.feature_dim:
        raise VPromptError(f"The head sees more than the backbone's feature. {other}")
    folder.mkdir()
    timms.write(folder, plain, artifact.head, artifact.classes)


def opened(folder: Path) -> Callable[[Tensor], Tensor]:
    """Return the model as timm opens it."""
    model = timms.reopen(folder)
    return lambda images: timms.logits(model, images)


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that is not one of timm's models; nothing else is replaced."""
    found = {path.name for path in folder.iterdir()}
    if found and not found <= {timms.WEIGHTS, timms.CONFIG}:
        raise VPromptError(
            f"{folder} holds something that is not a model of timm's, and it will not be replaced. "
            "Name a new folder."
        )
