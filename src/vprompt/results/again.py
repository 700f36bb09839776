"""Again: which runs this cache has seen, so that what they left there is not announced as work.

A run leaves the features of its images in the cache, and an equal run passes none of them again.
Which features those are is known only on the way, from the sums to the test images, so a finished
run leaves a mark. Where the cache was emptied in part, the time is corrected while the run goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vprompt.core import files
from vprompt.data.task import Task
from vprompt.learning.classifier import Candidate
from vprompt.models import features
from vprompt.models.backbone import Backbone
from vprompt.prompts.prompt import Prompt, prompt_digest
from vprompt.stages import Setting

_SUFFIX = ".ran"


@dataclass(frozen=True)
class Mark:
    """Where the cache notes that a run was finished."""

    path: Path

    @property
    def there(self) -> bool:
        """Whether an equal run was finished with this cache."""
        return self.path.is_file()

    def leave(self) -> None:
        """Note that the run is finished."""
        with files.optional():
            files.write_text(self.path, "")


def mark_of(setting: Setting, prompts: Iterable[Prompt], *settings: object) -> Mark:
    """Return the mark of a run: its images, its prompts and all settings that features follow."""
    val = None if setting.val is None else setting.val.digest
    return _mark(
        *(setting.train.digest, val, _of_test(setting.task), setting.config),
        *(setting.backbone.fingerprint, setting.backbone.data_config),
        *map(prompt_digest, prompts),
        *settings,
    )


def mark_of_measuring(
    backbone: Backbone, task: Task, candidates: Mapping[str, Candidate], precision: str
) -> Mark:
    """Return the mark of a measurement on the test split."""
    prompts = [each for each, _ in candidates.values() if isinstance(each, Prompt)]
    others = [] if len(prompts) == len(candidates) else [*candidates]
    return _mark(
        *(_of_test(task), precision, backbone.fingerprint, backbone.data_config),
        *map(prompt_digest, prompts),
        *others,
    )


def kept_passes(setting: Setting, prompts: Iterable[Prompt | None]) -> int:
    """Return how many passes of the training images an earlier run left in the cache."""
    precision = setting.config.precision
    paths = (
        features.cache_path(setting.backbone, prompt, setting.train, precision)
        for prompt in prompts
    )
    return sum(path.is_file() for path in paths)


def _mark(*parts: object) -> Mark:
    key = files.digest(*map(repr, parts))
    return Mark(files.cache_folder() / "evidence" / f"{key[:32]}{_SUFFIX}")


def _of_test(task: Task) -> str:
    """Return what tells one test split from another as far as can be told without opening it."""
    test = task.test
    return "" if test is None else repr((task.name, task.facts, test.name, test.images_per_class))
