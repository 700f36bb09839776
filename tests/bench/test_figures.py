"""Figures of a benchmark: what stands in them, the same bits every time, nothing overlapping."""

import hashlib
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MINUS = "\N{MINUS SIGN}"
SOURCES = ("cats", "dogs", "eels")
RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"
LONG = "a method with a name that is far too long for any figure, however wide"


@pytest.fixture
def fill(tmp_path):
    """Return a function that writes a benchmark's folder: `{method: {task: [share per seed]}}`.

    A method is `learn` unless `specs` gives a spec of `transfer/`; `change` edits each record.
    """
    from vprompt.bench.jobs import Job
    from vprompt.bench.recipe import from_values
    from vprompt.bench.store import Store

    def make(accuracies, *, specs=None, change=None, folder="out", missing=(), **recipe):
        specs = specs or {}
        tasks = list(dict.fromkeys(t for own in accuracies.values() for t in own))
        seeds = range(max(len(own) for by_task in accuracies.values() for own in by_task.values()))
        methods = [
            {"name": name, "combine" if name in specs else "learn": specs.get(name, "linear")}
            for name in accuracies
        ]
        values = {"name": "made_up", "tasks": tasks, "methods": methods, "seeds": [*seeds]}
        values |= {"pools": ["pool"], **recipe}
        store, jobs = Store(tmp_path / folder), []
        for name, task, seed in itertools.product(accuracies, tasks, seeds):
            job = Job(
                command="combine" if name in specs else "learn",
                method=name,
                spec=specs.get(name, "linear"),
                options={"row": list(accuracies).index(name)},
                task=task,
                seed=seed,
                model="tiny",
                data_digest="d",
                data=task,
            )
            jobs.append(job)
            own = accuracies[name].get(task, [])
            if seed < len(own) and (name, task, seed) not in missing:
                record = record_of(job, own[seed])
                store.write(job, (change and change(record)) or record)
        store.start(from_values(values, where="it"), jobs)
        return store

    return make


def record_of(job, share):
    combine = job.command == "combine"
    cosines = [[1.0, 0.4, -0.32], [0.4, 1.0, 0.05], [-0.32, 0.05, 1.0]]
    given = re.search(r"alignment=(\w+)", job.spec)
    alignment = given[1] if given else "uniform" if "paper" in job.spec else "none"
    chosen = {"alignment": alignment}
    value = re.search(r"lambda_=([\d.]+)", job.spec)
    chosen["lambda_"] = float(value[1]) if value else 1.0
    transfer = {
        "sources": [
            {"name": name, "task": name, "weight": weight, "hscore": 0.3, "digest": "e"}
            for name, weight in zip(SOURCES, (0.7, 0.25, 0.05), strict=True)
            if name != job.task
        ],
        "gradient_cosines": cosines,
        "solution": {"chosen": chosen},
    }
    return {
        "id": job.id,
        "command": job.command,
        "method": job.spec,
        "job": job.identity(),
        "train": {"lr": 0.1, "seed": job.seed},
        "task": {"name": job.task, "num_classes": 3},
        **({"align": "none", "scale": "none", "safeguard": False} if combine else {}),
        **({"transfer": transfer} if combine else {}),
        "backbone": {"name": "tiny", "fingerprint": "sha256:2", "data_config": {}},
        "machine": {"code": "sha256:3", "precision": "fp32", "device": "cpu"},
        "tuning": {"parameters": {"prompt": 500, "head": 100}, "selection": "last epoch"},
        "test": {
            "tuned" if combine else "learned": {"acc1": share},
            "combined, untuned": {"acc1": share / 2},
        },
        "total_seconds": 2.0 + 10 * share,
    }


@pytest.fixture
def draw():
    """Return a function that draws a kind of figure of a store."""
    from vprompt.bench import figures

    return figures.draw


def words(drawing):
    """Return all text of a figure as one string, in the order in which it is drawn."""
    return " | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg()))


