"""Screening: from a pool of thousands to the few sources that deserve a pass of all images.

    metadata -> few images, one source at a time -> near-duplicates -> marginal gain

Every stage says whom it leaves out and why.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vprompt.artifacts import artifact, pool
from vprompt.artifacts.artifact import Artifact
from vprompt.artifacts.catalogue import Entry, Pool
from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.core.progress import Progress
from vprompt.data.task import Examples, Task
from vprompt.models.backbone import Backbone
from vprompt.pooling import combining, shortlist
from vprompt.stages import Setting

METADATA, IMAGES = "metadata", "few images"
DUPLICATES, GAIN = "near-duplicates", "marginal gain"
_NAMED = 3  # sources that a spoken sentence names


@dataclass(frozen=True)
class Screen:
    """How a pool of more than `above` sources is screened; a smaller one is passed whole.

    `images` of the training images are passed through every source. The `candidates` best by their
    own trace ratio are compared with one another: a cosine of at least `duplicate` between centred
    features makes two sources one, and a sum of `support` sources at most is solved for. It and
    those that would still add most to it are the `keep` sources that go on.
    """

    above: int = 100
    images: int = 200
    candidates: int = 512
    keep: int = 40
    support: int = 16
    duplicate: float = 0.999

    def __post_init__(self) -> None:
        """Refuse what leaves nothing, or a pool that would be screened once more."""
        least = min(self.support, self.images - 1)
        if not (least >= 1 and self.support <= self.keep <= min(self.above, self.candidates)):
            raise VPromptError(
                "A screen needs at least 2 images, and 1 <= support <= keep <= candidates and "
                f"above, but got {asdict(self)}."
            )
        if not 0 < self.duplicate <= 1:
            raise VPromptError(f"duplicate is a cosine in (0, 1], but got {self.duplicate}.")

    @classmethod
    def read(cls, text: str) -> "Screen | None":
        """Read `auto`, `auto(keep=16, images=400)` or `off`, for which None stands."""
        spec = registry.parse(text)
        if spec.name == "off" and not spec.settings:
            return None
        if spec.name != "auto":
            raise VPromptError(
                f"--screen reads `off`, `auto` or `auto(keep=16)`, but got {text!r}."
            )
        kinds: dict[str, type] = {each.name: type(each.default) for each in fields(cls)}
        for key, value in spec.settings.items():
            if key not in kinds:
                raise VPromptError(f"A screen has no {key!r}.{registry.suggest(key, kinds)}")
            if isinstance(value, bool) or not isinstance(value, int | kinds[key]):
                raise VPromptError(f"{key} of a screen is a number, but got {value!r}.")
        return cls(**{key: kinds[key](value) for key, value in spec.settings.items()})


@dataclass(frozen=True)
class Stage:
    """One stage: by which rule, how many it kept, and why it left out each of the others."""

    name: str
    rule: str
    kept: int
    left_out: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """What a person reads."""
        some = [f"{name} ({why})" for name, why in [*self.left_out.items()][:_NAMED]]
        more = len(self.left_out) - len(some)
        names = ", ".join([*some, *([f"{more} more"] if more > 0 else [])])
        return f"screened by {self.name}: kept {self.kept}" + (f", left out {names}" * bool(some))


@dataclass(frozen=True, eq=False)
class Selection:
    """A pool by its headers: `sources` where it is small, else the `entries` that may fit."""

    sources: list[Artifact] | None
    entries: list[Entry] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    screen: Screen | None = None


def select(
    listed: Pool,
    backbone: Backbone,
    target: Task | None,
    screen: str,
    *,
    exclude: tuple[str, ...] = (),
    force: bool = False,
    align: str | None = None,
    progress: Progress,
) -> Selection:
    """Open a small pool, as `pool.load` does, or sort out a large one by its headers.

    In a small pool a source of another backbone is an error, in a large one it is left out. Sources
    that were learned on `target` are left out of both. `align` says how prompts will be added up:
    those that cannot be with most others are left out of a large pool; None adds none up.
    """
    settings = Screen.read(screen)
    found = pool.chosen(listed, exclude)
    if settings is None or len(found) <= settings.above:
        sources = pool.load(listed, backbone, exclude=exclude, force=force, progress=progress)
        if target is not None:
            sources = combining.without_self(sources, target, progress)
        return Selection(sources)
    reasons = {entry.name: _misfit(entry, backbone, target, force) for entry in found}
    fitting = [entry for entry in found if not reasons[entry.name]]
    if not fitting:
        raise VPromptError(
            f"None of the {len(found)} sources can be used. {found[0].name}: "
            f"{reasons[found[0].name]}."
        )
    reasons |= {} if align is None else _displaced(fitting, align)
    kept = [entry for entry in found if not reasons[entry.name]]
    rule = "a readable header, this backbone and preprocessing, another task"
    rule += "" if align is None else ", and a placement that most share"
    left_out = {name: why for name, why in reasons.items() if why}
    return _said(Selection(None, kept, [], settings), METADATA, rule, kept, left_out, progress)


def finish(
    selection: Selection, setting: Setting, *, adds_up: bool
) -> tuple[list[Artifact], dict[str, Any] | None]:
    """Return the sources that go on, in name order, and what the record says of the screening.

    Where sources are added up, the last stage keeps those of largest marginal gain; where they are
    ranked each by itself, the best by their own trace ratio are kept.
    """
    if selection.sources is not None:
        return selection.sources, None
    with setting.clock.stage("screen"):
        return _screened(selection, setting, adds_up)


def _screened(
    selection: Selection, setting: Setting, adds_up: bool
) -> tuple[list[Artifact], dict[str, Any]]:
    screen, progress = selection.screen, setting.progress
    assert screen is not None
    few = shortlist.few_images(setting.train, screen.images)
    facts: dict[str, Any] = {"settings": asdict(screen), "images": len(few)}
    if len(selection.entries) > screen.above:
        ratios, reasons = shortlist.own_ratios(selection.entries, setting, few)
        most = screen.candidates if adds_up else screen.keep
        ranked = sorted(ratios, key=lambda name: -ratios[name])
        for rank, name in enumerate(ranked[most:], most + 1):
            reasons[name] = f"own trace ratio {ratios[name]:.3f}, rank {rank}"
        named = {entry.name: entry for entry in selection.entries}
        kept = [named[name] for name in ranked[:most]]
        if not kept:
            raise VPromptError(f"No source can be used. {next(iter(reasons.values()))}.")
        rule = f"the {most} largest trace ratios on {len(few)} images, every digest once"
        selection = _said(selection, IMAGES, rule, kept, reasons, progress)
        if adds_up:
            selection, solution = _by_gain(selection, setting, few)
            facts["solution"] = solution
    stages = [asdict(stage) for stage in selection.stages]
    sources = [artifact.load(entry.folder) for entry in selection.entries]
    sources = sorted(sources, key=lambda source: source.name)
    return sources, {**facts, "stages": stages, "kept": [source.name for source in sources]}


def _by_gain(
    selection: Selection, setting: Setting, few: Examples
) -> tuple[Selection, dict[str, Any]]:
    """Leave out near-duplicates, then all but those of largest marginal gain."""
    screen, entries, progress = selection.screen, selection.entries, setting.progress
    assert screen is not None
    ratio = shortlist.compare(entries, setting, few)
    began = time.perf_counter()
    twins = shortlist.near_duplicates(ratio, screen.duplicate)
    rows = [row for row in range(len(entries)) if row not in twins]
    order, gains, optimum = shortlist.by_marginal_gain(ratio.select(rows), screen.support)
    spent = time.perf_counter() - began
    same = {entries[a].name: f"has the features of {entries[b].name}" for a, b in twins.items()}
    different = [entries[row] for row in rows]
    rule = f"a cosine below {screen.duplicate} between centred features"
    selection = _said(selection, DUPLICATES, rule, different, same, progress)
    ranked = [different[row] for row in order]
    weights = optimum.weights.tolist()
    out = {
        different[row].name: f"marginal gain {gains[row]:.4f}, rank {rank}"
        for rank, row in enumerate(order[screen.keep :], screen.keep + 1)
    }
    support = {different[row].name: round(weights[row], 4) for row in order if weights[row] > 0}
    rule = f"the support of a sparse sum, then the largest marginal gains: {screen.keep} in all"
    solution = {
        "trace_ratio": optimum.value,
        "steps": optimum.steps,
        "weights": support,
        "seconds": round(spent, 3),
    }
    return _said(selection, GAIN, rule, ranked[: screen.keep], out, progress), solution


def _said(
    selection: Selection,
    name: str,
    rule: str,
    kept: list[Entry],
    left_out: Mapping[str, str],
    progress: Progress,
) -> Selection:
    stage = Stage(name, rule, len(kept), dict(left_out))
    progress.say(stage.sentence)
    return Selection(None, kept, [*selection.stages, stage], selection.screen)


def _misfit(entry: Entry, backbone: Backbone, target: Task | None, force: bool) -> str:
    """Return why a source cannot be used for the target, or nothing."""
    if entry.promptless:
        return entry.promptless
    if entry.config is None:
        return entry.problem or "cannot be read"
    differ = "" if force else artifact.differences(entry.config, backbone)
    if differ:
        return f"learned on {entry.config['base_model_name_or_path']!r}, which differs in {differ}"
    if target is not None and combining.is_own(entry.config, target):
        return f"learned on {target.name!r}, the target itself"
    return ""


def _displaced(entries: Sequence[Entry], align: str) -> dict[str, str]:
    """Return the sources that cannot be added up with most others, and why not."""

    def place(entry: Entry) -> tuple[Any, ...]:
        assert entry.config is not None
        persist, counts = entry.config["persist"], entry.config["num_virtual_tokens"]
        if align == "placement":
            return (persist,)
        # Other lengths fill slots of the longest, unless tokens are added up as they stand.
        return (persist, *(counts if align == "none" else (count > 0 for count in counts)))

    places = {entry.name: place(entry) for entry in entries}
    common = Counter(places.values()).most_common(1)[0][0]
    if align == "placement" and (False,) in places.values():
        common = (False,)
    why = "its tokens enter in another manner or in other blocks than those of most sources"
    return {name: "" if own == common else why for name, own in places.items()}
