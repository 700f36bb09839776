"""Two towers: open_clip's own features without prompts, and prompts in the text tower by hand."""

import json

import pytest
import torch
from exact import awake, relative

CLASSES = ("cat", "polar_bear", "airplane", "t-shirt", "forest path at night")
TEMPLATES = ("a photo of a {}.", "{} texture.", "a {}, a type of thing.")
KINDS = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "custom_text": {"custom_text": True},
    "both": {"quick_gelu": True, "custom_text": True},
    "layer scale, average pooling, end by number": {
        "custom_text": True,
        "vision_cfg": {"pool_type": "avg", "ls_init_value": 0.5, "final_ln_after_pool": True},
        "text_cfg": {"pool_type": "eos", "eos_id": 49407, "ls_init_value": 0.5},
    },
    "timm's image tower, no mask, last token, sigmoid": {
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
        "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "a rotary image tower, first token": {
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "vit_pe_core_tiny_patch16_384",
            "timm_pool": "map",
            "timm_proj": "",
        },
        "text_cfg": {"no_causal_mask": True, "pool_type": "first"},
    },
    "CoCa": {
        "custom_text": True,
        "vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "width": 48,
            "heads": 4,
            "layers": 1,
            "context_length": 32,
            "vocab_size": 49408,
            "attn_pooler_heads": 4,
        },
    },
    "no first norm, biased projection": {
        "vision_cfg": {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
        "text_cfg": {"proj_bias": True},
    },
}


def make(kind):
    from vprompt.backbones import open_clip, tiny_clip

    extra = dict(KINDS[kind])
    vision = {**tiny_clip.CONFIG["vision_cfg"], "image_size": 32, **extra.pop("vision_cfg", {})}
    text = {**tiny_clip.CONFIG["text_cfg"], **extra.pop("text_cfg", {})}
    config = {**tiny_clip.CONFIG, "vision_cfg": vision, "text_cfg": text, **extra}
    return open_clip.from_config(config, name=kind)


@pytest.fixture(scope="module", params=KINDS)
def clip(request):
    """Every kind of model that is taken, in float32."""
    return make(request.param)


@pytest.fixture(scope="module", params=["plain", "layer scale, average pooling, end by number"])
def exact(request):
    """Two kinds in float64, weights large enough for prompts to matter."""
    return awake(make(request.param))


@pytest.fixture
def pictures(generator):
    return torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)


@pytest.fixture
def texts(exact):
    from vprompt.models.two_tower import class_texts

    return class_texts(exact.text, CLASSES, TEMPLATES[:1])


@pytest.fixture
def draw(exact, generator):
    """Return a function that draws a text prompt with these counts per block."""
    from vprompt.prompts.prompt import Prompt, place

    def make(counts, persist):
        blocks = place(counts, exact.text.depth, deep=True)
        shape = (len(blocks), exact.text.dim)
        return Prompt(torch.randn(shape, generator=generator).double(), blocks, persist)

    return make


# Without prompts


def test_without_a_prompt_image_features_are_open_clips_own_to_the_bit(clip, images):
    from vprompt import extract

    assert torch.equal(extract(clip, images), clip.clip.encode_image(images, normalize=False))


def test_without_a_prompt_text_features_are_open_clips_own_to_the_bit(clip):
    from vprompt.models.two_tower import encode_texts

    ids = clip.text.tokenise(["a photo of a cat.", "a very long way home"], 32)
    own = clip.clip.encode_text(ids, normalize=False)
    assert torch.equal(encode_texts(clip.text, ids, clip.text.ends(ids)), own)


def test_widths_and_depths_are_the_model_s(clip):
    if clip._timm:
        assert clip.feature_dim == 24 and clip.depth == len(clip.clip.visual.trunk.blocks)
        return
    assert (clip.dim, clip.feature_dim, clip.depth, clip.prefix) == (32, 24, 4, 1)
    text = clip.text
    assert (text.dim, text.feature_dim, text.depth, text.context_length) == (48, 24, 3, 32)
    assert clip.patch_size == (8, 8) and clip.data_config.input_size == (3, 32, 32)
    assert clip.data_config.crop_mode == "center"
    assert torch.equal(clip.scale, clip.clip.logit_scale.exp())


