"""Fixtures: tiny real models and prompts; `vprompt` is imported inside, after the import hook.

torch is imported inside too: the process that only hands the tests out to others has no use for it.
"""

import gc
import os
import sys

import jaxtyping_in_time
import pytest

# Before torch is loaded, here and in the processes that tests start: threads that wait without a
# pause take the cores from the workers beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
jaxtyping_in_time.install()

TINY_MODELS = ("test_vit", "test_vit2", "test_vit3", "test_vit4")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Models this small lose more to waiting threads than they gain."""
    import torch

    torch.set_num_threads(1)
    keep_what_is_there()


def keep_what_is_there():
    """Look for garbage in none of what has been imported or collected, which stays: seldom too.

    Else a full collection goes through 800,000 objects. That took 6 s of 70 s where much is made
    and dropped, as in the tests of exports and commands, and next to nothing elsewhere.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk():
    """Leave it to the system when files reach the disk: no test cuts the power, and most write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def brief_trials():
    """Time two steps of two images where a run times many of more, to say how long it takes.

    Hundreds of tests learn something, and none but those of the times themselves asks how long.
    """
    from vprompt.results import cost

    cost._MOMENT, cost._TRIAL, cost._LOOK = 0.0, 2, 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep every test's cached images and evidence apart, and the user's cache untouched."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VPROMPT_CACHE", str(folder))
    return folder


@pytest.fixture
def damage_told():
    """Return a context that expects the one sentence about a damaged cache."""
    from vprompt.core.errors import CacheWarning

    return lambda: pytest.warns(CacheWarning, match="holds damaged files, first .* again")


@pytest.fixture
def refused():
    """Return a context that expects a VPromptError with these words, in this order."""
    from vprompt.core.errors import VPromptError

    return lambda *words: pytest.raises(VPromptError, match="(?s)" + ".*".join(words))


@pytest.fixture
def hub_answers(monkeypatch):
    """Let the model hub seem to answer, for tests that put something in place of what it sends."""
    from vprompt.backbones import _reach

    monkeypatch.setattr(_reach, "_problem", lambda address: "")


@pytest.fixture
def generator():
    """Randomness of a test."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny():
    """The smallest backbone: 32-pixel images, float32. Shared, so leave it as it is."""
    from vprompt.backbones import tiny

    keep_what_is_there()
    return tiny.load(image_size=32)


@pytest.fixture(scope="session")
def short():
    """The smallest backbone with two blocks of its six: torch traces for as long as it is deep."""
    from vprompt.backbones import tiny

    backbone = tiny.load(image_size=32)
    backbone.vit.blocks = backbone.vit.blocks[:2]
    backbone.depth = 2
    return backbone


@pytest.fixture(scope="session", params=TINY_MODELS)
def backbones(request):
    """Every tiny architecture in turn, float32: class token, registers, average pooling."""
    from vprompt.backbones import tiny

    return tiny.load(model=request.param, image_size=32)


@pytest.fixture
def images(generator):
    """Four normalised images for a 32-pixel model."""
    import torch

    return torch.randn(4, 3, 32, 32, generator=generator)


@pytest.fixture
def pool(tiny):
    """Four shallow prompts of three tokens for `tiny`, by name."""
    import torch

    from vprompt.prompts.prompt import Prompt, place

    blocks = place(3, tiny.depth, deep=False)
    randomness = torch.Generator().manual_seed(1)
    return {
        name: Prompt(torch.randn(3, tiny.dim, generator=randomness), blocks)
        for name in ("apples", "birds", "cars", "doors")
    }


@pytest.fixture
def deep_pool(tiny):
    """Three deep prompts of two tokens in every block of `tiny`, by name."""
    import torch

    from vprompt.prompts.prompt import Prompt, place

    blocks = place(2, tiny.depth, deep=True)
    randomness = torch.Generator().manual_seed(2)
    return {
        name: Prompt(torch.randn(len(blocks), tiny.dim, generator=randomness), blocks, False)
        for name in ("apples", "birds", "cars")
    }


@pytest.fixture
def vprompt(monkeypatch, capsys):
    """Return a function that runs the command line here: `(exit code, stdout, stderr)`."""
    from vprompt import cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vprompt", *map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer puts its own here
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


@pytest.fixture
def fails(vprompt):
    """Return a function that checks that a command ends in one sentence with these words."""

    def run(*words, saying=()):
        code, _, err = vprompt(*words)
        assert code == 1 and "Traceback" not in err
        # What was read may be said before; the error is the last thing said.
        last = err[err.rindex("vprompt: ") :]
        assert (err[: -len(last)] or "\n").endswith("\n") and err.rstrip().endswith(".")
        for wanted in saying:
            assert wanted in err
        return err

    return run
