"""Bench: a recipe on a tiny model, run, killed, run again; what is wrong is found before."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"
TINY = {"model": "tiny", "image_size": 32}
LINEAR = {"name": "Linear", "learn": "linear"}
VPT = {"name": "VPT", "learn": "vpt(num_virtual_tokens=1, prompt_init_seed={seed})"}
UNIFORM = {"name": "Uniform", "combine": "uniform", "safeguard": False}
SOURCES = {"learn": "vpt(num_virtual_tokens=1)", "train": {"epochs": 1}}


@pytest.fixture
def shapes(tmp_path):
    """Two tasks of noisy coloured squares, as class folders."""
    rng = np.random.default_rng(0)
    for task, noise in (("warm", 60), ("cold", 90)):
        for label in range(3):
            folder = tmp_path / "data" / task / f"class{label}"
            folder.mkdir(parents=True)
            colour = np.full(3, 60)
            colour[label] = 180
            for index in range(15):
                pixels = np.clip(colour + noise * rng.standard_normal((8, 8, 3)), 0, 255)
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{index:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a recipe, sound unless it is told otherwise."""

    def make(**changes):
        values = {
            "name": "little",
            "backbone": TINY,
            "seeds": [0, 1],
            "train": {"epochs": 1, "precision": "fp32"},
            "tasks": [{"name": "warm", "shots": 4}, {"name": "cold", "shots": 4}],
            "methods": [LINEAR, VPT],
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return path

    return make


@pytest.fixture
def expand(write, shapes, tmp_path):
    """Return a function that gives the jobs of a recipe with these changes."""
    from vprompt.bench import jobs, recipe

    def make(data=shapes, **changes):
        return jobs.expand(recipe.read(write(**changes)), data=data, output=tmp_path / "out")

    return make


def record_of(job, chosen=None, **changes):
    """Return what a run would, without running anything."""
    lr = job.train.get("lr", 0.005)
    accuracy = {0.1: 0.5, 0.01: 0.7, 0.001: 0.7}.get(lr, 0.6)
    epochs = [{"epoch": 0, "val_accuracy": accuracy, "val_loss": 1.0, "lr": 0, "train_loss": None}]
    name = "learned" if job.command == "learn" else "tuned"
    return {
        "id": job.id,
        "command": job.command,
        "job": {**job.identity(), "method": job.method, "chosen": chosen},
        "train": {"lr": lr, "head_lr": 0.001},
        "tuning": {"history": epochs, "kept_epoch": 0, "kept": "kept the start"},
        "test": {name: {"acc1": accuracy}} if job.role == "final" else {},
        "total_seconds": 1.0,
        **changes,
    }


# Recipes


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"metods": []}, ("metods", "methods")),
        ({"methods": []}, ("methods", "at least 1")),
        ({"methods": [{"name": "x"}]}, ("methods.0", "either `learn` or `combine`")),
        ({"methods": [{**LINEAR, "combine": "best"}]}, ("methods.0", "either")),
        ({"methods": [LINEAR, LINEAR]}, ("methods: 'Linear' is there twice",)),
        (
            {"methods": [{**LINEAR, "safeguard": True}]},
            ("`safeguard` is for methods that combine",),
        ),
        (
            {"methods": [{"name": "x", "learn": "linaer"}]},
            ("methods.0 .x.", "Did you mean 'linear'"),
        ),
        (
            {"methods": [{**VPT, "learn": "vpt(token=3)"}]},
            ("methods.0 .VPT.", "no setting 'token'"),
        ),
        ({"methods": [{**VPT, "train": {"epoch": 3}}]}, ("methods.0", "'epoch'")),
        ({"methods": [UNIFORM]}, ("methods.0 .Uniform.", "neither `pools` nor `sources`")),
        (
            {"methods": [UNIFORM | {"scale": "big"}], "sources": SOURCES},
            ("methods.0", "scale", "big"),
        ),
        ({"train": {"lr": -1}}, ("methods.0", "--lr", "greater than 0")),
        ({"selection": {"grid": {"lr": [0.1, -1]}}}, ("methods.0", "--lr")),
        ({"selection": {"grid": {"lr": []}}}, ("methods.0", "no values", "lr")),
        ({"selection": {"grid": {}, "then": "test"}}, ("selection.then", "trainval")),
        ({"sources": {"learn": "vtp"}}, ("sources", "'vpt'")),
        ({"methods": [{**VPT, "grid": {"lr": [0.1]}}]}, ("methods.0", "no `selection`")),
        ({"train": {"patience": 3}, "train_on": "trainval"}, ("methods.0", "patience=3")),
        (
            {"train": {"patience": 3}, "selection": {"grid": {"lr": [0.1]}}},
            ("methods.0", "patience=3", "validate on"),
        ),
        ({"sources": {**SOURCES, "train": {"patience": 3}}}, ("sources", "patience=3")),
        ({"train": {"seed": 3}}, ("train.seed", "seeds:")),
        ({"seeds": [1, 1]}, ("seeds: 1 is there twice",)),
        ({"tasks": [{"name": "warm", "shots": 0}]}, ("tasks.0.shots", "greater than")),
        ({"baseline": "VTP"}, ("baseline", "VTP")),
        ({"backbone": {"model": "tiny", "size": 3}}, ("backbone.size",)),
    ],
)
def test_a_wrong_recipe_names_the_key(write, changes, words, refused):
    from vprompt.bench import recipe

    with refused(*words):
        recipe.read(write(**changes))


