"""Executors: calls beside one another, what becomes of those that die, the same results."""

import os
import time

import pytest
from grid import add, die, plain, run_grid, serial, sleep, where


def calls(folder):
    """Two that run beside one another, one after them, and what becomes of those that die."""
    from vprompt.bench.calls import Call

    for name in ("beside", "once", "always"):
        (folder / name).mkdir(parents=True)
    return [
        Call("a", where, (folder / "beside", "beside a")),
        Call("b", where, (folder / "beside", "beside b")),
        Call("two", add, (1, 1)),
        Call("five", add, (3,), ("two",)),
        Call("once", die, (folder / "once", 1), ("five",)),
        Call("always", die, (folder / "always", 9)),
        Call("after", add, (), ("always",)),
    ]


def check(found, threads="1"):
    from vprompt.bench.calls import Lost

    (first, second), needed = (found["a"], found["b"]), found["once"]
    assert first[0] != second[0] and first[1] == second[1] == threads
    assert (found["two"], found["five"], needed) == (2, 5, ("alive", 5))
    assert isinstance(found["always"], Lost) and isinstance(found["after"], Lost)


# Executors


def test_local_runs_in_order_and_hands_answers_on():
    from vprompt.bench.calls import Call
    from vprompt.bench.executors import build

    told = []
    asked = [Call("two", add, (1, 1)), Call("six", add, (1, 3), ("two",))]
    assert [*build("local").run(asked, told.append)] == [("two", 2), ("six", 6)]
    assert told == ["two", "six"]


def test_processes_run_beside_one_another_and_survive_a_death(tmp_path):
    from vprompt.bench.executors import build

    made = calls(tmp_path)
    found = dict(build("processes", workers=2, num_cpus=1).run(made))
    check(found)
    assert [*found].index("five") > [*found].index("two") and len(found) == len(made)
    assert len(list((tmp_path / "always").iterdir())) == 3  # the first try and two more


def test_leaving_the_loop_ends_its_own_processes(tmp_path):
    from vprompt.bench.calls import Call
    from vprompt.bench.executors import build

    asked = [Call("quick", add), *(Call(f"slow {i}", sleep, (tmp_path,)) for i in range(2))]
    answers = build("processes", workers=2, num_cpus=1).run(asked)
    assert next(answers) == ("quick", 0)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("pid *"))) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    answers.close()
    for mark in tmp_path.glob("pid *"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.name.split()[1]), 0)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"name": "slurm"}, ("No executor called 'slurm'", "local, processes, ray")),
        ({"name": "local", "workers": 2}, ("--workers is for --executor processes or ray",)),
        ({"name": "processes", "address": "h:1"}, ("--address is for --executor ray",)),
        ({"name": "processes", "workers": 0}, ("--workers is at least 1",)),
        ({"name": "ray", "num_gpus": -1.0}, ("--num-gpus is at least 0",)),
    ],
)
def test_a_setting_that_an_executor_lacks_is_refused(given, words, refused):
    from vprompt.bench.executors import build

    with refused(*words):
        build(**given)


