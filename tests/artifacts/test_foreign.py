"""Foreign: files, folders, names and recipes of other programs are named for what they are."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def pictures(tmp_path):
    """Two classes of four pictures."""
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (16, 16), (90 * index + number, 80, 10))
            image.save(tmp_path / "d" / name / f"{number}.png")
    return tmp_path / "d"


@pytest.fixture
def sources(tiny, pool, tmp_path):
    """A folder of three prompts for `tiny`, learned on other tasks."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head

    for name in ("apples", "birds", "cars"):
        config = make_config(tiny, pool[name], ("a", "b"), task={"name": name})
        head = Head(torch.zeros(2, 64), torch.zeros(2))
        made = Artifact(pool[name], head, torch.zeros(64), config)
        save_artifact(made, tmp_path / "pool" / name)
    return tmp_path / "pool"


# Files and folders given as artefacts.


def checkpoint(path, *names):
    """A pickle that holds a dictionary of these names, as training programs write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {name: torch.zeros(2, 4) for name in names}, "epoch": 5}, path)
    return path


FOREIGN = {
    "VPT": (["head.last_layer.weight", "enc.transformer.prompt_embeddings"], "VPT", "vpt"),
    "VPT-Deep": (["enc.transformer.deep_prompt_embeddings"], "VPT", "vpt"),
    "CoOp": (["ctx", "prompt_learner.ctx", "prompt_learner.token_prefix"], "CoOp", "coop"),
    "CoCoOp": (["prompt_learner.meta_net.linear1.weight", "prompt_learner.ctx"], "CoCoOp", "coop"),
    "MaPLe": (
        [
            "prompt_learner.ctx",
            "prompt_learner.compound_prompts_text.0",
            "prompt_learner.proj.bias",
        ],
        "MaPLe",
        "maple",
    ),
    "IVLP": (["image_encoder.transformer.resblocks.1.VPT_shallow"], "IVLP", "ivlp"),
    "something": (["layer.weight"], "another program", ""),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_pickle_of_another_program_is_named_for_what_it_is(kind, tmp_path, refused):
    from vprompt import load_artifact

    names, whose, method = FOREIGN[kind]
    for path in (
        "run1/val_epoch100.pth",
        "out/MultiModalPromptLearner/model.pth.tar-5",
        "dtd/CoOp/vit_b16_16shots/seed1/prompt_learner/model.pth.tar-50",
    ):
        file = checkpoint(tmp_path / kind / path, *names)
        again = [f"--method {method}"] if method else []
        with refused(file.name, "pickle of ", whose, "not read", *again):
            load_artifact(file)
        with refused("is not an artefact: it lacks", file.name, "pickle of ", whose):
            load_artifact(tmp_path / kind / path.split("/")[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.pth", b""),
        ("model.pth.tar-50", b""),
        ("model-best.pth.tar", pickle.dumps({})),
        ("no_suffix", pickle.dumps({"a": 1})),
        ("best.ckpt", b"x"),
    ],
)
def test_a_pickle_is_known_by_its_name_or_its_first_bytes(name, content, tmp_path, refused):
    from vprompt import load_artifact

    (tmp_path / name).write_bytes(content)
    with refused(name, "pickle"):
        load_artifact(tmp_path / name)


def test_other_files_and_folders_are_named_too(sources, tmp_path, refused):
    from vprompt import load_artifact

    for part in (CONFIG, TENSORS):
        with refused("a file of an artefact", "Give its folder", "birds"):
            load_artifact(sources / "birds" / part)
    with refused("holds artefacts", "name one", "apples"):
        load_artifact(sources)
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with refused("tensors alone", CONFIG):
        load_artifact(tmp_path / "x.safetensors")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("notes.txt", "a")
    with refused("an archive", "Unpack"):
        load_artifact(tmp_path / "x.zip")
    (tmp_path / "notes.txt").write_text("a")
    with refused("is a file, and an artefact is a folder"):
        load_artifact(tmp_path / "notes.txt")
    for config, family in (("config.json", "timm_vit"), ("open_clip_config.json", "open_clip")):
        (tmp_path / family).mkdir()
        (tmp_path / family / config).write_text("{}")
        with refused("lacks", "it is a backbone", "--model", f"{family}\\(model='local-dir:"):
            load_artifact(tmp_path / family)


def test_the_command_line_and_a_pool_say_it_too(fails, pictures, tmp_path):
    file = checkpoint(tmp_path / "v.pth", "prompt_learner.ctx")
    image = pictures / "cat" / "0.png"
    fails("predict", image, "--artifact", file, saying=["pickle of CoOp"])
    fails("score", pictures, "--pool", file, "--model", "tiny", saying=["pickle of CoOp"])
    start = f"vpt(start='{file}')"
    fails("learn", pictures, "-q", "--model", "tiny", "--method", start, saying=["pickle of CoOp"])


def test_nothing_is_unpickled_to_find_out(tmp_path, refused):
    from vprompt import load_artifact

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"prompt_learner.ctx": Bomb()}))
    with refused("pickle of CoOp"):
        load_artifact(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


# Adapters without a prompt in a pool.


def peft_lora(folder, tensors=TENSORS):
    """A folder as PEFT leaves it."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8, "task_type": None}))
    if tensors.endswith(".safetensors"):
        save_file({"base_model.model.blocks.0.lora_A.weight": torch.zeros(8, 64)}, folder / tensors)
    else:
        (folder / tensors).write_bytes(b"")