def test_texts_are_cut_behind_the_longest_and_nothing_changes(exact):
    from vprompt.models.two_tower import class_texts, encode_texts

    texts = class_texts(exact.text, CLASSES, TEMPLATES)
    whole = exact.text.tokenise([t for c in CLASSES for t in _written(c)], 32)
    assert texts.ids.shape[1] == texts.ends.max() + 1 < 16
    assert torch.equal(texts.ids, whole[:, : texts.ids.shape[1]])
    assert not whole[:, texts.ids.shape[1] :].any()
    expected = exact.clip.encode_text(whole)
    assert relative(encode_texts(exact.text, texts.ids, texts.ends), expected) < 1e-12


def _written(name):
    return [template.format(name.replace("_", " ")) for template in TEMPLATES]


def test_class_features_are_means_of_unit_vectors(exact):
    from vprompt.models.two_tower import class_features, class_texts

    expected = []
    for name in CLASSES:
        own = exact.clip.encode_text(exact.text.tokenise(_written(name), 32))
        mean = (own / own.norm(dim=1, keepdim=True)).mean(0)
        expected.append(mean / mean.norm())
    texts = class_texts(exact.text, CLASSES, TEMPLATES)
    found = class_features(exact.text, texts)
    assert relative(found, torch.stack(expected)) < 1e-12
    for chunk in (1, 4, 100):  # also where a chunk ends between the texts of one class
        assert relative(class_features(exact.text, texts, chunk=chunk), found) < 1e-12


def test_class_features_agree_with_open_clips_own_zero_shot_head():
    import open_clip as library

    from vprompt.models.two_tower import class_features, class_texts

    clip = make("plain")
    own = library.build_zero_shot_classifier(
        clip.clip, lambda t: clip.text.tokenise(t, 32), CLASSES[2:], TEMPLATES
    )
    found = class_features(clip.text, class_texts(clip.text, CLASSES[2:], TEMPLATES))
    torch.testing.assert_close(found, own.T, rtol=1e-4, atol=1e-5)


# Prompts in word slots


def test_words_in_word_slots_change_nothing(exact, texts):
    """Context tokens that are the embeddings of the words they replace leave every feature."""
    from vprompt.models.two_tower import class_features
    from vprompt.prompts.prompt import Prompt

    assert texts.slots == 4  # a photo of a
    words = exact.text.words(texts.ids)[0, 1:5]
    prompt = Prompt(words, torch.zeros(4, dtype=torch.long), persist=True)
    plain = class_features(exact.text, texts)
    assert relative(class_features(exact.text, texts, prompt), plain) < 1e-12
    other = Prompt(words.flip(0), prompt.blocks, persist=True)
    assert relative(class_features(exact.text, texts, other), plain) > 1e-4


def by_hand(exact, ids, ends, prompt):
    """The text tower with its slots overwritten, or its keys extended, one text after the other."""
    part, found = exact.text.part, []
    rows = [prompt.tokens[prompt.blocks == block] for block in range(exact.text.depth)]
    for text, end in zip(ids, ends, strict=True):
        x = part.token_embedding(text).clone()
        if prompt.persist:
            x[1 : 1 + len(rows[0])] = rows[0]
        x = x + part.positional_embedding[: len(x)]
        for index, block in enumerate(part.transformer.resblocks):
            if prompt.persist and index:
                x = x.clone()
                x[1 : 1 + len(rows[index])] = rows[index]
            keys = x if prompt.persist else torch.cat([x[:1], rows[index], x[1:]])
            extra = len(keys) - len(x)
            x = block_by_hand(block, x, keys, extra)
        x = part.ln_final(x)[end]
        projection = part.text_projection
        found.append(x @ projection if torch.is_tensor(projection) else projection(x))
    return torch.stack(found)


def block_by_hand(block, x, keys, extra):
    """One block of one text; as released, the mask is `[0 | causal]` over `[start; prompt; rest]`.

    Its columns look shifted, but the first column of a causal mask is all zero.
    """
    count, width = x.shape
    heads = block.attn.num_heads
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    q = block.ln_1(x) @ weights[0].T + biases[0]
    k = block.ln_1(keys) @ weights[1].T + biases[1]
    v = block.ln_1(keys) @ weights[2].T + biases[2]
    causal = torch.full((count, count), -torch.inf, dtype=x.dtype).triu(1)
    mask = torch.cat([torch.zeros(count, extra, dtype=x.dtype), causal], dim=1)
    size, mixed = width // heads, torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = (q[:, part] @ k[:, part].T / size**0.5 + mask).exp()
        mixed[:, part] = scores @ v[:, part] / scores.sum(1, keepdim=True)
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


