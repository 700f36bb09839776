"""Ending: when a training ends, by its epochs, by its method, or by the validation loss."""

from collections.abc import Sequence

from vprompt.core.errors import VPromptError
from vprompt.learning.checkpoint import EpochRecord
from vprompt.learning.train_config import TrainConfig

ALL_EPOCHS, METHOD, PATIENCE, FOLDS = "all epochs", "method", "patience", "folds"


def check_patience(config: TrainConfig, judged: bool) -> None:
    """Refuse a patience where there are no validation images to lose it over.

    Raises VPromptError.
    """
    if config.patience and not judged:
        raise VPromptError(
            f"patience={config.patience} ends training by the validation loss, but no images are "
            "left to validate on. Leave --patience out, or keep a validation split out of training."
        )


def reason(
    history: Sequence[EpochRecord], config: TrainConfig, finished: bool, until: int | None = None
) -> str | None:
    """Return why training ends with the last epoch of a history, or None where it goes on.

    `until` is the epoch that folds have chosen. The history alone decides, so a run that was
    stopped ends where it would have ended.
    """
    if until is not None and history[-1].epoch >= until:
        return FOLDS
    if history[-1].epoch >= config.epochs:
        return ALL_EPOCHS
    if finished:
        return METHOD
    if config.patience and age_of_least_loss(history) >= config.patience:
        return PATIENCE
    return None


def age_of_least_loss(history: Sequence[EpochRecord]) -> int:
    """Return how many epochs ago the validation loss was least, the start included.

    Of equal losses the first counts, and a loss that is no number is never the least.
    """
    least, best = float("inf"), history[0].epoch
    for record in history:
        if record.val_loss is not None and record.val_loss < least:
            least, best = record.val_loss, record.epoch
    return history[-1].epoch - best
