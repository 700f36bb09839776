"""Bench tables: means, ranks, intervals, differences and verdicts, against published numbers."""

import csv
import io
import json
import math
import statistics

import numpy as np
import pytest
from scipy import stats

# VPT-Deep as published, in VTAB's order, and the two means that its authors and others print.
PUBLISHED = {
    "cifar": 78.8,
    "caltech101": 90.8,
    "dtd": 65.8,
    "oxford_flowers102": 98.0,
    "oxford_iiit_pet": 88.3,
    "svhn": 78.1,
    "sun397": 49.6,
    "patch_camelyon": 81.8,
    "eurosat": 96.1,
    "resisc45": 83.4,
    "diabetic_retinopathy": 68.4,
    "clevr_count": 68.5,
    "clevr_dist": 60.0,
    "dmlab": 46.5,
    "kitti": 72.8,
    "dsprites_loc": 73.6,
    "dsprites_ori": 47.9,
    "smallnorb_azi": 32.9,
    "smallnorb_ele": 37.8,
}
MEAN_19, MEAN_GROUPS = 69.43, 71.97
SMALL = {  # accuracy by method, task, seed
    "one": {"b": [0.5, 0.7], "a": [0.2, 0.4]},
    "two": {"b": [0.6, 0.7], "a": [0.3, 0.6]},
    "three": {"b": [0.1, 0.2], "a": [0.1, 0.1]},
}


@pytest.fixture
def fill(tmp_path):
    """Return a function that writes a benchmark's folder with these accuracies in it."""
    from vprompt.bench.jobs import Job
    from vprompt.bench.recipe import from_values
    from vprompt.bench.store import Store

    def make(accuracies, *, folder="out", missing=(), change=None, **recipe):
        methods = list(accuracies)
        seeds = range(len(next(iter(accuracies[methods[0]].values()))))
        tasks = list(accuracies[methods[0]])
        values = {
            "name": "made_up",
            "tasks": tasks,
            "methods": [{"name": name, "learn": "linear"} for name in methods],
            "seeds": list(seeds),
        }
        store, jobs = Store(tmp_path / folder), []
        for method in methods:
            for task in tasks:
                for seed in seeds:
                    job = Job(
                        command="learn",
                        method=method,
                        spec="linear",
                        options={"row": methods.index(method)},
                        task=task,
                        seed=seed,
                        model="vit",
                        data_digest="d",
                        data=task,
                    )
                    jobs.append(job)
                    if (method, task, seed) not in missing:
                        record = record_of(job, accuracies[method][task][seed])
                        store.write(job, change(record) if change else record)
        store.start(from_values({**values, **recipe}, where="it"), jobs)
        return store

    return make


def record_of(job, accuracy):
    return {
        "id": job.id,
        "command": "learn",
        "method": "linear",
        "settings": {"depth": 1},
        "job": job.identity(),
        "protocol": "made up",
        "train": {"lr": 0.1, "seed": job.seed},
        "train_on": "trainval",
        "task": {
            "name": job.task,
            "splits": {
                "train": {"images": 1000, "digest": "sha256:1"},
                "test": {"images": 10_000},
            },
        },
        "backbone": {
            "name": "vit_base_patch16_224.orig_in21k",
            "fingerprint": "sha256:2",
            "data_config": {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5]},
        },
        "machine": {
            "code": "sha256:3",
            "versions": {"torch": "2.0"},
            "precision": "bf16",
            "device": "cpu",
            "created_at": f"{accuracy}",
        },
        "tuning": {
            "parameters": {"adapter": 1000, "prompt": 500, "head": 100},
            "history": [{"epoch": 0, "val_accuracy": accuracy}],
            "selection": "last epoch",
        },
        "test": {
            "no prompt": {"acc1": accuracy / 2},
            "learned": {"acc1": accuracy},
        },
        "seconds": {"tune": accuracy},
        "total_seconds": 2.0,
    }


def summary_of(store, **options):
    from vprompt.bench.summary import summarise

    return summarise(store, **options)


# Numbers


def test_both_means_over_vtab_are_the_published_ones(fill):
    shuffled = dict(sorted(PUBLISHED.items(), key=lambda pair: pair[1]))
    found = summary_of(fill({"VPT-Deep": {task: [v / 100] for task, v in shuffled.items()}}))
    assert found.tasks == list(PUBLISHED)
    [row] = found.rows
    assert row.mean.mean == pytest.approx(MEAN_19, abs=0.005)
    assert row.mean_of_groups.mean == pytest.approx(MEAN_GROUPS, abs=0.01)
    assert found.group_names == ["natural", "specialized", "structured"]
    assert math.isnan(row.mean.std) and row.mean.n == 1


