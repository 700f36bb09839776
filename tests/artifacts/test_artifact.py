"""Artefact: what is on disk, that it comes back bit for bit, and what is refused."""

import json
import os
import pickle
import random
import re
import shutil

import pytest
import torch
import yaml

torch.set_num_threads(1)  # steps this small only wait for a second thread
CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
CLASSES = ("cat", "dog", "möwe")


@pytest.fixture
def make(tiny, generator):
    """Return a function that makes an artefact with so many tokens in every block."""
    from vprompt.artifacts.artifact import Artifact, make_config
    from vprompt.models.heads import Head
    from vprompt.prompts.prompt import Prompt

    def build(counts=(3, 0, 0, 0, 0, 0), persist=True, **facts):
        def draw(*shape):
            return torch.randn(shape, generator=generator)

        blocks = torch.repeat_interleave(torch.arange(tiny.depth), torch.tensor(counts))
        prompt = Prompt(draw(len(blocks), tiny.dim), blocks, persist) if len(blocks) else None
        head = Head(draw(len(CLASSES), tiny.feature_dim), draw(len(CLASSES)))
        config = make_config(tiny, prompt, CLASSES, **facts)
        return Artifact(prompt, head, draw(tiny.feature_dim), config, "# A card\n")

    return build


@pytest.fixture
def saved(make, tmp_path):
    """A sound artefact on disk."""
    from vprompt import save_artifact

    folder = tmp_path / "pool" / "sound"
    save_artifact(make(), folder)
    return folder


@pytest.fixture
def change(saved):
    """Return a function that rewrites keys of the saved config and returns the folder."""

    def rewrite(**keys):
        config = json.loads((saved / CONFIG).read_text())
        config |= keys
        config.pop("digests", None)  # as of an artefact from before there were any
        (saved / CONFIG).write_text(json.dumps(config))
        return saved

    return rewrite


def forget_digests(folder):
    """Make it an artefact from before there were digests."""
    config = json.loads((folder / CONFIG).read_text())
    config.pop("digests", None)
    (folder / CONFIG).write_text(json.dumps(config))


