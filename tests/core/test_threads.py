"""Threads: small work stays on one, and how threads wait is said before torch is loaded."""

import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_decorated_function_sees_one_thread_and_the_others_come_back(two):
    from vprompt.core.threads import on_one_thread

    @on_one_thread
    def count(fail):
        if fail:
            raise KeyError
        return torch.get_num_threads()

    assert count(False) == 1 and torch.get_num_threads() == 2
    with pytest.raises(KeyError):
        count(True)
    assert torch.get_num_threads() == 2


def test_heads_weights_and_judgements_are_small_work(two, monkeypatch):
    from vprompt.models import heads, heldout

    seen = []
    for module in (heads, heldout):
        inner = module.head_path
        monkeypatch.setattr(
            module,
            "head_path",
            lambda *given, inner=inner: seen.append(torch.get_num_threads()) or inner(*given),
        )
    features, labels = torch.randn(20, 6), torch.arange(20) % 2
    heads.closed_form(features, labels, 2)
    heldout.judge(features, labels, 2, heldout.deals(labels))
    assert set(seen) == {1}


def test_processes_that_are_started_wait_as_the_person_said_or_quietly():
    from vprompt.core.threads import quiet

    assert quiet({"PATH": "/bin"}) == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    assert quiet({"OMP_WAIT_POLICY": "ACTIVE"}) == {"OMP_WAIT_POLICY": "ACTIVE"}
    assert quiet({"GOMP_SPINCOUNT": "0"}) == {"GOMP_SPINCOUNT": "0"}


@pytest.mark.parametrize(
    "given, expected",
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "0"}, None)],
)
def test_the_command_line_says_how_threads_wait_before_torch_is_loaded(given, expected):
    code = (
        "import os, sys; sys.argv = ['vprompt', '--version']\n"
        "from vprompt.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules; print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    found = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True
    )
    assert found.stdout.split()[-1] == str(expected), found.stderr