def test_deviations_are_over_seeds_with_one_degree_of_freedom_less(fill):
    row = summary_of(fill(SMALL)).rows[0]
    assert row.cells["b"].mean == pytest.approx(60)
    assert row.cells["b"].std == pytest.approx(statistics.stdev([50, 70]))
    assert row.cells["b"].std == pytest.approx(np.std([50, 70], ddof=1))
    assert row.mean.std == pytest.approx(np.std([(50 + 20) / 2, (70 + 40) / 2], ddof=1))
    assert (row.parameters, row.head_parameters, row.seconds) == (1500, 100, 2.0)
    assert row.mean_of_groups is None  # no group is known


def test_ranks_are_the_average_over_runs_with_ties_shared(fill):
    found = {row.method: row.rank for row in summary_of(fill(SMALL)).rows}
    # By hand, runs (b,0), (b,1), (a,0), (a,1): `one` and `two` tie in (b,1).
    assert found == {"one": 7.5 / 4, "two": 4.5 / 4, "three": 3.0}


def test_a_difference_has_the_interval_of_the_paired_t_test(fill):
    rows = summary_of(fill(SMALL), baseline="one").rows
    ours = [100 * SMALL["two"][t][s] for t in "ba" for s in (0, 1)]
    theirs = [100 * SMALL["one"][t][s] for t in "ba" for s in (0, 1)]
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    found = rows[1].over_runs
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs)) and found.n == 4
    by_task = stats.ttest_1samp([5, 15], 0).confidence_interval(0.95)
    tasks = rows[1].over_tasks
    assert (tasks.low, tasks.high) == pytest.approx((by_task.low, by_task.high)) and tasks.n == 2
    assert rows[0].over_runs is None


def test_what_is_missing_leaves_no_mean_over_other_tasks(fill, refused):
    from vprompt.bench.formats import render

    gone = {("two", "a", 0), ("two", "a", 1), ("three", "b", 1)}
    store = fill(SMALL, missing=gone)
    found = summary_of(store, baseline="one")
    one, two, three = found.rows
    assert two.mean is None and "a" not in two.cells and two.over_runs.n == 2
    assert three.mean.n == 1 and three.cells["b"].n == 1 and one.mean.n == 2
    assert found.missing == 3 and one.rank == 2  # by the one run that all share
    text = render(found, "md")
    assert "(n=1)" in text and "| - |" in text and "3 runs are not finished" in text
    with refused("No method is called 'none'", "one, two, three"):
        summary_of(store, baseline="none")
    with refused("no finished run"):
        summary_of(
            fill(
                SMALL,
                folder="empty",
                missing={(m, t, s) for m in SMALL for t in "ab" for s in (0, 1)},
            )
        )


def test_a_table_says_where_its_runs_are_not_alike(fill):
    def change(record):
        if record["job"]["seed"]:
            record["backbone"]["fingerprint"] = "sha256:other"
        return record

    assert "2 different checkpoints" in " ".join(summary_of(fill(SMALL, change=change)).notes)
    assert "different" not in " ".join(summary_of(fill(SMALL, folder="same")).notes)


def test_another_candidate_of_the_records_can_be_shown(fill):
    found = summary_of(fill(SMALL), candidate="no prompt")
    assert found.rows[0].cells["b"].mean == pytest.approx(30) and "no prompt" in found.title


# Columns


def test_columns_are_in_vtabs_order_whatever_the_task_is_called():
    from vprompt.bench import suite

    groups = {
        "zebra": None,
        "coil20": "structured",
        "dmlab": None,
        "rsscn7": "specialized",
        "ants": None,
        "eurosat": None,
        "dtd10": "natural",
        "pets": "odd",
        "cifar100": None,
        "svhn": None,
    }
    wanted = "cifar100 svhn dtd10 eurosat rsscn7 dmlab coil20 pets ants zebra"
    assert suite.ordered(groups, groups) == wanted.split()
    assert suite.label_of("cifar100") == "CIFAR-100" and suite.label_of("ants") == "ants"


# Formats