def assert_legible(drawing):
    """Hold that no two labels overlap and that all lie within the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    page = drawing.figure.bbox
    boxes, beyond = [], set()
    for axes in drawing.figure.axes:  # ticks beyond the limits exist but are not drawn
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond |= {t.label1 for t in axis.get_major_ticks() if not low <= t.get_loc() <= high}
    for text in drawing.figure.findobj(Text):
        shown = text.get_visible() and text.get_text().strip() and text not in beyond
        if not shown or (text.axes is not None and not text.axes.get_visible()):
            continue
        box = text.get_window_extent(canvas.get_renderer())
        name = text.get_text()
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, f"{name!r} leaves the figure"
        assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, f"{name!r} leaves the figure"
        if text.get_rotation() % 90 == 0:  # a box around slanted text says little
            boxes.append((name, box.padded(-1)))
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), f"{one!r} lies over {other!r}"


# Files


def test_a_file_is_svg_with_text_or_a_sharp_png_and_the_same_every_time(fill, draw, tmp_path):
    store = fill({"A": {"x": [0.5]}}, specs={"A": "hgprompt"})
    digests = set()
    for name in ("one.svg", "two.svg", "one.png", "two.png"):
        draw("cosines", store).save(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 2
    svg = (tmp_path / "one.svg").read_text()
    assert svg.startswith("<?xml") and ">cats</text>" in svg
    assert "var(" not in svg  # only browsers know it
    assert "Cosines between the prompt gradients of 3 sources on x, A, seed 0" in svg
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 4 * 560
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_another_suffix_is_refused_before_anything_is_read(fails, tmp_path):
    fails(
        *("bench", "figure", "pareto", tmp_path / "none", "--output", tmp_path / "p.pdf"),
        saying=(".svg or .png", "p.pdf"),
    )


def test_the_command_draws_and_says_what(fill, vprompt, tmp_path):
    fill({"A": {"b": [0.5, 0.7]}, "B": {"b": [0.4, 0.5]}})
    target = tmp_path / "deep" / "figure.png"
    code, out, _ = vprompt("bench", "figure", "pareto", tmp_path / "out", "--output", target)
    assert code == 0 and target.is_file()
    assert out.startswith("Mean accuracy over seconds of 2 methods") and str(target) in out


def test_unknown_kinds_and_options_that_do_not_apply_are_refused(fill, draw, refused):
    store = fill({"A": {"b": [0.5]}})
    with refused("No figure called 'wieghts'", "Did you mean 'weights'"):
        draw("wieghts", store)
    with refused("cosines takes no --cost", "--method, --task, --seed"):
        draw("cosines", store, cost="seconds", method=None)
    with refused("no method 'C'", "It has: A"):
        draw("cosines", store, method=["C"])
    with refused("no task 'x'", "It has: b"):
        draw("cosines", store, task="x")
    with refused("no seed 7", "It has: 0"):
        draw("cosines", store, seed=7)
    with refused("seconds or parameters", "'money'"):
        draw("pareto", store, cost="money")


@pytest.mark.parametrize(
    "kind, words",
    [
        ("cosines", ("cosines of gradients", "hgprompt")),
        ("weights", ("no weights to draw",)),
        ("lambda", ("differ in lambda alone", "lambda-sweep.yaml")),
        ("ablation", ("no baseline", "--baseline NAME")),
    ],
)
def test_records_without_what_is_drawn_are_answered_with_a_sentence(
    kind, words, fill, draw, refused
):
    with refused(*words):
        draw(kind, fill({"A": {"b": [0.5]}}))


@pytest.mark.parametrize("kind", ["cosines", "weights", "lambda", "ablation", "pareto"])
def test_a_benchmark_without_a_finished_run_is_answered_with_a_sentence(kind, fill, draw, refused):
    store = fill({"A": {"b": [0.5]}}, missing={("A", "b", 0)})
    with refused("no finished run|No finished run"):
        draw(kind, store)


# Gradients


def test_cosines_are_those_of_the_run_that_is_asked_for(fill, draw):
    def change(record):
        if record["job"]["seed"] == 1:
            record["transfer"]["gradient_cosines"][0][1] = 0.77
        return record

    store = fill({"A": {"x": [0.5, 0.5]}}, specs={"A": "hgprompt"}, change=change)
    first, second = draw("cosines", store), draw("cosines", store, seed=1)
    assert ".40" in words(first) and f"{MINUS}.32" in words(first) and ".77" not in words(first)
    assert ".77" in words(second) and second.description.endswith("on x, A, seed 1")
    assert_legible(first)


def test_a_source_without_a_gradient_has_a_dash_and_other_runs_go_first(fill, draw):
    def silence(record):
        if record["job"]["seed"] == 0:
            record["transfer"]["gradient_cosines"] = [[0.0] * 3, [0.0, 1.0, 0.3], [0.0, 0.3, 1.0]]
        return record

    store = fill({"A": {"x": [0.5, 0.5]}}, specs={"A": "hgprompt"}, change=silence)
    assert "seed 1" in draw("cosines", store).description
    shown = words(draw("cosines", store, seed=0))
    assert shown.count("\N{EN DASH}") == 5 and ".00 " not in shown.replace("1.00", "")


# Weights


def weighted(record):
    """Give sources weights by method and seed."""
    if record["command"] == "combine":
        seed, first = record["job"]["seed"], record["transfer"]["sources"][0]
        first["weight"] = 0.6 + 0.2 * seed
    return record


def test_weights_are_means_over_seeds_by_target_and_source(fill, draw):
    own = {"cats": [0.5, 0.5], "dogs": [0.5, 0.5]}
    specs = {"A": "spot", "B": "best", "U": "uniform"}
    store = fill({"A": own, "B": own, "U": own}, specs=specs, change=weighted)
    drawing = draw("weights", store)
    shown = words(drawing)
    assert drawing.description == "Weights of 3 sources on 2 targets by A, B"  # not uniform
    assert shown.count("| .70 |") == 4  # the mean of .6 and .8, for two targets and two methods
    assert shown.count("\N{EN DASH}") == 4  # a target's own prompt
    assert shown.count("cats") == 3  # a row once, a column under each map
    assert_legible(drawing)
    assert "U" in draw("weights", store, method=["U"]).description
    # By itself a method is drawn alone, and the colour of a cell is its weight on the scale.
    mesh = draw("weights", store, method=["A"]).figure.axes[0].collections[0]
    assert mesh.get_array().filled(-1).tolist() == pytest.approx(
        np.array([[-1, 0.7, 0.05], [0.7, -1, 0.05]])
    )


def test_at_most_four_methods_are_drawn_and_missing_targets_say_so(fill, draw):
    accuracies = {f"M{i}": {"x": [0.5], "y": [0.5]} for i in range(5)}
    accuracies["M1"] = {"x": [0.5]}
    store = fill(accuracies, specs={name: "spot" for name in accuracies})
    drawing = draw("weights", store)
    assert drawing.description.endswith("by M0, M1, M2, M3")
    assert words(drawing).count("no run") == 1
    assert_legible(drawing)


def test_negative_weights_get_a_scale_around_zero(fill, draw):
    def change(record):
        record["transfer"]["sources"][1]["weight"] = -0.21
        return record

    drawing = draw("weights", fill({"A": {"x": [0.5]}}, specs={"A": "hgprompt"}, change=change))
    mesh = drawing.figure.axes[0].collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((-0.7, 0.7))
    assert f"{MINUS}.21" in words(drawing) and f"weight {MINUS}0.7" in words(drawing)


def test_many_sources_lose_their_numbers_and_long_names_their_ends(draw):
    from vprompt.report.matrices import weight_maps

    sources = [f"{index} {LONG}" for index in range(30)]
    matrix = [[1 / 30] * 30] * 3
    drawing = weight_maps([(LONG, matrix)] * 2, [LONG, "b", "c"], sources)
    assert "\N{HORIZONTAL ELLIPSIS}" in words(drawing) and ".03" not in words(drawing)
    assert_legible(drawing)
    assert_legible(weight_maps([("A", [[1.0]])], ["x"], ["y"]))  # the smallest there is


# Lambda


LINE = {
    f"l{value:g}": f"hgprompt(alignment=uniform, lambda_={value})" for value in (0.1, 1.0, 10.0)
}


def test_lambda_makes_a_panel_per_target_with_its_two_ends(fill, draw):
    specs = {**LINE, "none": "hgprompt(alignment=none)", "all": "uniform"}
    accuracies = {
        name: {"x": [0.5 + 0.01 * i, 0.6], "y": [0.9, 0.9]} for i, name in enumerate(specs)
    }
    accuracies["else"] = accuracies["none"]
    store = fill(accuracies, specs={**specs, "else": "hgprompt(preset=paper, lambda_=3.0)"})
    from vprompt.bench import sweep

    x, y = sweep.curves(store)
    assert (x.name, y.name) == ("x", "y")
    assert list(x.points) == [0.0, 0.1, 1.0, 10.0, math.inf]
    for value, first in ((0.1, 50), (1.0, 51), (10.0, 52), (0.0, 53), (math.inf, 54)):
        mean, std = x.points[value]
        assert mean == pytest.approx((first + 60) / 2)
        assert std == pytest.approx(np.std([first, 60], ddof=1))
    drawing = draw("lambda", store)
    assert "0.1 | 1 | 10 | \N{INFINITY}" in words(drawing)
    assert "lambda (\N{INFINITY}: uniform weights)" in words(drawing)
    assert drawing.description == "Accuracy by lambda on 2 targets: x, y"
    assert_legible(drawing)
    untuned = sweep.curves(store, candidate="combined, untuned")
    assert untuned[0].points[0.1][0] == pytest.approx(27.5)


def test_every_panel_has_the_same_scale_and_none_goes_far_above_all(fill, draw):
    accuracies = {
        name: {"x": [0.3 + 0.05 * i], "y": [1.0], "z": [0.7]} for i, name in enumerate(LINE)
    }
    drawing = draw("lambda", fill(accuracies, specs=LINE))
    shown = [axes.get_ylim() for axes in drawing.figure.axes if axes.get_visible()]
    assert len(shown) == 3
    assert np.ptp([high - low for low, high in shown]) == pytest.approx(0, abs=1e-9)
    assert max(high for _, high in shown) <= 100.5 + 1e-9
    assert_legible(drawing)


def test_ends_that_were_tuned_otherwise_do_not_belong_to_a_curve(fill):
    from vprompt.bench import sweep

    def change(record):
        if record["method"] == "uniform":
            record["safeguard"] = True
        return record

    specs = {**LINE, "all": "uniform"}
    [curve] = sweep.curves(fill({n: {"x": [0.5]} for n in specs}, specs=specs, change=change))
    assert list(curve.points) == [0.1, 1.0, 10.0]
    assert all(math.isnan(std) for _, std in curve.points.values())  # one seed has no deviation


# Ablation


GAINS = {
    "base": {"x": [0.50, 0.52], "y": [0.30, 0.30]},
    "better": {"x": [0.53, 0.53], "y": [0.31, 0.35]},
    "worse": {"x": [0.40, 0.42], "y": [0.30, 0.30]},
}


def test_ablation_bars_are_paired_gains_with_their_interval_over_tasks(fill, draw):
    from scipy import stats

    drawing = draw("ablation", fill(GAINS, baseline="base"))
    [axes] = drawing.figure.axes
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches}
    assert bars == pytest.approx({1: (2 + 3) / 2, 2: (-10 + 0) / 2})
    span = stats.ttest_1samp([2, 3], 0).confidence_interval(0.95)
    lines = [line.get_xdata() for line in axes.lines]
    assert any(list(x) == pytest.approx([span.low, span.high]) for x in lines)
    assert any(sorted(x) == pytest.approx([2, 3]) for x in lines)  # the single tasks
    shown = words(drawing)
    assert "43.0" in shown and "baseline" in shown  # mean over tasks: (53 + 33) / 2
    assert drawing.description.endswith("the largest is better with 2.5 points")
    assert_legible(drawing)


def test_ablation_takes_another_baseline_and_one_task_has_no_interval(fill, draw):
    store = fill({name: {"x": own["x"]} for name, own in GAINS.items()}, baseline="base")
    drawing = draw("ablation", store, baseline="worse")
    assert "over worse" in words(drawing)
    assert not any("nan" in str(line.get_xdata()) for line in drawing.figure.axes[0].lines)
    assert_legible(drawing)


def test_ablation_without_the_baselines_runs_is_refused(fill, draw, refused):
    missing = {("base", t, s) for t in "xy" for s in (0, 1)}
    with refused("baseline 'base'"):
        draw("ablation", fill(GAINS, baseline="base", missing=missing))


def test_long_names_of_methods_are_cut_in_every_comparison(fill, draw):
    accuracies = {f"{index} {LONG}": {"x": [0.5 + index / 100]} for index in range(9)}
    store = fill(accuracies, baseline=f"0 {LONG}")
    for kind in ("ablation", "pareto"):
        drawing = draw(kind, store)
        assert "\N{HORIZONTAL ELLIPSIS}" in words(drawing)
        assert_legible(drawing)


# Cost


def brute_front(points):
    """Return the points of which no other is at least as good in both and better in one."""
    return {
        i
        for i, one in enumerate(points)
        if not any(
            other.cost <= one.cost
            and other.accuracy >= one.accuracy
            and (other.cost, other.accuracy) != (one.cost, one.accuracy)
            for other in points
        )
    }


def test_the_front_is_what_nothing_beats_in_both():
    from vprompt.report.pareto import Point, front

    rng = np.random.default_rng(0)
    for _ in range(200):
        numbers = rng.integers(1, 6, (rng.integers(1, 9), 2))
        points = [Point("p", float(cost), float(accuracy)) for cost, accuracy in numbers]
        found = front(points)
        assert set(found) == brute_front(points) and len(set(found)) == len(found)
        assert [points[i].cost for i in found] == sorted(points[i].cost for i in found)


def test_the_pareto_plot_numbers_methods_by_accuracy_and_names_the_front(fill, draw):
    def change(record):
        record["total_seconds"] = {"slow": 90.0, "fast": 3.0, "bad": 50.0}[record["job_name"]]
        return record

    def named(record):
        record["job_name"] = ("slow", "fast", "bad")[record["job"]["options"]["row"]]
        return change(record)

    shares = {"slow": {"x": [0.8, 0.82]}, "fast": {"x": [0.6, 0.6]}, "bad": {"x": [0.5, 0.5]}}
    store = fill(shares, change=named)
    drawing = draw("pareto", store)
    assert drawing.description.endswith("of 3 methods; on the front: fast, slow")
    shown = words(drawing)
    assert re.search(r"1 \| slow \| 81\.0", shown) and re.search(r"3 \| bad \| 50\.0", shown)
    assert "mean time of a run" in shown and "3 s | 10 s | 60 s" in shown
    assert_legible(drawing)
    parameters = draw("pareto", store, cost="parameters")
    assert "trained parameters" in words(parameters) and "600" in words(parameters)
    assert "on the front: slow" in parameters.description  # all have the same size
    assert_legible(parameters)


def test_a_method_that_has_not_seen_every_task_has_no_mean_to_draw(fill, draw, refused):
    shares = {"A": {"x": [0.5], "y": [0.6]}, "B": {"x": [0.7]}}
    assert "of 1 methods" in draw("pareto", fill(shares)).description
    with refused("finished a seed on every task"):
        draw("pareto", fill(shares, folder="other", missing={("A", "y", 0)}))


def test_numbers_of_a_crowd_do_not_overlap():
    from vprompt.report.pareto import Point, pareto

    rng = np.random.default_rng(3)
    points = [
        Point(f"method {index}", 50 + rng.random(), 60 + rng.random(), 0.3) for index in range(14)
    ]
    assert_legible(pareto([*points, Point("cheap", 0.01, 20.0)], "seconds"))


def test_figures_are_the_same_in_another_process_order(fill, draw, tmp_path):
    """Records are read in the order of the table, not of the folder."""
    store = fill(GAINS, baseline="base")
    before = draw("ablation", store).svg()
    manifest = json.loads((store.folder / "bench.json").read_text())
    runs = sorted((store.folder / "runs").glob("*.json"))
    for path in reversed(runs):  # another order of creation
        text = path.read_text()
        path.unlink()
        path.write_text(text)
    (store.folder / "bench.json").write_text(json.dumps(manifest))
    assert draw("ablation", store).svg() == before


# Recipes


@pytest.mark.parametrize("name", ["ablation", "ablation-200", "lambda-sweep", "vtab1k-table2"])
def test_a_lambda_without_end_comes_out_as_the_plain_average(name):
    """The paper's own solver would run away from it, which no table would show."""
    import torch

    from vprompt.bench import recipe
    from vprompt.core import registry
    from vprompt.pooling.evidence import Evidence

    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(4, 60, 8, generator=rng) + torch.eye(3, 8)[labels]
    evidence = Evidence(
        names=("a", "b", "c", "d"),
        features=features,
        gradients=torch.randn(4, 5, 8, generator=rng) + torch.randn(5, 8, generator=rng),
        labels=labels,
        plain=features.mean(0),
    )
    steepest = [
        method.spec(0)
        for method in recipe.read(RECIPES / f"{name}.yaml").methods
        if "lambda_=1000000.0" in method.spec(0)
    ]
    assert len(steepest) == (0 if name == "lambda-sweep" else 1)
    for spec in steepest:
        weights = registry.build("transfer", spec)(evidence).weights
        assert weights.tolist() == pytest.approx([0.25] * 4, abs=1e-4)