def rewrite_tensors(folder, **changed):
    """Replace tensors (dots written as two underscores), or remove those given as None."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / TENSORS)
    for key, value in changed.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    forget_digests(folder)


# There and back


@pytest.mark.parametrize(
    "counts, persist",
    [
        ((4, 0, 0, 0, 0, 0), True),
        ((2, 2, 2, 2, 2, 2), False),
        ((0, 3, 0, 1, 0, 2), False),
        ((0, 0, 2, 0, 1, 0), True),
        ((0, 0, 0, 0, 0, 0), False),
    ],
    ids=["shallow", "deep", "ragged", "ragged and persisting", "no prompt"],
)
def test_what_was_saved_comes_back_bit_for_bit(make, tiny, images, tmp_path, counts, persist):
    from vprompt import extract, load_artifact, save_artifact

    made = make(counts, persist)
    save_artifact(made, tmp_path / "it")
    found = load_artifact(tmp_path / "it")
    for name in ("weight", "bias"):
        assert torch.equal(getattr(found.head, name), getattr(made.head, name))
    assert torch.equal(found.task_embedding, made.task_embedding)
    assert (found.config, found.card, found.classes) == (made.config, made.card, list(CLASSES))
    assert found.data_config == tiny.data_config and found.name == "it"
    assert found.digest == made.digest
    if made.prompt is None:
        assert found.prompt is None
    else:
        assert torch.equal(found.prompt.tokens, made.prompt.tokens)
        assert torch.equal(found.prompt.blocks, made.prompt.blocks)
        assert found.prompt.persist == persist
    with torch.no_grad():
        logits = [a.head.logits(extract(tiny, images, a.prompt)) for a in (made, found)]
    assert torch.equal(*logits)


def test_the_folder_is_laid_out_as_peft_lays_it_out(make, tmp_path):
    from safetensors import safe_open

    from vprompt import save_artifact

    save_artifact(make((2, 0, 1, 0, 0, 0), False), tmp_path / "it", run={"seed": 0})
    assert sorted(p.name for p in (tmp_path / "it").iterdir()) == [
        CARD,
        CONFIG,
        TENSORS,
        "run.json",
    ]
    with safe_open(tmp_path / "it" / TENSORS, framework="pt") as file:
        shapes = {key: tuple(file.get_tensor(key).shape) for key in sorted(file.keys())}
        assert file.metadata()["format"] == "pt"
    assert shapes == {
        "head.bias": (3,),
        "head.weight": (3, 64),
        "prompt_embeddings.0": (2, 64),
        "prompt_embeddings.2": (1, 64),
        "task_embedding": (64,),
    }


def test_the_config_has_the_keys_that_others_know(saved, tiny):
    from vprompt.core.wide import wide_json

    text = (saved / CONFIG).read_text(encoding="utf-8")
    config = json.loads(text)
    assert text == wide_json(config)
    known = {
        "peft_type": "VISUAL_PROMPT",
        "task_type": "IMAGE_CLASSIFICATION",
        "peft_version": None,
        "format_version": 1,
        "base_model_name_or_path": "tiny",
        "revision": None,
        "base_model_fingerprint": tiny.fingerprint,
        "inference_mode": True,
        "num_virtual_tokens": [3, 0, 0, 0, 0, 0],
        "token_dim": 64,
        "num_layers": 6,
        "insert_position": "after_prefix",
        "modules_to_save": ["head"],
        "num_classes": 3,
        "label_names": list(CLASSES),
        "persist": True,
    }
    assert {key: config[key] for key in known} == known
    assert config["data_config"]["input_size"] == [3, 32, 32]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", config["base_model_fingerprint"])


def test_an_existing_folder_is_refused_and_kept_unless_overwriting(make, saved, refused):
    from vprompt import load_artifact, save_artifact

    before = load_artifact(saved).digest
    with refused("sound exists already", "--overwrite"):
        save_artifact(make(), saved)
    assert load_artifact(saved).digest == before
    other = make()
    save_artifact(other, saved, overwrite=True)
    assert load_artifact(saved).digest == other.digest != before
    assert [p.name for p in saved.parent.iterdir()] == ["sound"]


def test_nothing_is_written_when_the_record_is_not_json(make, tmp_path):
    from vprompt import save_artifact

    with pytest.raises(ValueError, match="JSON"):
        save_artifact(make(), tmp_path / "it", run={"loss": float("nan")})
    assert list(tmp_path.glob("*it*")) == [] and list(tmp_path.glob(".*")) == []


def test_a_plain_reader_of_safetensors_understands_it(saved):
    """The recipe a stranger would write, without vprompt."""
    from safetensors.numpy import load_file

    config = json.loads((saved / CONFIG).read_text())
    tensors = load_file(saved / TENSORS)
    for layer, count in enumerate(config["num_virtual_tokens"]):
        shape = (count, config["token_dim"])
        assert not count or tensors[f"prompt_embeddings.{layer}"].shape == shape


def test_an_unknown_key_is_tolerated_and_kept(change):
    from vprompt import load_artifact

    assert load_artifact(change(invented_later=[1, 2])).config["invented_later"] == [1, 2]


# What is refused


def test_no_folder_is_named(tmp_path, refused):
    from vprompt import load_artifact

    with refused("No artefact folder at", "nowhere"):
        load_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(saved, refused, name):
    from vprompt import load_artifact

    (saved / name).unlink()
    with refused("is not an artefact", "lacks " + re.escape(name)):
        load_artifact(saved)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 60, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, refused, keep):
    from vprompt import load_artifact

    whole = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(
        whole[: keep if isinstance(keep, int) else int(keep * len(whole))]
    )
    with refused(TENSORS, "truncated"):
        load_artifact(saved)


def test_garbage_is_refused(saved, refused):
    from vprompt import load_artifact

    (saved / TENSORS).write_bytes(random.Random(0).randbytes(5000))
    with refused(TENSORS, "not a safetensors file"):
        load_artifact(saved)


@pytest.mark.parametrize("key", ["head.weight", "head.bias", "task_embedding"])
def test_a_missing_tensor_is_named(saved, refused, key):
    from vprompt import load_artifact

    rewrite_tensors(saved, **{key.replace(".", "__"): None})
    with refused("lacks", re.escape(key)):
        load_artifact(saved)


def test_a_missing_prompt_tensor_is_named(saved, refused):
    from vprompt import load_artifact

    rewrite_tensors(saved, prompt_embeddings__0=None)
    with refused("lacks", "prompt_embeddings.0"):
        load_artifact(saved)


@pytest.mark.parametrize(
    "key, shape",
    [
        ("head.weight", (64, 3)),
        ("head.bias", (4,)),
        ("task_embedding", (1, 64)),
        ("prompt_embeddings.0", (3, 63)),
        ("prompt_embeddings.0", (192,)),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(saved, refused, key, shape):
    from vprompt import load_artifact

    rewrite_tensors(saved, **{key.replace(".", "__"): torch.zeros(shape)})
    with refused(re.escape(key), "has shape " + re.escape(str(shape)), "says"):
        load_artifact(saved)


@pytest.mark.parametrize("key", ["prompt_embeddings.4", "prompt_embeddings.99", "lora_A.weight"])
def test_a_surplus_tensor_is_named(saved, refused, key):
    from vprompt import load_artifact

    rewrite_tensors(saved, **{key.replace(".", "__"): torch.zeros(3, 64)})
    with refused("holds", re.escape(key)):
        load_artifact(saved)


def test_a_number_that_is_finite_in_fp64_alone_is_refused(saved, refused):
    from safetensors.torch import load_file

    from vprompt import load_artifact

    tensor = load_file(saved / TENSORS)["head.weight"].double()
    tensor[0, 0] = 1e300
    rewrite_tensors(saved, head__weight=tensor)
    with refused("head.weight", "not finite"):
        load_artifact(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["head.weight", "prompt_embeddings.0"])
def test_a_number_that_is_not_finite_is_refused(saved, refused, key, value):
    from safetensors.torch import load_file

    from vprompt import load_artifact

    tensor = load_file(saved / TENSORS)[key]
    tensor[1, 2] = value
    rewrite_tensors(saved, **{key.replace(".", "__"): tensor})
    with refused(re.escape(key), "not finite"):
        load_artifact(saved)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_tensor_of_an_unusual_type_is_refused_or_read(saved, kind):
    from vprompt import VPromptError, load_artifact

    rewrite_tensors(saved, head__bias=torch.ones(3).to(kind))
    try:
        assert load_artifact(saved).head.bias.tolist() == [1.0] * 3
    except VPromptError as error:
        assert "head.bias" in str(error)


@pytest.mark.parametrize(
    "kind, shown",
    [
        (torch.int64, "I64"),
        (torch.uint8, "U8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_a_type_that_artefacts_do_not_have_is_refused_as_that(saved, refused, kind, shown):
    from vprompt import VPromptError, load_artifact

    rewrite_tensors(saved, head__bias=torch.ones(3).to(kind))
    with refused("'head.bias' is of the type " + shown, "F32, F16, BF16 or F64", "Save it as"):
        load_artifact(saved)
    with pytest.raises(VPromptError) as error:
        load_artifact(saved)
    assert "not finite" not in str(error.value) and "truncated" not in str(error.value)


@pytest.mark.parametrize("shown", ["F4", "F6_E2M3", "F8_E8M0", "F128", "C64"])
def test_a_type_that_no_library_here_knows_is_not_called_damage(saved, refused, shown):
    from vprompt import load_artifact

    content = (saved / TENSORS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["head.bias"]["dtype"] = shown
    text = json.dumps(header).encode()
    (saved / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with refused("'head.bias' is of the type " + shown):
        load_artifact(saved)


def test_half_precision_is_read_as_fp32(saved):
    from vprompt import load_artifact

    rewrite_tensors(saved, head__bias=torch.tensor([0.5, 1.0, 2.0], dtype=torch.bfloat16))
    bias = load_artifact(saved).head.bias
    assert bias.dtype == torch.float32 and bias.tolist() == [0.5, 1.0, 2.0]


class Explosive:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("name", ["adapter_model.bin", "prompt.pth", "model.pt"])
def test_a_pickle_is_called_one_and_not_read(saved, refused, tmp_path, name):
    from vprompt import load_artifact

    marker = tmp_path / "exploded"
    (saved / name).write_bytes(pickle.dumps(Explosive(str(marker))))
    (saved / TENSORS).unlink()
    with refused("lacks adapter_model.safetensors", re.escape(name), "pickle"):
        load_artifact(saved)
    assert not marker.exists()


def test_a_pickle_under_the_right_name_is_not_read_either(saved, refused, tmp_path):
    from vprompt import load_artifact

    marker = tmp_path / "exploded"
    (saved / TENSORS).write_bytes(pickle.dumps(Explosive(str(marker))) + bytes(100))
    with refused(TENSORS, "not a safetensors file"):
        load_artifact(saved)
    assert not marker.exists()


@pytest.mark.parametrize("name", [TENSORS, CONFIG, CARD, "notes.txt"])
def test_a_link_out_of_the_folder_is_refused(saved, refused, tmp_path, name):
    from vprompt import load_artifact

    outside = tmp_path / "outside"
    outside.write_text("a secret")
    (saved / name).unlink(missing_ok=True)
    (saved / name).symlink_to(outside)
    with refused(name, "outside its folder"):
        load_artifact(saved)


def test_a_link_within_the_folder_is_followed(saved):
    from vprompt import load_artifact

    (saved / CARD).rename(saved / "CARD.md")
    (saved / CARD).symlink_to("CARD.md")
    assert load_artifact(saved).card == "# A card\n"


def test_a_link_that_leads_to_itself_is_refused(saved):
    from vprompt import VPromptError, load_artifact

    (saved / "loop").symlink_to("loop")
    with pytest.raises(VPromptError, match="loop"):
        load_artifact(saved)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2", '{"a": "\ud800"}', "[" * 100_000, '{"a": ' + "1" * 5000 + "}"],
    ids=["empty", "cut", "list", "surrogate", "deep", "long number"],
)
def test_a_config_that_is_not_json_is_named(saved, text):
    from vprompt import VPromptError, load_artifact

    (saved / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(VPromptError, match=CONFIG):
        load_artifact(saved)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"peft_type": "LORA"}'])
def test_a_config_of_something_else_is_refused(saved, refused, text):
    from vprompt import load_artifact

    (saved / CONFIG).write_text(text)
    with refused("is not a visual prompt"):
        load_artifact(saved)


@pytest.mark.parametrize(
    "key, value",
    [
        ("token_dim", "64"),
        ("token_dim", None),
        ("num_layers", 6.5),
        ("num_layers", 7),
        ("num_classes", [3]),
        ("num_classes", -1),
        ("num_classes", True),
        ("label_names", {"0": "cat"}),
        ("label_names", ["cat", ["dog"], {}]),
        ("persist", "yes"),
        ("num_virtual_tokens", 3),
        ("num_virtual_tokens", [3, 0, 0, 0, 0]),
        ("num_virtual_tokens", [3, 0, 0, 0, 0, -1]),
        ("num_virtual_tokens", [3, 0, 0, 0, 0, "0"]),
        ("num_virtual_tokens", [3, 0, 0, 0, 0, 10**15]),
        ("base_model_name_or_path", 5),
        ("base_model_fingerprint", None),
        ("format_version", "1"),
        ("format_version", None),
        ("data_config", []),
        ("data_config", {}),
        ("data_config", {"input_size": [3, 32]}),
        ("data_config", {"input_size": 32}),
        ("data_config", {"input_size": [3, float("inf"), 32]}),
        ("data_config", {"input_size": [3, 0, 32]}),
        ("data_config", {"mean": [0.5]}),
        ("data_config", {"mean": ["a", "b", "c"]}),
        ("data_config", {"std": [0, 0, 0]}),
        ("data_config", {"std": [float("nan")] * 3}),
    ],
    ids=str,
)
def test_a_config_with_a_wrong_value_is_refused(change, saved, key, value):
    from vprompt import VPromptError, load_artifact

    if key == "data_config" and value:
        value = {**json.loads((saved / CONFIG).read_text())["data_config"], **value}
    with pytest.raises(VPromptError, match=r"(?s)sound"):
        load_artifact(change(**{key: value}))


def test_a_head_without_classes_is_refused(change, refused):
    from vprompt import load_artifact

    with refused("at least one class"):
        load_artifact(change(num_classes=0, label_names=[]))


def test_what_only_informs_is_left_out_where_it_has_another_form(change):
    from vprompt import load_artifact

    config = load_artifact(change(recipe=None, prompt_init=[1])).config
    assert config["recipe"] == {} and config["prompt_init"] is None


def test_a_newer_format_says_what_to_type(change, refused):
    from vprompt import load_artifact

    with refused("format version 99", "up to 4", "pip install --upgrade vprompt"):
        load_artifact(change(format_version=99))


def test_labels_that_do_not_match_the_classes_are_counted(change, refused):
    from vprompt import load_artifact

    with refused("names 2 labels for 3 classes"):
        load_artifact(change(label_names=["cat", "dog"]))


def test_two_hundred_damaged_folders_load_or_are_refused(saved, tmp_path):
    from vprompt import VPromptError, load_artifact

    forget_digests(saved)
    chance, outcomes = random.Random(0), {"loaded": 0, "refused": 0}
    for number in range(200):
        folder = tmp_path / f"damaged{number}"
        shutil.copytree(saved, folder)
        path = folder / (TENSORS, CONFIG, CARD)[number % 3]
        data = bytearray(path.read_bytes())
        if chance.random() < 0.25:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.choice([1, 3, 20])):
                # Headers are where damage does most, so half of the bytes are there.
                end = len(data) if chance.random() < 0.5 else min(400, len(data))
                data[chance.randrange(end)] = chance.randrange(256)
        path.write_bytes(data)
        try:
            load_artifact(folder)
            outcomes["loaded"] += 1
        except VPromptError as error:
            assert len(str(error)) > 20
            outcomes["refused"] += 1
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 20


# Does it fit this backbone?


@pytest.fixture
def relative(tiny):
    """Return a function that makes a backbone like `tiny` but for what is given."""
    from dataclasses import replace

    from vprompt.backbones import tiny as plugin

    def make(*, data_config=None, **settings):
        backbone = plugin.load(**settings)
        if data_config:
            backbone.data_config = replace(backbone.data_config, **data_config)
        return backbone

    return make


def test_the_backbone_it_was_learned_on_fits(saved, relative):
    from vprompt.artifacts.artifact import check_fits, read_config

    check_fits(read_config(saved), relative())


def test_other_weights_differ_in_the_fingerprint_alone(saved, relative, refused):
    from vprompt.artifacts.artifact import check_fits, read_config

    with refused("learned on 'tiny'", r"tiny\(model=test_vit, seed=1\)", "--force") as raised:
        check_fits(read_config(saved), relative(seed=1))
    assert "base_model_fingerprint: sha256:" in str(raised.value)
    assert "data_config" not in str(raised.value)


def test_another_width_is_named(saved, relative, refused):
    from vprompt.artifacts.artifact import check_fits, read_config

    with refused("differ in", "token_dim: 64 against 96"):
        check_fits(read_config(saved), relative(model="test_vit4"))


def test_another_image_size_names_the_preprocessing_and_not_the_weights(saved, relative, refused):
    from vprompt.artifacts.artifact import check_fits, read_config

    with refused("data_config", "48") as raised:
        check_fits(read_config(saved), relative(image_size=48))
    assert "fingerprint" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {"mean": (0.485, 0.456, 0.406)},
        {"std": (0.229, 0.224, 0.225)},
        {"crop_mode": "center"},
        {"interpolation": "bilinear"},
    ],
    ids=str,
)
def test_another_preprocessing_is_named(saved, relative, refused, values):
    from vprompt.artifacts.artifact import check_fits, read_config

    with refused("data_config", next(iter(values))) as raised:
        check_fits(read_config(saved), relative(data_config=values))
    assert "fingerprint" not in str(raised.value)


# The card


@pytest.fixture
def learned(tiny, tmp_path):
    """An artefact that learn made, on forty digits."""
    from dataclasses import replace

    from vprompt import TrainConfig, learn, open_task
    from vprompt.data.task import SealedSplit

    task = open_task("digits").few_shot(2, seed=0)
    task = replace(task, test=SealedSplit(task.val))
    config = TrainConfig(epochs=1)
    return learn(task, model=tiny, config=config, output=tmp_path / "digits"), tmp_path / "digits"


def test_the_head_of_the_card_is_what_a_model_hub_reads(learned):
    outcome, folder = learned
    start, head, _ = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(head)
    assert start == "" and "base_model" not in values and "visual-prompt" in values["tags"]
    assert values["pipeline_tag"] == "image-classification"
    [entry] = values["model-index"]
    [metric] = entry["results"][0]["metrics"]
    accuracy = outcome.test["learned"].acc1
    assert metric["value"] == pytest.approx(accuracy, abs=1e-4) and metric["type"] == "accuracy"
    assert metric["name"].startswith("accuracy on 20 images, 95 % interval 0.")
    assert entry["results"][0]["dataset"]["name"] == "digits"


def test_the_card_holds_the_recipe_and_the_preprocessing(learned):
    outcome, folder = learned
    blocks = re.findall(r"```json\n(.*?)\n```", (folder / CARD).read_text(), re.S)
    found = [json.loads(block) for block in blocks]
    assert outcome.artifact.config["recipe"] in found
    assert outcome.artifact.config["data_config"] in found
    assert outcome.artifact.config["recipe"]["train"]["epochs"] == 1


def test_the_card_of_a_run_without_a_test_split_claims_no_accuracy(tiny, tmp_path):
    from vprompt import TrainConfig, learn, open_task

    task = open_task("digits").few_shot(2, seed=0)
    learn(task, model=tiny, config=TrainConfig(epochs=0), output=tmp_path / "it", test=False)
    text = (tmp_path / "it" / CARD).read_text()
    assert "Not measured" in text and "model-index" not in text


def test_the_folder_can_be_read_by_others(learned):
    _, folder = learned
    modes = {path.name: oct(os.stat(path).st_mode & 0o777) for path in folder.iterdir()}
    assert oct(os.stat(folder).st_mode & 0o777) == "0o755"
    assert modes == dict.fromkeys((CONFIG, TENSORS, CARD, "run.json"), "0o644")


# What a method without a prompt trained


@pytest.fixture
def scaled(monkeypatch):
    """A method that trains one factor per feature."""
    import sys
    import types

    from vprompt.core import registry
    from vprompt.learning.adapter import FeatureAdapter

    class Scale(FeatureAdapter):
        def __init__(self, backbone):
            super().__init__(backbone)
            self.factor = torch.nn.Parameter(torch.ones(backbone.feature_dim))

        def transform(self, features, *, generator=None):
            return features * self.factor

    module = types.ModuleType("vprompt.adapters.scaled")
    module.build = lambda backbone, *, power=1, kind="plain": Scale(backbone)
    module.build.__annotations__ = {"power": int, "kind": str}
    module.build.__module__ = "vprompt.adapters.scaled"
    monkeypatch.setitem(sys.modules, "vprompt.adapters.scaled", module)
    names = registry.names("adapters")
    monkeypatch.setattr(registry, "names", lambda kind: [*names, "scaled"])
    return Scale


@pytest.fixture
def stateful(tiny, scaled, tmp_path):
    """Return a function that saves an artefact of that method and loads it again."""
    from vprompt.artifacts import artifact
    from vprompt.models.heads import Head

    def make(method="scaled(power=2)", state=None):
        factor = torch.linspace(0, 1, tiny.feature_dim)
        head = Head(torch.ones(2, tiny.feature_dim), torch.zeros(2))
        config = artifact.make_config(tiny, None, ("a", "b"), method=method)
        made = artifact.Artifact(
            None, head, torch.zeros(tiny.feature_dim), config, state=state or {"factor": factor}
        )
        artifact.save(made, tmp_path / "made", overwrite=True)
        return artifact.load(tmp_path / "made")

    return make


def test_the_state_of_a_method_without_a_prompt_comes_back(stateful, tiny, images):
    from vprompt.models.backbone import extract
    from vprompt.opening import open_adapter

    loaded = stateful()
    adapter = open_adapter(loaded, tiny)
    expected = extract(tiny, images) * torch.linspace(0, 1, tiny.feature_dim)
    assert torch.equal(adapter.features(images).detach(), expected)


def test_a_strangers_method_may_have_numbers_and_words_for_settings(stateful, tiny, refused):
    from vprompt.opening import open_adapter

    with refused("not a plain word"):
        open_adapter(stateful(method="scaled(kind='/etc/passwd')"), tiny)


def test_state_that_does_not_fit_its_method_is_refused(stateful, tiny, refused):
    from vprompt.opening import open_adapter

    with refused("do not fit", "factor"):
        open_adapter(stateful(state={"factor": torch.ones(3)}), tiny)
    with refused("No method called 'unheard'"):
        open_adapter(stateful(method="unheard"), tiny)


def test_state_without_a_method_is_refused(stateful, refused):
    with refused("does not say which method"):
        stateful(method=None)


# Digests


@pytest.mark.parametrize("name", [TENSORS, CONFIG, CARD, "run.json"])
def test_a_flipped_bit_is_refused_wherever_it_is(make, tmp_path, refused, name):
    from vprompt import load_artifact, save_artifact

    save_artifact(make((2, 0, 1, 0, 0, 0), False), tmp_path / "it", run={"tuning": {}})
    path = tmp_path / "it" / name
    data = bytearray(path.read_bytes())
    data[-4 if name != TENSORS else -1] ^= 1
    path.write_bytes(bytes(data))
    with refused("it.*(not what was written|not valid JSON)"):
        load_artifact(tmp_path / "it")


def test_digests_whose_name_is_damaged_are_missed(saved, refused):
    from vprompt import load_artifact

    path = saved / CONFIG
    path.write_text(path.read_text().replace('"digests"', '"digestr"'))
    with refused(CONFIG, "its digest differs"):
        load_artifact(saved)


def test_swapped_labels_are_refused_until_one_says_so(saved, refused):
    from vprompt import load_artifact
    from vprompt.artifacts import artifact

    config = json.loads((saved / CONFIG).read_text())
    config["label_names"] = config["label_names"][::-1]
    (saved / CONFIG).write_text(json.dumps(config))
    with refused(CONFIG, "its digest differs", "vprompt pool seal"):
        load_artifact(saved)
    artifact.seal(saved)
    assert load_artifact(saved).classes == config["label_names"]


def test_a_file_that_is_gone_or_came_later_is_refused(saved, refused):
    from vprompt import load_artifact

    (saved / "run.json").write_text("{}")
    with refused("run.json was added later"):
        load_artifact(saved)
    (saved / "run.json").unlink()
    (saved / CARD).unlink()
    with refused("README.md is missing"):
        load_artifact(saved)


def test_old_artefacts_have_no_digest_and_are_read(saved, vprompt):
    forget_digests(saved)
    assert "no digest" in vprompt("pool", "check", saved)[1]
    assert vprompt("pool", "seal", saved)[0] == 0
    assert "no digest" not in vprompt("pool", "check", saved)[1]


# Bounds


@pytest.mark.parametrize(
    "keys",
    [
        {"num_layers": 100_000, "num_virtual_tokens": [0] * 100_000},
        {"num_classes": 2**21, "label_names": [str(n) for n in range(2**21)]},
        {"num_virtual_tokens": [10**9, 0, 0, 0, 0, 0]},
        {"token_dim": 2**40},
    ],
    ids=["layers", "classes", "tokens", "dim"],
)
def test_sizes_that_no_model_has_are_refused(change, refused, keys):
    from vprompt import load_artifact

    with refused("up to|at most|too large"):
        load_artifact(change(**keys))


def test_images_larger_than_any_backbone_takes_are_refused(change, saved, refused):
    from vprompt import load_artifact

    config = json.loads((saved / CONFIG).read_text())["data_config"]
    with refused("data_config cannot be used"):
        load_artifact(change(data_config={**config, "input_size": [3, 4096, 4096]}))


def test_a_tensor_of_gigabytes_is_refused_by_its_header(saved, refused):
    from vprompt import load_artifact

    forget_digests(saved)
    count = 2**29
    entry = {"dtype": "F16", "shape": [count], "data_offsets": [0, 2 * count]}
    head = json.dumps({"head.weight": entry}).encode()
    head += b" " * (-len(head) % 8)
    with (saved / TENSORS).open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 2 * count)  # sparse: kilobytes on the disk
    with refused("head.weight", "has shape"):
        load_artifact(saved)


@pytest.mark.parametrize("name", [CARD, "run.json"])
def test_a_card_of_gigabytes_is_refused_by_its_size(saved, refused, name):
    from vprompt import load_artifact

    with (saved / name).open("ab") as file:
        file.truncate(3 * 2**30)
    with refused(name, "bytes; at most"):
        load_artifact(saved)


@pytest.mark.parametrize("text", ["scaled(power=2000000)", "scaled(power=99999999999999999999)"])
def test_settings_beyond_the_tensors_are_refused_before_anything_is_built(
    stateful, tiny, refused, text
):
    from vprompt.opening import open_adapter

    with refused("power"):
        open_adapter(stateful(method=text), tiny)


# Readers beside writers


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(make, tmp_path, monkeypatch):
    from vprompt import load_artifact, save_artifact
    from vprompt.artifacts import codec

    one, other = make((2, 0, 1, 0, 0, 0), False), make((0, 0, 3, 0, 0, 0), False)
    save_artifact(one, tmp_path / "it")
    reading, replaced = codec.check_header, []

    def slowly(*arguments):
        if not replaced:
            replaced.append(1)
            save_artifact(other, tmp_path / "it", overwrite=True)
        return reading(*arguments)

    monkeypatch.setattr(codec, "check_header", slowly)
    found = load_artifact(tmp_path / "it")
    assert replaced and torch.equal(found.prompt.tokens, other.prompt.tokens)
    assert found.config == other.config