def test_best_is_bold_and_second_underlined_by_what_is_printed(fill):
    from vprompt.bench.formats import render

    accuracies = {"one": [0.70004], "two": [0.7], "three": [0.6], "four": [0.5]}
    found = summary_of(fill({name: {"x": values} for name, values in accuracies.items()}))
    lines = [line for line in render(found, "md").splitlines() if line.startswith("| ")]
    cells = [line.split(" | ")[1] for line in lines[1:]]
    assert cells == ["**70.0**", "**70.0**", "<u>60.0</u>", "50.0"]
    tex = render(found, "latex")
    assert tex.count(r"\textbf{70.0}") == 4 and r"\underline{60.0}" in tex


def test_latex_is_escaped_and_keeps_groups_apart(fill):
    from vprompt.bench.formats import render

    methods = [
        {"name": "100 % R&D_1", "learn": "linear", "group": "first"},
        {"name": "two", "learn": "linear", "group": "second"},
    ]
    accuracies = {"100 % R&D_1": {"x_y": [0.1, 0.2]}, "two": {"x_y": [0.2, 0.3]}}
    tex = render(summary_of(fill(accuracies, methods=methods), baseline="two"), "latex")
    assert r"100 \% R\&D\_1" in tex and r"x\_y" in tex and r"$\pm$" in tex
    assert tex.count(r"\midrule") == 2
    methods[0]["name"] = "a^b_{50} ~$5\\"
    accuracies = {"a^b_{50} ~$5\\": accuracies["two"], "two": accuracies["two"]}
    tex = render(summary_of(fill(accuracies, methods=methods), baseline="two"), "latex")
    written = r"a\textasciicircum{}b\_\{50\} \textasciitilde{}\$5\textbackslash{}"
    assert written in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {len(body[0].split(" & ")) - 1}


def test_the_csv_holds_every_seed_and_every_mean(fill):
    from vprompt.bench.formats import render

    found = summary_of(fill(SMALL))
    lines = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    seeds = [line for line in lines if line["seed"] != "mean"]
    assert len(seeds) == 12 and {line["n"] for line in seeds} == {"1"}
    [cell] = [x for x in lines if (x["method"], x["task"], x["seed"]) == ("one", "b", "mean")]
    assert float(cell["accuracy"]) == pytest.approx(60) and cell["n"] == "2"
    assert {line["task"] for line in lines} == {"a", "b", "mean_2"}


def test_an_unknown_format_is_refused(fill, fails, tmp_path):
    fill(SMALL)
    fails("bench", "table", tmp_path / "out", "--format", "xls", saying=("md, latex, csv",))


# Compare


def test_two_runs_are_compared_field_by_field_the_weightiest_first(fill):
    from vprompt.bench.compare import compare

    def change(record):
        record["machine"]["versions"]["torch"] = "2.1"
        record["train"]["lr"] = 0.2
        record["backbone"]["fingerprint"] = "sha256:another"
        record["backbone"]["data_config"]["mean"] = [0.4, 0.4, 0.4]
        record["settings"]["width"] = 3
        record["task"]["splits"]["train"]["digest"] = "sha256:9"
        record["test"]["learned"]["acc1"] += 0.01
        record["tuning"]["history"] = []
        record["total_seconds"] = 9.0
        return record

    fill(SMALL, folder="a")
    fill(SMALL, folder="b", change=change)
    here, there = fill(SMALL, folder="a"), fill(SMALL, folder="b", change=change)
    numbers, found = compare(here.folder, there.folder)
    assert [each.field for each in found] == [
        "backbone.fingerprint",
        "backbone.data_config.mean",
        "task.splits.train.digest",
        "settings.width",
        "train.lr",
        "machine.versions.torch",
    ]
    assert {each.pairs for each in found} == {12}
    assert found[3].here == "not there" and found[4].reason == "another training setting"
    assert (
        "12 pairs of runs: 0 with the same" in numbers[0] and "mean difference +1.00" in numbers[0]
    )
    [one, *_] = (here.folder / "runs").glob("*.json")
    assert compare(one, one)[1] == []


def test_other_sources_and_draws_are_named():
    from vprompt.bench.compare import differences

    def record(digest, rows):
        sources = [{"name": "apples", "digest": digest, "weight": rows[0]}]
        return {
            "transfer": {"sources": sources, "hscore_fused": rows[0]},
            "task": {"facts": {"few_shot": {"train": rows}}},
        }

    found = differences(record("abc", [1, 2]), record("abd", [1, 3]))
    assert [(each.field, each.reason) for each in found] == [
        ("task.facts.few_shot.train", "other images were drawn"),
        ("transfer.sources.apples", "other source prompts"),
    ]