SLOTS = {
    "context tokens": (4, 0, 0),
    "at every block": (2, 2, 2),
    "carried on after depth": (2, 2, 0),
    "from the middle": (0, 3, 1),
}


@pytest.mark.parametrize("counts", SLOTS.values(), ids=SLOTS)
def test_slots_are_overwritten_as_written_out(exact, texts, draw, counts):
    from vprompt.models.two_tower import encode_texts

    prompt = draw(counts, persist=True)
    found = encode_texts(exact.text, texts.ids, texts.ends, prompt)
    assert relative(found, by_hand(exact, texts.ids, texts.ends, prompt)) < 1e-12
    assert relative(found, encode_texts(exact.text, texts.ids, texts.ends)) > 1e-4


def test_a_prompt_that_would_overwrite_the_class_name_is_refused(exact, draw, refused):
    from vprompt.models.two_tower import class_features, class_texts

    texts = class_texts(exact.text, CLASSES, ("a photo of {}.",))
    class_features(exact.text, texts, draw((3, 0, 0), persist=True))
    with refused("4 tokens in word slots", "leaves 3", "overwrite the name"):
        class_features(exact.text, texts, draw((0, 4, 0), persist=True))
    with refused("leaves 0"):
        first = class_texts(exact.text, CLASSES, ("{} texture.",))
        class_features(exact.text, first, draw((1, 0, 0), persist=True))


# Prompts as keys


KEYS = {"every block": (2, 3, 1), "one block": (0, 4, 0), "not the last": (1, 1, 0)}


@pytest.mark.parametrize("counts", KEYS.values(), ids=KEYS)
def test_keys_are_seen_from_every_position_as_released(exact, texts, draw, counts):
    from vprompt.models.two_tower import encode_texts

    prompt = draw(counts, persist=False)
    found = encode_texts(exact.text, texts.ids, texts.ends, prompt)
    assert relative(found, by_hand(exact, texts.ids, texts.ends, prompt)) < 1e-12
    assert relative(found, encode_texts(exact.text, texts.ids, texts.ends)) > 1e-4


def test_a_prompted_block_changes_the_start_token_and_the_padding_too(exact, texts, draw):
    tower = exact.text
    sequence = tower.words(texts.ids) + tower.positions(texts.ids.shape[1])
    prompt = draw((2, 0, 0), persist=False).tokens
    mask = tower.mask(texts.ids)
    prompted = tower.prompted_block(0, sequence, prompt[None], mask)
    moved = (prompted - tower.block(0, sequence, mask)).abs()
    assert (moved.amax(2) > 1e-6).all()  # no position is blind to the prompt


def test_the_order_of_keys_does_not_matter(exact, texts, draw):
    from vprompt.models.two_tower import encode_texts
    from vprompt.prompts.prompt import Prompt

    prompt = draw((3, 0, 0), persist=False)
    flipped = Prompt(prompt.tokens.flip(0), prompt.blocks, persist=False)
    found = encode_texts(exact.text, texts.ids, texts.ends, prompt)
    assert relative(encode_texts(exact.text, texts.ids, texts.ends, flipped), found) < 1e-12


@pytest.mark.parametrize("counts, persist", [((2, 1, 2), False), ((2, 1, 2), True)])
def test_cutting_texts_is_exact_under_prompts(exact, texts, draw, counts, persist):
    from vprompt.models.two_tower import encode_texts

    prompt = draw(counts, persist)
    padding = torch.zeros(len(texts.ids), 32 - texts.ids.shape[1], dtype=torch.long)
    whole = torch.cat([texts.ids, padding], dim=1)
    found = encode_texts(exact.text, texts.ids, texts.ends, prompt)
    assert relative(encode_texts(exact.text, whole, texts.ends, prompt), found) < 1e-12


def test_a_prompt_of_no_tokens_is_plain_clip(exact, texts, pictures):
    from vprompt import Prompt, extract
    from vprompt.models.two_tower import encode_texts

    none = torch.zeros(0, dtype=torch.long)
    plain = encode_texts(exact.text, texts.ids, texts.ends)
    for persist in (True, False):
        empty = Prompt(torch.zeros(0, exact.text.dim).double(), none, persist)
        assert torch.equal(encode_texts(exact.text, texts.ids, texts.ends, empty), plain)
        seen = Prompt(torch.zeros(0, exact.dim).double(), none, persist)
        assert torch.equal(extract(exact, pictures, seen), extract(exact, pictures))