def test_a_task_that_is_not_there_is_found_before_anything_runs(expand, refused):
    with refused("No folder for the task 'hot'"):
        expand(tasks=["hot"])
    with refused("--data DIR"):
        expand(data=None)


# Jobs


def test_an_id_follows_from_what_determines_the_result_alone(expand, shapes, tmp_path):
    import shutil

    jobs = expand()
    ids = {job.id for job in jobs}
    assert len(ids) == len(jobs) == 8
    renamed = expand(methods=[{**LINEAR, "name": "Probe", "group": "g"}, VPT], name="other")
    assert {job.id for job in renamed} == ids
    moved = tmp_path / "elsewhere"
    shutil.copytree(shapes, moved)
    assert {job.id for job in expand(data=moved)} == ids
    for changes in (
        {"train": {"epochs": 2, "precision": "fp32"}},
        {"backbone": {"model": "tiny", "image_size": 48}},
        {"tasks": [{"name": "warm", "shots": 3}, {"name": "cold", "shots": 3}]},
        {"seeds": [2, 3]},
        {"protocol": "another"},
    ):
        assert not {job.id for job in expand(**changes)} & ids
    victim = next((shapes / "warm").rglob("*.png"))
    victim.write_bytes(victim.read_bytes() + b"\0")
    changed = {job.id for job in expand()}
    assert len(changed & ids) == 4  # the other task's


def test_the_seed_reaches_the_method(expand):
    specs = {job.seed: job.spec for job in expand() if job.method == "VPT"}
    assert specs[1] == "vpt(num_virtual_tokens=1, prompt_init_seed=1)" and specs[0] != specs[1]


def test_jobs_come_after_what_they_need_and_beside_those_of_their_task(expand):
    jobs = expand(
        methods=[LINEAR, UNIFORM],
        sources=SOURCES,
        selection={"grid": {"head_lr": [0.01, 0.001]}},
    )
    place = {job.id: index for index, job in enumerate(jobs)}
    assert all(place[need] < place[job.id] for job in jobs for need in job.needs)
    tasks = [job.task for job in jobs if job.role != "source"]
    assert tasks == sorted(tasks, key=["warm", "cold"].index)
    final = [job for job in jobs if job.role == "final"]
    assert {(len(job.select), len(job.sources)) for job in final} == {(2, 0), (2, 1)}
    assert all(
        job.counts == {"train": 18, "val": 0, "test": 9, "sources": len(job.sources)}
        for job in final
    )
    [warm] = {job.pools for job in final if job.task == "warm" and job.command == "combine"}
    assert [Path(folder).name for folder in warm] == ["cold"]  # not the target's own