def test_compare_prints_and_refuses(fill, vprompt, fails, tmp_path):
    here = fill(SMALL, folder="a")
    other = {name: {"c": values["a"]} for name, values in SMALL.items()}
    there = fill(other, folder="b")
    code, out, _ = vprompt("bench", "compare", here.folder, here.folder)
    assert code == 0 and "nothing that is recorded" in out
    files = sorted((here.folder / "runs").glob("*.json"))
    code, out, _ = vprompt("bench", "compare", files[0], files[-1], "--json")
    assert code == 0 and json.loads(out)["fields"]
    fails("bench", "compare", here.folder, there.folder, saying=("share no run",))
    fails("bench", "compare", here.folder, files[0], saying=("two run files, or two folders",))
    fails("bench", "compare", here.folder / "bench.json", files[0], saying=("no record of a run",))


@pytest.mark.parametrize("record", [[], {"tuning": 3}, {"test": {"learned": {"acc1": "much"}}}])
def test_a_record_that_is_not_whole_is_one_sentence_of_every_command(fill, fails, tmp_path, record):
    store = fill(SMALL, baseline="one")
    run = sorted((store.folder / "runs").glob("*.json"))[0]
    run.write_text(json.dumps(record))
    words = {
        "table": (),
        "report": ("--output", tmp_path / "page.html"),
        "figure": ("--output", tmp_path / "page.svg"),
    }
    for verb, more in words.items():
        kind = ("ablation",) if verb == "figure" else ()
        fails("bench", verb, *kind, store.folder, *more, saying=("record of a run",))


def test_packed_runs_are_read_by_every_command_as_their_files_were(
    fill, vprompt, anchors, tmp_path
):
    store = fill(SMALL, baseline="one", missing=[("two", "a", 1)])
    run = sorted((store.folder / "runs").glob("*.json"))[0]
    folder, page = store.folder, tmp_path / "page"
    published = anchors("one,a,30,paper,,,\n")
    commands = [
        ("table", folder),
        ("table", folder, "--format", "csv"),
        ("check", folder, "--anchors", published),
        ("compare", folder, fill(SMALL, folder="other").folder),
        ("compare", run, run),
        ("figure", "ablation", folder, "--output", page.with_suffix(".svg")),
        ("report", folder, "--output", page.with_suffix(".html")),
    ]

    def said():
        out = [vprompt("bench", *words)[:2] for words in commands]  # the clock is in stderr
        return out, [page.with_suffix(each).read_bytes() for each in (".svg", ".html")]

    before, files = said(), {path.name: path.read_bytes() for path in run.parent.iterdir()}
    code, out, _ = vprompt("bench", "pack", folder)
    assert code == 0 and f"{len(files)} records, {len(files)} of them new" in out
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["bench.json", "runs.jsonl.xz"]
    after = said()
    for words, one, other in zip(commands, before[0], after[0], strict=True):
        assert one == other and (one[0] == 0 or words[0] == "check"), words
    assert after[1] == before[1]
    assert vprompt("bench", "unpack", folder)[0] == 0
    assert {path.name: path.read_bytes() for path in run.parent.iterdir()} == files


# Anchors

HEAD = "method,task,accuracy,source,detail,backbone,tolerance\n"


@pytest.fixture
def anchors(tmp_path):
    """Return a function that writes lines of anchors to a folder."""

    def write(*lines, name="published"):
        folder = tmp_path / "anchors"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.csv").write_text(HEAD + "\n".join(lines) + "\n")
        return folder

    return write


def verdicts(store, folder):
    from vprompt.bench.anchors import check, read

    return {(f.anchor.method, f.anchor.task): f for f in check(store, read(folder))}


VIT = "vit_base_patch16_224.orig_in21k"


def test_a_result_agrees_or_deviates_by_the_stated_tolerance(fill, anchors):
    store = fill({"Linear": {"cifar100": [0.60, 0.62]}, "VPT": {"cifar100": [0.7, 0.7]}})
    folder = anchors(
        f"Linear,cifar,62.9,a paper,,{VIT},2.0",
        f"VPT,cifar100,74.0,a paper,,{VIT},",
        f"VPT,cifar,70.0,a paper,best test epoch,{VIT},0.1",
        f"VPT,average_printed,10.0,a paper,,{VIT},0.1",
        f"Other,cifar,10.0,a paper,,{VIT},0.1",
    )
    found = verdicts(store, folder)
    assert found["Linear", "cifar"].verdict == "agrees"
    assert found["Linear", "cifar"].difference == pytest.approx(-1.9)
    assert (found["VPT", "cifar"].verdict, found["VPT", "cifar"].anchor.tolerance) == (
        "deviates",
        3,
    )
    assert set(found) == {("Linear", "cifar"), ("VPT", "cifar")} | {
        ("Linear", "mean_1"),
        ("VPT", "mean_1"),
    }


