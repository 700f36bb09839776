"""Filling: weights fill a model whole or it is refused, so that none of it is left as it was drawn.

The model libraries load with `strict=False` wherever a head is left out, and then leave whatever a
file does not name at random numbers, without a word.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vprompt.core.errors import VPromptError

_HEAD = re.compile(r"(head|head_dist)\.")
# What a file may not hold in vain: a model without a place for it would compute something else.
_BODY = re.compile(r"(blocks|patch_embed|norm_pre)\.|(pos_embed|cls_token|reg_token|dist_token)$")
_NAMED = 3  # names that a message lists
_ONE_AT_A_TIME = threading.RLock()


# From what is to be loaded and a model's names to what fits them, and a remark on what was done.
Mend = Callable[[Mapping[str, Any], Sequence[str]], tuple[Mapping[str, Any], str]]


@dataclass
class Filling:
    """What was filled within a block, and what a person should know of it."""

    modules: list[nn.Module] = field(default_factory=list)
    remark: str = ""


@contextlib.contextmanager
def filled_whole(name: str, source: str, mend: Mend | None = None) -> Iterator[Filling]:
    """Refuse, within the block, weights that do not fill the model that they are loaded into.

    `name` is the model's, `source` is where the weights are from, and `mend` is asked first where
    they lack something.
    """
    found, mine = Filling(), threading.get_ident()
    with _ONE_AT_A_TIME:
        plain = nn.Module.load_state_dict

        def load(
            module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, **options: Any
        ) -> Any:
            if threading.get_ident() == mine:
                names = list(module.state_dict())
                if mend is not None and not all(key in state_dict for key in names):
                    state_dict, found.remark = mend(state_dict, names)
                check_fills(module, state_dict, name, source, strict=strict)
                found.modules.append(module)
            return plain(module, state_dict, strict, **options)

        nn.Module.load_state_dict = load  # type: ignore[method-assign, assignment]
        try:
            yield found
        finally:
            nn.Module.load_state_dict = plain  # type: ignore[method-assign]


def check_fills(
    module: nn.Module, state: Mapping[str, Any], name: str, source: str, *, strict: bool = False
) -> None:
    """Raise VPromptError unless every floating-point tensor outside the head is filled.

    Surplus tensors of the body are refused, too, and with `strict` all that are surplus.
    """
    own = {key: value for key, value in module.state_dict().items() if not _HEAD.match(key)}
    needed = {key: value for key, value in own.items() if value.is_floating_point()}
    lacking = [key for key in needed if key not in state]
    other = [key for key in needed if key not in lacking and _shape(state[key]) != _shape(own[key])]
    surplus = [
        k for k in state if k not in own and (_BODY.match(k) or strict) and not _HEAD.match(k)
    ]
    if not (lacking or other or surplus):
        return
    found = len(needed) - len(lacking) - len(other)
    parts = [f"{source} fills {found} of the {len(needed)} tensors of {name!r}"]
    if lacking:
        parts.append(f"It lacks {listed(lacking)}")
    if other:
        shapes = f"{_shape(state[other[0]])}, not {_shape(own[other[0]])}"
        parts.append(f"Of another shape are {listed(other)}: the first has {shapes}")
    if surplus:
        parts.append(f"It holds {listed(surplus)}, for which the model has no place")
    elif not found:
        parts.append(f"It holds {listed(list(state)) or 'nothing'}")
    advice = "Name the architecture that the weights are of, or give weights of this one"
    raise VPromptError(f"{'. '.join([*parts, advice])}.")


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