def test_attention_can_be_replaced_block_by_block(exact, texts, draw):
    from vprompt.models.attention import gated
    from vprompt.models.two_tower import class_features

    prompt = draw((2, 2, 2), persist=False)
    plain = class_features(exact.text, texts)
    closed = class_features(exact.text, texts, prompt, lambda index: gated(torch.zeros(2).double()))
    opened = class_features(exact.text, texts, prompt, lambda index: gated(torch.ones(2).double()))
    assert relative(closed, plain) < 1e-12
    assert relative(opened, class_features(exact.text, texts, prompt)) < 1e-12


# Gradients


@pytest.mark.parametrize("persist", [True, False])
def test_chunks_give_the_same_gradient(exact, texts, draw, persist):
    from vprompt.models.two_tower import class_features

    prompt, found = draw((1, 2, 1), persist), []
    target = torch.linspace(-1, 1, 24).double()
    for chunk in (100, 2):
        tokens = prompt.tokens.clone().requires_grad_()
        (class_features(exact.text, texts, prompt.with_tokens(tokens), chunk=chunk) @ target)[
            0
        ].backward()
        found.append(tokens.grad)
    assert relative(found[1], found[0]) < 1e-10 and found[0].abs().max() > 0


def test_keys_alone_equal_concatenation_in_the_image_tower(exact, pictures, generator):
    """Values and gradients: rows that nobody reads again need no queries and no MLP."""
    from vprompt import Prompt, extract
    from vprompt.models.backbone import _join
    from vprompt.prompts.prompt import place

    blocks = place([2, 3, 0, 1], exact.depth, deep=True)
    start = torch.randn(len(blocks), exact.dim, generator=generator).double()
    counts, found = [2, 3, 0, 1], []
    for way in ("keys", "joined"):
        tokens = start.clone().requires_grad_()
        if way == "keys":
            features = extract(exact, pictures, Prompt(tokens, blocks, persist=False))
        else:
            sequence = exact.embed(pictures)
            for index, rows in enumerate(tokens.split(counts)):
                sequence = _join(exact, sequence, rows[None], index)[1]
            features = exact.pool(sequence)
        (features.square() * torch.arange(24)).sum().backward()
        found.append((features.detach(), tokens.grad))
    assert relative(found[0][0], found[1][0]) < 1e-12
    assert relative(found[0][1], found[1][1]) < 1e-12


def test_nothing_of_the_model_is_ever_trained(exact, texts, draw, pictures):
    from vprompt.models.two_tower import class_features

    before = {name: value.clone() for name, value in exact.state_dict().items()}
    prompt = draw((1, 1, 1), persist=False)
    tokens = prompt.tokens.requires_grad_()
    class_features(exact.text, texts, prompt.with_tokens(tokens))[0, 0].backward()
    assert all(p.grad is None and not p.requires_grad for p in exact.parameters())
    assert not any(module.training for module in exact.train().modules())
    assert all(torch.equal(before[name], value) for name, value in exact.state_dict().items())


# Loading


def test_a_local_folder_loads_as_it_was_saved(tmp_path, images, refused):
    from safetensors.torch import save_file

    from vprompt import extract, open_backbone
    from vprompt.backbones import tiny_clip

    clip = tiny_clip.load(seed=3)
    config = {**tiny_clip.CONFIG}
    config["vision_cfg"] = {**config["vision_cfg"], "image_size": 32}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (tmp_path / "open_clip_config.json").write_text(text)
    plain = {key: value.contiguous() for key, value in clip.clip.state_dict().items()}
    save_file(plain, tmp_path / "open_clip_model.safetensors")
    loaded = open_backbone(f"open_clip(model='local-dir:{tmp_path}')")
    assert loaded.fingerprint == clip.fingerprint
    assert torch.equal(extract(loaded, images), extract(clip, images))
    assert loaded.data_config.mean == (0.5, 0.5, 0.5)
    assert loaded.data_config.crop_mode == "squash"
    with refused("open_clip could not create", "/nowhere"):
        open_backbone("open_clip(model='local-dir:/nowhere')")