def test_the_mean_over_the_recipes_tasks_is_computed_from_the_anchors(fill, anchors):
    def sized(record):
        sizes = {"cifar": 10_000, "svhn": 26_032}
        record["task"]["splits"]["test"]["images"] = sizes[record["job"]["task"]]
        return record

    store = fill({"VPT": {"cifar": [0.5], "svhn": [0.6]}}, change=sized)
    folder = anchors(
        *(f"VPT,{t},{v},p,,{VIT}," for t, v in (("cifar", 52), ("svhn", 62), ("dtd", 9)))
    )
    found = verdicts(store, folder)
    assert found["VPT", "mean_2"].anchor.accuracy == pytest.approx(57)
    assert found["VPT", "mean_2"].verdict == "deviates"  # by 2, where 1.5 are allowed
    assert found["VPT", "cifar"].verdict == "agrees"


@pytest.mark.parametrize(
    "place, value, why",
    [
        (("backbone", "name"), "demo", "another backbone: demo"),
        (("backbone", "data_config", "input_size"), [3, 70, 70], "image size: 70 px"),
        (("task", "splits", "test", "images"), 500, "test split of cifar: 500 images, not 10,000"),
        (("task", "splits", "train", "images"), 800, "protocol: trained on 800 images"),
        (("job", "task"), "ants", "ants is no task of VTAB"),
    ],
)
def test_what_cannot_be_compared_is_said_and_does_not_fail(
    fill, anchors, vprompt, place, value, why
):
    def change(record):
        inner = record
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        return record

    store = fill({"VPT": {"cifar": [0.5]}}, change=change)
    folder = anchors(f"VPT,cifar,90.0,a paper,,{VIT},")
    found = verdicts(store, folder)["VPT", "cifar"]
    assert found.verdict == "not comparable" and why in found.why
    code, out, _ = vprompt("bench", "check", store.folder, "--anchors", folder)
    assert code == 0 and "not comparable" in out


def test_an_anchor_without_a_backbone_is_not_comparable(fill, anchors):
    found = verdicts(fill({"VPT": {"cifar": [0.5]}}), anchors("VPT,cifar,50,a paper,,,"))
    assert "does not say its backbone" in found["VPT", "cifar"].why


def test_check_exits_with_1_where_a_result_deviates(fill, anchors, vprompt, fails, tmp_path):
    methods = [{"name": "ours", "learn": "linear", "anchor": "VPT"}]
    store = fill({"ours": {"cifar": [0.5]}}, methods=methods)
    call = ["bench", "check", store.folder, "--anchors"]
    code, out, _ = vprompt(*call, anchors(f"VPT,cifar,90,a paper,,{VIT},"))
    assert code == 1 and "deviates" in out and "-40.0" in out
    code, out, _ = vprompt(*call, anchors(f"VPT,cifar,51,a paper,,{VIT},"), "--json")
    assert code == 0 and {each["verdict"] for each in json.loads(out)} == {"agrees"}
    two = fill({"ours": {"cifar": [0.5]}}, methods=[{**methods[0], "anchor": ["VPT", "VPT-Deep"]}])
    lines = (f"VPT,cifar,51,a paper,,{VIT},", f"VPT-Deep,cifar,49,another,,{VIT},")
    found = verdicts(two, anchors(*lines))
    assert {name for name, task in found if task == "cifar"} == {"VPT", "VPT-Deep"}
    code, out, _ = vprompt(*call, anchors(f"other,cifar,51,a paper,,{VIT},"))
    assert code == 0 and "no published number" in out
    (tmp_path / "none").mkdir()
    fails(*call, tmp_path / "none", saying=("no .csv file",))
    (tmp_path / "none" / "x.csv").write_text("a,b\n1,2\n")
    fails(*call, tmp_path / "none", saying=("no column accuracy, method, task",))
    fails(*call, anchors(f"VPT,cifar,much,a paper,,{VIT},"), saying=("line 2",))
