"""Import: files in every layout, built here, give the features that their own program would."""

import json
import os

import numpy as np
import pytest
import torch
from torch.nn import functional

torch.set_num_threads(1)
CLASSES = ("cat", "dog", "traffic light")


@pytest.fixture(scope="module")
def clip():
    from vprompt.backbones import tiny_clip

    return tiny_clip.load()


@pytest.fixture
def draw():
    """Return a function that draws small numbers."""
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: 0.5 * torch.randn(*shape, generator=generator)


@pytest.fixture
def bring(tmp_path):
    """Return a function that saves what a program saves, imports it, and reads the artefact."""
    from vprompt import load_artifact
    from vprompt.exchange.importing import import_file

    def call(held, program, backbone, name="theirs.pth", **more):
        torch.save(held, tmp_path / name)
        given = {"classes": list(CLASSES), "output": tmp_path / "mine", **more}
        import_file(tmp_path / name, program=program, model=backbone, **given)
        return load_artifact(tmp_path / "mine")

    return call


def joined(backbone, images, rows, *, front, persist):
    """Run a model with rows before or behind its patches, as the originals do, by `cat` alone."""
    tokens, inside = backbone.embed(images), 0
    for block in range(backbone.depth):
        new = rows.get(block)
        if new is not None or not persist:
            tokens = without(tokens, inside, front)
            inside = 0
            if new is not None:
                inside = len(new)
                extra = new.expand(len(tokens), -1, -1)
                parts = [tokens[:, :1], extra, tokens[:, 1:]] if front else [tokens, extra]
                tokens = torch.cat(parts, dim=1)
        tokens = backbone.block(block, tokens)
    return backbone.pool(without(tokens, inside, front))


def without(tokens, count, front):
    if not count:
        return tokens
    if front:
        return torch.cat([tokens[:, :1], tokens[:, 1 + count :]], dim=1)
    return tokens[:, :-count]


def same_features(artifact, backbone, images, wanted):
    from vprompt.models.backbone import extract

    with torch.no_grad():
        found = extract(backbone, images, artifact.prompt)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def vpt_files(rows, head):
    """Return the forms in which VPT and its forks keep one deep prompt."""
    stacked = torch.stack([rows[block] for block in sorted(rows)])
    arrays = {"shallow_prompt": stacked[:1].numpy(), "deep_prompt": stacked[1:].numpy()}
    model = {
        "enc.transformer.prompt_embeddings": stacked[:1],
        "enc.transformer.deep_prompt_embeddings": stacked[1:],
        "enc.transformer.encoder.layer.0.attn.query.weight": torch.zeros(2, 2),
        "head.last_layer.weight": head[0],
        "head.last_layer.bias": head[1],
    }
    fork = {"Prompt_Tokens": stacked, "head.weight": head[0], "head.bias": head[1]}
    return {"vpt": arrays, "vtab": {"model": model, "iteration": 3}, "fork": {"state_dict": fork}}


@pytest.mark.parametrize("form", ["vpt", "vtab", "fork"])
def test_vpts_deep_prompts_give_its_features(tiny, images, draw, bring, form):
    rows = {block: draw(3, tiny.dim) for block in range(tiny.depth)}
    head = (draw(3, tiny.feature_dim), draw(3))
    found = bring(vpt_files(rows, head)[form], "vtab" if form == "vtab" else "vpt", tiny)
    with torch.no_grad():
        wanted = joined(tiny, images, rows, front=True, persist=False)
    same_features(found, tiny, images, wanted)
    assert found.config["imported"]["file"] == "theirs.pth" and not found.prompt.persist
    if form == "vpt":
        assert not found.head.weight.any() and "no head" in found.card
    else:
        torch.testing.assert_close(found.head.weight, head[0])


def test_a_shallow_prompt_travels_on_and_a_projection_is_applied(tiny, images, draw, bring):
    narrow, weight, bias = draw(2, 8), draw(tiny.dim, 8), draw(tiny.dim)
    held = {
        "transformer.prompt_embeddings": narrow[None],
        "transformer.prompt_proj.weight": weight,
        "transformer.prompt_proj.bias": bias,
    }
    found = bring(held, "vpt", tiny)
    with torch.no_grad():
        rows = {0: functional.linear(narrow, weight, bias)}
        wanted = joined(tiny, images, rows, front=True, persist=True)
    same_features(found, tiny, images, wanted)


