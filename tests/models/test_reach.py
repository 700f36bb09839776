"""Reach: without a network a model is read from the disk at once, or refused in seconds."""

import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A hub's address at which nobody listens, and an empty store of its library."""
    from vprompt.backbones import _asking

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(_asking, "_ANSWERS", {})
    monkeypatch.setattr(_asking, "_ASKED", {})
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "hf-hub:org/vit@main"])
def test_a_model_that_is_not_on_disk_is_refused_in_under_five_seconds(nowhere, refused, name):
    from vprompt import open_backbone
    from vprompt.backbones import timm_vit  # noqa: F401 - tests compile checks into it, for seconds

    began = time.perf_counter()
    with refused("not on this disk", "does not answer", "demo", "local-dir:", "checkpoint="):
        open_backbone(name)
    assert time.perf_counter() - began < 5


def test_a_model_of_transformers_is_refused_as_quickly(nowhere, refused):
    from vprompt import open_backbone
    from vprompt.backbones import hf  # noqa: F401 - as above

    pytest.importorskip("transformers")
    began = time.perf_counter()
    with refused("not on this disk", "does not answer", "demo"):
        open_backbone("hf:facebook/dinov2-small")
    assert time.perf_counter() - began < 5


def test_weights_at_a_plain_address_are_refused_as_quickly(nowhere, refused, tmp_path):
    from vprompt.backbones import _reach

    url, began = "http://127.0.0.1:9/weights/vit-ab12.pth", time.perf_counter()
    with refused("some_vit", "not on this disk", "http://127.0.0.1:9 does not answer", "demo"):
        _reach.check_url("some_vit", url, tmp_path)
    assert time.perf_counter() - began < 5
    (tmp_path / "vit-ab12.pth").write_bytes(b"fetched before")
    _reach.check_url("some_vit", url, tmp_path)


def test_libraries_are_asked_for_a_plain_address_only_where_it_answers(nowhere, refused):
    import timm

    from vprompt import open_backbone

    cfg = timm.models.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    assert cfg.url, "what is tried below"
    overlay = {**cfg.to_dict(), "hf_hub_id": None, "url": "http://127.0.0.1:9/vit.pth"}
    held = timm.models._registry._model_pretrained_cfgs
    name = "vit_tiny_patch16_224.augreg_in21k"
    before, held[name] = held[name], type(cfg)(**overlay)
    try:
        with refused(name, "http://127.0.0.1:9 does not answer"):
            open_backbone(name)
    finally:
        held[name] = before


@pytest.mark.parametrize("name", ["https://example.org/vit.pth"])
def test_an_address_in_place_of_a_name_is_answered_with_what_to_type(nowhere, refused, name):
    from vprompt import open_backbone
    from vprompt.backbones import timm_vit

    with refused("That is an address: download the file", "checkpoint="):
        open_backbone(name)
    with refused("No weight file at", "Download it"):
        timm_vit.load(model="vit_tiny_patch16_224", checkpoint=name)


def test_a_host_that_never_answers_costs_no_more(nowhere, monkeypatch):
    from huggingface_hub import utils

    from vprompt.backbones import _asking

    monkeypatch.setattr(_asking, "SECONDS", 0.1)
    never = SimpleNamespace(head=lambda *a, **k: time.sleep(60))
    monkeypatch.setattr(utils, "get_session", lambda: never)
    assert "no answer" in _asking.problem("http://10.255.255.1")


@pytest.mark.parametrize("status, reached", [(200, True), (404, True), (503, False)])
def test_a_proxy_that_reaches_nobody_is_no_answer(nowhere, monkeypatch, status, reached):
    from huggingface_hub import utils

    from vprompt.backbones import _asking

    answer = SimpleNamespace(status_code=status)
    monkeypatch.setattr(utils, "get_session", lambda: SimpleNamespace(head=lambda *a, **k: answer))
    assert (_asking.problem("http://hub.example") == "") is reached


def test_a_network_that_is_no_vit_is_refused_before_the_hub_is_asked(nowhere, refused, monkeypatch):
    from vprompt import open_backbone
    from vprompt.backbones import _reach

    monkeypatch.setattr(_reach, "_problem", lambda address: pytest.fail("the hub was asked"))
    with refused("resnet10t.c3_in1k", "not a plain vision transformer"):
        open_backbone("resnet10t.c3_in1k")


def test_what_is_on_disk_is_read_without_asking_again(nowhere):
    from vprompt.backbones import _reach

    (nowhere / "models--org--vit/snapshots/abc").mkdir(parents=True)
    (nowhere / "models--org--vit/snapshots/abc/config.json").write_text("{}")
    with _reach.hub("hf-hub:org/vit", "org/vit"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    "model, asked",
    [
        ("vit_base_patch16_224", True),
        ("ViT-B-16,openai", True),
        ("hf:facebook/dinov2-small", True),
        ("demo", False),
        ("tiny_clip", False),
        ("local-dir:/models/vit", False),
        ("hf:/models/vit", False),
        ("timm_vit(model=vit_tiny_patch16_224, checkpoint='/vit.safetensors')", False),
        (None, False),
    ],
)
def test_a_command_asks_the_hub_ahead_and_only_once(nowhere, monkeypatch, model, asked):
    from huggingface_hub import utils

    from vprompt.backbones import _asking

    heads = []
    answer = SimpleNamespace(head=lambda *a, **k: heads.append(a) or SimpleNamespace(status_code=9))
    monkeypatch.setattr(utils, "get_session", lambda: answer)
    _asking.ahead(model)
    assert list(_asking._ASKED) == ["http://127.0.0.1:9"] * asked
    if asked:
        assert _asking.problem("http://127.0.0.1:9") == ""
    assert len(heads) == asked


def test_an_address_that_did_not_answer_is_asked_again(nowhere, monkeypatch):
    from huggingface_hub import utils

    from vprompt.backbones import _asking

    assert _asking.problem("http://127.0.0.1:9")
    answer = SimpleNamespace(head=lambda *a, **k: SimpleNamespace(status_code=200))
    monkeypatch.setattr(utils, "get_session", lambda: answer)
    assert _asking.problem("http://127.0.0.1:9") == ""


def test_random_weights_are_said():
    from vprompt.backbones import timm_vit, tiny

    assert "random weights" in timm_vit.load(model="test_vit", pretrained=False).remark
    assert "random weights" in tiny.load().remark
