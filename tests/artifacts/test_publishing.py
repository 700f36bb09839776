"""Publishing: what a stranger sees of an artefact: a card that stands by itself, and no paths."""

import json
import re

import pytest
import yaml
from PIL import Image

FILES = ("adapter_config.json", "run.json", "README.md")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """An artefact of a person's own photographs, in a folder whose name is nobody's business."""
    from vprompt import TrainConfig, learn

    root = tmp_path_factory.mktemp("home") / "secret-customer"
    for name, colour in (("red", (250, 30, 20)), ("blue", (10, 40, 240))):
        for index in range(10):
            path = root / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), tuple(c + index // 2 for c in colour)).save(path)
    (root / "red" / "._private.png").write_bytes(b"")
    target = root.parent / "prompt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        learn(str(root), model=tiny, config=TrainConfig(epochs=1), output=target)
    return target


def test_a_card_says_what_it_is_for_and_names_no_folder(folder):
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert "secret" not in card and str(folder.parent) not in card
    assert "# Visual prompt for blue, red\n" in card and "2 classes: `blue`, `red`" in card
    assert "## Intended use and limits" in card and "12 training images, 6 of each class" in card
    assert "4 images of the same source. Of such images," in card and "evaluate" in card
    assert head["datasets"] == ["blue, red"] and "base_model" not in head
    assert "accuracy on 4 images" in head["model-index"][0]["results"][0]["metrics"][0]["name"]


def test_the_snippet_of_a_card_runs(folder, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), (250, 30, 20)).save("photo.jpg")
    exec(compile(code.replace("FOLDER", str(folder)), "card", "exec"), {})
    assert "red" in capsys.readouterr().out


def test_what_is_packed_names_no_place_and_is_a_sound_artefact(folder, tmp_path):
    from vprompt import load_artifact
    from vprompt.artifacts import hub

    parcel = hub.pack(folder, "me/colours")
    text = b"".join(parcel.files[name] for name in FILES).decode()
    assert "secret" not in text and str(folder.parent) not in text and "private" not in text
    assert 'vprompt.load("hf-hub:me/colours")' in text
    assert any("places of this disk are left out" in note for note in parcel.notes)
    (tmp_path / "sent").mkdir()
    for name, data in parcel.files.items():
        (tmp_path / "sent" / name).write_bytes(data)
    assert load_artifact(tmp_path / "sent").digest == load_artifact(folder).digest
    named = hub.pack(folder, "me/colours", title="Two colours")
    assert json.loads(named.files["adapter_config.json"])["task"]["name"] == "Two colours"
    assert "# Visual prompt for Two colours" in named.files["README.md"].decode()
    kept = hub.pack(folder, "me/colours", keep_places=True)
    assert kept.files["run.json"] == (folder / "run.json").read_bytes() and not kept.notes


def test_an_edited_card_is_sent_as_it_stands(folder, tmp_path):
    import shutil

    from vprompt.artifacts import artifact, hub

    shutil.copytree(folder, tmp_path / "edited")
    (tmp_path / "edited" / "README.md").write_text("# Mine\n")
    artifact.seal(tmp_path / "edited")
    parcel = hub.pack(tmp_path / "edited", "me/colours")
    assert parcel.files["README.md"].decode().endswith("# Mine\n")
    assert any("was edited" in note for note in parcel.notes)


def test_a_dry_run_shows_every_byte_and_sends_nothing(folder, vprompt, monkeypatch):
    from vprompt.artifacts import fetching, hub

    monkeypatch.setattr(fetching, "api", lambda: pytest.fail("the hub was asked"))
    code, out, _ = vprompt("share", "push", folder, "me/colours", "--dry-run")
    assert code == 0 and "nothing is sent; to me/colours, made private" in out
    for name, data in hub.pack(folder, "me/colours").files.items():
        assert f"== {name}, {len(data):,} bytes" in out
        if name in FILES:
            assert data.decode().strip() in out
    assert "head.weight [2, " in out and "secret" not in out


def test_places_of_a_combination_become_names():
    from vprompt.artifacts.publishing import published

    replay = {
        "models": [{"model": "/home/me/pool/birds"}, {"model": "hf-hub:you/cars@abc"}],
        "target": {"data": "photos/mine"},
    }
    config = {
        "label_names": ["a", "b"],
        "base_model_name_or_path": "local-dir:/home/me/vit",
        "recipe": {"pool": "/home/me/pool, hf-hub:you/cars", "replay": replay},
        "task": {"name": "mine"},
    }
    task = {"name": "mine", "facts": {"source": "table", "file": "mine.csv"}}
    method = "vpt(start='/home/me/pool/birds')"
    clean, record = published(config, {"task": task, "method": method})
    assert "/home" not in json.dumps([clean, record]) and "mine" not in json.dumps([clean, record])
    assert clean["recipe"]["replay"]["models"][1]["model"] == "hf-hub:you/cars@abc"
    assert clean["recipe"]["pool"] == "pool, hf-hub:you/cars"
    assert clean["base_model_name_or_path"] == "local-dir:vit"
    assert config["recipe"]["replay"]["target"]["data"] == "photos/mine"  # the original stays