def test_a_pool_is_part_of_the_id(expand, tmp_path, tiny, pool):
    import torch

    from vprompt.artifacts import artifact
    from vprompt.models.heads import Head

    def save(name, prompt):
        config = artifact.make_config(tiny, prompt, ("x", "y"), prompt_init=None)
        head = Head(torch.zeros(2, 64), torch.zeros(2))
        made = artifact.Artifact(prompt, head, torch.zeros(64), config, "card")
        artifact.save(made, tmp_path / "pool" / name, overwrite=True)

    def ids():
        given = {"methods": [LINEAR, UNIFORM], "pools": [str(tmp_path / "pool")]}
        return {
            job.method: job.id for job in expand(**given) if (job.task, job.seed) == ("warm", 0)
        }

    save("apples", pool["apples"])
    save("birds", pool["birds"])
    first = ids()
    assert ids() == first
    save("birds", pool["cars"])
    second = ids()
    assert second["Uniform"] != first["Uniform"] and second["Linear"] == first["Linear"]


# Picking


def test_what_is_asked_for_is_picked_with_what_it_needs(expand, refused):
    from vprompt.bench.runner import pick

    jobs = expand(methods=[LINEAR, UNIFORM], sources=SOURCES)
    picked = pick(jobs, methods=["Uniform"], tasks=["warm"], seeds=[1])
    assert [(job.role, job.task) for job in picked] == [("source", "cold"), ("final", "warm")]
    for wrong in ({"methods": ["Unifrom"]}, {"tasks": ["hot"]}, {"seeds": [7]}):
        with refused("The recipe has no", "It has:"):
            pick(jobs, **wrong)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shards_share_all_jobs_and_keep_a_selection_with_its_final_runs(expand, parts, refused):
    from vprompt.bench.runner import pick

    jobs = expand(selection={"grid": {"head_lr": [0.01, 0.001]}})
    shards = [pick(jobs, shard=(part, parts)) for part in range(1, parts + 1)]
    assert sorted(job.id for shard in shards for job in shard) == sorted(job.id for job in jobs)
    for shard in shards:
        own = {job.id for job in shard}
        assert all(need in own for job in shard for need in job.needs)
    with refused("A shard is i/n"):
        pick(jobs, shard=(parts + 1, parts))


# Running


def test_a_failure_stops_nothing_and_is_tried_again_when_asked(expand, tmp_path):
    from vprompt.bench.runner import run
    from vprompt.bench.store import Store
    from vprompt.core.errors import VPromptError

    jobs, store, calls = expand(), Store(tmp_path / "out"), []

    def work(job, chosen=None, broken=True):
        calls.append(job.id)
        if broken and job.method == "VPT" and job.task == "warm":
            raise (VPromptError if job.seed else RuntimeError)("Too many tokens.")
        return record_of(job)

    report = run(jobs, store, work=work)
    assert len(report.done) == 6 and len(calls) == 8
    assert sorted(report.failed.values()) == [
        "warm, VPT, seed 0: RuntimeError: Too many tokens.",
        "warm, VPT, seed 1: Too many tokens.",
    ]
    kept = [store.failures.read(name) for name in store.failed().values()]
    assert {bool(each["traceback"]) for each in kept} == {True, False}

    calls.clear()
    again = run(jobs, store, work=work)
    assert not calls and not again.done and again.failed == report.failed
    mended = run(
        jobs, store, work=lambda job, chosen: work(job, chosen, broken=False), retry_failed=True
    )
    assert len(mended.done) == len(calls) == 2 and not store.failed()


def test_a_run_that_another_process_finished_is_not_run_again(expand, tmp_path):
    from vprompt.bench.runner import run
    from vprompt.bench.store import Store

    jobs, store, calls = expand(), Store(tmp_path / "out"), []

    def work(job, chosen=None):
        calls.append(job.id)
        for other in jobs:
            if other.id != job.id:
                store.write(other, record_of(other))
        return record_of(job)

    run(jobs, store, work=work)
    assert calls == [jobs[0].id]


