"""Blocks of other kinds than timm's plain one: prompts enter them as exactly, by joining rows."""

import pytest
import timm
import torch
from exact import awake, relative
from torch import nn

# Models of a kind, made small. What is left out of the plain block is named by the class.
KINDS = {
    "ParallelScalingBlock": ("vit_pwee_patch16_reg1_gap_256", {}),
    "ParallelScalingBlock, biased": ("vit_base_patch16_xp_224", {}),
    "DiffParallelScalingBlock": ("vit_dpwee_patch16_reg1_gap_256", {}),
    "ParallelThingsBlock": ("vit_small_patch16_18x2_224", {}),
    "ResPostBlock": ("vit_base_patch16_rpn_224", {}),
}
PLACEMENTS = {
    "shallow": ((3, 0, 0), True),
    "deep": ((2, 2, 2), False),
    "ragged, carrying on": ((1, 0, 2), True),
    "in the middle alone": ((0, 3, 0), False),
}


def make(kind):
    from vprompt.backbones import timm_vit

    name, extra = KINDS[kind]
    small = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 32, "num_classes": 0}
    vit = timm.create_model(name, **small, **extra)
    assert type(vit.blocks[0]).__name__ == kind.partition(",")[0]
    return timm_vit.TimmViT(vit, kind, timm_vit.data_config_of(vit))


@pytest.fixture(scope="module", params=KINDS)
def exact(request):
    return awake(make(request.param))


@pytest.fixture
def pictures(generator):
    return torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)


@pytest.fixture
def draw(generator):
    from vprompt.prompts.prompt import Prompt, place

    def make_prompt(backbone, counts, persist):
        blocks = place(list(counts), backbone.depth, deep=False)
        shape = (len(blocks), backbone.dim)
        return Prompt(torch.randn(shape, generator=generator).double(), blocks, persist)

    return make_prompt


def by_hand(backbone, images, prompt):
    """Prefix, prompt and patches as three sequences, concatenated for each of timm's own blocks."""
    vit, first = backbone.vit, backbone.prefix
    sequence = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    prefix, patches, rows = sequence[:, :first], sequence[:, first:], sequence[:, :0]
    for index, block in enumerate(vit.blocks):
        own = prompt.tokens[prompt.blocks == index]
        if len(own):
            rows = own.expand(len(images), -1, -1)
        elif not prompt.persist:
            rows = sequence[:, :0]
        after = block(torch.cat([prefix, rows, patches], dim=1))
        prefix, rows, patches = after.split([first, rows.shape[1], patches.shape[1]], dim=1)
    return vit.forward_head(vit.norm(torch.cat([prefix, patches], dim=1)), pre_logits=True)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_features_equal_a_concatenation_written_by_hand(exact, pictures, draw, placement):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS[placement])
    found = extract(exact, pictures, prompt)
    assert relative(found, by_hand(exact, pictures, prompt)) < 1e-12
    assert relative(found, extract(exact, pictures)) > 1e-5


@pytest.mark.parametrize("placement", ["shallow", "deep"])
def test_gradients_are_those_of_the_concatenation(exact, pictures, draw, placement):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS[placement])
    found = []
    for run in (extract, by_hand):
        tokens = prompt.tokens.clone().requires_grad_()
        run(exact, pictures, prompt.with_tokens(tokens)).square().sum().backward()
        found.append(tokens.grad)
    assert relative(*found) < 1e-10


def test_a_prompt_per_image_is_that_prompt_alone(exact, pictures, draw):
    from vprompt.models.backbone import extract
    from vprompt.prompts.prompt import PromptBatch

    prompts = [
        draw(exact, *PLACEMENTS[name]) for name in ("shallow", "deep", "in the middle alone")
    ]
    together = extract(exact, pictures, PromptBatch(prompts, torch.tensor([2, 0, 1])))
    for row, prompt in enumerate((prompts[2], prompts[0], prompts[1])):
        alone = extract(exact, pictures[row : row + 1], prompt)
        assert relative(together[row : row + 1], alone) < 1e-10


def test_whether_tokens_are_centred_is_read_off_the_norm_before_the_keys(exact, pictures, draw):
    from vprompt.models.backbone import extract

    prompt = draw(exact, *PLACEMENTS["deep"])
    moved = extract(exact, pictures, prompt.with_tokens(prompt.tokens + 0.7))
    same = relative(moved, extract(exact, pictures, prompt)) < 1e-9
    assert same == exact.centres_tokens


def test_a_norm_of_another_kind_centres_nothing():
    from vprompt.backbones.timm_vit import _centres_tokens

    for kind, at in (("ParallelScalingBlock", "in_norm"), ("ParallelThingsBlock", "attns")):
        block = make(kind).vit.blocks[0]
        assert _centres_tokens(block)
        if at == "attns":
            block.attns[1].norm = nn.Identity()
        else:
            setattr(block, at, nn.Identity())
        assert not _centres_tokens(block)


@pytest.mark.parametrize("kind", ["ParallelScalingBlock", "ParallelThingsBlock"])
@pytest.mark.parametrize(
    "method", ["vpt", "vpt(deep=False)", "linear", "bias", "mlp", "side", "partial", "full", "lora"]
)
def test_methods_train_on_them_or_say_why_not(kind, method, tmp_path):
    from vprompt import TrainConfig, VPromptError, flow

    backbone = make(kind)
    try:
        outcome = flow.learn(
            "digits",
            model=backbone,
            method=method,
            config=TrainConfig(epochs=1, batch_size=16),
            shots=2,
            test=False,
        )
        assert outcome.run["tuning"]["history"]
    except VPromptError as error:
        assert method in ("lora",) and "no linear layer" in str(error)


@pytest.mark.parametrize("method", ["adapter", "pro_vpt", "dpl"])
def test_methods_that_look_into_blocks_are_refused_in_a_sentence(method, refused):
    from vprompt import TrainConfig, flow

    with refused("looked into|cannot be reached|searches"):
        flow.learn(
            "digits",
            model=make("ParallelScalingBlock"),
            method=method,
            config=TrainConfig(epochs=1),
            shots=2,
            test=False,
        )
