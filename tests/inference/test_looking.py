"""Looking: weights are those of the block's own attention, and the rollout loses nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["tiny", "tiny_clip"])
def test_weights_times_values_are_what_the_block_adds(name, images):
    from vprompt import open_backbone
    from vprompt.models.attention import project

    backbone = open_backbone(name)
    with torch.no_grad():
        tokens = backbone.embed(images)
        weights = backbone.attention_of(1, tokens)
        if name == "tiny":
            block = backbone.vit.blocks[1]
            inner, norm = block.attn, block.norm1
            joined = (inner.qkv.weight, inner.qkv.bias, inner.num_heads, None)
            own = inner(norm(tokens))
        else:
            block = backbone.clip.visual.transformer.resblocks[1]
            inner, norm = block.attn, block.ln_1
            joined = (inner.in_proj_weight, inner.in_proj_bias, inner.num_heads, None)
            own = block.attention(norm(tokens))
        value = project(norm(tokens), *joined)[1].value
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        made = (inner.proj if name == "tiny" else inner.out_proj)(mixed)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(made, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("deep", [True, False])
def test_maps_have_a_place_for_every_patch_and_token(tiny, deep_pool, pool, deep):
    from vprompt.inference.looking import look

    prompt = (deep_pool if deep else pool)["birds"]
    found, bare = look(tiny, pixels(), prompt), look(tiny, pixels(), None)
    side = 32 // tiny.patch_size[0]
    assert len(found.blocks) == len(bare.blocks) == tiny.depth
    for block in found.blocks:
        heads, rows, columns = block.token.shape
        assert (rows, columns) == (side, side)
        assert block.prompt.shape == (2 if deep else 3, heads, side, side)
        assert block.to_prompt.shape == (heads, len(block.prompt))
        assert 0 < float(block.to_prompt.sum(-1).mean()) < 1
    assert not len(bare.blocks[0].prompt)
    assert found.rollout.shape == (side, side) and float(found.rollout.min()) >= 0
    assert bare.from_prompt == pytest.approx(0, abs=1e-5) and 0 < found.from_prompt < 1


def test_the_rollout_of_a_deep_prompt_is_a_product_of_its_blocks(tiny, deep_pool):
    from vprompt.inference.looking import look
    from vprompt.models.backbone import walk

    prompt, product = deep_pool["cars"], None
    images = tiny.normalise(torch.from_numpy(pixels(1))[None])
    sequence = tiny.embed(images)
    with torch.no_grad():
        states = [sequence, *(after for _, after in walk(tiny, images, prompt))]
        for block in range(tiny.depth):
            rows = prompt.tokens[prompt.blocks == block][None]
            weights = tiny.attention_of(block, torch.cat([states[block], rows], 1))[0].mean(0)
            size = sequence.shape[1]
            step = 0.5 * weights[:size, :size] + 0.5 * torch.eye(size)
            product = step if product is None else step @ product
    found = look(tiny, pixels(1), prompt)
    patches = product[0, tiny.prefix :].unflatten(0, tuple(found.rollout.shape))
    torch.testing.assert_close(found.rollout, patches, atol=1e-5, rtol=1e-4)
    assert found.from_prompt == pytest.approx(float(1 - product[0].sum()), abs=1e-5)


def test_a_model_without_a_class_token_is_looked_at_by_its_patches(deep_pool):
    from vprompt import open_backbone
    from vprompt.inference.looking import look

    found = look(open_backbone("tiny(model=test_vit2)"), pixels(), None)
    assert found.rollout.sum() == pytest.approx(1, abs=1e-3) or found.rollout.sum() < 1


@pytest.fixture
def folder(tiny, tmp_path):
    from served import save_artefact

    save_artefact(tiny, tmp_path / "mine", 0, deep=True)
    Image.fromarray(pixels(2)).resize((90, 60)).save(tmp_path / "x.png")
    return tmp_path


def test_the_command_writes_a_page_a_picture_or_into_a_report(folder, vprompt, fails):
    words = ("attention", folder / "x.png", "--artifact", folder / "mine", "-q")
    code, _, _ = vprompt(*words, "--output", folder / "a.html")
    text = (folder / "a.html").read_text()
    assert code == 0 and text.count("data:image/png") == 4 and "with prompt" not in text[:200]
    assert "prompt tokens take" in text and "head by head" in text and "Light is where" in text
    assert text.count('class="scroll" tabindex="0"><img') == 4  # whole, however many blocks
    assert vprompt(*words, "--output", folder / "a.png")[0] == 0
    with Image.open(folder / "a.png") as drawn:
        assert drawn.width > 500 and drawn.height > 300
    (folder / "r.html").write_text("<main><p>mine</p></main></body>")
    assert vprompt(*words, "--report", folder / "r.html")[0] == 0
    text = (folder / "r.html").read_text()
    assert text.startswith("<main><p>mine</p><section>") and text.endswith("</main></body>")
    (folder / "other.html").write_text("nothing")
    fails(*words, "--report", folder / "other.html", saying=["not a report that vprompt wrote"])
    fails(*words, "--output", folder / "a.gif", saying=["a .html or .png file"])
    (folder / "x.png").write_text("no image")
    fails(*words, "--output", folder / "b.html", saying=["cannot be read as an image"])
    assert not (folder / "b.html").exists()
