"""Census: what was read of a person's images, as plain values: sizes, cuts, and what was left out.

A reader of images fills in a `Reading`; `take` makes the `Census` of it, which is said before the
work and kept in the record.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

_EXAMPLES = 3  # names kept of what was left out for one reason
_NAMES = 12  # classes told by name
FEW_TEST = 20  # below so many test images, one of them is worth more than 5 points


@dataclass(frozen=True)
class LeftOut:
    """What was left out for one reason: how many, and the names of the first."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it as part of a sentence."""
        more = ", ..." if self.count > len(self.examples) else ""
        names = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count} {self.reason}{names}"


@dataclass(frozen=True)
class Reading:
    """What a reader met besides the images: how it cut them, what it left out, which links."""

    cut: str = ""
    left_out: tuple[LeftOut, ...] = ()
    links: int = 0
    notes: tuple[str, ...] = ()

    def without(self, reason: str, names: Sequence[str]) -> "Reading":
        """Return the reading with some more left out."""
        return replace(self, left_out=tally([*self.left_out, *counted(reason, names)]))

    def noting(self, *notes: str) -> "Reading":
        """Return the reading with further notes; an empty one does not count."""
        return replace(self, notes=(*self.notes, *(note for note in notes if note)))


@dataclass(frozen=True)
class Census:
    """What a run works on: images and classes of every split, and the reading of them.

    `per_class` are the fewest and the most images that a class has in each split. `about` says
    what there is to learn where that is not one class an image.
    """

    classes: tuple[str, ...]
    images: dict[str, int]
    per_class: dict[str, tuple[int, int]]
    reading: Reading
    about: str = ""

    def sizes(self) -> str:
        """Return `train 12, val 4, test 4: cut 64/16/20 by seed 0`."""
        listing = ", ".join(f"{name} {count}" for name, count in self.images.items())
        return f"{listing}: {self.reading.cut}" if self.reading.cut else listing

    def sentences(self) -> list[str]:
        """Return what a person should read before the work, a line each."""
        named = ", ".join(self.classes[:_NAMES])
        more = len(self.classes) - _NAMES
        named += f", and {more} more" if more > 0 else ""
        learned = self.per_class.get("train")
        each = f"; {_span(learned)} training images of each" if learned else ""
        told = f"{len(self.classes)} classes: {named}{each}"
        if self.about:  # numbers have no classes to name
            told = f"{self.about}; {told}" if self.per_class else self.about
        lines = [self.sizes(), told]
        if self.reading.left_out:
            lines.append(f"left out: {'; '.join(map(str, self.reading.left_out))}")
        if self.reading.links:
            lines.append(f"links followed: {self.reading.links}")
        return [*lines, *self.reading.notes]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as they stand in `run.json`; class names stand beside them there."""
        return {
            "images": dict(self.images),
            "images_per_class": {name: list(span) for name, span in self.per_class.items()},
            "cut": self.reading.cut,
            "left_out": [asdict(each) for each in self.reading.left_out],
            "links": self.reading.links,
            "notes": list(self.reading.notes),
            **({"about": self.about} if self.about else {}),
        }


def take(
    classes: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    reading: Reading,
    *,
    images: Mapping[str, int] | None = None,
    about: str = "",
) -> Census:
    """Count a task; `counts` are the images of every class that occurs, by split.

    `images` are how many there are, where an image has no class or several.
    """
    lower = Counter(name.casefold() for name in classes)
    close = [name for name in classes if lower[name.casefold()] > 1]
    if close:
        listing = ", ".join(close[:_NAMES])
        reading = reading.noting(f"these classes differ in small and large letters: {listing}")
    found = {name: sum(each) for name, each in counts.items()} if images is None else images
    there = {name: count for name, count in found.items() if count}
    spans = {name: (min(counts[name]), max(counts[name])) for name in there if counts[name]}
    if 0 < there.get("test", FEW_TEST) < FEW_TEST:
        count = there["test"]
        more = ""
        if reading.cut.startswith("cut") and " folds " not in reading.cut:
            more = (
                ", or test every image once by k-fold: `folder(root='...', fold='1/5')` to '5/5', "
                "then take the mean"
            )
        reading = reading.noting(
            f"{count} test images tell little: each is worth {100 / count:.0f} points. Add "
            f"images{more}"
        )
    return Census(tuple(classes), there, spans, reading, about)


def counted(reason: str, names: Sequence[str]) -> list[LeftOut]:
    """Return what was left out for one reason; nothing where there are no names."""
    return [LeftOut(reason, len(names), tuple(names[:_EXAMPLES]))] if names else []


def tally(found: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """Add up what was left out, by reason."""
    total: dict[str, LeftOut] = {}
    for each in found:
        known = total.get(each.reason, LeftOut(each.reason, 0))
        examples = (*known.examples, *each.examples)[:_EXAMPLES]
        total[each.reason] = LeftOut(each.reason, known.count + each.count, examples)
    return tuple(total.values())


def shares(fractions: Sequence[float]) -> str:
    """Return `64/16/20`."""
    return "/".join(f"{100 * share:g}" for share in fractions)


def _span(fewest_and_most: tuple[int, int]) -> str:
    fewest, most = fewest_and_most
    return str(most) if fewest == most else f"{fewest} to {most}"