def test_a_name_with_weights_is_open_clips(refused):
    from vprompt import open_backbone
    from vprompt.opening import open_named_backbone

    with refused("'RN50,openai'", "image tower is a ResNet"):
        open_backbone("RN50,openai")
    config = {"base_model_name_or_path": "RN50,openai", "data_config": {"input_size": [3, 32, 32]}}
    with refused("image tower is a ResNet"):  # an artefact may name a model, but no place on disk
        open_named_backbone(config)
    with refused("name it yourself"):
        open_named_backbone({**config, "base_model_name_or_path": "ViT-B-16,/tmp/weights.pt"})
    with refused("convnext_base,laion400m_s13b_b51k", "timm's convnext_base"):
        open_backbone("convnext_base,laion400m_s13b_b51k")
    with refused("ViT-X-99", "not found"):
        open_backbone("ViT-X-99,openai")
    with refused("names no weights", "openai"):
        open_backbone("open_clip(model='ViT-B-16')")


def test_weights_of_exact_gelu_under_a_config_of_quick_gelu_are_refused(refused):
    from vprompt.backbones._open_clip_models import check_activation

    quick, trained = {"quick_gelu": True}, {"hf_hub": "somewhere"}
    with refused("trained with exact GELU", "Use 'ViT-B-32,mine'"):
        check_activation(quick, trained, "ViT-B-32-quickgelu,mine")
    check_activation(quick, {**trained, "quick_gelu": True}, "ViT-B-32-quickgelu,mine")
    check_activation({}, trained, "ViT-B-32,mine")
    check_activation(quick, {}, "local-dir:/mine")


def test_other_kinds_of_models_are_refused(refused):
    from vprompt.backbones import open_clip, tiny_clip

    def build(vision=(), text=()):
        config = {**tiny_clip.CONFIG, "custom_text": True}
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": 32, **dict(vision)}
        config["text_cfg"] = {**config["text_cfg"], **dict(text)}
        return open_clip.from_config(config, name="odd")

    with refused("'odd'", "blocks of its image tower are of another kind"):
        build(vision={"qk_norm": True})
    with refused("blocks of its text tower are of another kind"):
        build(text={"scale_attn": True})
    with refused("does not read one token"):
        build(text={"pool_type": "none"})


@pytest.mark.parametrize(
    "name, words",
    [
        ("RN50", "ResNet"),
        ("swin_base_patch4_window7_224", "no plain vision transformer"),
        ("vit_relpos_medium_patch16_cls_224", "no plain vision transformer"),
        ("xlm-roberta-base-ViT-B-32", "xlm-roberta-base"),
        ("coca_roberta-ViT-B-32", "roberta-base"),
    ],
)
def test_what_a_config_tells_is_refused_before_anything_is_fetched(
    name, words, monkeypatch, refused
):
    import open_clip as library

    from vprompt.backbones import open_clip

    for step in ("create_model", "get_tokenizer"):
        monkeypatch.setattr(library, step, lambda *a, **k: pytest.fail("fetched"))
    tag = (library.list_pretrained_tags_by_model(name) or ["own"])[0]
    with refused(f"'{name},{tag}' cannot be prompted in both towers", words):
        open_clip.load(model=f"{name},{tag}")


@pytest.mark.parametrize(
    "vision, text, words",
    [
        ({}, {"pool_type": "none"}, "does not read one token"),
        ({}, {"block_type": "custom"}, "blocks of its text tower"),
        ({"qk_norm": True}, {}, "blocks of its image tower"),
        ({"timm_model_name": "resnet18"}, {}, "timm's resnet18"),
    ],
)
def test_a_config_of_one_s_own_is_read_in_the_same_way(vision, text, words, refused):
    from vprompt.backbones import tiny_clip
    from vprompt.backbones._open_clip_models import check_config

    config = {**tiny_clip.CONFIG}
    config["vision_cfg"] = {**config["vision_cfg"], **vision}
    config["text_cfg"] = {**config["text_cfg"], **text}
    with refused(words):
        check_config(config, "mine")
    check_config(tiny_clip.CONFIG, "mine")
    for tokenizer in ("facebook/xlm-v-base", "bert-base-uncased", "openai/clip-vit-base-patch16"):
        config["vision_cfg"], config["text_cfg"] = (
            dict(tiny_clip.CONFIG["vision_cfg"]),
            {
                **tiny_clip.CONFIG["text_cfg"],
                "hf_tokenizer_name": tokenizer,
            },
        )
        check_config(config, "mine")


