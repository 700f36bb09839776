"""Methods: what each of the adapters trains, how much of it, and how it starts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stopping import StopAfter
from torch.nn import functional

torch.set_num_threads(1)  # steps this small only wait for a second thread
CLASSES = 3
# Those that start without any effect on the features.
SILENT_STARTS = ["bias", "full", "partial", "adapter", "lora"]
METHODS = [*SILENT_STARTS, "side", "mlp", "mlp(num_layers=2, norm=layer)"]


def draw(count, seed):
    """Return examples in which every class has a tint under much noise."""
    from vprompt.data.task import Examples

    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = 0.8 * rng.integers(0, 256, (count, 32, 32, 3))
    pixels[np.arange(count), :, :, labels] += 40
    return Examples(pixels.clip(0, 255).astype(np.uint8), torch.tensor(labels), f"{count} {seed}")


@pytest.fixture
def build(tiny):
    """Return a function that builds a method from its spec, on `tiny` unless told."""
    from vprompt.core import registry

    return lambda spec, backbone=tiny: registry.build("adapters", spec)(backbone)


@pytest.fixture
def run():
    """Return a function that tunes on 22 examples, for two epochs in fp32 unless told."""
    from vprompt.learning.train_config import TrainConfig
    from vprompt.learning.tune import tune

    small = {"epochs": 2, "batch_size": 8, "precision": "fp32", "lr": 1e-3, "keep": "last"}

    def call(adapter, *, train=None, checkpoint=None, progress=None, **changes):
        given = {} if progress is None else {"progress": progress}
        config, train = TrainConfig(**{**small, **changes}), train or draw(22, 1)
        return tune(adapter, train, draw(12, 2), CLASSES, config, checkpoint=checkpoint, **given)

    return call


def own(adapter):
    """Return the parameters that take a gradient, by name."""
    return {name: p for name, p in adapter.named_parameters() if p.requires_grad}


def size(adapter):
    return sum(p.numel() for p in own(adapter).values())


# All of them


@pytest.mark.parametrize("spec", SILENT_STARTS)
def test_it_starts_without_any_effect(build, spec, backbones, images):
    from vprompt import extract

    adapter = build(spec, backbones)
    assert torch.equal(adapter.features(images).detach(), extract(backbones, images))


@pytest.mark.parametrize("spec", METHODS)
def test_every_trained_tensor_gets_a_gradient(build, spec, backbones, images):
    adapter = build(spec, backbones)
    features = adapter.features(images)
    (features * torch.randn(features.shape)).sum().backward()
    assert own(adapter)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own(adapter).values())
    assert all(p.grad is None for p in backbones.parameters())


@pytest.mark.parametrize("spec", METHODS)
def test_training_moves_every_tensor_and_leaves_the_backbone(build, run, spec, tiny):
    before = type(tiny).fingerprint.func(tiny)
    adapter = build(spec)
    start = {name: p.detach().clone() for name, p in own(adapter).items()}
    run(adapter)
    moved = {name for name, p in own(adapter).items() if not torch.equal(p, start[name])}
    assert moved == set(start)
    assert type(tiny).fingerprint.func(tiny) == before


@pytest.mark.parametrize("spec", METHODS)
def test_state_is_what_was_trained_and_no_more(build, spec):
    adapter = build(spec)
    norms = {name for name, _ in adapter.named_buffers() if "running" in name or "num_" in name}
    assert set(adapter.state()) == {*own(adapter), *norms}
    assert bool(norms) == (spec == "mlp")


@pytest.mark.parametrize("spec", METHODS)
def test_a_saved_method_gives_the_same_features(build, run, spec, tiny, tmp_path):
    from vprompt.artifacts import artifact
    from vprompt.opening import open_adapter
    from vprompt.results.measure import features_of

    tuned = run(build(spec))
    config = artifact.make_config(tiny, None, ("a", "b", "c"), method=spec)
    state = tuned.adapter.state()
    made = artifact.Artifact(None, tuned.head, torch.zeros(tiny.feature_dim), config, state=state)
    artifact.save(made, tmp_path / "made")
    loaded = artifact.load(tmp_path / "made")
    opened, examples = open_adapter(loaded, tiny), draw(20, 3)
    expected = features_of(tiny, tuned.adapter, examples, precision="fp32")
    assert torch.equal(features_of(tiny, opened, examples, precision="fp32"), expected)
    assert torch.equal(loaded.head.weight, tuned.head.weight)
    assert not torch.equal(expected, features_of(tiny, build(spec), examples, precision="fp32"))


@pytest.mark.parametrize("spec", ["bias", "lora", "mlp"])
def test_a_stopped_run_continues_with_the_same_bits(build, run, spec, tmp_path):
    whole = run(build(spec))
    with pytest.raises(KeyboardInterrupt):
        run(build(spec), checkpoint=tmp_path, progress=StopAfter(4))
    assert list(tmp_path.iterdir())
    continued = run(build(spec), checkpoint=tmp_path)
    assert continued.history == whole.history
    expected = whole.adapter.state()
    assert all(torch.equal(v, expected[name]) for name, v in continued.adapter.state().items())


@pytest.mark.parametrize("spec", ["bias", "lora", "mlp"])
def test_it_is_learned_saved_and_used_through_the_verbs(spec, tiny, tmp_path):
    from PIL import Image

    from vprompt import learn, open_task, predict
    from vprompt.learning.train_config import TrainConfig

    task = replace(open_task("digits").few_shot(2, seed=0), test=None)
    config = TrainConfig(epochs=1, lr=1e-3)
    outcome = learn(task, model=tiny, method=spec, config=config, output=tmp_path / "made")
    Image.fromarray(task.train.images[0]).save(tmp_path / "image.png")
    [found] = predict([tmp_path / "image.png"], artifact=tmp_path / "made", model=tiny)
    assert found.label in task.classes
    record = outcome.run["tuning"]
    sizes = [np.prod(shape, dtype=int) for shape in record["trained"].values()]
    assert record["parameters"]["adapter"] == sum(sizes)
    assert record["parameters"]["head"] == 10 * (tiny.feature_dim + 1)
    json.dumps(outcome.run, allow_nan=False)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("partial(num_blocks=0)", "between 1 and all 6 blocks"),
        ("partial(num_blocks=7)", "num_blocks=7"),
        ("adapter(reduction=65)", "1 to 64"),
        ("adapter(init=zeros)", "There are: vpt_repo, xavier"),
        ("mlp(num_layers=0)", "at least one layer"),
        ("mlp(norm=group)", "There are: batch, layer"),
        ("mlp(dropout=1.0)", r"\[0, 1\)"),
        ("side(network=vgg)", "There are: alexnet, alexnet_random, small"),
        ("side(network=alexnet)", "images of 63 pixels, but 'tiny' sees 32"),
        ("lora(rank=0)", "rank of at least 1"),
        ("lora(target=['q_proj'])", "no linear layer called 'q_proj'.*qkv"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, refused, spec, words):
    with refused(words):
        build(spec)


# How much is trained


def vit_base():
    """Return ViT-B/16 without its numbers: shapes alone."""
    import timm

    from vprompt.backbones.timm_vit import TimmViT, data_config_of

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224.orig_in21k", num_classes=0)
    return TimmViT(vit, "ViT-B/16", data_config_of(vit))


@pytest.mark.parametrize(
    "spec, count",
    [
        ("linear", 0),
        # 12 blocks of qkv, projection, both layers of the MLP and two norms; patches; final norm.
        ("bias", 12 * (3 * 768 + 768 + 4 * 768 + 768 + 2 * 768) + 768 + 768),
        ("partial", 12 * 768**2 + 13 * 768 + 2 * 768),
        ("partial(num_blocks=4)", 4 * (12 * 768**2 + 13 * 768) + 2 * 768),
        ("full", 85_798_656),
        ("mlp(num_layers=3)", 2 * (768**2 + 768 + 2 * 768)),
        ("mlp(num_layers=1)", 0),
        ("side(network=alexnet_random)", 2_469_696 + 9216 * 768 + 1),
        ("adapter", 12 * (2 * 96 * 768 + 96 + 768)),
        ("adapter(reduction=128)", 12 * (2 * 6 * 768 + 6 + 768)),
        ("lora", 12 * 8 * (768 + 3 * 768)),
        ("lora(rank=4, target=['qkv', 'fc1'])", 12 * 4 * (768 * 4 + 768 * 5)),
        ("vpt(num_virtual_tokens=50, deep=False, prompt_init=vpt_uniform)", 38_400),
        ("vpt(num_virtual_tokens=50, prompt_init=vpt_uniform)", 460_800),
    ],
)
def test_it_trains_as_many_numbers_as_its_formula_says(build, spec, count):
    assert size(build(spec, vit_base())) == count


def test_biases_are_all_of_them_and_nothing_else(build, backbones):
    wanted = {f"twin.{n}" for n, _ in backbones.named_parameters() if n.endswith("bias")}
    assert set(own(build("bias", backbones))) == wanted


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_partial_is_the_last_blocks_and_all_after_them(build, backbones, num_blocks):
    found = set(own(build(f"partial(num_blocks={num_blocks})", backbones)))
    last = [f"blocks.{backbones.depth - 1 - back}." for back in range(num_blocks)]
    wanted = {
        f"twin.{name}"
        for name, _ in backbones.named_parameters()
        if any(block in name for block in last)
        or name.startswith(("vit.norm.", "vit.fc_norm.", "vit.attn_pool."))
    }
    assert found == wanted and any("norm" in name and "blocks" not in name for name in found)


# A twin


def test_a_twin_shares_all_tensors_but_those_that_are_trained(tiny):
    from vprompt.learning.twin import twin_of

    name = "vit.blocks.0.norm1.bias"
    twin = twin_of(tiny, [name])
    given = dict(tiny.named_parameters())
    for other, parameter in twin.named_parameters():
        assert (parameter is given[other]) == (other != name)
        assert parameter.requires_grad == (other == name)
    with torch.no_grad():
        dict(twin.named_parameters())[name].add_(1.0)
    assert twin.fingerprint != tiny.fingerprint == type(tiny).fingerprint.func(tiny)


# Adapter


def test_an_adapter_is_added_after_the_feed_forward_before_the_residual(build, images, generator):
    adapter = build("adapter(reduction=4)")
    for bottleneck in adapter.bottlenecks:
        torch.nn.init.normal_(bottleneck.up.weight, generator=generator)
        torch.nn.init.normal_(bottleneck.up.bias, generator=generator)
    vit = adapter.backbone.vit
    tokens = adapter.backbone.embed(images)
    for block, added in zip(vit.blocks, adapter.bottlenecks, strict=True):
        tokens = tokens + block.attn(block.norm1(tokens))
        inner = block.mlp(block.norm2(tokens))
        hidden = inner @ added.down.weight.T + added.down.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        tokens = tokens + inner + hidden @ added.up.weight.T + added.up.bias
    torch.testing.assert_close(adapter.features(images), adapter.backbone.pool(tokens))


def test_the_public_codes_adapter_is_dead_but_for_one_bias(build, run):
    def moved(spec):
        adapter = build(spec)
        start = {name: p.detach().clone() for name, p in own(adapter).items()}
        run(adapter, epochs=4)
        parts = {n.split(".", 2)[2] for n, p in own(adapter).items() if (p != start[n]).any()}
        return parts

    assert moved("adapter(init=vpt_repo)") == {"up.bias"}
    assert moved("adapter") == {"down.weight", "down.bias", "up.weight", "up.bias"}


def test_a_backbone_that_cannot_be_looked_into_is_refused(build, tiny, refused):
    from vprompt.models.backbone import Backbone

    class Closed(Backbone):
        def __init__(self):
            super().__init__()
            self.name, self.dim, self.depth, self.feature_dim = "closed", 64, 6, 64
            self.inner = tiny

        def embed(self, images):
            return self.inner.embed(images)

        def block(self, index, tokens):
            return self.inner.block(index, tokens)

        def pool(self, tokens):
            return self.inner.pool(tokens)

    with refused("'closed' cannot be looked into", "vit_"):
        build("adapter", Closed())
    assert own(build("bias", Closed()))  # others need no look inside


# Side


def test_side_features_are_the_learned_mix(build, images, generator):
    from vprompt import extract

    adapter = build("side(alpha=0.5)")
    frozen = extract(adapter.backbone, images)
    tensors = dict(adapter.named_parameters())
    hidden = images
    for index, stride in ((0, 4), (2, 2), (4, 2)):
        weight, bias = tensors[f"side.{index}.weight"], tensors[f"side.{index}.bias"]
        padding = weight.shape[-1] // 2
        hidden = functional.conv2d(hidden, weight, bias, stride=stride, padding=padding).relu()
    assert hidden.shape == (4, 128, 2, 2)
    beside = hidden.flatten(1) @ tensors["projection.weight"].T
    share = 1 / (1 + np.exp(-0.5))
    expected = share * frozen + (1 - share) * beside
    torch.testing.assert_close(adapter.features(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(build("side(alpha=40.0)").features(images).detach(), frozen)


def test_alexnet_starts_from_its_weights_or_says_where_they_come_from(build, refused, monkeypatch):
    from torchvision.models import AlexNet_Weights, alexnet

    from vprompt.backbones import tiny

    large, asked = tiny.load(image_size=64), []
    given = {k: torch.full_like(v, 0.01) for k, v in alexnet().state_dict().items()}

    def fetch(self, **options):
        asked.append(options)
        return given

    monkeypatch.setattr(AlexNet_Weights, "get_state_dict", fetch)
    adapter = build("side(network=alexnet)", large)
    assert asked[0]["check_hash"] and asked[0]["weights_only"]
    assert torch.equal(adapter.side[0][0].weight.detach(), given["features.0.weight"])
    assert size(adapter) == 2_469_696 + 9216 * 64 + 1
    assert set(build(adapter.opens_as, large).state()) == set(adapter.state())

    def fail(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(AlexNet_Weights, "get_state_dict", fail)
    with refused("no network", "alexnet-owt-7be5be79.pth", "checkpoints", "network=small"):
        build("side(network=alexnet)", large)


# LoRA


def test_lora_adds_a_scaled_product_to_its_layers(build, images, generator):
    adapter = build("lora(rank=2, alpha=6, target=['fc2'])")
    for name, parameter in own(adapter).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=generator)
    trained = own(adapter)
    tokens = adapter.backbone.embed(images)
    for index, block in enumerate(adapter.backbone.vit.blocks):
        place = f"twin.vit.blocks.{index}.mlp.fc2.lora_{{}}.default.weight"
        down, up = trained[place.format("A")], trained[place.format("B")]
        tokens = tokens + block.attn(block.norm1(tokens))
        inner = functional.gelu(block.mlp.fc1(block.norm2(tokens)))
        tokens = tokens + block.mlp.fc2(inner) + 3.0 * (inner @ down.T @ up.T)
    torch.testing.assert_close(adapter.features(images), adapter.backbone.pool(tokens))


def test_lora_takes_no_layer_that_torch_reads_and_does_not_call(build, refused):
    from vprompt.opening import open_backbone

    pytest.importorskip("open_clip")
    clip = open_backbone("tiny_clip", device="cpu")
    assert any(name.endswith("attn.out_proj") for name, _ in clip.named_modules())
    with refused("no linear layer called 'out_proj'", "c_fc, c_proj"):
        build("lora(target=['out_proj'])", clip)


def test_lora_without_its_library_says_what_to_install(build, refused, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with refused(r"pip install 'vprompt\[lora\]'"):
        build("lora")


# MLP


def test_an_mlp_of_one_layer_is_a_linear_probe(build, run, tiny, images):
    from vprompt import extract

    adapter = build("mlp(num_layers=1)")
    assert not own(adapter) and torch.equal(adapter.features(images), extract(tiny, images))
    linear, found = run(build("linear")), run(adapter)
    assert torch.equal(linear.head.weight, found.head.weight)


def test_an_mlp_is_linear_relu_norm_dropout(build, generator):
    features = torch.randn(9, 64, generator=generator)
    adapter = build("mlp(num_layers=2, dropout=0.4)")
    [layer], [norm] = adapter.layers, adapter.norms
    torch.nn.init.normal_(norm.weight, generator=generator)
    hidden = (features @ layer.weight.T + layer.bias).clamp_min(0)
    # With a generator: statistics of the batch, then a mask whose survivors are scaled up.
    mean, variance = hidden.mean(0), hidden.var(0, correction=0)
    expected = (hidden - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    found = adapter.transform(features, generator=torch.Generator().manual_seed(5))
    kept = found != 0
    assert 0.4 < kept.double().mean() < 0.8
    torch.testing.assert_close(found[kept], expected[kept] / 0.6, rtol=1e-4, atol=1e-5)
    # Without: running statistics, 0.1 of the way to those of the batch, and no mask.
    spread = (0.9 + 0.1 * hidden.var(0) + norm.eps).sqrt()
    still = (hidden - 0.1 * mean) / spread * norm.weight + norm.bias
    torch.testing.assert_close(adapter.transform(features), still, rtol=1e-4, atol=1e-5)


def test_the_same_generator_drops_the_same(build, generator):
    features, adapter = torch.randn(9, 64, generator=generator), build("mlp(norm=layer)")
    first, second, other = (
        adapter.transform(features, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_with_layer_norm_the_rest_of_the_batch_does_not_matter(build, generator):
    features = torch.randn(9, 64, generator=generator)
    for spec, alike in (("mlp(norm=layer, dropout=0.0)", True), ("mlp(dropout=0.0)", False)):
        adapter = build(spec)
        whole = adapter.transform(features, generator=generator)[:4]
        part = adapter.transform(features[:4], generator=generator)
        assert torch.allclose(whole, part, atol=1e-5) == alike


def test_a_last_batch_of_one_image_is_no_problem(build, run):
    tuned = run(build("mlp"), train=draw(17, 4))  # 8 + 8 + 1
    assert np.isfinite(tuned.history[-1].train_loss)


def test_batch_norm_starts_with_the_statistics_of_the_training_images(build, run, tiny):
    from vprompt.results.measure import features_of

    adapter, train = build("mlp(num_layers=3)"), draw(22, 1)
    run(adapter, train=train, epochs=0)
    features = features_of(tiny, None, train, precision="fp32")
    for layer, norm in zip(adapter.layers, adapter.norms, strict=True):
        hidden = functional.relu(layer(features))
        torch.testing.assert_close(norm.running_mean, hidden.mean(0))
        torch.testing.assert_close(norm.running_var, hidden.var(0))
        features = (hidden - hidden.mean(0)) / (hidden.var(0) + norm.eps).sqrt()
    torch.testing.assert_close(features_of(tiny, adapter, train, precision="fp32"), features)


def test_an_mlp_computes_the_frozen_features_once(build, run, tiny, monkeypatch):
    seen, embed = [], type(tiny).embed
    monkeypatch.setattr(
        type(tiny), "embed", lambda self, images: seen.append(len(images)) or embed(self, images)
    )
    run(build("mlp"), epochs=5)
    assert sum(seen) == 22 + 12


def test_methods_on_features_open_the_test_images_once(tiny, monkeypatch, cache):
    from vprompt import learn, open_task
    from vprompt.learning.train_config import TrainConfig

    seen, embed = [], type(tiny).embed
    monkeypatch.setattr(
        type(tiny), "embed", lambda self, images: seen.append(len(images)) or embed(self, images)
    )
    # Announced times rest on a trial of the machine, whose images are no part of the work.
    monkeypatch.setattr("vprompt.results.cost._timed", lambda *given: 100.0)
    task = open_task("digits").few_shot(2, seed=0)
    sizes = [len(task.train), len(task.val), len(task.test)]
    for spec in ("linear", "mlp", "linear"):
        learn(task, model=tiny, method=spec, config=TrainConfig(epochs=1))
        assert sum(seen) == sum(sizes)


@pytest.mark.parametrize("method", ["full", "bias", "lora(target=['c_fc'])"])
def test_of_two_towers_what_sees_images_is_trained(method):
    from vprompt.core.registry import build
    from vprompt.opening import open_backbone

    pytest.importorskip("open_clip")
    clip = open_backbone("tiny_clip", device="cpu")
    adapter = build("adapters", method)(clip)
    adapter.features(torch.randn(2, *clip.data_config.input_size)).square().sum().backward()
    trained = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None for p in trained.values())