def test_the_sweep_of_the_recipe_is_one_curve_with_both_ends(fill):
    from vprompt.bench import recipe, sweep

    methods = recipe.read(RECIPES / "lambda-sweep.yaml").methods
    specs = {method.name: method.spec(0) for method in methods}
    [curve] = sweep.curves(fill({name: {"x": [0.5, 0.6]} for name in specs}, specs=specs))
    assert list(curve.points) == [0.0, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf]


# Maps


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A benchmark that was really run on a tiny model: `(store, data)`; two tasks, two methods."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(folder / "cache"))
        return trained_in(folder)


def trained_in(folder):
    from vprompt.bench import jobs, recipe, runner
    from vprompt.bench.store import Store

    rng = np.random.default_rng(0)
    for task, label in itertools.product(("cold", "warm", "wet"), range(3)):
        place = folder / "data" / task / f"class{label}"
        place.mkdir(parents=True)
        for index in range(15):
            pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., label] += 90
            Image.fromarray(pixels).save(place / f"{index:02d}.png")
    values = {
        "name": "little",
        "backbone": {"model": "tiny", "image_size": 32},
        "train": {"epochs": 1, "precision": "fp32"},
        "tasks": [{"name": name, "shots": 4} for name in ("cold", "warm", "wet")],
        "methods": [
            {"name": "U", "combine": "uniform"},
            {
                "name": "H",
                "combine": "hgprompt(bootstrap=0)",
                "safeguard": False,
                "move_scale": "published",
            },
            {"name": "L", "combine": "linear(weights=[[0, 1], [1, 0]])"},
        ],
        "sources": {"learn": "vpt(num_virtual_tokens=2)", "train": {"epochs": 1}},
    }
    store = Store(folder / "out")
    every = jobs.expand(
        recipe.from_values(values, where="it"), data=folder / "data", output=store.folder
    )
    store.start(recipe.from_values(values, where="it"), every)
    needed = [j for j in every if j.role == "source" or (j.task == "cold" and j.role == "final")]
    assert not runner.run(needed, store).failed
    return store, folder / "data"