def test_packed_runs_are_finished_and_what_is_new_is_a_file_again(expand, tmp_path):
    from vprompt.bench.runner import run
    from vprompt.bench.store import Store

    jobs, store, calls = expand(), Store(tmp_path / "out"), []

    def work(job, chosen=None):
        calls.append(job.id)
        return record_of(job)

    half = len(jobs) // 2
    run(jobs[:half], store, work=work)
    assert store.runs.pack().records == half
    run(jobs, store, work=work)
    assert calls == [job.id for job in jobs]  # each of them once
    assert len(list((store.folder / "runs").glob("*.json"))) == len(jobs) - half
    assert {job.id: store.read(job.id) for job in jobs} == {job.id: record_of(job) for job in jobs}


def test_finished_runs_in_another_precision_are_named_before_the_rest_is_run(expand, tmp_path):
    from vprompt.bench.runner import mixed_precision
    from vprompt.bench.store import Store

    jobs, store = expand(), Store(tmp_path / "out")
    assert mixed_precision(jobs, store, "cpu") == []
    for job, precision in zip(jobs, ("bf16", "fp32", "bf16"), strict=False):
        store.write(job, record_of(job, machine={"precision": precision}))
    (sentence,) = mixed_precision(jobs, store, "cpu")
    assert sentence.startswith("2 finished runs were made in bf16, and here they would be in fp32")
    for job in jobs[3:]:
        store.write(job, record_of(job, machine={"precision": "fp32"}))
    assert mixed_precision(jobs, store, "cpu") == []  # nothing is left that could be mixed in


def test_a_record_that_is_not_whole_is_named_before_anything_is_run(expand, tmp_path, refused):
    from vprompt.bench.runner import mixed_precision, run
    from vprompt.bench.store import Store

    jobs, store = expand(), Store(tmp_path / "out")
    store.write(jobs[0], record_of(jobs[0]))
    name = store.finished()[jobs[0].id]
    for record in ([], {"machine": 3}, record_of(jobs[0])):
        store.runs.write(name, record)
        with refused(r"runs.*json is not the whole record of a run", "bench run"):
            mixed_precision(jobs, store, "cpu")
    store.write(jobs[0], record_of(jobs[0], machine={"precision": []}))
    assert "made in []" in mixed_precision(jobs, store, "cpu")[0]
    store.failures.write(name, ["no reason"])
    store.runs.remove(name)
    assert run(jobs[:1], store, work=record_of).failed == {jobs[0].id: f"{jobs[0].title}: unknown"}


def test_settings_are_chosen_on_validation_and_a_tie_goes_to_the_smaller_rate(expand, tmp_path):
    from vprompt.bench.runner import run
    from vprompt.bench.store import Store

    methods = [LINEAR | {"grid": {}}, VPT]
    jobs = expand(methods=methods, selection={"grid": {"lr": [0.1, 0.01, 0.001]}})
    assert [job.role for job in jobs[:3]] == ["select"] * 3
    store, given = Store(tmp_path / "out"), {}

    def work(job, chosen=None):
        given[job.id] = chosen
        return record_of(job, chosen)

    assert not run(jobs, store, work=work).waiting
    for job in jobs:
        if job.role == "final" and job.method == "VPT":
            shared = {"epochs": 1, "precision": "fp32", "lr_unit": "start"}
            assert given[job.id] == {**shared, "lr": 0.001}
            assert job.train_on == "trainval" and job.counts["val"] == 0
        else:
            assert given[job.id] is None
    waiting = run([job for job in jobs if job.role == "final"], Store(tmp_path / "new"), work=work)
    assert len(waiting.waiting) == 4 and len(waiting.done) == 4  # Linear has nothing to choose


