"""Files: what is on disk is complete, or is not there."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@contextlib.contextmanager
def file_size_limit(size):
    """Let the operating system refuse larger files, as a full disk refuses more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def without_swap(monkeypatch):
    """Have a system that cannot swap two names in one step."""
    from vprompt.core import swap

    monkeypatch.setattr(swap, "_function", lambda: None)


# Folders


def test_a_scratch_folder_lies_elsewhere_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    from vprompt.core.files import scratch_folder

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VPROMPT_CACHE", str(tmp_path / "file" / "cache"))
    with scratch_folder() as folder:
        (folder / "it").write_text("held")
    assert not folder.exists()


def test_a_folder_appears_when_it_is_complete(tmp_path):
    from vprompt.core.files import atomic_folder

    target = tmp_path / "deep" / "down" / "it"
    with atomic_folder(target) as draft:
        (draft / "a.txt").write_text("a")
        assert not target.exists()
    assert contents(tmp_path) == ["deep", "deep/down", "deep/down/it", "deep/down/it/a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_folder_whose_making_fails_leaves_nothing(tmp_path, error):
    from vprompt.core.files import atomic_folder

    with pytest.raises(error), atomic_folder(tmp_path / "it") as draft:
        (draft / "a.txt").write_text("a")
        raise error
    assert contents(tmp_path) == []


def test_a_resumable_folder_keeps_what_was_finished_for_the_next_try(tmp_path):
    from vprompt.core.files import resumable_folder

    target = tmp_path / "deep" / "it"
    with pytest.raises(KeyboardInterrupt), resumable_folder(target, "of one kind") as draft:
        (draft / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert not target.exists()
    with resumable_folder(target, "of one kind") as draft:
        assert (draft / "a.txt").read_text() == "a"
        (draft / "b.txt").write_text("b")
    assert contents(tmp_path) == ["deep", "deep/it", "deep/it/a.txt", "deep/it/b.txt"]


def test_a_resumable_folder_of_another_kind_begins_anew(tmp_path, refused):
    from vprompt.core.files import resumable_folder

    with pytest.raises(KeyError), resumable_folder(tmp_path / "it", "one") as draft:
        (draft / "a.txt").write_text("a")
        raise KeyError
    with resumable_folder(tmp_path / "it", "another") as draft:
        assert contents(draft) == [".identity"]
    with refused("it exists already", "--overwrite"), resumable_folder(tmp_path / "it", "x"):
        pass
    with resumable_folder(tmp_path / "it", "x", overwrite=True) as draft:
        (draft / "c.txt").write_text("c")
        assert contents(tmp_path / "it") == []
    assert contents(tmp_path) == ["it", "it/c.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, refused):
    from vprompt.core.files import atomic_folder

    with (
        refused("Could not write .*it: No space left on device", "free some space"),
        atomic_folder(tmp_path / "it") as draft,
    ):
        (draft / "a.txt").write_text("a")
        full_disk()
    assert contents(tmp_path) == []


def test_an_existing_folder_is_refused_before_the_work(tmp_path, refused):
    from vprompt.core.files import atomic_folder

    (tmp_path / "it").mkdir()
    with refused("it exists already", "--overwrite"), atomic_folder(tmp_path / "it"):
        pytest.fail("the work was begun")
    assert contents(tmp_path) == ["it"]


def test_the_old_folder_stays_until_the_new_one_is_complete(tmp_path):
    from vprompt.core.files import atomic_folder

    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old.txt").write_text("old")
    with (
        contextlib.suppress(RuntimeError),
        atomic_folder(tmp_path / "it", overwrite=True) as draft,
    ):
        (draft / "new.txt").write_text("new")
        raise RuntimeError
    assert contents(tmp_path) == ["it", "it/old.txt"]
    with atomic_folder(tmp_path / "it", overwrite=True) as draft:
        (draft / "new.txt").write_text("new")
        assert (tmp_path / "it" / "old.txt").exists()
    assert contents(tmp_path) == ["it", "it/new.txt"]


@pytest.mark.usefixtures("without_swap")
def test_a_failing_swap_keeps_the_old_folder(tmp_path, monkeypatch, refused):
    from vprompt.core import files

    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old.txt").write_text("old")
    replace = os.replace

    def fail_for_drafts(source, target):
        if Path(target) == tmp_path / "it":
            full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_drafts)
    with refused("No space left"), files.atomic_folder(tmp_path / "it", overwrite=True) as draft:
        (draft / "new.txt").write_text("new")
    assert contents(tmp_path) == ["it", "it/old.txt"]


@pytest.mark.usefixtures("without_swap")
def test_a_swap_that_is_interrupted_keeps_the_old_folder(tmp_path, monkeypatch):
    """Ctrl-C between the two moves: neither of the two may be the last copy that is removed."""
    from vprompt.core import files

    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old.txt").write_text("old")
    replace = os.replace

    def interrupt(source, target):
        if Path(target) == tmp_path / "it":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with (
        pytest.raises(KeyboardInterrupt),
        files.atomic_folder(tmp_path / "it", overwrite=True) as draft,
    ):
        (draft / "new.txt").write_text("new")
    assert contents(tmp_path) == ["it", "it/old.txt"]


def test_a_file_can_be_replaced_by_a_folder_of_its_name(tmp_path):
    from vprompt.core.files import atomic_folder

    (tmp_path / "it").write_text("a file")
    with atomic_folder(tmp_path / "it", overwrite=True) as draft:
        (draft / "new.txt").write_text("new")
    assert contents(tmp_path) == ["it", "it/new.txt"]


def test_a_place_that_cannot_hold_a_folder_is_one_sentence(tmp_path, refused):
    from vprompt.core.files import atomic_folder

    (tmp_path / "file").write_text("")
    with refused("file"), atomic_folder(tmp_path / "file" / "it"):
        pytest.fail("the work was begun")


# Files


def test_a_file_appears_when_it_is_complete(tmp_path):
    from vprompt.core.files import atomic_file

    with atomic_file(tmp_path / "a" / "b.txt") as draft:
        draft.write_text("b")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert contents(tmp_path) == ["a", "a/b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "b"


@pytest.mark.parametrize("fail", [full_disk, exit])
def test_a_file_whose_making_fails_leaves_the_old_one(tmp_path, fail):
    from vprompt.core.files import atomic_file

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises((ValueError, SystemExit)), atomic_file(tmp_path / "a.txt") as draft:
        draft.write_text("new")
        fail()
    assert contents(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_json_is_indented_and_sorted(tmp_path):
    from vprompt.core.files import read_json, write_json

    write_json(tmp_path / "a.json", {"b": [1], "a": None})
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n  "a": null,\n  "b": [\n    1\n  ]\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [1]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_number_is_refused_and_not_written(tmp_path, value):
    from vprompt.core.files import write_json

    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": value})
    assert contents(tmp_path) == []


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe", b'{"a": }', b"[" * 10**5, b"9" * 10**4])
def test_json_that_is_broken_is_named(tmp_path, refused, data):
    from vprompt.core.files import read_json

    (tmp_path / "a.json").write_bytes(data)
    with refused("a.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_is_missing_is_named(tmp_path, refused):
    from vprompt.core.files import read_json

    with refused("No file at", "a.json"):
        read_json(tmp_path / "a.json")


def test_parts_of_a_digest_do_not_run_into_one_another():
    from vprompt.core.files import digest

    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", "")}) == 4
    assert digest("ab") == digest(b"ab")


def test_the_cache_is_where_the_environment_says(cache, monkeypatch):
    from vprompt.core.files import cache_folder

    assert cache_folder() == cache
    monkeypatch.delenv("VPROMPT_CACHE")
    assert cache_folder().name == "vprompt"


# A disk that is full, a process that is killed


@pytest.fixture
def artifact(tiny):
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt, place

    prompt = Prompt(torch.ones(30, tiny.dim), place(5, tiny.depth, deep=True), False)
    head = Head(torch.ones(2, tiny.feature_dim), torch.ones(2))
    config = make_config(tiny, prompt, ("a", "b"))
    return Artifact(prompt, head, torch.ones(tiny.feature_dim), config, "# Card\n")


def test_an_artefact_on_a_disk_that_fills_up_is_one_sentence(artifact, tmp_path, refused):
    from vprompt import save_artifact

    target = tmp_path / "pool" / "it"
    with file_size_limit(2000), refused("Could not write", "pool/it", "(too large|space)"):
        save_artifact(artifact, target)
    assert contents(tmp_path) == ["pool"]
    save_artifact(artifact, target)
    before = (target / "adapter_model.safetensors").read_bytes()
    with file_size_limit(2000), refused("Could not write"):
        save_artifact(artifact, target, overwrite=True)
    assert (target / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["it"]


def start(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def kill_after(process, seconds):
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


WRITE_FOLDERS = """
import sys
from pathlib import Path
from vprompt.core.files import atomic_folder
print("started", flush=True)
for number in range(10**9):
    with atomic_folder(Path(sys.argv[1]), overwrite=True) as draft:
        for name in "abcd":
            (draft / name).write_text(str(number) * 20000)
"""


def test_a_killed_process_leaves_a_complete_folder_or_none(tmp_path):
    chance = random.Random(0)
    for _ in range(6):
        kill_after(start(WRITE_FOLDERS, tmp_path / "it"), 0.02 + 0.05 * chance.random())
        if (tmp_path / "it").exists():
            assert contents(tmp_path / "it") == list("abcd")
            texts = {(tmp_path / "it" / name).read_text() for name in "abcd"}
            assert len(texts) == 1 and len(texts.pop()) >= 20000


WRITE_ARTIFACTS = """
import sys
import vprompt
loaded = vprompt.load_artifact(sys.argv[1])
print("started", flush=True)
while True:
    vprompt.save_artifact(loaded, sys.argv[2], overwrite=True)
"""


def test_a_killed_process_leaves_a_complete_artefact_or_none(artifact, tmp_path):
    from vprompt import load_artifact, save_artifact

    save_artifact(artifact, tmp_path / "source")
    target = tmp_path / "pool" / "it"
    kill_after(start(WRITE_ARTIFACTS, tmp_path / "source", target), 0.2)
    if target.exists():
        assert load_artifact(target).digest == artifact.digest
    # Whatever it left under a hidden name is not taken for a source.
    visible = [path.name for path in target.parent.iterdir() if not path.name.startswith(".")]
    assert visible in ([], ["it"])
    save_artifact(artifact, target, overwrite=True)
    assert load_artifact(target).config == artifact.config


# Others at the same place, and what dead processes leave


def test_a_folder_that_appears_meanwhile_is_refused_and_stays(tmp_path, refused):
    from vprompt.core.files import atomic_folder

    with refused("appeared while", "another folder"), atomic_folder(tmp_path / "it") as draft:
        (draft / "mine").write_text("mine")
        (tmp_path / "it").mkdir()
        (tmp_path / "it" / "theirs").write_text("theirs")
    assert contents(tmp_path) == ["it", "it/theirs"]


@pytest.mark.parametrize("step", ["swap", "two steps"])
def test_a_reader_never_finds_the_place_empty_in_one_step(tmp_path, monkeypatch, step):
    from vprompt.core import files, swap

    if step == "two steps":
        monkeypatch.setattr(swap, "_function", lambda: None)
    for number in range(3):
        with files.atomic_folder(tmp_path / "it", overwrite=True) as draft:
            (draft / "number").write_text(str(number))
        assert (tmp_path / "it" / "number").read_text() == str(number)
        assert contents(tmp_path) == ["it", "it/number"]


DIE = """
import os, signal, sys
from pathlib import Path
from vprompt.core import drafts, files, swap
swap._function = lambda: None
place = Path(sys.argv[1])
def die(event, arguments):
    if event == "os.rename" and str(arguments[1]) == str(place):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
with files.atomic_folder(place, overwrite=True) as draft:
    (draft / "new").write_text("new")
"""


def test_what_a_killed_process_displaced_is_put_back_and_its_drafts_go(tmp_path):
    from vprompt.core import drafts

    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old").write_text("old")
    subprocess.run([sys.executable, "-c", DIE, str(tmp_path / "it")], check=False)
    assert not (tmp_path / "it").exists() and len(list(tmp_path.iterdir())) == 2
    drafts.sweep(tmp_path)
    assert contents(tmp_path) == ["it", "it/old"]


def test_the_drafts_of_the_living_stay(tmp_path):
    from vprompt.core import drafts

    mine = drafts.folder(tmp_path / "it")
    (tmp_path / ".mine.txt").write_text("a person's own")
    assert drafts.sweep(tmp_path) == [] and mine.path.is_dir()
    dead = mine.path.with_name(mine.path.name.replace(f"-{os.getpid()}-", "-999999999-"))
    dead.mkdir()
    assert drafts.sweep(tmp_path) == [dead]
    mine.discard()
    assert contents(tmp_path) == [".mine.txt"]


def test_places_are_tried_before_the_work(tmp_path, refused):
    from vprompt.core.files import check_writable

    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "deep" / "down" / "it", "--output")
    assert contents(tmp_path) == ["file"]
    with refused("--output", "not a folder|Not a directory", "another place"):
        check_writable(tmp_path / "file" / "it", "--output")
    with refused("--report", "too long"):
        check_writable(tmp_path / ("x" * 300), "--report")


def test_a_short_write_of_numpy_says_that_the_disk_is_full(tmp_path, refused):
    from vprompt.core.files import atomic_file

    with refused("No space left on device"), atomic_file(tmp_path / "a.npy"):
        raise OSError("4096 requested and 512 written")


def test_what_lasts_is_on_the_disk_before_it_has_its_name(tmp_path, cache, monkeypatch):
    from vprompt.core.files import atomic_folder, write_text

    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    write_text(tmp_path / "a.json", "{}")
    assert done == ["sync", "name", "sync"]
    done.clear()
    write_text(cache / "a.json", "{}")
    assert done == ["name"]  # what the cache loses is computed again
    done.clear()
    with atomic_folder(tmp_path / "it") as draft:
        (draft / "a").write_text("a")
    assert done.count("sync") == 3


def test_the_cache_is_listed_bounded_and_emptied(cache, monkeypatch, refused):
    from vprompt.core import shelves

    for number, kind in enumerate(shelves.KINDS):
        (cache / kind).mkdir(parents=True)
        (cache / kind / "it").write_bytes(bytes(1000))
        os.utime(cache / kind / "it", (1e9 + number, 1e9 + number))
    assert [each.kind for each in shelves.entries()] == list(shelves.KINDS)
    monkeypatch.setenv(shelves.LIMIT, str(3500 / 2**30))
    assert [each.kind for each in shelves.hold_to_limit()] == ["images", "evidence"]
    assert [each.kind for each in shelves.clean(["hub"])] == ["hub"]
    assert shelves.clean(older_than=1e9) == []
    with refused("no 'kernels'", "images"):
        shelves.clean(["kernels"])
    monkeypatch.setenv(shelves.LIMIT, "much")
    with refused("number of GiB", "'much'"):
        shelves.limit()


def test_the_state_of_a_finished_run_goes_when_its_result_is_there(cache, tmp_path):
    from vprompt.core import shelves
    from vprompt.core.files import write_json

    state = cache / "checkpoints" / "a.safetensors"
    write_json(state, {})
    write_json(state.with_suffix(shelves.PROMISE), {"result": str(tmp_path / "it")})
    shelves.sweep()
    assert state.exists()
    write_json(tmp_path / "it" / "adapter_config.json", {})
    shelves.sweep()
    assert list(state.parent.iterdir()) == []


def test_the_states_of_finished_runs_are_forgotten_when_nobody_needs_them(cache):
    import os

    from vprompt.core import shelves
    from vprompt.core.files import write_json

    folder = cache / "checkpoints"
    for name, age in (("old", 90000), ("new", 10), ("unfinished", 90000)):
        write_json(folder / f"{name}.safetensors", {})
        if name != "unfinished":
            promise = folder / f"{name}{shelves.PROMISE}"
            write_json(promise, {"result": None})
            os.utime(promise, (1, promise.stat().st_mtime - age))
    shelves.sweep()  # as the next command does
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == ["new", "unfinished"]
    shelves.forget_finished()
    assert [path.name for path in folder.iterdir()] == ["unfinished.safetensors"]


def test_a_file_from_before_files_had_digests_is_neither_believed_nor_called_damaged(tmp_path):
    from safetensors.torch import save_file

    from vprompt.core.files import kept_tensors

    save_file({"features": torch.ones(2)}, tmp_path / "old.safetensors")
    assert kept_tensors(tmp_path / "old.safetensors") is None  # warnings are errors here
