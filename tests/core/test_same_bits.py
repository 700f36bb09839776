"""What is the same to the bit, and under which conditions; docs/concepts.md says so in words."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

SIZES = (1, 2, 3, 7, 64)
# What an image is in batches of these sizes, for prompts of every kind, by threads.
SCRIPT = """
import sys, torch
from vprompt.models.backbone import extract
from vprompt.backbones import tiny
from vprompt.models.heads import Head
from vprompt.prompts.prompt import Prompt, place

model = tiny.load(image_size=160)
noise = torch.Generator().manual_seed(0)
images = torch.randn(64, 3, 160, 160, generator=noise)
head = Head(torch.randn(10, model.feature_dim, generator=noise), torch.zeros(10))
prompts = {"none": None}
for count in (1, 5):
    for deep in (True, False):
        blocks = place(count, model.depth, deep=deep)
        tokens = torch.randn(len(blocks), model.dim, generator=noise)
        prompts[f"{count} {deep}"] = Prompt(tokens, blocks, persist=not deep)
for threads in map(int, sys.argv[1].split(",")):
    torch.set_num_threads(threads)
    for name, prompt in prompts.items():
        with torch.no_grad():
            whole = head.logits(extract(model, images, prompt))
            for size in (1, 2, 3, 7):
                parts = images[:14].split(size)
                found = torch.cat([head.logits(extract(model, part, prompt)) for part in parts])
                if not torch.equal(found, whole[:14]):
                    print(threads, name, size, float((found - whole[:14]).abs().max()))
"""
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="seen on x86 alone")
@pytest.mark.parametrize("extensions", [{}, AVX2], ids=["this processor's", "AVX2"])
def test_an_image_has_the_same_bits_in_a_batch_of_any_size(extensions):
    """101 tokens, 1 and 2 threads; without padding, rows of 1 to 3 images were summed otherwise."""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "2", **extensions}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, "1,2"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == ""


def test_few_rows_are_computed_as_many_and_come_back_alone():
    from vprompt.core.precision import steady, steady_linear, steady_rows

    device = torch.device("cpu")
    assert steady_rows(device) == 16  # of one thread
    rows, weight, bias = torch.randn(3, 2, 8), torch.randn(5, 8), torch.randn(5)
    assert steady(rows).shape == (16, 2, 8) and torch.equal(steady(rows)[:3], rows)
    assert not steady(rows)[3:].any()
    many = torch.randn(20, 8)
    assert steady(many) is many
    plain = torch.nn.functional.linear(rows, weight, bias)
    torch.testing.assert_close(steady_linear(rows, weight, bias), plain)
    assert steady_linear(rows[:0], weight, None).shape == (0, 2, 5)
    whole = torch.nn.functional.linear(many, weight, bias)
    for row in range(20):
        alone = steady_linear(many[row : row + 1], weight, bias)
        assert torch.equal(alone, whole[row : row + 1])


def test_a_traced_model_is_not_filled_up_to_suit_the_batch_it_is_traced_with(monkeypatch):
    from vprompt.core.precision import steady, steady_rows

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert steady_rows(torch.device("cpu")) == 1
    few = torch.randn(2, 4)
    assert steady(few) is few


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Artefacts of 160 px, learned a little: deep, shallow, and longer ones."""
    from vprompt import TrainConfig, learn, open_task
    from vprompt.backbones import tiny

    folder = tmp_path_factory.mktemp("pool")
    methods = {
        "deep": "vpt(num_virtual_tokens=2)",
        "also-deep": "vpt(num_virtual_tokens=2, prompt_init_seed=1)",
        "longer": "vpt(num_virtual_tokens=7)",
        "shallow": "vpt(num_virtual_tokens=3, deep=False)",
        "linear": "linear",
        "bias": "bias",
    }
    model = tiny.load(image_size=160)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = open_task("digits").few_shot(2, seed=0)
        for name, method in methods.items():
            config = TrainConfig(epochs=1, keep="last", precision="fp32")
            call = {"model": model, "config": config, "test": False}
            learn(task, method=method, output=folder / name, **call)
    return folder, list(methods)