def test_pro_vpts_lists_and_gates_give_its_features(tiny, images, draw, bring):
    lists = [[draw(1, tiny.dim) for _ in range(count)] for count in (2, 0, 3)]
    lists += [[] for _ in range(tiny.depth - 3)]
    gates = [[draw(1)[0] for _ in each] for each in lists]
    held = {"prompts_per_layer": lists, "prompt_gates_per_layer": gates}
    found = bring(held, "pro_vpt", tiny)
    rows = {
        block: torch.cat([g * t for g, t in zip(gates[block], each, strict=True)])
        for block, each in enumerate(lists)
        if each
    }
    with torch.no_grad():
        wanted = joined(tiny, images, rows, front=True, persist=False)
    same_features(found, tiny, images, wanted)


def sentences_of(clip, slots):
    """Return token numbers and embeddings of `X X cat.`, as a text learner keeps them."""
    tower = clip.text
    texts = [f"{' '.join(['X'] * slots)} {name}." for name in CLASSES]
    ids = tower.tokenise(texts, tower.context_length)
    with torch.no_grad():
        words = tower.words(ids)
    return ids, words


def learner(clip, context):
    _, words = sentences_of(clip, len(context))
    return {
        "ctx": context,
        "token_prefix": words[:, :1].half(),
        "token_suffix": words[:, 1 + len(context) :].half(),
    }


def read_by_hand(clip, rows, slots):
    """Return the features of the classes with rows in word slots, block by block."""
    tower, (ids, words) = clip.text, sentences_of(clip, slots)
    tokens = words.clone()
    with torch.no_grad():
        for block in range(tower.depth):
            if block in rows:
                tokens = torch.cat(
                    [
                        tokens[:, :1],
                        rows[block].expand(len(tokens), -1, -1),
                        tokens[:, 1 + len(rows[block]) :],
                    ],
                    dim=1,
                )
            if not block:
                tokens = tokens + tower.positions(ids.shape[1])
            tokens = tower.block(block, tokens, tower.mask(ids))
        return functional.normalize(tower.pool(tokens, tower.ends(ids)), dim=1)


def test_coops_context_reads_classes_as_it_does(clip, draw, bring):
    context = draw(4, clip.text.dim)
    held = {"state_dict": learner(clip, context), "epoch": 50, "val_result": None}
    found = bring(held, "coop", clip, "model.pth.tar-50")
    wanted = read_by_hand(clip, {0: context}, 4)
    torch.testing.assert_close(found.head.weight / clip.scale, wanted, atol=1e-4, rtol=1e-4)
    assert found.prompt is None and found.text.prompt.persist
    assert "class names and start token are those in the file" in found.card


def test_maples_coupled_tokens_give_its_features_and_classes(clip, images, draw, bring):
    context, deeper = draw(2, clip.text.dim), [draw(2, clip.text.dim) for _ in range(2)]
    couplings = [(draw(clip.dim, clip.text.dim), draw(clip.dim)) for _ in range(3)]
    held = {f"prompt_learner.{k}": v for k, v in learner(clip, context).items()}
    held["prompt_learner.proj.weight"], held["prompt_learner.proj.bias"] = couplings[0]
    for row, text in enumerate(deeper):
        name = f"prompt_learner.compound_prompt_projections.{row}"
        held[f"prompt_learner.compound_prompts_text.{row}"] = text
        held[f"{name}.weight"], held[f"{name}.bias"] = couplings[row + 1]
    found = bring({"state_dict": held}, "maple", clip)
    text = dict(enumerate([context, *deeper]))
    with torch.no_grad():
        rows = {b: functional.linear(text[b], *couplings[b]) for b in range(3)}
        rows[0] = clip.clip.visual.ln_pre(rows[0])  # joined before the first norm
        wanted = joined(clip, images, rows, front=False, persist=True)
    same_features(found, clip, images, wanted)
    read = read_by_hand(clip, text, 2)
    torch.testing.assert_close(found.head.weight / clip.scale, read, atol=1e-4, rtol=1e-4)


