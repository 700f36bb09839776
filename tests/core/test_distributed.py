"""Distributed: what several processes share out, and two real ones against one."""

import subprocess
import sys

import numpy as np
import pytest
import torch


@pytest.fixture
def member(monkeypatch):
    """Return a function that makes this process the one of that rank, of so many."""
    from vprompt.core import distributed

    def make(rank, size):
        monkeypatch.setattr(distributed, "size", lambda: size)
        monkeypatch.setattr(distributed, "rank", lambda: rank)

    return make


@pytest.mark.parametrize("rows, size", [(8, 2), (7, 2), (7, 3), (1, 2), (2, 4)])
def test_the_parts_of_a_batch_add_up_to_its_gradient(member, rows, size, generator):
    """Each part's mean loss, weighted by its share, has the gradient of the whole batch's mean."""
    from vprompt.core.distributed import part

    x = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    batch = torch.randperm(9, generator=generator)[:rows]
    weight = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()

    def loss(own):
        return (x[own] @ weight).tanh().square().mean()

    [whole] = torch.autograd.grad(loss(batch), weight)
    total, seen = torch.zeros(4, dtype=torch.float64), []
    for rank in range(size):
        member(rank, size)
        own, share = part(batch)
        total += torch.autograd.grad(share * loss(own), weight)[0]
        seen += own.tolist() if share else []
    assert seen == batch.tolist()
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("count, batch, size", [(10, 3, 2), (10, 3, 4), (2, 3, 3), (12, 3, 2)])
def test_every_batch_is_computed_once_and_stays_what_it_is(member, count, batch, size):
    from vprompt.core.distributed import own_rows

    whole = [rows.tolist() for rows in torch.arange(count).split(batch)]
    found = []
    for rank in range(size):
        member(rank, size)
        found += [rows.tolist() for rows in own_rows(count, batch).split(batch) if len(rows)]
    assert sorted(found) == whole


def test_alone_nothing_differs():
    from vprompt.core import distributed

    rows, value = torch.arange(5), torch.tensor(0.3, requires_grad=True)
    own, share = distributed.part(rows)
    assert own.tolist() == rows.tolist() and share == 1.0
    assert distributed.own_rows(5, 2).tolist() == rows.tolist()
    assert distributed.add_up(value, []) == value.item()
    assert distributed.bytes_of_first(b"x") == b"x" and not distributed.all_have(False)
    assert distributed.is_first() and not distributed.asked()


def test_what_cannot_be_shared_out_is_refused(member, tiny, refused):
    from vprompt.core import registry
    from vprompt.core.distributed import check_no_draw
    from vprompt.data.task import Examples
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    examples = Examples(np.zeros((2, 32, 32, 3), np.uint8), torch.tensor([0, 1]), "black")
    member(1, 2)
    for method in ("pro_vpt", "mlp(norm=batch)"):
        adapter = registry.build("adapters", method)(tiny)
        with refused("reads more of a step", "Do without torchrun"):
            tune(adapter, examples, None, 2, TrainConfig())
    drawn = torch.Generator().manual_seed(0)
    before = drawn.get_state()
    check_no_draw(before, drawn)
    torch.rand(1, generator=drawn)
    with refused("dropout", "do without torchrun"):
        check_no_draw(before, drawn)


def test_other_commands_are_refused_under_torchrun(fails, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails("pool", "ls", "nowhere", saying=("torchrun shares out", "--executor processes"))


# Two processes

SETTINGS = {"epochs": 3, "batch_size": 13, "opt": "sgd", "lr": 0.5, "keep": "last"}
SETTINGS |= {"precision": "fp32", "lr_unit": "none"}
METHOD = "vpt(num_virtual_tokens=2, deep=True)"


class Stop(Exception):
    """The end of a run that is to be continued."""


def learn(output, **options):
    from vprompt import flow
    from vprompt.learning.train_config import TrainConfig

    return flow.learn(
        "digits",
        model="tiny",
        method=METHOD,
        image_size=32,
        shots=4,  # 40 images: the last batch has one, which leaves none for the second process
        config=TrainConfig(**SETTINGS),
        output=output,
        device="cpu",
        **options,
    )


def test_two_processes_learn_what_one_does(tmp_path, cache, tiny, monkeypatch):
    """They continue a run that was stopped, end where one process ends, and write once."""
    from vprompt.artifacts import artifact
    from vprompt.core import registry
    from vprompt.learning.checkpoint import Checkpoint

    whole = learn(None)
    save = Checkpoint.save

    def stop(self, loop):
        save(self, loop)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoint, "save", stop)
        learn(None)
    assert len(list((cache / "checkpoints").iterdir())) == 1
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "vprompt", "learn"]
    command += ["digits", "--model", "tiny", "--img-size", "32", "--method", METHOD]
    for name, value in {**SETTINGS, "shots": 4, "device": "cpu"}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--output", str(tmp_path / "out"), "--report", str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("artefact:") == 1 and done.stdout.count("95 % interval") == 1
    assert (tmp_path / "report.html").is_file() and not list((cache / "checkpoints").iterdir())

    found = artifact.load(tmp_path / "out")
    assert found.prompt is not None and whole.artifact.prompt is not None
    start = registry.build("adapters", METHOD)(tiny).prompt().tokens
    moved = (whole.artifact.prompt.tokens - start).norm()
    apart = (whole.artifact.prompt.tokens - found.prompt.tokens).norm()
    assert moved > 0.01 * start.norm() and apart < 1e-4 * moved
    head = whole.artifact.head
    torch.testing.assert_close(found.head.weight, head.weight, rtol=1e-4, atol=1e-5)
