"""Reach: without a network a model is read from the disk at once, or refused in seconds."""

import time

import pytest
from huggingface_hub import constants


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A hub's address at which nobody listens, and an empty store of its library."""
    from vprompt.backbones import _reach

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(_reach, "_REACHED", set())
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "hf-hub:org/vit@main"])
def test_a_model_that_is_not_on_disk_is_refused_in_under_five_seconds(nowhere, refused, name):
    from vprompt import open_backbone

    began = time.perf_counter()
    with refused("not on this disk", "does not answer", "demo", "local-dir:", "checkpoint="):
        open_backbone(name)
    assert time.perf_counter() - began < 5


def test_a_host_that_never_answers_costs_no_more(nowhere, monkeypatch):
    from huggingface_hub import utils

    from vprompt.backbones import _reach

    monkeypatch.setattr(_reach, "SECONDS", 0.1)
    monkeypatch.setattr(utils, "get_session", lambda: time.sleep(60))
    assert "no answer" in _reach._problem("http://10.255.255.1")


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


def test_random_weights_are_said():
    from vprompt.backbones import timm_vit, tiny

    assert "random weights" in timm_vit.load(model="test_vit", pretrained=False).remark
    assert "random weights" in tiny.load().remark