@pytest.mark.parametrize("method", [[], ["L"]])
def test_a_map_shows_the_prompts_that_were_combined_and_the_sum_that_was_made(
    trained, monkeypatch, method
):
    from vprompt.bench import embedding
    from vprompt.models.features import features_of
    from vprompt.prompts.prompt import prompt_digest

    store, data = trained
    seen = []

    def watched(backbone, prompt, examples, **options):
        seen.append(prompt)
        return features_of(backbone, prompt, examples, use_cache=False, **options)

    monkeypatch.setattr(embedding, "features_of", watched)
    found = embedding.embed(store, data=data, task="cold", method=method)
    assert found.cell.method == (method or ["H"])[0] and found.cell.task == "cold"  # not uniform
    assert sorted(found.features) == ["warm", "weighted sum", "wet"]
    assert found.labels == [0] * 4 + [1] * 4 + [2] * 4  # the shots of the run, nothing else
    record = store.read(found.cell.id)
    assert prompt_digest(seen[-1]) == record["transfer"]["start_digest"]
    scores = {each["name"]: each["hscore"] for each in record["transfer"]["sources"]}
    for name in ("warm", "wet"):
        ours = embedding.hscore(found.features[name], found.labels)
        assert ours == pytest.approx(scores[name], abs=1e-6)


