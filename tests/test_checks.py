"""The checks around functions while testing: what they refuse, and when they are made."""

from dataclasses import dataclass

import jaxtyping
import jaxtyping_in_time
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

checked = jaxtyping_in_time.checked
refused = pytest.raises(jaxtyping.TypeCheckError)


def test_every_function_of_the_package_is_checked(tiny):
    from vprompt.artifacts import artifact
    from vprompt.prompts import prompt

    assert artifact.load.is_checked and type(tiny).embed.is_checked
    assert prompt.Prompt.__init__.is_checked  # a dataclass, as it is made
    with refused:
        prompt.Prompt([0.0], torch.zeros(1))


def test_arguments_and_what_is_returned_are_checked():
    @checked
    def half(number: int, /, *rest: int, way: str = "up", **others: float) -> int:
        return number / 2 if way == "up" else number // 2

    assert half(4, 1, way="down", x=0.5) == 2
    for arguments, named in [(("4",), {}), ((4, "1"), {}), ((4,), {"way": 1}), ((4,), {"x": "y"})]:
        with refused:
            half(*arguments, **{"way": "down", **named})
    with refused:
        half(4)
    with pytest.raises(TypeError, match="missing 1 required"):
        half()


def test_an_axis_has_one_length_within_a_call():
    @checked
    def cut(
        rows: Float[Tensor, "count dim"], row: Float[Tensor, " dim"], to: int
    ) -> 'Float[Tensor, " dim"]':
        return row[:to]

    cut(torch.zeros(2, 3), torch.zeros(3), 3)
    cut(torch.zeros(2, 4), torch.zeros(4), 4)
    with refused:
        cut(torch.zeros(2, 3), torch.zeros(4), 4)
    with refused:
        cut(torch.zeros(2, 3), torch.zeros(3), 2)


def test_closures_of_one_code_share_their_checks_and_not_what_they_do(monkeypatch):
    made = []
    make = jaxtyping_in_time._make
    monkeypatch.setattr(jaxtyping_in_time, "_make", lambda *given: made.append(1) or make(*given))

    def adding(number, kind):
        @checked
        def add(other: kind) -> kind:
            return number + other

        return add

    two, three = adding(2, int), adding(3, int)
    assert not made
    assert (two(1), three(1), two(2)) == (3, 4, 4) and len(made) == 1
    assert adding("a", str)("b") == "ab" and len(made) == 2
    with refused:
        three("b")


def test_a_dataclass_is_checked_as_it_is_made():
    @checked
    @dataclass(frozen=True)
    class Pair:
        one: int
        rows: Float[Tensor, "count dim"]

    Pair(1, torch.zeros(1, 2))
    for one, rows in [("1", torch.zeros(1, 2)), (1, torch.zeros(2))]:
        with refused:
            Pair(one, rows)
