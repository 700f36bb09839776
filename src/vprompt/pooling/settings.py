"""Settings of a sum of prompts, and how a pool is read: without torch, for the command line too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from vprompt.core.settings import ADVANCED, POOL, Flag, Settings

METHOD = "moves"  # the method of `transfer/` that is used unless another is named
_AS_ASKED = "the method's"


def number_or_word(value: Any) -> Any:
    """Read `4` as a number and leave `auto` as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Sum(Settings):
    """How the prompts of a pool become one. None stands for what the method asks for.

    `align` is `none`, `hungarian`, `auto` (match tokens unless all sources grew from one
    initialisation), or `placement`: bring deep prompts of different placements to one first.
    `scale` is one of `compose.SCALES`. `move_scale` is `published` (weights of sum 1), `auto` (a
    sum of moves, at the scale that the training images choose), `sources` or a number; `form` is
    what the sum of moves becomes, one of `mix.FORMS`. With `safeguard`, tuning starts from the mix,
    unless the plain average or the best single source has a clearly smaller cross-validated loss
    on the training images.
    """

    align: Annotated[
        str | None,
        Flag("Matching: auto, none, hungarian, placement.", ADVANCED, shown=_AS_ASKED),
    ] = None
    scale: Annotated[
        str | None, Flag("Rescale: auto, none, token_norm, ln.", ADVANCED, shown=_AS_ASKED)
    ] = None
    move_scale: Annotated[
        str | float | None,
        BeforeValidator(number_or_word),
        Flag("How far to go: auto, published, sources, a number.", POOL, shown=_AS_ASKED),
    ] = None
    form: Annotated[
        str | None,
        Flag("Result: auto, sum, side_by_side, ensemble, distil.", POOL, shown=_AS_ASKED),
    ] = None
    safeguard: Annotated[
        bool | None,
        Flag("Start tuning elsewhere if that is safer.", ADVANCED, shown=_AS_ASKED),
    ] = None

    def of_sum(self) -> dict[str, Any]:
        """Return what is said about the sum, by name."""
        return {name: value for name in SUM if (value := getattr(self, name)) is not None}


class Pooled(Settings):
    """Which sources of a pool are used.

    `pool` is a folder of artefact folders, one artefact, or several of both. `screen` says how a
    large pool is screened first (`screening.Screen`): `auto`, `auto(keep=16)` or `off`.
    """

    pool: Annotated[
        Path | str | Sequence[Path | str],
        Flag("Folder of artefacts, or one; repeatable.", POOL),
    ]
    exclude: Annotated[tuple[str, ...], Flag("Leave out a source by name; repeatable.", POOL)] = ()
    screen: Annotated[str, Flag("For pools over 100: auto, `auto(keep=16)`, off.", POOL)] = "auto"
    force: Annotated[bool, Flag("Use prompts of other backbones.")] = False


SUM = tuple(Sum.model_fields)