def test_the_map_is_drawn_by_one_command(trained, vprompt, tmp_path):
    store, data = trained
    target = tmp_path / "map.svg"
    code, out, err = vprompt(
        *("bench", "figure", "tsne", store.folder, "--data", data, "--output", target),
        *("--method", "U", "--source", "wet", "--quiet"),
    )
    assert code == 0, err
    assert "t-SNE of 12 training images under 2 prompts: wet, weighted sum; cold, U, seed 0" in out
    text = target.read_text()
    assert ">class2</text>" in text and text.count("H-score") == 2


def test_a_map_needs_the_images_and_the_pool_of_the_run(trained, refused, tmp_path):
    from vprompt.bench import embedding
    from vprompt.bench.store import Store

    store, data = trained
    with refused("say where they are, --data DIR"):
        embedding.embed(store)
    with refused("no source 'dry'", "warm"):
        embedding.embed(store, data=data, source=["dry"])
    shutil.copytree(data, tmp_path / "other")
    (tmp_path / "other" / "cold" / "class0" / "00.png").unlink()
    with refused("'cold'", "are not those of the run", "--data"):
        embedding.embed(store, data=tmp_path / "other")
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    shutil.copytree(copy / "pool" / "warm", copy / "pool" / "wet", dirs_exist_ok=True)
    with refused("The pool's 'wet' is not the prompt that was combined"):
        embedding.embed(Store(copy), data=data)


