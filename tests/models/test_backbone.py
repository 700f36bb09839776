"""Backbone: prompts enter a frozen model exactly as written, and leave before it pools."""

import hashlib
import json
import struct

import pytest
import timm
import torch
from exact import awake, relative
from torch import nn

TINY_MODELS = ("test_vit", "test_vit2", "test_vit3", "test_vit4")
# How many tokens enter each block, for a model of any depth: the pattern is cut or padded with 0.
PLACEMENTS = {
    "shallow": ((3,), True),
    "shallow and dropped": ((3,), False),
    "deep": ((2,) * 20, False),
    "deep and persisting": ((2,) * 20, True),
    "upper half only": ((0, 0, 0, 2, 2, 2, 2, 2, 2, 2), False),
    "ragged, empty blocks carry on": ((1, 0, 3, 0, 0, 2), True),
    "ragged, empty blocks drop": ((1, 0, 3, 0, 0, 2), False),
    "late start, longer then shorter": ((0, 4, 1), True),
}


@pytest.fixture(scope="module", params=[*TINY_MODELS, "no prefix at all"])
def exact(request):
    """Every tiny architecture in float64, and one of patches alone."""
    from vprompt.backbones import timm_vit, tiny

    if request.param in TINY_MODELS:
        return awake(tiny.load(model=request.param))
    vit = timm.create_model(
        "test_vit", img_size=32, num_classes=0, class_token=False, global_pool="avg"
    )
    return awake(timm_vit.TimmViT(vit, "bare", timm_vit.data_config_of(vit)))


@pytest.fixture(scope="module")
def vit64():
    """The model `test_vit`, class token and layer norms, in float64."""
    from vprompt.backbones import tiny

    return awake(tiny.load())


@pytest.fixture
def pictures(generator):
    return torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)


@pytest.fixture
def draw(generator):
    """Return a function that draws a prompt with these counts, cut or padded to the depth."""
    from vprompt.prompts.prompt import Prompt, place

    def make(backbone, counts, persist):
        counts = [*counts, *[0] * backbone.depth][: backbone.depth]
        blocks = place(counts, backbone.depth, deep=False)
        shape = (len(blocks), backbone.dim)
        return Prompt(torch.randn(shape, generator=generator).double(), blocks, persist)

    return make


def by_hand(backbone, images, prompt):
    """The forward pass with prefix, prompt and patches as three sequences, joined for each block.

    Returns features, and how many prompt rows each block saw.
    """
    vit, prefix_count = backbone.vit, backbone.prefix
    sequence = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    prefix, patches = sequence[:, :prefix_count], sequence[:, prefix_count:]
    current = sequence[:, :0]
    seen = []
    for index, block in enumerate(vit.blocks):
        new = [t for t, b in zip(prompt.tokens, prompt.blocks.tolist(), strict=True) if b == index]
        if new:
            current = torch.stack([torch.stack(new)] * len(images))
        elif not prompt.persist:
            current = sequence[:, :0]
        seen.append(current.shape[1])
        joined = block(torch.cat([prefix, current, patches], dim=1))
        sizes = [prefix_count, current.shape[1], patches.shape[1]]
        prefix, current, patches = joined.split(sizes, dim=1)
    normed = vit.norm(torch.cat([prefix, patches], dim=1))
    if vit.attn_pool is not None:
        return vit.fc_norm(vit.attn_pool(normed)), seen
    if vit.global_pool == "avg":
        return vit.fc_norm(normed[:, prefix_count:].mean(1)), seen
    return vit.fc_norm(normed[:, 0]), seen


def block_by_hand(block, queries, context):
    """One transformer block written out: every row of `queries` attends to all of `context`."""
    attention, width = block.attn, queries.shape[-1]
    size = width // attention.num_heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    normed, others = block.norm1(queries), block.norm1(context)
    mixed = torch.zeros_like(queries)
    for head in range(attention.num_heads):
        rows = slice(head * size, (head + 1) * size)
        q = normed @ weight[:width][rows].T + bias[:width][rows]
        k = others @ weight[width : 2 * width][rows].T + bias[width : 2 * width][rows]
        v = others @ weight[2 * width :][rows].T + bias[2 * width :][rows]
        for image in range(len(queries)):
            scores = q[image] @ k[image].T / size**0.5
            shares = scores.exp() / scores.exp().sum(1, keepdim=True)
            mixed[image, :, rows] = shares @ v[image]
    queries = queries + mixed @ attention.proj.weight.T + attention.proj.bias
    inner = block.norm2(queries) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
    return queries + inner @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


