"""Draw what a pool is worth over the number of images, from the compact results.

python -m benchmarks pools.figure --output docs/moves.png
"""

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from PIL import Image
from scipy.stats import t

from benchmarks.pools.table import by_targets, runs_of

ROWS = {
    "uniform, ensemble": ("four parts of the pool and no prompt, side by side", "#0b6e69", "-"),
    "uniform, free scale": (
        "one sum of moves, at the scale that the images choose",
        "#3b8fb5",
        "-",
    ),
    "uniform, published": ("plain average of the prompts, as published", "#b4571b", "-"),
    "random direction, ensemble": (
        "control: random moves of the same size, side by side",
        "#8793a1",
        ":",
    ),
}
KINDS = {True: "related pool, 6 targets", False: "unrelated pool, 8 targets"}


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_tiny")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    runs = runs_of(options.backbone)
    figure, panels = pyplot.subplots(1, 2, figsize=(8.2, 3.9), sharey=True)
    for axes, (related, title) in zip(panels, KINDS.items(), strict=True):
        draw(axes, [run for run in runs if run["related"] == related])
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("training images a class")
    panels[0].set_ylabel("points gained over no prompt")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", fontsize=9, frameon=False, ncols=2)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.92, bottom=0.3, wspace=0.06)
    figure.savefig(options.output, dpi=120)
    with Image.open(options.output) as drawn:  # lines on white need no more colours than these
        drawn.convert("RGB").quantize(64).save(options.output, optimize=True)


def draw(axes: pyplot.Axes, runs: list[dict]) -> None:
    """Draw every row's mean gain over the targets, with its 95 % interval."""
    shots = sorted({run["shots"] for run in runs})
    axes.axhline(0, color="#1c2530", linewidth=1)
    for shift, (row, (label, colour, dashes)) in enumerate(ROWS.items()):
        means, halves = [], []
        for count in shots:
            found = [run for run in runs if run["shots"] == count and row in run["accuracy"]]
            gaps = by_targets(found, row, "no prompt")
            means.append(statistics.mean(gaps))
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            halves.append(float(t.ppf(0.975, len(gaps) - 1)) * error)
        places = [place + 0.06 * (shift - 1.5) for place in range(len(shots))]
        axes.errorbar(
            places,
            means,
            halves,
            color=colour,
            linestyle=dashes,
            marker="o",
            capsize=2,
            label=label,
        )
    axes.set_xticks(range(len(shots)), [str(count) for count in shots])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dfe3e8", linewidth=0.8)


if __name__ == "__main__":
    main()