def test_the_whole_line_runs_and_is_resumed(write, shapes, vprompt, tmp_path, cache):
    """Sources, selection and both verbs for real, first as a plan, then in two shards."""
    path = write(
        methods=[LINEAR, {**UNIFORM, "grid": {"lr": [0.001, 0.01]}}],
        sources=SOURCES,
        seeds=[0],
        selection={"grid": {}},
        baseline="Linear",
    )
    call = ["bench", "run", path, "--data", shapes, "--output", tmp_path / "out", "-q"]
    code, out, _ = vprompt(*call, "--dry-run")
    assert code == 0 and "10 runs, 0 finished" in out and "images/s" in out and "GB" in out
    sizes = [line for line in out.splitlines() if ": train " in line]
    cut = "train 18, test 9: cut 64/16/20 by seed 0"
    assert sizes == [f"warm: {cut}", f"cold: {cut}"]
    assert not (tmp_path / "out").exists()
    code, out, _ = vprompt(*call, "--dry-run", "--speed", "100")
    assert code == 0 and "h at 100/s; hours = " in out
    code, out, _ = vprompt(*call)
    assert code == 0 and "10 runs done" in out
    code, out, _ = vprompt(*call)
    assert code == 0 and "10 runs, 10 finished" in out and "0 runs done" in out
    code, out, _ = vprompt("bench", "table", tmp_path / "out")
    assert code == 0 and "| Linear |" in out and "over Linear" in out and "mean (2)" in out

    records = [json.loads(p.read_text()) for p in (tmp_path / "out" / "runs").glob("*uniform*")]
    final = [record for record in records if record["job"]["role"] == "final"]
    for record in final:
        assert (
            record["task"]["splits"]["train"]["images"] > 12
            and "val" not in record["task"]["splits"]
        )
        assert record["test"]["tuned"]["acc1"] >= 0 and record["total_seconds"] > 0
        assert str(tmp_path) not in json.dumps(record["job"])
    closed = [record for record in records if record["job"]["role"] == "select"]
    assert len(closed) == 4 and not any(record["test"] for record in closed)
    # A prompt of the pool that is gone is learned again, though its record is there.
    import shutil

    shutil.rmtree(tmp_path / "out" / "pool" / "warm")
    code, out, _ = vprompt(*call)
    assert code == 0 and "10 runs, 9 finished" in out and "1 runs done" in out


def test_a_killed_benchmark_completes_to_the_same_table(write, shapes, tmp_path, vprompt, cache):
    path = write(seeds=[0], train={"epochs": 3, "precision": "fp32"})
    # One after the other, for the records of a fleet are written together, when all are done.
    words = ["bench", "run", path, "--data", shapes, "--fleet", "off", "-q", "--output"]
    source = "import sys, torch; torch.set_num_threads(1); from vprompt.cli import main; main()"
    command = [sys.executable, "-c", source, *map(str, words), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ}) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed" / "runs").glob("[!.]*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    left = len(list((tmp_path / "killed" / "runs").glob("[!.]*.json")))
    assert 1 <= left < 4
    code, out, _ = vprompt(*words, tmp_path / "killed")
    assert code == 0 and f"4 runs, {left} finished" in out
    assert not list((cache / "checkpoints").iterdir())  # nothing of this recipe is left to run
    assert vprompt(*words, tmp_path / "whole")[0] == 0

    def table(name):
        code, out, _ = vprompt("bench", "table", tmp_path / name, "--format", "csv")
        assert code == 0
        return [line.split(",")[:-2] for line in out.splitlines()]  # without seconds and id

    assert table("killed") == table("whole") and len(table("whole")) == 1 + 4 + 2 * 3


def test_a_broken_command_is_one_sentence(fails, write, shapes, tmp_path):
    run = ["bench", "run", write(), "--data", shapes, "--output", tmp_path / "o"]
    fails(*run, "--shard", "2", saying=("--shard reads `i/n`",))
    fails(*run, "--only", "VTP", saying=("no method 'VTP'", "VPT"))
    fails("bench", "table", tmp_path / "none", saying=("holds no benchmark",))
    fails("bench", "run", tmp_path / "none.yaml", "--output", "o", saying=("No recipe at",))


# The recipes that come with the project

CLASSES = {
    "cifar": 100,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn": 10,
    "eurosat": 10,
    "dmlab": 6,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "clevr_count": 8,
    "clevr_dist": 6,
}
MINI = {"cifar100": 100, "dtd10": 10, "oxford_flowers17": 17, "rsscn7": 7, "elpv4": 4, "coil20": 18}