def test_ivlps_own_tokens_in_both_towers_give_its_features(clip, images, draw, bring):
    context, text, image = draw(2, clip.text.dim), draw(2, clip.text.dim), draw(2, clip.dim)
    held = {f"prompt_learner.{k}": v for k, v in learner(clip, context).items()}
    held["image_encoder.VPT"] = draw(3, clip.dim)
    held["image_encoder.transformer.resblocks.1.VPT_shallow"] = image
    held["text_encoder.transformer.resblocks.1.VPT_shallow"] = text
    found = bring({"state_dict": held}, "maple", clip)
    with torch.no_grad():
        rows = {0: clip.clip.visual.ln_pre(held["image_encoder.VPT"]), 1: image}
        wanted = joined(clip, images, rows, front=False, persist=True)
    same_features(found, clip, images, wanted)
    read = read_by_hand(clip, {0: context, 1: text}, 2)
    torch.testing.assert_close(found.head.weight / clip.scale, read, atol=1e-4, rtol=1e-4)


def test_dpls_lists_of_any_length_give_its_features(clip, images, draw, bring):
    from vprompt.models.two_tower import TextPrompt, text_head
    from vprompt.prompts.prompt import Prompt

    image, text = [0, 2, 1, 0], [1, 0, 2]
    held = {
        f"prompt_learner.ctx_img_lst.{block}": draw(count, clip.dim)
        for block, count in enumerate(image)
    }
    held |= {
        f"prompt_learner.ctx_txt_lst.{block}": draw(count, clip.text.dim)
        for block, count in enumerate(text)
    }
    found = bring({"state_dict": held}, "dpl", clip)
    rows = {b: held[f"prompt_learner.ctx_img_lst.{b}"] for b in (1, 2)}
    with torch.no_grad():
        wanted = joined(clip, images, rows, front=False, persist=False)
    same_features(found, clip, images, wanted)
    tokens = torch.cat([held[f"prompt_learner.ctx_txt_lst.{b}"] for b in (0, 2)])
    prompt = Prompt(tokens, torch.tensor([0, 2, 2]), False)
    head = text_head(clip, CLASSES, TextPrompt(("a photo of a {}.",), prompt))
    torch.testing.assert_close(found.head.weight, head.weight)
    assert "does not say in which sentence" in found.card


def test_pefts_low_rank_updates_give_its_features(tiny, images, tmp_path):
    import copy

    from peft import LoraConfig, get_peft_model

    from vprompt import load_artifact
    from vprompt.exchange.importing import import_file
    from vprompt.opening import open_adapter

    config = LoraConfig(r=2, lora_alpha=6, target_modules=["qkv"])
    theirs = get_peft_model(copy.deepcopy(tiny.vit), config).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.normal_(generator=torch.Generator().manual_seed(len(name)))
        wanted = theirs(images)
    theirs.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    output = tmp_path / "mine"
    classes = list(CLASSES)
    import_file(tmp_path / "theirs", program="peft", output=output, model=tiny, classes=classes)
    adapter = open_adapter(load_artifact(output), tiny)
    with torch.no_grad():
        torch.testing.assert_close(adapter.features(images), wanted, atol=1e-4, rtol=1e-4)


def test_pefts_prompt_tuning_is_a_shallow_prompt(tiny, draw, tmp_path):
    from safetensors.torch import save_file

    from vprompt.exchange.importing import import_file

    rows, folder = draw(4, tiny.dim), tmp_path / "theirs"
    folder.mkdir()
    save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    given = {"output": tmp_path / "mine", "model": tiny, "classes": list(CLASSES)}
    found = import_file(folder, program="peft", **given).artifact
    torch.testing.assert_close(found.prompt.tokens, rows)
    assert found.prompt.places == (0, 0, 0, 0) and found.prompt.persist