def test_places_are_the_same_every_time_and_keep_far_groups_apart():
    import torch

    from vprompt.bench import embedding

    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    features[20:] += 30
    first, second = (np.array(embedding.plane(features)) for _ in range(2))
    assert np.array_equal(first, second) and first.shape == (40, 2)
    centres = first[:20].mean(0), first[20:].mean(0)
    within = max(np.linalg.norm(first[:20] - centres[0], axis=1).max(), 1e-9)
    assert np.linalg.norm(centres[0] - centres[1]) > within
    assert np.array(embedding.plane(features[:5])).shape == (5, 2)  # the fewest


def test_many_classes_leave_ten_with_colours_and_no_label_overlaps():
    from vprompt.report.maps import Panel, embedding

    rng = np.random.default_rng(0)
    labels = [index % 13 for index in range(60)] + [12, 12]
    panels = [Panel(LONG, "H-score 0.52", rng.standard_normal((62, 2)).tolist()) for _ in range(3)]
    classes = [f"{index} {LONG}" for index in range(13)]
    drawing = embedding(panels, labels, classes, method="t-SNE")
    shown = words(drawing)
    assert "other classes" in shown and shown.count("\N{HORIZONTAL ELLIPSIS}") == 3 + 10
    assert "12 a method" in shown  # it has the most images
    assert_legible(drawing)
    assert_legible(embedding(panels[:1], [0, 1] * 31, ["a", "b"], method="t-SNE"))


