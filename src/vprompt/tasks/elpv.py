"""ELPV: 2,624 electroluminescence photographs of solar cells, whole or cracked, from a wheel.

The images are licensed CC BY-NC-SA 4.0: not for commercial use. They come with
`pip install --no-deps elpv-dataset==1.0.0.post1`, whose code is not run. The cells were cut from
44 modules that the labels do not name, so cells of one module stand in several splits, and test
accuracy says nothing about modules never seen.

Reference: Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in
Electroluminescence Imagery", EU PVSEC 2018; Deitsch et al., "Automatic classification of
defective photovoltaic module cells in electroluminescence images", Solar Energy 185, 2019;
Deitsch et al., "Segmentation of photovoltaic module cells in uncalibrated electroluminescence
images", Machine Vision and Applications 32, 2021.
"""

import importlib.util
from pathlib import Path

from vprompt.core.errors import VPromptError
from vprompt.core.files import digest
from vprompt.core.registry import suggest
from vprompt.data.census import Reading
from vprompt.data.task import SealedSplit, Split, Task, split_by_sizes

INSTALL = "pip install --no-deps elpv-dataset==1.0.0.post1"
CLASSES = {
    "defect": (
        "functional (0)",
        "probably functional (1/3)",
        "probably defective (2/3)",
        "defective (1)",
    ),
    "module": ("mono", "poly"),
}
_TRAIN, _VAL = 800, 200


def load(*, target: str = "defect", split_seed: int = 0, test: int | None = None) -> Task:
    """Return 800 train, 200 val and 1,624 test cells, drawn in proportion to the classes.

    `target` is `defect`, four ordered grades of the experts' probability of a defect, or
    `module`, whether the cell is monocrystalline or polycrystalline. `split_seed` decides the draw.
    `test` is how many of the test cells are used, in proportion too; None: all.
    """
    if target not in CLASSES:
        raise VPromptError(f"ELPV has no target {target!r}.{suggest(target, CLASSES)}")
    table = _find_data() / "labels.csv"
    text = table.read_text(encoding="utf-8")
    paths, labels = _read(table, text, target)
    whole = Split("all", paths, labels)
    left = len(labels) - _TRAIN - _VAL
    tested = left if test is None else test
    if not 1 <= tested <= left:
        raise VPromptError(f"ELPV has {left} test cells: test is from 1 to {left}, not {test}.")
    sizes = [_TRAIN, _VAL, tested]
    rows = split_by_sizes(labels, sizes, split_seed, f"elpv {target} split")
    splits = {  # what is left of the rows is not used
        name: whole.subset(part, name)
        for name, part in zip(("train", "val", "test"), rows, strict=False)
    }
    return Task(
        name=f"elpv_{target}",
        classes=CLASSES[target],
        train=splits["train"],
        val=splits["val"],
        test=SealedSplit(splits["test"]),
        facts={
            "source": "elpv-dataset 1.0.0.post1",
            "labels_digest": digest(text),
            "licence": "CC BY-NC-SA 4.0",
            "target": target,
            "splits": "drawn in proportion to the classes",
            "split_seed": split_seed,
            "sizes": {name: len(split) for name, split in splits.items()},
        },
        reading=Reading(f"drawn in proportion to the classes by seed {split_seed}"),
    )


def _find_data() -> Path:
    found = importlib.util.find_spec("elpv_dataset")  # looks, but does not import
    for location in (found and found.submodule_search_locations) or ():
        if (Path(location) / "data" / "labels.csv").is_file():
            return Path(location) / "data"
    raise VPromptError(f"The ELPV photographs are not installed. Run `{INSTALL}`.")


def _read(table: Path, text: str, target: str) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    paths, labels = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            name, probability, module = line.split()
            grade, kind = round(3 * float(probability)), CLASSES["module"].index(module)
        except ValueError:
            raise VPromptError(
                f"{table}, line {number}: expected `path probability type`, got {line!r}. Install "
                f"it again: `{INSTALL} --force-reinstall`."
            ) from None
        paths.append(table.parent / name)
        labels.append(grade if target == "defect" else kind)
    return tuple(paths), tuple(labels)