class Code:
    """A pickle that would make a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_wants_code_is_refused_and_never_run(tmp_path, fails):
    torch.save({"ctx": torch.zeros(2, 4), "evil": Code(tmp_path / "ran")}, tmp_path / "a.pth")
    words = ("import", tmp_path / "a.pth", "--from", "coop", "--output", tmp_path / "mine", "-q")
    fails(*words, "--model", "tiny_clip", "--classes", "a,b", saying=["not read", "code"])
    assert not (tmp_path / "ran").exists() and not (tmp_path / "mine").exists()


def test_what_is_missing_or_wrong_is_named_and_nothing_written(tmp_path, fails, draw, tiny):
    deep = {"shallow_prompt": draw(1, 2, 64).numpy(), "deep_prompt": draw(40, 2, 64).numpy()}
    narrow = {"Prompt_Tokens": draw(1, 2, 5), "head.weight": draw(2, 64)}
    headed = {"Prompt_Tokens": draw(1, 2, tiny.dim), "head.weight": draw(2, tiny.dim)}
    cases = {
        "nothing": ({"a.b": torch.zeros(3)}, "vpt", ["not the layout of vpt", "a.b [3]"]),
        "other": ({"ctx": draw(2, 4)}, "vpt", ["not the layout of vpt", "--from coop"]),
        "csc": ({"ctx": draw(3, 2, 4)}, "coop", ["each of 3 classes", "generic"]),
        "maple": ({"ctx": draw(2, 4), "proj.weight": draw(4, 4)}, "coop", ["--from maple"]),
        "start": ({"init_prompt_embeddings": draw(2, 2, 4)}, "pro_vpt", ["starts from"]),
        "deep": (deep, "vpt", ["reach block 40", "Name the backbone"]),
        "narrow": (narrow, "vpt", ["width 5"]),
        "classes": (headed, "vpt", ["for 2 classes", "you gave 3"]),
        "no text": ({"ctx": draw(2, 4)}, "coop", ["needs a text tower"]),
    }
    usual = ["--model", "tiny", "--classes", "a,b,c", "--output", tmp_path / "mine", "-q"]
    for name, (held, program, saying) in cases.items():
        torch.save(held, tmp_path / f"{name}.pth")
        fails("import", tmp_path / f"{name}.pth", "--from", program, *usual, saying=saying)
    torch.save(headed, tmp_path / "ok.pth")
    start = ("import", tmp_path / "ok.pth", "--output", tmp_path / "mine", "-q", "--from")
    for words, saying in [
        (["keras"], ["--from is one of vpt, vtab, coop"]),
        (["vpt", "--classes", "a,b"], ["does not hold the backbone", "--model"]),
        (["vpt", "--model", "tiny"], ["names of its classes, which are 2", "--classes"]),
        (["vpt", *usual[:2], "--classes", "a,b", "--mean", "0,0,0"], ["normalised with the mean"]),
        (["vpt", *usual[:2], "--classes", "a,b", "--std", "1"], ["--std is three numbers"]),
        (["vpt", *usual[:2], "--classes", "a,a"], ["a name twice"]),
        (["peft", *usual[:4]], ["no adapter of PEFT"]),
    ]:
        fails(*start, *words, saying=saying)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "ok.pth").read_bytes()[:300])
    fails("import", tmp_path / "cut.pth", "--from", "vpt", *usual, saying=["not read"])
    fails("import", tmp_path / "gone.pth", "--from", "vpt", *usual, saying=["No checkpoint at"])
    assert not (tmp_path / "mine").exists()


def test_other_class_names_than_in_the_file_are_named(clip, draw, bring, refused):
    held = {"state_dict": learner(clip, draw(2, clip.text.dim))}
    with refused("names of 2 classes", "'dog', number 1"):
        bring(held, "coop", clip, classes=["dog", "cat", "traffic light"])
    with refused("3 classes, but you gave 2"):
        bring(held, "coop", clip, classes=["cat", "dog"])


def test_an_imported_prompt_is_used_like_any_other(tmp_path, draw, tiny, vprompt):
    from PIL import Image

    held = {"Prompt_Tokens": draw(1, 2, tiny.dim), "head.weight": draw(3, tiny.dim)}
    torch.save(held, tmp_path / "a.pth")
    (tmp_path / "names.txt").write_text("ash\nbirch\ncedar\n")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "x.png")
    code, out, _ = vprompt(
        *("import", tmp_path / "a.pth", "--from", "vpt", "--model", "tiny", "-q"),
        *("--classes", tmp_path / "names.txt", "--output", tmp_path / "pool" / "mine"),
    )
    assert code == 0 and "read as vpt" in out
    code, out, _ = vprompt(
        "predict", tmp_path / "x.png", "--artifact", tmp_path / "pool" / "mine", "-q"
    )
    assert code == 0 and any(name in out for name in ("ash", "birch", "cedar"))
    assert vprompt("pool", "check", tmp_path / "pool")[0] == 0