@pytest.fixture
def vtab(tmp_path):
    """Folders in VTAB-1k's format with the right names, classes and training sizes."""
    for task, classes in {**CLASSES, **MINI}.items():
        folder = tmp_path / "vtab" / task
        (folder / "images").mkdir(parents=True)
        for label in range(classes):
            (folder / "images" / f"{label}.png").write_bytes(b"not opened in a dry run")
        for split, size in (("train800", 800), ("val200", 200), ("test", 500)):
            lines = (f"images/{row % classes}.png {row % classes}\n" for row in range(size))
            (folder / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "vtab"


@pytest.mark.parametrize(
    "name, tasks, methods",
    [("vtab1k-table1", 13, 14), ("vtab1k-table2", 8, 9), ("mini-vtab", 6, 10)],
)
def test_a_dry_run_of_every_recipe(name, tasks, methods, vtab, vprompt, tmp_path):
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert (len(values["tasks"]), len(values["methods"])) >= (tasks, methods)
    if values.get("pools"):  # those of the project are for its own checkout
        values = {k: v for k, v in values.items() if k != "pools"} | {"sources": SOURCES}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    call = ["bench", "run", path, "--data", vtab, "--output", tmp_path / "out"]
    code, out, err = vprompt(*call, "--dry-run", "--speed", "1000")
    assert code == 0, err
    assert "0 finished" in out and "h at 1000/s; hours = " in out


def every_method():
    for path in sorted(RECIPES.glob("*.yaml")):
        for method in yaml.safe_load(path.read_text())["methods"]:
            yield pytest.param(path, method["name"], id=f"{path.stem}-{method['name']}")


@pytest.mark.parametrize("path, name", every_method())
def test_every_method_of_every_recipe_is_sound(path, name):
    from vprompt.bench import recipe

    values = yaml.safe_load(path.read_text())
    values["methods"] = [method for method in values["methods"] if method["name"] == name]
    values["baseline"] = None
    recipe.check(recipe.from_values(values, where="it"), where="it")


# Estimates


def test_the_passes_are_those_that_a_backbone_sees(expand, monkeypatch, tiny, tmp_path):
    """Every batch that enters the network is counted, and compared with what was announced."""
    from vprompt.bench import estimate, work
    from vprompt.bench.runner import run
    from vprompt.bench.store import Store
    from vprompt.core.forecast import Estimate

    seen, embed = [], type(tiny).embed

    def counted(self, images):
        seen.append(len(images))
        return embed(self, images)

    jobs = expand(methods=[LINEAR, VPT, UNIFORM], sources=SOURCES, seeds=[0, 1])
    passes = estimate.total(estimate.count(jobs))
    for name in ("training_estimate", "combining_estimate"):  # which look at images of their own
        monkeypatch.setattr(f"vprompt.flow.{name}", lambda *a, **k: Estimate("nothing"))
    work.load_backbone("tiny", 32, "auto")  # checked with images of its own
    monkeypatch.setattr(type(tiny), "embed", counted)
    run(jobs, Store(tmp_path / "out"), fleet="off")  # a fleet tries how wide it may be
    announced = passes.both + passes.forward
    assert announced == pytest.approx(sum(seen), rel=0.05), (announced, sum(seen))


@pytest.mark.parametrize("keep", ["last", "best"])
def test_validation_and_the_trainings_before_the_last_are_counted(expand, keep):
    """By hand: PANDA's teachers, SPoT's candidates, an oracle's sources, of which there are two."""
    from vprompt.bench import estimate

    few = {"epochs": 3, "keep": keep}

    def only(method):
        jobs = expand(methods=[method], sources=SOURCES, train=few, seeds=[0])
        job = next(job for job in jobs if job.role == "final")
        return job.model_copy(update={"counts": {**job.counts, "sources": 2}})

    plain = only(UNIFORM)
    looks = {"last": 2, "best": 4}[keep]
    for spec, trainings, epochs in (
        ("panda(teachers=1)", 2, 6),
        ("spot(use=best, top=2, epochs=2)", 2, 8),
        ("best_validation(tuned=True)", 3, 9),
    ):
        job = only({"name": "it", "combine": spec, "safeguard": False})
        sides = [estimate.total(estimate.count([each])) for each in (job, plain)]
        assert sides[0].both - sides[1].both == (epochs - 3) * job.counts["train"], spec
        more = sides[0].forward - sides[1].forward
        assert more >= (trainings - 1) * looks * job.counts["val"], spec
    learned = only(VPT)
    whole = estimate.total(estimate.count([learned]))
    counts = learned.counts
    assert whole.both == 3 * counts["train"]
    assert whole.forward == 2 * (counts["train"] + counts["test"]) + looks * counts["val"]


def test_hours_are_steps_over_speed():
    from vprompt.bench.estimate import Passes, formula

    work = Passes(3_600_000, 0) + Passes(0, 3 * 3_600_000)
    assert work.steps == pytest.approx(7_200_000)
    assert formula(work, 1000.0).startswith("2.0 h at 1000/s")


def test_a_method_that_cannot_be_built_does_not_stop_the_estimate(expand, tiny):
    from vprompt.bench import estimate

    too_long = {"name": "Long", "learn": "vpt(num_virtual_tokens=[1, 2])"}  # of six blocks
    found, problems = estimate.trials(expand(methods=[LINEAR, too_long]), tiny, None)
    assert [*found] == ["linear"] and "cannot be built" in problems[0]
    assert found["linear"].bytes_per_image > 0 and found["linear"].images_per_second > 0


def test_memory_counts_what_autograd_keeps(tiny):
    """For one matrix multiplication it is the input and nothing else."""
    import torch

    from vprompt.bench.estimate import TRIAL_IMAGES, _try
    from vprompt.learning.adapter import Adapter
    from vprompt.learning.train_config import TrainConfig

    class Small(Adapter):
        def __init__(self):
            super().__init__()
            self.backbone = tiny
            self.weight = torch.nn.Parameter(torch.zeros(3 * 32 * 32, 5))

        def features(self, images, *, generator=None):
            return images.flatten(1) @ self.weight

        def prompt(self):
            return None

    found = _try(Small(), TrainConfig(precision="fp32"))
    assert found.bytes_per_image == 4 * 3 * 32 * 32, TRIAL_IMAGES


def test_the_recipes_in_the_documents_are_sound():
    from vprompt.bench import recipe

    root = Path(__file__).parents[2]
    page = (root / "docs" / "benchmarks.md").read_text()
    told = recipe.__doc__.split("runs.\n\n")[1].split("\n\nA task")[0]
    for text in (page.split("```yaml\n")[1].split("```")[0], told):
        found = recipe.from_values(yaml.safe_load(text), where="it")
        recipe.check(found, where="it")
        assert len(found.methods) >= 2


def test_a_task_that_needs_no_folder_is_the_built_in_one_unless_a_folder_has_its_name(
    tmp_path, refused
):
    from vprompt.bench.jobs import place_of
    from vprompt.bench.recipe import TaskEntry

    digits = TaskEntry(name="digits")
    assert place_of(digits, None) == place_of(digits, tmp_path) == "digits"
    (tmp_path / "digits").mkdir()
    assert place_of(digits, tmp_path) == str(tmp_path / "digits")
    for name in ("cifar", "few_shot"):  # of a folder, and of one that a setting names
        with refused("is a folder of image sets", "--data DIR"):
            place_of(TaskEntry(name=name), None)


def test_sizes_say_how_a_folder_was_cut(tmp_path):
    from PIL import Image

    from vprompt.bench import jobs, recipe

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for row in range(10):
            Image.new("L", (8, 8), row).save(tmp_path / "pets" / name / f"{row}.png")
    values = {"name": "it", "backbone": {"model": "tiny"}, "tasks": ["pets", "digits"]}
    read = recipe.from_values(
        {**values, "methods": [{"name": "linear", "learn": "linear"}]}, where="it"
    )
    every = jobs.expand(read, data=tmp_path, output=tmp_path / "out")
    pets, digits = jobs.sizes(every)
    assert pets == "pets: train 12, val 4, test 4: cut 64/16/20 by seed 0"
    assert digits.startswith("digits: train ")
    assert "cut" not in every[0].identity()
