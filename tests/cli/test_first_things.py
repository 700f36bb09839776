"""First things: what a newcomer is told before the work, after it, and at once where it fails."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def pool(images, tiny, tmp_path_factory):
    """Two prompts, beside a folder of notes that is none."""
    from vprompt import TrainConfig, learn

    folder = tmp_path_factory.mktemp("pools") / "pool"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "read.me").write_text("about")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, seed in (("one", 0), ("two", 1)):
            config = TrainConfig(epochs=1, keep="last", head="kaiming", lr=0.05, seed=seed)
            method = f"vpt(num_virtual_tokens=2, prompt_init_seed={seed})"
            learn(
                str(images), model=tiny, method=method, config=config, output=folder / name,
                test=False,
            )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    "words", [["learn", "x"], ["combine", "x", "--pool", "y"], ["search", "x"]]
)
def test_a_place_that_is_taken_is_refused_before_torch_is_imported(words, tmp_path):
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
        "from vprompt.cli import main; main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *words, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1 and found.stdout.strip() == "False"
    assert "exists already" in found.stderr and "--overwrite" in found.stderr


def test_a_search_says_what_it_read_once_and_that_nothing_will_be_kept(vprompt, images):
    words = ["--model", "tiny", "--epochs", 1, "--search-epochs", 1, "--no-test"]
    method = "dpl(lengths=[0, 1, 2])"
    code, _, err = vprompt("search", images, *words, "--method", method)
    assert code == 0, err
    assert err.count("train 12, val 4, test 4: cut 64/16/20 by seed 0") == 1
    assert err.count("2 classes: blue, red") == 1
    assert "without --output the prompt is measured and not kept" in err


def test_a_pool_is_what_is_found_in_a_folder(vprompt, images, pool, monkeypatch):
    monkeypatch.chdir(pool)
    code, out, err = vprompt("score", images, "--pool", ".")
    assert code == 0 and "left out notes (no artefact)" in err, err
    assert "one" in out and "two" in out
    assert "noise floor of hscore: " in err and "shuffled labels" in err
    code, out, _ = vprompt("pool", "check", ".")
    assert code == 0 and "checked of each: the config is complete" in out
    assert "2 of 2 artefacts are sound" in out and "left out notes (no artefact)" in out
    assert "not checked, for want of --model" in out


def test_a_combination_ends_in_a_decision(vprompt, images, pool, tmp_path):
    place = tmp_path / "prompt"
    words = ["--pool", pool, "--include-self", "--shots", 3, "--output", place]
    code, out, err = vprompt("combine", images, *words)
    assert code == 0, err
    assert "even weights would be 0.500" in out and "this pool" in out
    harm = "the pool did harm" in out
    assert harm or "the pool helped" in out
    label = f"next: label images: `vprompt predict IMAGES --artifact {place}`"
    assert (label in out) != harm, out
    assert f"`vprompt learn {images} --shots 3 --model tiny --image-size 32`" in out
    assert "3 images of each class were asked for, and val has 2 of each class" in err
    assert "not kept" not in err
    assert " in all: " in err  # the time that was announced, with start-up
