"""Measuring: the tables of what was measured on a test split, by the kind of target."""

from collections.abc import Iterator, Mapping
from typing import Any

from vprompt.artifacts import measured

Table = tuple[list[str], list[list[str]]]


def tables(task: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """Yield heads and rows: the candidates, and of several classes each class of the last one."""
    first, images = next((name, m["images"]) for name, m in found.items())
    kind = measured.of(found[first])
    beside = _BESIDE[kind.name]
    heads = [f"{task}, {images} test images", kind.name, "95 % interval", *beside]
    rows = [
        [
            name,
            kind.text(measured.value(m)),
            measured.interval(m),
            *(_cell(key, m) for key in beside.values()),
            measured.gain(m),
        ]
        for name, m in found.items()
    ]
    heads += [f"over {first}, paired"] if len(rows) > 1 else []
    yield heads, [row[: len(heads)] for row in rows]
    last = list(found)[-1]
    if kind is measured.PRECISION:
        classes = found[last]["average_precision"].items()
        yield (
            ["class", f"average precision, {last}"],
            [
                [name, "no test image" if value is None else kind.text(value)]
                for name, value in classes
            ],
        )


# What stands beside the measure, and its key.
_BESIDE = {
    "accuracy": {"balanced": "mean_per_class_recall"},
    "mAP": {"by chance": "chance", "F1": "f1"},
    "R2": {"mean absolute error": "mae", "of the mean": "mae_of_mean"},
}


def _cell(key: str, found: Mapping[str, Any]) -> str:
    value = found[key]
    if value is None:
        return ""
    if key == "mae" and found["mae_low"] is not None:
        return f"{value:.4g} ({found['mae_low']:.4g} to {found['mae_high']:.4g})"
    return f"{value:.4g}" if key.startswith("mae") else f"{100 * value:.1f} %"