@pytest.fixture
def pictures(tmp_path):
    """Sixty-six digits as files."""
    from vprompt import open_task

    digits, found = open_task("digits").val.images, []
    for row in range(66):
        found.append(tmp_path / f"{row:02d}.png")
        Image.fromarray(digits[row]).save(found[-1])
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predict_gives_an_image_one_answer_whatever_the_size_of_its_batch(
    pool, pictures, precision
):
    from vprompt import predict
    from vprompt.backbones import tiny

    folder, names = pool
    model = tiny.load(image_size=160)
    for name in names:
        call = {"artifact": folder / name, "model": model, "precision": precision}
        whole = predict(pictures, batch_size=64, **call)
        for size in SIZES:
            found = predict(pictures[:7], batch_size=size, **call)
            assert found == whole[:7], (name, size)
        assert predict(pictures[5:6], **call) == whole[5:6]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predict_gives_an_image_one_answer_whatever_artefacts_the_others_name(
    pool, pictures, precision
):
    """Prompts of one layout share a batch; others do not, whose masks would round otherwise."""
    from vprompt import predict, predict_table
    from vprompt.backbones import tiny

    folder, names = pool
    model = tiny.load(image_size=160)
    rows = [(path, names[row % len(names)]) for row, path in enumerate(pictures)]
    table = pictures[0].parent / "requests.csv"
    lines = [f"{path.name},{folder / name}" for path, name in rows]
    table.write_text("image,artifact\n" + "\n".join(lines) + "\n")
    mixed = predict_table(table, model=model, precision=precision)
    assert [one.image for one in mixed] == [str(path) for path in pictures]
    for (path, name), one in list(zip(rows, mixed, strict=True))[:12]:
        call = {"artifact": folder / name, "model": model, "precision": precision}
        [alone] = predict([path], **call)
        assert (one.label, one.probabilities) == (alone.label, alone.probabilities), name


@pytest.mark.parametrize("model", ["test_vit", "test_vit2", "test_vit3", "test_vit4", "clip"])
@pytest.mark.parametrize("method", ["vpt(num_virtual_tokens=2)", "mlp", "adapter", "linear"])
def test_on_any_model_probabilities_agree_within_the_tolerance(
    tmp_path, pictures, model, method, generator
):
    """Sequences of a few tokens, whose products round otherwise, as docs/concepts.md says."""
    from vprompt import TrainConfig, VPromptError, learn, open_task, predict
    from vprompt.backbones import tiny, tiny_clip

    backbone = tiny_clip.load() if model == "clip" else tiny.load(model=model, image_size=32)
    task = open_task("digits").few_shot(2, seed=0)
    config = TrainConfig(epochs=1, keep="last", precision="fp32")
    try:
        made = learn(task, model=backbone, method=method, config=config, test=False).artifact
    except VPromptError:
        pytest.skip(f"{method} does not run on {model}")
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 1e-2)):
        call = {"artifact": made, "model": backbone, "precision": precision}
        whole = shares_of(predict(pictures, batch_size=64, **call))[:7]
        for size in SIZES:
            found = shares_of(predict(pictures[:7], batch_size=size, **call))
            assert abs(found - whole).max() < tolerance, (precision, size)


def shares_of(predictions):
    return np.array([list(one.probabilities.values()) for one in predictions])


def test_threads_are_a_condition_and_change_no_more_than_rounding(tiny):
    """A run repeats to the bit with as many threads; with others its losses agree to 1e-4."""
    from vprompt import open_task
    from vprompt.adapters import vpt
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    task = open_task("digits").few_shot(6, seed=0)
    train = task.examples(task.train, tiny.data_config)
    config = TrainConfig(epochs=2, precision="fp32", head="zero")
    losses = []
    try:
        for threads in (1, 2, 2, 1):
            torch.set_num_threads(threads)
            tuned = tune(vpt.build(tiny), train, None, 10, config)
            losses.append([record.train_loss for record in tuned.history[1:]])
    finally:
        torch.set_num_threads(1)
    assert losses[0] == losses[3] and losses[1] == losses[2]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