def test_the_activation_is_the_weights_own(hub_answers, monkeypatch):
    """The tag `openai` was trained with the quick GELU; under the exact one it would still run."""
    import open_clip as library

    from vprompt.backbones import open_clip

    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        raise RuntimeError("no network here")

    monkeypatch.setattr(library, "create_model", create_model)
    for model, quick in (("ViT-B-16,openai", True), ("ViT-B-16,laion2b_s34b_b88k", False)):
        with pytest.raises(ValueError, match="no network here"):
            open_clip.load(model=model, image_size=384)
        assert asked.pop("quick_gelu", False) is quick
        assert (asked["name"], asked["force_image_size"]) == ("ViT-B-16", 384)


def test_the_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone():
    from vprompt.backbones import tiny_clip

    state = torch.get_rng_state()
    first, again, other = tiny_clip.load(), tiny_clip.load(), tiny_clip.load(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert (first.name, other.name) == ("tiny_clip", "tiny_clip(seed=1)")


SHAPES = {
    "B/32": {"patch": 32, "image": (3, 96), "text": (3, 64), "heads": (12, 8), "joint": 64},
    "L/14": {"patch": 14, "image": (6, 128), "text": (3, 96), "heads": (16, 12), "joint": 96},
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_pass_without_edits(name):
    """Patches, depths, widths and heads in the proportions of the published models."""
    from vprompt import extract
    from vprompt.backbones import open_clip
    from vprompt.models.two_tower import class_features, class_texts

    shape = SHAPES[name]
    (seen, width), (read, text_width) = shape["image"], shape["text"]
    vision = {"layers": seen, "width": width, "head_width": width // shape["heads"][0]}
    vision |= {"patch_size": shape["patch"], "image_size": 2 * shape["patch"]}
    text = {"layers": read, "width": text_width, "heads": shape["heads"][1], "vocab_size": 49408}
    config = {"embed_dim": shape["joint"], "vision_cfg": vision, "text_cfg": text}
    clip = open_clip.from_config(config, name=name)
    assert (clip.depth, clip.dim, clip.text.depth, clip.text.dim) == (seen, width, read, text_width)
    found = extract(clip, torch.zeros(1, *clip.data_config.input_size))
    texts = class_texts(clip.text, CLASSES, TEMPLATES[:1])
    assert found.shape == (1, shape["joint"])
    assert class_features(clip.text, texts).shape == (len(CLASSES), shape["joint"])


# Sentences


def test_sentences_name_every_class_in_every_template(refused, tmp_path):
    from vprompt.data import sentences

    assert sentences.fill(("a {}.", "{}!"), ("tree_frog", "cat")) == [
        "a tree frog.",
        "tree frog!",
        "a cat.",
        "cat!",
    ]
    assert sentences.fill(("a {}.",), ("{curly}",)) == ["a {curly}."]
    for wrong in ((), ("a photo",), ("{} and {}",)):
        with refused("template"):
            sentences.fill(wrong, ("cat",))
    file = tmp_path / "mine.txt"
    file.write_text("a sketch of a {}.\n\n  {} at night. \n")
    assert sentences.read_templates(file) == ("a sketch of a {}.", "{} at night.")
    file.write_text("a sketch\n")
    with refused("holds {} once", "a sketch"):
        sentences.read_templates(file)
    with refused("Cannot read templates", "nowhere"):
        sentences.read_templates(tmp_path / "nowhere.txt")


def test_a_text_that_is_too_long_is_refused(refused):
    from vprompt.backbones import tiny_clip
    from vprompt.models.two_tower import class_texts

    tower = tiny_clip.load().text
    fits = " ".join(["dog"] * 30)
    assert class_texts(tower, [fits], ["{}"]).ids.shape == (1, 32)
    with refused("longer than the 32 tokens", "Shorten"):
        class_texts(tower, ["cat", f"{fits} dog"], ["{}"])


def test_named_sets_of_templates_come_from_the_model(refused):
    from vprompt.backbones import tiny_clip

    clip = tiny_clip.load()
    assert len(clip.template_set("imagenet")) == 80 and len(clip.template_set("simple")) == 7
    assert all(template.count("{}") == 1 for template in clip.template_set("imagenet"))
    with refused("No set of templates called 'imagenett'", "imagenet"):
        clip.template_set("imagenett")