def promptless(tiny, folder, **facts):
    """An artefact of a method that has no prompt."""
    from vprompt import save_artifact
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head

    config = make_config(tiny, None, ("a", "b"), **facts)
    save_artifact(
        Artifact(None, Head(torch.zeros(2, 64), torch.zeros(2)), torch.zeros(64), config), folder
    )


@pytest.mark.parametrize("command", ["score", "combine"])
def test_an_adapter_without_a_prompt_is_left_out_aloud(command, sources, pictures, tiny, vprompt):
    peft_lora(sources / "lora_a")
    peft_lora(sources / "lora_b", "adapter_model.bin")
    promptless(tiny, sources / "probe", recipe={"method": "linear"})
    other = type(tiny)(tiny.vit, "another", tiny.data_config)
    promptless(other, sources / "other", method="lora(rank=4)")
    code, out, err = vprompt(
        command, pictures, "--pool", sources, *(["--epochs", 1] if command == "combine" else [])
    )
    assert code == 0, err
    said = " ".join(err.split())
    rows = {line.split()[0] for line in out.splitlines() if line.strip()}
    for name, why in (
        ("lora_a", "the type LORA"),
        ("lora_b", "the type LORA"),
        ("probe", "learned with linear"),
        ("other", "learned with lora(rank=4)"),
    ):
        assert f"{name} (" in said and why in said and name not in rows
    assert all(name in out for name in ("apples", "birds", "cars"))


def test_a_benchmark_over_such_a_pool_counts_prompts_alone(sources, pictures, tiny, tmp_path):
    from vprompt.bench import estimate, jobs, recipe

    def expand():
        values = {
            "name": "little",
            "backbone": {"model": "tiny", "image_size": 32},
            "pools": [str(sources)],
            "train": {"epochs": 1},
            "tasks": [{"name": "d", "data": str(pictures)}],
            "methods": [{"name": "Uniform", "combine": "uniform", "safeguard": False}],
        }
        (tmp_path / "r.yaml").write_text(json.dumps(values))
        return jobs.expand(recipe.read(tmp_path / "r.yaml"), data=None, output=tmp_path / "out")

    [before] = [job for job in expand() if job.command == "combine"]
    peft_lora(sources / "a_lora")
    [after] = [job for job in expand() if job.command == "combine"]
    assert after.counts == before.counts and after.pool_digest == before.pool_digest
    adapter = estimate._adapter(estimate.COMBINE, after, tiny, None)
    assert torch.equal(adapter.tokens, adapter.prompt().tokens)


def test_a_broken_prompt_still_stops_a_pool(sources, pictures, fails):
    peft_lora(sources / "lora_a")
    (sources / "birds" / TENSORS).write_bytes(b"cut")
    fails("score", pictures, "-q", "--pool", sources, saying=["birds", "truncated"])


def test_a_pool_of_such_adapters_alone_is_refused(tmp_path, pictures, fails):
    peft_lora(tmp_path / "pool" / "lora_a")
    words = ("score", pictures, "--pool", tmp_path / "pool", "--model", "tiny")
    fails(*words, saying=["no prompt to combine", "lora_a: an adapter of the type LORA"])