# Without a prompt.


def test_without_a_prompt_features_are_timms_own_to_the_bit(backbones, images):
    from vprompt.models.backbone import extract

    vit = backbones.vit
    own = vit.forward_head(vit.forward_features(images), pre_logits=True)
    assert torch.equal(extract(backbones, images), own)


@pytest.mark.parametrize(
    "model, size, prefix",
    [("vit_tiny_patch16_224", 32, 1), ("vit_small_patch14_reg4_dinov2", 28, 5)],
)
def test_larger_models_with_registers_and_layer_scale_agree_to_the_bit(model, size, prefix):
    from vprompt.backbones import timm_vit
    from vprompt.models.backbone import extract

    backbone = timm_vit.load(model=model, pretrained=False, image_size=size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    own = backbone.vit.forward_head(backbone.vit.forward_features(images), pre_logits=True)
    assert torch.equal(extract(backbone, images), own)
    assert backbone.prefix == prefix


def test_a_model_without_class_token_and_registers_has_no_prefix(exact, pictures):
    from vprompt.models.backbone import extract

    vit = exact.vit
    own = vit.forward_head(vit.forward_features(pictures), pre_logits=True)
    assert torch.equal(extract(exact, pictures), own)
    assert exact.prefix == vit._pos_embed(vit.patch_embed(pictures)).shape[1] - 4


def test_a_prompt_of_no_tokens_changes_nothing(exact, pictures):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import Prompt

    for persist in (True, False):
        tokens = torch.zeros(0, exact.dim, dtype=torch.float64)
        empty = Prompt(tokens, torch.zeros(0, dtype=torch.long), persist)
        assert torch.equal(extract(exact, pictures, empty), extract(exact, pictures))


def test_the_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone():
    from vprompt.backbones import tiny

    state = torch.get_rng_state()
    first, again, other = tiny.load(seed=3), tiny.load(seed=3), tiny.load(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.vit.pos_embed, other.vit.pos_embed)
    assert (first.name, tiny.load().name) == ("tiny(model=test_vit, seed=3)", "tiny")


# With a prompt.


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_features_equal_a_concatenation_written_by_hand(exact, pictures, draw, placement):
    from vprompt.models.backbone import extract, walk

    prompt = draw(exact, *PLACEMENTS[placement])
    expected, rows = by_hand(exact, pictures, prompt)
    found = extract(exact, pictures, prompt)
    assert relative(found, expected) < 1e-12
    assert relative(found, extract(exact, pictures)) > 1e-4
    steps = list(walk(exact, pictures, prompt))
    assert [index for index, _ in steps] == list(range(exact.depth))
    patches = (32 // 16) ** 2
    assert {s.shape[1] for _, s in steps} == {exact.prefix + patches}
    assert len(rows) == exact.depth


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_keys_and_values_only_equal_rows_that_are_joined_and_dropped(
    exact, pictures, draw, placement, monkeypatch
):
    from vprompt.models.backbone import Backbone, extract

    prompt = draw(exact, *PLACEMENTS[placement])
    alone = extract(exact, pictures, prompt)
    monkeypatch.setattr(type(exact), "prompted_block", Backbone.prompted_block)
    assert relative(extract(exact, pictures, prompt), alone) < 1e-12


@pytest.mark.parametrize("fused", [True, False])
def test_a_shared_prompts_keys_are_computed_once_for_all_images(
    vit64, pictures, draw, fused, monkeypatch
):
    from vprompt.models.backbone import extract

    widths = []
    norm = vit64.vit.blocks[0].norm1
    handle = norm.register_forward_hook(lambda m, arguments, out: widths.append(out.shape[:2]))
    for block in vit64.vit.blocks:
        monkeypatch.setattr(block.attn, "fused_attn", fused)
    prompt = draw(vit64, (3,) * 20, False)
    found = extract(vit64, pictures, prompt)
    handle.remove()
    assert widths == [(3, 5), (1, 3)]  # the images' own rows, then one prompt for all three
    assert relative(found, by_hand(vit64, pictures, prompt)[0]) < 1e-12


@pytest.mark.parametrize("placement", ["shallow", "deep", "ragged, empty blocks carry on"])
def test_the_last_block_computes_what_is_pooled_and_no_more(exact, pictures, draw, placement):
    from vprompt.models.backbone import extract, walk

    prompt = draw(exact, *PLACEMENTS[placement])
    *_, (_, whole) = walk(exact, pictures, prompt)
    widths = []
    block = exact.vit.blocks[-1]
    handle = block.mlp.register_forward_hook(lambda m, given, out: widths.append(out.shape[1]))
    found = extract(exact, pictures, prompt)
    handle.remove()
    sees = prompt.persist or exact.depth - 1 in prompt.blocks
    cut = sees and exact.vit.global_pool == "token"
    assert exact.pooled == (1 if exact.vit.global_pool == "token" else None)
    assert widths == [1 if cut else whole.shape[1]]
    assert relative(found, exact.pool(whole)) < 1e-12


def test_a_model_that_reads_more_than_its_class_token_is_not_cut():
    from vprompt.backbones import timm_vit

    vit = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=0, depth=1)
    assert vit.global_pool == "token"  # and yet its feature is a mean of two tokens
    assert timm_vit.TimmViT(vit, "two tokens", timm_vit.data_config_of(vit)).pooled is None


def test_deep_prompts_are_keys_and_values_only(vit64, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(vit64, (3,) * 20, False)
    vit = vit64.vit
    sequence = vit._pos_embed(vit.patch_embed(pictures))
    for index, block in enumerate(vit.blocks):
        own = prompt.tokens[3 * index : 3 * index + 3].expand(len(pictures), -1, -1)
        context = torch.cat([sequence, own], dim=1)
        assert context.shape[1] == 1 + 3 + 4  # class token, prompt, patches
        sequence = block_by_hand(block, sequence, context)
    expected = vit.norm(sequence)[:, 0]
    assert relative(extract(vit64, pictures, prompt), expected) < 1e-12


def test_shallow_prompts_take_part_in_every_block(vit64, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(vit64, (2,), True)
    vit = vit64.vit
    own = prompt.tokens.expand(len(pictures), -1, -1)
    sequence = torch.cat([own, vit._pos_embed(vit.patch_embed(pictures))], dim=1)
    for block in vit.blocks:
        sequence = block_by_hand(block, sequence, sequence)
    expected = vit.norm(sequence)[:, 2]
    assert relative(extract(vit64, pictures, prompt), expected) < 1e-12


def features_when_prompt_rows_are_disturbed(backbone, images, prompt, index):
    """Features when what block `index` makes of its prompt rows is replaced by something else."""
    from vprompt.models.backbone import extract

    rows = slice(backbone.prefix, backbone.prefix + 2)

    def disturb(module, arguments, output):
        output = output.clone()
        output[:, rows] = 3.0 - output[:, rows]
        return output

    hook = backbone.vit.blocks[index].register_forward_hook(disturb)
    try:
        return extract(backbone, images, prompt)
    finally:
        hook.remove()


@pytest.mark.parametrize("persist", [True, False])
def test_what_a_deep_block_makes_of_its_prompt_changes_nothing_later(
    exact, pictures, draw, persist
):
    from vprompt.models.backbone import extract

    prompt = draw(exact, (2,) * 20, persist)
    undisturbed = extract(exact, pictures, prompt)
    for index in range(exact.depth):
        found = features_when_prompt_rows_are_disturbed(exact, pictures, prompt, index)
        assert torch.equal(found, undisturbed)


def test_what_a_block_makes_of_a_shallow_prompt_matters_until_the_last(exact, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(exact, (2,), True)
    undisturbed = extract(exact, pictures, prompt)
    for index in range(exact.depth - 1):
        found = features_when_prompt_rows_are_disturbed(exact, pictures, prompt, index)
        assert relative(found, undisturbed) > 1e-6
    # After the last block, prompt rows are taken out: average and attention pooling see none.
    last = features_when_prompt_rows_are_disturbed(exact, pictures, prompt, exact.depth - 1)
    assert torch.equal(last, undisturbed)


@pytest.mark.parametrize("placement", ["shallow", "deep", "ragged, empty blocks carry on"])
def test_the_order_of_tokens_within_a_block_does_not_matter(
    exact, pictures, draw, generator, placement
):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS[placement])
    order = torch.cat(
        [
            rows[torch.randperm(len(rows), generator=generator)].flip(0)
            for rows in ((prompt.blocks == b).nonzero().flatten() for b in prompt.blocks.unique())
        ]
    )
    moved = prompt.with_tokens(prompt.tokens[order])
    assert relative(extract(exact, pictures, moved), extract(exact, pictures, prompt)) < 1e-12


def test_deep_tokens_are_nearly_invariant_to_scale_and_shift(vit64, pictures, draw, generator):
    from vprompt.models.backbone import extract

    prompt = draw(vit64, (2,) * 20, False)
    scale = 0.5 + 4.5 * torch.rand(len(prompt.tokens), 1, generator=generator).double()
    shift = torch.randn(len(prompt.tokens), 1, generator=generator).double()
    other = prompt.with_tokens(prompt.tokens * scale + shift)
    plain = extract(vit64, pictures, prompt)
    assert relative(extract(vit64, pictures, other), plain) < 1e-5
    assert relative(extract(vit64, pictures, prompt.with_tokens(-prompt.tokens)), plain) > 1e-3


def test_shallow_tokens_are_not_invariant_to_scale(vit64, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(vit64, (3,), True)
    scaled = prompt.with_tokens(5 * prompt.tokens)
    plain = extract(vit64, pictures, prompt)
    assert relative(extract(vit64, pictures, scaled), plain) > 1e-2


@pytest.mark.parametrize("placement", ["shallow", "deep", "ragged, empty blocks drop"])
def test_tokens_per_image_equal_running_every_image_alone(
    exact, pictures, draw, generator, placement
):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS[placement])
    shape = (len(pictures), *prompt.tokens.shape)
    tokens = torch.randn(shape, generator=generator).double()
    together = extract(exact, pictures, prompt, tokens)
    for index in range(len(pictures)):
        own = prompt.with_tokens(tokens[index])
        alone = extract(exact, pictures[index : index + 1], own)
        assert relative(together[index], alone[0]) < 1e-12


def test_an_image_is_not_influenced_by_its_neighbours(exact, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS["deep"])
    together = extract(exact, pictures, prompt)
    alone = extract(exact, pictures[1:2], prompt)
    assert relative(together[1:2], alone) < 1e-12


def test_the_gradient_reaches_the_tokens_and_nothing_else(exact, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS["ragged, empty blocks drop"])
    tokens = prompt.tokens.requires_grad_()
    before = {name: value.clone() for name, value in exact.state_dict().items()}
    extract(exact, pictures, prompt).square().sum().backward()
    assert (tokens.grad.abs().sum(1) > 0).all()
    for name, parameter in exact.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad, name
    assert all(torch.equal(value, before[name]) for name, value in exact.state_dict().items())


def test_the_gradient_is_the_slope_of_the_features(vit64, pictures, draw, generator):
    from vprompt.models.backbone import extract

    prompt = draw(vit64, *PLACEMENTS["ragged, empty blocks carry on"])
    direction = torch.randn(prompt.tokens.shape, generator=generator).double()

    def height(step):
        return extract(vit64, pictures, prompt.with_tokens(tokens + step * direction)).sum()

    tokens = prompt.tokens.clone().requires_grad_()
    (slope,) = torch.autograd.grad(height(0.0), tokens)
    with torch.no_grad():
        measured = (height(1e-5) - height(-1e-5)) / 2e-5
    assert abs((slope * direction).sum() - measured) < 1e-6 * abs(measured)


def test_a_prompt_of_another_width_is_refused_with_both_widths(tiny, images, refused):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import Prompt

    with refused("width 8", "'tiny' has width 64", "Load the backbone"):
        extract(tiny, images, Prompt(torch.zeros(1, 8), torch.tensor([0])))


def test_a_prompt_for_a_deeper_backbone_is_refused(tiny, images, refused):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import Prompt

    with refused("block 11", "only 6 blocks"):
        extract(tiny, images, Prompt(torch.zeros(1, 64), torch.tensor([11])))


# Frozen for good.


def test_a_backbone_is_in_evaluation_mode_from_the_start_and_stays_there():
    from vprompt.backbones import tiny

    backbone = tiny.load()
    assert not any(module.training for module in backbone.modules())
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    nn.Sequential(backbone, nn.Linear(2, 2)).train()
    assert not any(module.training for module in backbone.modules())


def test_features_are_the_same_twice_even_where_the_model_has_dropout(images):
    import timm

    from vprompt.backbones import timm_vit
    from vprompt.models.backbone import extract

    vit = timm.create_model(
        "test_vit", img_size=32, num_classes=0, proj_drop_rate=0.5, drop_path_rate=0.5
    )
    backbone = timm_vit.TimmViT(vit, "dropping", timm_vit.data_config_of(vit)).train()
    assert torch.equal(extract(backbone, images), extract(backbone, images))


# Fingerprint.


def test_the_fingerprint_is_a_sha256_over_sorted_names_types_shapes_and_bytes(tiny):
    total = hashlib.sha256()
    for name in sorted(tiny.state_dict()):
        value = tiny.state_dict()[name]
        flat = value.flatten().tolist()
        total.update(f"{name} torch.float32 {tuple(value.shape)}".encode())
        total.update(struct.pack(f"<{len(flat)}f", *flat))
    assert tiny.fingerprint == f"sha256:{total.hexdigest()}"


def test_equal_weights_have_equal_fingerprints_and_one_changed_weight_another():
    from vprompt.backbones import tiny

    first, same, changed, halved = (tiny.load() for _ in range(4))
    with torch.no_grad():
        changed.vit.blocks[5].mlp.fc2.bias[7] += 1e-6
    assert first.fingerprint == same.fingerprint
    assert len({first.fingerprint, changed.fingerprint, halved.half().fingerprint}) == 3


def test_a_model_with_a_single_number_among_its_weights_has_a_fingerprint():
    # Hybrids such as vit_small_resnet26d_224 count batches in a tensor without axes.
    from vprompt.backbones import tiny

    backbone = tiny.load()
    backbone.vit.register_buffer("batches", torch.tensor(3))
    other = tiny.load()
    other.vit.register_buffer("batches", torch.tensor(4))
    assert backbone.fingerprint != other.fingerprint


# Loading.


def test_image_size_resamples_the_position_embedding(tmp_path):
    import timm
    from safetensors.torch import save_file

    from vprompt.backbones import timm_vit

    large = timm.create_model("test_vit", num_classes=0)  # 160 pixels: 10 x 10 patches
    with torch.no_grad():
        large.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    save_file(large.state_dict(), tmp_path / "large.safetensors")
    backbone = timm_vit.load(
        model="test_vit", checkpoint=str(tmp_path / "large.safetensors"), image_size=64
    )
    positions = backbone.vit.pos_embed
    assert positions.shape == (1, 1 + 4 * 4, 64)
    assert torch.equal(positions[:, 0], large.pos_embed[:, 0])
    grid = large.pos_embed[:, 1:].reshape(1, 10, 10, 64).permute(0, 3, 1, 2)
    small = nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
    expected = small.permute(0, 2, 3, 1).reshape(1, 16, 64)
    torch.testing.assert_close(positions[:, 1:], expected)
    assert backbone.data_config.input_size == (3, 64, 64)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext"])
def test_models_that_are_no_plain_vision_transformer_are_refused(model, refused):
    from vprompt.backbones import timm_vit

    with refused(model, "not a plain vision transformer", "lacks", "_pos_embed", "`vit_"):
        timm_vit.load(model=model, pretrained=False)


@pytest.mark.parametrize("model", ["beit_base_patch16_224", "test_vit_relpos"])
def test_relative_position_biases_are_refused_with_the_reason(model, refused):
    import timm

    from vprompt.backbones._timm_models import check_supported

    with torch.device("meta"):
        vit = timm.create_model(model, num_classes=0, depth=1)
    with refused("'name' ", "a bias for how far apart two patches lie", "no entry for a prompt"):
        check_supported(vit, "name")


class _WithTable(nn.Module):
    """A block that adds a table made for one length of sequence, as a relative bias does."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.table = nn.Parameter(torch.zeros(1, 5, 1))

    def forward(self, tokens):
        return self.block(tokens) + self.table


def test_blocks_for_one_length_of_sequence_are_refused_with_the_reason(refused):
    from vprompt.backbones import timm_vit, tiny

    backbone = tiny.load()
    backbone.vit.blocks[0] = _WithTable(backbone.vit.blocks[0])
    with refused("'stiff'", "sequences of its own length", "relative position bias"):
        timm_vit._check_same_features(backbone, "stiff")


def test_models_that_do_more_between_their_blocks_are_refused(refused, monkeypatch):
    from vprompt.backbones import timm_vit, tiny

    backbone = tiny.load()
    own = backbone.vit.forward_features
    monkeypatch.setattr(backbone.vit, "forward_features", lambda images: own(images) * 1.001)
    with refused("'busy'", "does more between its blocks"):
        timm_vit._check_same_features(backbone, "busy")


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_model_is_refused_without_asking_the_network(pretrained, refused, monkeypatch):
    import socket

    from vprompt.backbones import timm_vit

    def no_network(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with refused("could not create 'vit_tinny'", "Unknown model", "Check the spelling"):
        timm_vit.load(model="vit_tinny", pretrained=pretrained)


@pytest.mark.parametrize("size", [40, 15])
def test_an_image_size_that_patches_do_not_fill_is_refused_in_a_sentence(size, refused):
    from vprompt.backbones import tiny

    with refused(str(size), "patch"):
        tiny.load(image_size=size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as timm writes it, of a model with a head and a preprocessing of its own."""
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("saved")
    vit = timm.create_model("test_vit", img_size=32, num_classes=7)
    vit.eval().requires_grad_(False)
    save_file(vit.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": 7,
        "num_features": 64,
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "interpolation": "bilinear",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "crop_pct": 0.9,
            "num_classes": 7,
            "classifier": "head",
            "first_conv": "patch_embed.proj",
        },
        "model_args": {"img_size": 32},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, vit


def test_a_local_folder_and_a_local_file_load_offline_as_the_same_model(saved, images):
    from vprompt.backbones import timm_vit
    from vprompt.models.backbone import extract

    folder, vit = saved
    from_folder = timm_vit.load(model=f"local-dir:{folder}")
    from_file = timm_vit.load(
        model="test_vit", checkpoint=str(folder / "model.safetensors"), image_size=32
    )
    assert from_folder.fingerprint == from_file.fingerprint
    for name, value in from_folder.vit.state_dict().items():
        assert torch.equal(value, vit.state_dict()[name])
    own = vit.forward_head(vit.forward_features(images), pre_logits=True)
    # Not to the bit: where in memory the weights lie decides which kernel multiplies them.
    torch.testing.assert_close(extract(from_folder, images), own, atol=1e-5, rtol=1e-5)


def test_the_preprocessing_is_the_models_own(saved):
    from vprompt.backbones import timm_vit
    from vprompt.models.backbone import DataConfig

    folder, _ = saved
    config = timm_vit.load(model=f"local-dir:{folder}").data_config
    assert config == DataConfig((3, 32, 32), "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_plain_state_dict_loads_and_code_in_a_file_is_never_run(saved, tmp_path, refused):
    import pickle

    from vprompt.backbones import timm_vit

    folder, vit = saved
    torch.save(vit.state_dict(), tmp_path / "plain.pth")
    plain = timm_vit.load(model="test_vit", checkpoint=str(tmp_path / "plain.pth"), image_size=32)
    assert plain.fingerprint == timm_vit.load(model=f"local-dir:{folder}").fingerprint

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with refused("bomb.pth is not read", "without code"):
        timm_vit.load(model="test_vit", checkpoint=str(tmp_path / "bomb.pth"), image_size=32)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_weight_file_is_named(tmp_path, refused):
    from vprompt.backbones import timm_vit

    with refused("No weight file at", "nothing.safetensors"):
        timm_vit.load(model="test_vit", checkpoint=str(tmp_path / "nothing.safetensors"))


def test_weights_of_another_model_are_refused(saved, refused):
    from vprompt.backbones import timm_vit

    folder, _ = saved
    with refused("fills 6 of the 145 tensors of 'test_vit3'", "It lacks", "reg_token"):
        timm_vit.load(model="test_vit3", checkpoint=str(folder / "model.safetensors"))


# Preprocessing.


def test_normalising_is_pixels_by_255_minus_mean_by_std_and_writes_into_nothing(saved):
    from vprompt.backbones import timm_vit

    folder, _ = saved
    backbone = timm_vit.load(model=f"local-dir:{folder}")
    pixels = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8)
    before = pixels.clone()
    first, second = backbone.normalise(pixels), backbone.normalise(pixels)
    assert torch.equal(pixels, before) and torch.equal(first, second)
    for channel, (mean, std) in enumerate([(0.1, 0.4), (0.2, 0.5), (0.3, 0.6)]):
        expected = (pixels[..., channel].double() / 255 - mean) / std
        torch.testing.assert_close(first[:, channel].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_data_config_survives_json():
    from vprompt.models.backbone import DataConfig

    config = DataConfig((3, 28, 42), "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, "center")
    assert DataConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    old = {k: v for k, v in config.to_json().items() if k not in ("crop_pct", "crop_mode")}
    assert DataConfig.from_json(old) == DataConfig(
        (3, 28, 42), "bicubic", *[config.mean, config.std]
    )