# Page


class Reader(html.parser.HTMLParser):
    """What a browser would make of a page: every tag closed, words, attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "path", "use", "rect", "br"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())


@pytest.fixture
def page(tmp_path):
    """Return a function that writes the page of some stores and reads it as a browser would."""
    from vprompt.bench.page import write_report

    def make(*stores, **options):
        target = tmp_path / "page.html"
        left_out = write_report([store.folder for store in stores], target, **options)
        text = target.read_text(encoding="utf-8")
        return text, Reader(text), left_out

    return make


WHOLE = {
    "Linear": {"x": [0.50, 0.52], "y": [0.30, 0.30]},
    "Uniform": {"x": [0.53, 0.53], "y": [0.31, 0.35]},
    "HGPrompt": {"x": [0.54, 0.54], "y": [0.30, 0.37]},
}
SPECS = {"Uniform": "uniform", "HGPrompt": "hgprompt"}


def test_a_page_is_complete_in_itself_and_the_same_every_time(fill, page):
    store = fill(WHOLE, specs=SPECS, baseline="Uniform")
    text, shown, left_out = page(store)
    assert page(store)[0] == text
    assert shown.tags.count("svg") == 5 and shown.tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "image"} & set(shown.tags)
    targets = [value for name, value in shown.attributes if name in ("src", "href", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    assert "@import" not in text and "http" not in re.sub(r'xmlns\S*="[^"]*"', "", text)
    ids = [value for name, value in shown.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert [line.split(":")[0] for line in left_out] == ["made_up", "made_up"]  # lambda, tsne
    assert "lambda:" in left_out[0] and "--data DIR" in left_out[1]


def test_a_page_says_the_result_and_what_speaks_against_it(fill, page):
    _, shown, _ = page(fill(WHOLE, specs=SPECS, baseline="Uniform"))
    # By hand: HGPrompt (54 + 33.5) / 2; over Uniform +1 on x and +0.5 on y.
    assert "43.8 % mean test accuracy of HGPrompt, the highest, over 2 tasks" in shown.text
    assert "0.8 points more than Uniform (95 % interval over tasks: " in shown.text
    assert "which may as well be none on other tasks" in shown.text
    assert "12 of 12 runs" in shown.text and ", which is few" in shown.text
    _, shown, _ = page(fill({"A": {"x": [0.5]}}, folder="one", baseline="A"))
    assert "50.0 % mean test accuracy of A, the highest" in shown.text
    assert "what the others are compared with" in shown.text


def test_a_page_of_an_unfinished_benchmark_names_no_winner(fill, page):
    store = fill(WHOLE, specs=SPECS, baseline="Uniform", missing={("Uniform", "y", 1)})
    _, shown, _ = page(store)
    assert "Not finished: 1 run of the recipe is missing" in shown.text
    assert "the highest" not in shown.text and "11 of 12 runs" in shown.text


def test_tables_can_be_sorted_and_read_without_a_script(fill, page):
    text, shown, _ = page(fill(WHOLE, specs=SPECS, baseline="Uniform"))
    assert text.count('<table class="sortable">') == 2
    table = text.split('<table class="sortable">')[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(\w+)</th>', table)
    assert rows == ["Linear", "Uniform", "HGPrompt"]
    assert "<b>54.0</b> ± 0.0" in table and "<u>53.0</u> ± 0.0" in table
    assert "button" not in shown.tags  # a script adds them


def test_the_script_sorts_and_brings_the_order_back(fill, page, tmp_path):
    """In a real browser, where there is one."""
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if browser is None:
        pytest.skip("no headless Chromium here")
    text, _, _ = page(fill(WHOLE, specs=SPECS, baseline="Uniform"))
    clicks = """<script>
    const table = document.querySelector("table.sortable");
    const buttons = table.querySelectorAll("button");
    const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join();
    const seen = [order()];
    for (const column of [0, 1, 1, 1, 6]) { buttons[column].click(); seen.push(order()); }
    document.title = seen.join(" | ") + " | " + table.querySelector("[aria-sort]").textContent;
    </script></body>"""
    (tmp_path / "clicked.html").write_text(text.replace("</body>", clicks), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    found = subprocess.run(
        [*command, f"file://{tmp_path / 'clicked.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    title = re.search(r"<title>(.*?)</title>", found)[1].split(" | ")
    plain, by_name, falling, rising = (
        "Linear,Uniform,HGPrompt",
        "HGPrompt,Linear,Uniform",
        "HGPrompt,Uniform,Linear",
        "Linear,Uniform,HGPrompt",
    )
    assert title[:5] == [plain, by_name, falling, rising, plain]
    # The baseline has no gain over itself: it is last, whatever the direction.
    assert title[5] == "HGPrompt,Linear,Uniform" and "same, tasks" in title[6]


def test_names_that_are_html_do_no_harm(fill, page):
    nasty = "<script>alert('x')</script>&"
    own = {nasty: {"<b>x": [0.5]}, "B": {"<b>x": [0.6]}}
    text, shown, _ = page(fill(own, specs={nasty: "spot"}, baseline="B"))
    assert shown.tags.count("script") == 1 and "alert('x')" not in shown.tags
    assert nasty in shown.text and "<script>alert" not in text


def test_a_page_of_several_benchmarks_links_to_each(fill, page, vprompt, tmp_path):
    first = fill(WHOLE, specs=SPECS, baseline="Uniform", folder="first")
    second = fill({n: {"x": [0.5]} for n in LINE}, specs=LINE, folder="second", name="sweep")
    text, shown, left_out = page(first, second)
    assert "2 benchmarks" in shown.text
    links = [value for name, value in shown.attributes if name == "href" and "bench" in value]
    assert links == ["#benchmark-1", "#benchmark-2"]
    assert "Accuracy by lambda on 1 targets" in text
    ids = [value for name, value in shown.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert str(tmp_path) not in text  # a page that is passed on tells no places
    assert any(
        line.startswith("sweep: ablation: The recipe of the folder of sweep") for line in left_out
    )
    target = tmp_path / "by_command.html"
    code, out, _ = vprompt(
        *("bench", "report", first.folder, second.folder, "--output", target, "--quiet")
    )
    assert code == 0 and target.read_text() == text and "not drawn: sweep: ablation" in out


def test_a_page_with_the_images_has_a_map(trained, page):
    store, data = trained
    text, shown, left_out = page(store, data=data, device="cpu")
    assert "t-SNE of 12 training images under 3 prompts" in text
    assert not any("tsne" in line for line in left_out)
    assert "demo" not in shown.text and "tiny at 32 px, frozen" in shown.text
    text, _, left_out = page(store, data=data / "gone", device="cpu")
    assert "tsne" in left_out[-1] and str(data) not in text + left_out[-1]