# Recipes of mergekit.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "merge_method: slerp\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 12]}\n"
            "parameters: {t: 0.5}\ntarget: {data: d}\n",
            ["'slices'", "'slerp'", "There are", "models"],
        ),
        (
            "models: [{model: a, parameters: {weight: 1, density: 0.5}}]\nmerge_method: dare_ties\n"
            "base_model: a\nparameters: {normalize: true}\ndtype: bfloat16\ntarget: {data: d}\n",
            ["'dare_ties'"],
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: union\n",
            ["tokenizer_source"],
        ),
        (
            "base_model: a\ngate_mode: hidden\nexperts: [{source_model: b}]\n",
            ["gate_mode", "experts"],
        ),
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n",
            ["target", "required"],
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\ndtype: bfloat16\ntarget: {data: d}\n",
            ["dtype", "float32", "bfloat16"],
        ),
        ("- a\n- b\n", ["not keys with values"]),
        ("just text\n", ["not keys with values"]),
        ("merge_method: [slerp]\nmodels: [{model: a}]\ntarget: {data: d}\n", ["merge_method"]),
    ],
)
def test_a_recipe_of_mergekit_is_refused_by_what_is_not_known(text, words, tmp_path, fails):
    path = tmp_path / "r.yml"
    path.write_text(text)
    error = fails("combine", "--recipe", path, saying=words)
    assert "got {'merge_method'" not in error and len(error) < 700


def test_what_a_recipe_gets_wrong_is_shown_shortly(tmp_path, fails):
    path = tmp_path / "r.yml"
    path.write_text("models: " + str(["x" * 50] * 30) + "\ntarget: {data: d}\n")
    assert len(fails("combine", "--recipe", path, saying=["models"])) < 500


# Names of models.


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("ViT-B/16", "'ViT-B-16,openai'"),
        ("ViT-B-16", "'ViT-B-16,openai'"),
        ("vit-b-16", "'ViT-B-16,openai'"),
        ("ViT-L/14@336px", "'ViT-L-14-336,openai'"),
        ("ViT-B-32::laion2b_s34b_b79k", "'ViT-B-32,laion2b_s34b_b79k'"),
        ("ViT-B-32/openai", "'ViT-B-32,openai'"),
        ("openai/clip-vit-base-patch16", "'ViT-B-16,openai'"),
        ("openai/clip-vit-large-patch14-336", "'ViT-L-14-336,openai'"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip(model='hf-hub:laion/"),
        ("RN50", "a CLIP whose image tower is a ResNet"),
        ("google/vit-base-patch16-224-in21k", "'vit_base_patch16_224.orig_in21k'"),
        ("hf-hub:facebook/dinov2-small", "'vit_small_patch14_dinov2.lvd142m'"),
        ("facebook/dinov2-base", "'vit_base_patch14_dinov2.lvd142m'"),
        ("facebook/dinov2-with-registers-small", "'vit_small_patch14_reg4_dinov2.lvd142m'"),
        ("dinov2_vits14", "'vit_small_patch14_dinov2.lvd142m'"),
        ("dinov2_vitb14_reg", "'vit_base_patch14_reg4_dinov2.lvd142m'"),
        ("dino_vits8", "'vit_small_patch8_224.dino'"),
        ("facebook/dino-vitb16", "'vit_base_patch16_224.dino'"),
        ("facebook/vit-mae-large", "'vit_large_patch16_224.mae'"),
        ("mae_vit_base_patch16", "'vit_base_patch16_224.mae'"),
        ("mae_vitb16", "'vit_base_patch16_224.mae'"),
        ("sup_vitb16_imagenet21k", "'vit_base_patch16_224.orig_in21k'"),
        ("vit_b_16", "timm has 'vit_base_patch16_224."),
        ("facebook/deit-small-patch16-224", "'deit_small_patch16_224.fb_in1k'"),
        ("timm/vit_base_patch16_224.mae", "'vit_base_patch16_224.mae'"),
        ("vit-base-patch16-224", "'vit_base_patch16_224.augreg"),
        ("vit_base_patch16_224.imagenet", "'vit_base_patch16_224.augreg"),
        ("vit_base_patch16_244", "Did you mean 'vit_base_patch16_224'"),
    ],
)
def test_a_model_in_another_program_s_spelling_is_answered_with_ours(typed, shown, refused):
    import re

    from vprompt import open_backbone

    with refused(re.escape(typed), re.escape(shown)):
        open_backbone(typed)


def test_every_name_that_is_suggested_exists():
    import timm

    from vprompt.backbones import _names

    sizes = {"dinov2": "sbl", "dino": "sb", "mae": "bl", "orig_in21k": "bl"}
    for pattern, there in _names._FAMILIES:
        family = next((letters for key, letters in sizes.items() if key in there), "b")
        for letter in family:
            known = there.format(_names._LETTERS[letter])
            assert known in timm.list_pretrained() or "." not in known, (pattern, known)
            assert timm.models.is_model(known.partition(".")[0])


