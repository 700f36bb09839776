"""Rotary positions: prompt tokens stand at no place, as class and register tokens do."""

import pytest
import timm
import torch
from exact import awake, relative
from timm.layers import Attention

# Models of a kind, made small; what they differ in is how patches are turned and queries projected.
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 2, "patch_size": 8, "num_classes": 0}
KINDS = {
    "class token, axial": ("vit_small_patch16_rope_224", {}),
    "class token, mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "positions besides the rotation": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "registers, no biases": ("vit_small_patch16_dinov3", {"num_reg_tokens": 3}),
    "registers, biases": ("vit_small_patch16_dinov3_qkvb", {}),
    "registers without class token": ("vit_betwixt_patch16_rope_reg4_gap_256", {}),
    "queries and keys apart": ("eva02_base_patch14_224", {}),
    "biases in one": ("eva02_tiny_patch14_224", {}),
    "attention pooling": ("vit_pe_core_tiny_patch16_384", {}),
    "no prefix": ("vit_pe_core_tiny_patch16_384", {"class_token": False, "global_pool": "avg"}),
    "no rotation": ("eva_giant_patch14_224", {}),
    "shared keys, norms, gate": (
        "vit_small_patch16_dinov3",
        {
            **{"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1, "qk_norm": True},
            "attn_only_layer_scale": True,
        },
    ),
    "norms behind": ("vit_small_patch16_rope_224", {"use_post_norm": True}),
}
PLACEMENTS = {
    "shallow": ((3, 0, 0), True),
    "deep": ((2, 2, 2), False),
    "deep and persisting": ((2, 2, 2), True),
    "ragged, carrying on": ((1, 0, 2), True),
    "in the middle alone": ((0, 3, 0), False),
}


def make(kind, size=(32, 48)):
    from vprompt.backbones import timm_vit

    name, extra = KINDS[kind]
    vit = timm.create_model(name, img_size=size, **{**SMALL, **extra})
    return timm_vit.TimmViT(vit, kind, timm_vit.data_config_of(vit))


@pytest.fixture(scope="module", params=KINDS)
def exact(request):
    return awake(make(request.param))


@pytest.fixture
def pictures(generator):
    return torch.randn(3, 3, 32, 48, generator=generator, dtype=torch.float64)


@pytest.fixture
def draw(generator):
    from vprompt.prompts.prompt import Prompt, place

    def make_prompt(backbone, counts, persist):
        blocks = place(list(counts), backbone.depth, deep=False)
        shape = (len(blocks), backbone.dim)
        return Prompt(torch.randn(shape, generator=generator).double(), blocks, persist)

    return make_prompt


def by_hand(backbone, images, prompt):
    """Prefix, prompt and patches joined for timm's own blocks, told how many rows not to turn."""
    vit, first = backbone.vit, backbone.prefix
    sequence, turned = vit._pos_embed(vit.patch_embed(images))
    sequence = vit.norm_pre(sequence)
    prefix, patches, rows = sequence[:, :first], sequence[:, first:], sequence[:, :0]
    for index, block in enumerate(vit.blocks):
        own = prompt.tokens[prompt.blocks == index]
        if len(own):
            rows = own.expand(len(images), -1, -1)
        elif not prompt.persist:
            rows = sequence[:, :0]
        block.attn.num_prefix_tokens = first + rows.shape[1]  # these are not turned
        after = block(
            torch.cat([prefix, rows, patches], dim=1),
            rope=turned[index] if vit.rope_mixed else turned,
        )
        block.attn.num_prefix_tokens = first
        prefix, rows, patches = after.split([first, rows.shape[1], patches.shape[1]], dim=1)
    return vit.forward_head(vit.norm(torch.cat([prefix, patches], dim=1)), pre_logits=True)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_features_equal_a_concatenation_on_timms_own_blocks(exact, pictures, draw, placement):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS[placement])
    found = extract(exact, pictures, prompt)
    assert relative(found, by_hand(exact, pictures, prompt)) < 1e-12
    assert relative(found, extract(exact, pictures)) > 1e-5


def test_gradients_are_those_of_the_concatenation(exact, pictures, draw):
    from vprompt.models.backbone import extract

    prompt, found = draw(exact, *PLACEMENTS["deep"]), []
    for run in (extract, by_hand):
        tokens = prompt.tokens.clone().requires_grad_()
        run(exact, pictures, prompt.with_tokens(tokens)).square().sum().backward()
        found.append(tokens.grad)
    assert relative(*found) < 1e-10