def test_workers_are_dealt_over_the_gpus(monkeypatch, refused):
    import torch

    from vprompt.bench.processes import Processes, gpu_places

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_places(None) == ["0", "1"] and gpu_places(0.0) == []
    assert gpu_places(0.25) == ["0", "1"] * 4 and gpu_places(0.4) == ["0", "1"] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert gpu_places(1.0) == ["5", "7"]
    with refused("one GPU or a part"):
        gpu_places(2.0)
    with refused("room for 2 workers", "smaller --num-gpus"):
        next(Processes(workers=3).run([]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_places(None) == []
    with refused("no CUDA device"):
        gpu_places(0.5)


def test_without_ray_a_sentence_says_what_to_install(monkeypatch, refused):
    import sys

    from vprompt.bench.executors import build

    monkeypatch.setitem(sys.modules, "ray", None)
    with refused("pip install 'vprompt\\[ray\\]'"):
        next(build("ray").run([]))


def test_a_lost_run_is_reported_and_not_kept_as_failed(tmp_path):
    from vprompt.bench.calls import Lost
    from vprompt.bench.executors import Local

    class Unlucky(Local):
        def run(self, calls, started):
            for key, answer in super().run(calls, started):
                yield key, Lost("its host died 3 times") if key == calls[0].key else answer

    def work(job, chosen=None):
        return {"id": job.id, "command": job.command, "test": {}, "total_seconds": 1.0} | {
            "tuning": {"kept": "the start"}
        }

    report, records = run_grid(tmp_path, Unlucky(), work=work)
    [reason] = report.lost.values()
    assert reason == "location, source, seed 0, source: its host died 3 times"
    assert not report.failed and len(records) == 5


# What is shared


def test_what_runs_share_is_computed_before_them_and_found(tmp_path, monkeypatch):
    from vprompt.bench import shared
    from vprompt.bench.executors import Local
    from vprompt.pooling.evidence import Probe

    expected = serial()  # before anything is watched
    order, passes, inside = [], [], ["a run"]
    slopes, gather = Probe.slopes, shared.gather

    class Watched(Local):
        parallel = True

        def run(self, calls, started):
            order.extend(call.key.split()[0] if " " in call.key else "run" for call in calls)
            yield from super().run(calls, started)

    def watched(self, *arguments, **options):
        passes.append(inside[-1])
        return slopes(self, *arguments, **options)

    def gathered(*arguments, **options):
        inside.append("before")
        try:
            return gather(*arguments, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(Probe, "slopes", watched)
    monkeypatch.setattr(shared, "gather", gathered)
    report, records = run_grid(tmp_path, Watched())
    assert plain(records) == expected and not report.lost
    # Images of trainval for the sources and of train for the rest, one source for each target.
    assert order.count("images") == 4 and order.count("evidence") == 2
    assert order.index("images") < order.index("run") < order.index("evidence")
    assert passes == ["before"] * 2  # no run had to gather any


# The same results everywhere


def test_two_processes_give_the_serial_results(tmp_path):
    from vprompt.bench.executors import build

    report, records = run_grid(tmp_path, build("processes", workers=2, num_cpus=1))
    assert len(report.done) == 6 and plain(records) == serial()


# Runs that are trained together


def jobs_by_key(count, **changes):
    from vprompt.bench.jobs import Job

    given = {
        "command": "learn",
        "method": "VPT",
        "spec": "vpt(num_virtual_tokens=2)",
        "task": "t",
        "model": "tiny",
        "image_size": 32,
        "data_digest": "d",
        "data": "digits",
        "device": "cpu",
        "train": {"batch_size": 16},
        "counts": {"train": 40},
    }
    made = [Job(**{**given, **changes}, seed=seed) for seed in range(count)]
    return {job.id: job for job in made}


def test_runs_that_are_trained_together_give_what_each_gives_alone(tmp_path):
    from vprompt.bench.executors import Local

    report, records = run_grid(tmp_path / "out", Local(), fleet=4)
    assert len(report.done) == 6 and not report.failed
    for key, record in plain(records).items():
        alone = serial()[key]
        assert record.keys() == alone.keys() and record["job"] == alone["job"]
        for name, measured in record["test"].items():
            assert measured["acc1"] == pytest.approx(alone["test"][name]["acc1"], abs=1 / 48)
        history = zip(record["tuning"]["history"], alone["tuning"]["history"], strict=True)
        for mine, theirs in history:
            assert (mine["val_loss"] or 0) == pytest.approx(theirs["val_loss"] or 0, rel=1e-3)


def test_runs_of_one_model_are_joined_and_others_are_left(monkeypatch):
    from vprompt.bench.calls import Call
    from vprompt.bench.executors import Local
    from vprompt.bench.joint import join

    jobs = jobs_by_key(5) | jobs_by_key(2, spec="lora") | jobs_by_key(1, image_size=16)
    keys = [*jobs]
    calls = [Call(key, add, (row,)) for row, key in enumerate(keys)]
    calls.append(Call("after", add, (100,), (keys[0], keys[7])))
    joint = join(calls, jobs, 3, parallel=False)
    assert sorted(map(len, joint.held.values())) == [2, 3]
    found = {}
    for key, answer in Local().run(joint.calls):
        found |= dict(joint.answers(key, answer))
    assert found == {**{key: row for row, key in enumerate(keys)}, "after": 107}
    assert not join(calls, jobs, "off", parallel=False).held
    assert not join(calls, jobs, "auto", parallel=True).held  # its processes take all cores


def test_a_joint_call_that_is_lost_is_lost_for_each_of_its_runs():
    from vprompt.bench.calls import Call, Lost
    from vprompt.bench.joint import join

    jobs = jobs_by_key(2)
    joint = join([Call(key, add) for key in jobs], jobs, 2, parallel=False)
    [(key, held)] = joint.held.items()
    assert dict(joint.answers(key, Lost("gone"))) == dict.fromkeys(held, Lost("gone"))