def test_places_on_this_disk_are_answered_with_how_to_name_them(tmp_path, refused):
    from vprompt import open_backbone

    (tmp_path / "m").mkdir()
    with refused("a folder", f"'local-dir:{tmp_path / 'm'}'"):
        open_backbone(str(tmp_path / "m"))
    (tmp_path / "w.pth").write_bytes(b"")
    with refused("a file", "checkpoint='"):
        open_backbone(str(tmp_path / "w.pth"))
    (tmp_path / "m" / "config.json").write_text('{"model_type": "vit"}')  # of Transformers
    with refused("holds no 'architecture'", "timm_vit\\(model=NAME, checkpoint="):
        open_backbone(f"local-dir:{tmp_path / 'm'}")
    (tmp_path / "m" / "open_clip_config.json").write_text("{}")
    with refused(r"open_clip\(model='local-dir:"):
        open_backbone(str(tmp_path / "m"))


def test_slashes_of_clip_s_own_spelling_are_read_where_weights_are_named(hub_answers, monkeypatch):
    import open_clip as library

    from vprompt.backbones import open_clip

    asked = []

    def create_model(name, **options):
        asked.append((name, options["pretrained"]))
        raise RuntimeError("no network here")

    monkeypatch.setattr(library, "create_model", create_model)
    with pytest.raises(ValueError, match="no network here"):
        open_clip.load(model="ViT-B/16,openai")
    assert asked == [("ViT-B-16", "openai")]


@pytest.mark.parametrize(
    ("method", "shown"),
    [("CoOp", "coop"), ("VPT", "vpt"), ("MaPLe", "maple"), ("pro-VPT", "pro_vpt")],
)
def test_a_method_in_another_spelling_is_answered_with_ours(method, shown, refused):
    from vprompt.core import registry

    with refused(f"No method called '{method}'", f"Did you mean '{shown}'"):
        registry.find("adapters", method)


# A terminal that cannot show everything.


COMMANDS_IN_TURN = """
import io, json, os, sys

from vprompt import cli


def run(encoding, words):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    sys.argv, (sys.stdout, sys.stderr) = ["vprompt", *words], streams
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    for stream in streams:
        stream.flush()
    return [code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)]


plan = json.load(sys.stdin)
found = [run(encoding, [os.fsdecode(bytes.fromhex(w)) for w in words]) for encoding, words in plan]
sys.__stdout__.write(json.dumps(found))
"""


def test_a_narrow_terminal_ends_in_no_traceback(tmp_path):
    """One process whose file names are ASCII, and terminals of two encodings in turn."""
    for index, name in enumerate(("\u00e9t\u00e9", "\u6771\u4eac \U0001f600")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(4):
            array = np.full((16, 16, 3), 90 * index + number, np.uint8)
            Image.fromarray(array).save(tmp_path / "d" / name / f"{number}.png")
    image = next((tmp_path / "d" / "\u6771\u4eac \U0001f600").iterdir())
    plan = []
    for encoding in ("ascii", "latin-1"):
        made = tmp_path / encoding / "\u00fc"
        learn = ("learn", tmp_path / "d", "--model", "tiny", "--epochs", 1, "--output", made)
        predict = ("predict", image, "--artifact", made)
        refused = ("predict", tmp_path / "\u6771", "--artifact", made)
        looks = (("list",), ("pool", "ls", made.parent), ("pool", "show", made), ("--help",))
        plan += [(encoding, words) for words in (learn, predict, *looks, refused)]
    typed = [
        (encoding, [os.fsencode(str(word)).hex() for word in words]) for encoding, words in plan
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_IN_TURN],
        input=json.dumps(typed).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    told = json.loads(done.stdout)
    for (encoding, words), (code, _, err) in zip(plan, told, strict=True):
        assert code == int(tmp_path / "\u6771" in words), (encoding, words, err)
        assert "Traceback" not in err, (encoding, words, err)


def test_a_text_that_no_encoding_has_is_written_as_its_escape(tmp_path):
    from vprompt.core.files import write_text

    write_text(tmp_path / "card.md", "label caf\udce9 \u6771")
    assert (tmp_path / "card.md").read_text("utf-8") == "label caf\\udce9 \u6771"