def test_without_a_prompt_features_are_timms_own_to_the_bit(exact, pictures):
    from vprompt.models.backbone import extract

    own = exact.vit.forward_head(exact.vit.forward_features(pictures), pre_logits=True)
    assert torch.equal(extract(exact, pictures), own)


def test_a_prompt_per_image_is_that_prompt_alone(exact, pictures, draw):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import PromptBatch

    names = ("shallow", "deep", "in the middle alone")
    prompts = [draw(exact, *PLACEMENTS[name]) for name in names]
    together = extract(exact, pictures, PromptBatch(prompts, torch.tensor([2, 0, 1])))
    for row, prompt in enumerate((prompts[2], prompts[0], prompts[1])):
        alone = extract(exact, pictures[row : row + 1], prompt)
        assert relative(together[row : row + 1], alone) < 1e-10


def test_deep_prompts_ask_nothing(pictures, draw, monkeypatch):
    from vprompt.models.backbone import Backbone, extract

    exact = awake(make("registers, biases"))
    prompt = draw(exact, *PLACEMENTS["deep"])
    widths, mlp = [], exact.vit.blocks[0].mlp
    handle = mlp.register_forward_hook(lambda module, given, out: widths.append(out.shape[1]))
    alone = extract(exact, pictures, prompt)
    monkeypatch.setattr(type(exact), "prompted_block", Backbone.prompted_block)
    joined = extract(exact, pictures, prompt)
    handle.remove()
    patches = 4 * 6
    assert widths == [exact.prefix + patches, exact.prefix + 2 + patches]
    assert relative(alone, joined) < 1e-12


def test_where_a_patch_lies_matters_and_where_a_prompt_stands_does_not(pictures, draw):
    from vprompt.models.backbone import extract

    exact = awake(make("class token, axial"))
    prompt = draw(exact, (3, 3, 3), False)
    plain = extract(exact, pictures, prompt)
    order = torch.tensor([2, 0, 1, 5, 3, 4, 8, 6, 7])
    assert (
        relative(extract(exact, pictures, prompt.with_tokens(prompt.tokens[order])), plain) < 1e-12
    )
    turned = exact._turned
    exact._turned = (turned[0], turned[1].flip(0))
    assert relative(extract(exact, pictures, prompt), plain) > 1e-4


def test_a_gate_on_the_output_of_attention_is_kept(pictures, draw):
    from vprompt.backbones import timm_vit
    from vprompt.models.backbone import Backbone, extract

    vit = timm.create_model("test_vit", img_size=(32, 48), num_classes=0)
    for block in vit.blocks:
        block.attn = Attention(vit.embed_dim, 4, qkv_bias=True, gated=True)
    gated = awake(timm_vit.TimmViT(vit, "gated", timm_vit.data_config_of(vit)))
    prompt = draw(gated, (2,) * gated.depth, False)
    found = extract(gated, pictures, prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(gated), "prompted_block", Backbone.prompted_block)
        assert relative(extract(gated, pictures, prompt), found) < 1e-12


def test_images_of_another_size_are_refused(refused):
    backbone = make("registers, biases")
    with refused("opened for images of 32x48", "got 48x32", "--image-size 48x32"):
        backbone.embed(torch.zeros(1, 3, 48, 32))


def test_the_rotation_follows_the_precision_and_is_no_weight():
    backbone = make("class token, mixed")
    fingerprint = backbone.fingerprint
    first = backbone.rotation(0)
    assert first.dtype == torch.float32 and backbone.rotation(0).data_ptr() == first.data_ptr()
    assert not torch.equal(first, backbone.rotation(1))
    assert backbone.double().rotation(0).dtype == torch.float64
    assert backbone.float().fingerprint == fingerprint


def test_a_closed_gate_takes_a_prompt_away(exact, pictures, draw):
    from vprompt.models.attention import gated
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS["deep"])
    closed = gated(torch.zeros(2, dtype=torch.float64))
    if type(exact.vit.blocks[0]).__name__ == "EvaBlock":
        found = extract(exact, pictures, prompt, attend=lambda index: closed)
        assert relative(found, extract(exact, pictures)) < 1e-12


def test_a_bottleneck_finds_the_end_of_a_block(draw):
    from vprompt.core import registry

    backbone = make("registers, biases", (32, 32))
    adapter = registry.build("adapters", "adapter")(backbone)
    images, seen = torch.randn(2, 3, 32, 32), []
    for bottleneck in adapter.bottlenecks:
        bottleneck.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    adapter.features(images)
    assert seen == [(2, backbone.prefix + 16, backbone.dim)] * backbone.depth
