"""The two-tower model of real parts: words, where they point, and tables; nothing is fetched."""

from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
pytest.importorskip("open_clip")


@pytest.fixture(autouse=True)
def rooms(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def task():
    from vprompt.data.task import SealedSplit, Split, Task

    def split(name, count):
        labels = tuple(label for label in range(5) for _ in range(count))
        pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
        return Split(name, pixels, labels)

    names = ("Faces", "water_lilly", "ant", "Leopards", "crab")
    test = SealedSplit(split("test", 50))
    return Task("caltech101", names, split("train800", 6), split("val200", 3), test)


def test_classes_are_called_as_a_person_would(task):
    from benchmarks.searching import words

    named = words.SETS["caltech101"].named(task)
    assert named.classes == ("face", "water lily", "ant", "leopard", "crab")
    assert named.templates == ("a photo of a {}.",)
    assert len(set(words.SIGNS)) == 43 and len(words.DIGITS) == 10
    for each in words.SETS.values():
        assert each.template.count("{}") == 1
        assert len(set((each.renamed or {}).values())) == len(each.renamed or {})


def test_the_corpus_holds_every_name_alone_and_in_sentences_and_is_the_same_again():
    from benchmarks.searching import words

    found = words.corpus(["tench", "yin yang symbol"], things=3, sentences=6)
    assert found == words.corpus(["tench", "yin yang symbol"], things=3, sentences=6)
    assert {"tench", "yin yang symbol"} <= set(found) and len(found) == len(set(found))
    assert sum("tench" in text for text in found) == 7 and len(found) > 2 * 7 + 3


def test_short_texts_are_read_as_the_tower_reads_them_at_full_length(monkeypatch):
    from benchmarks.searching import text_tower

    small = {"context_length": 12, "vocab_size": 200, "width": 24, "heads": 2, "layers": 2}
    monkeypatch.setattr(text_tower, "TEXT_CONFIG", {**text_tower.TEXT_CONFIG, **small})
    tower = text_tower.blank(8).eval()
    ids = text_tower.padded([[101, 5, 102], [101, 6, 7, 8, 102]])
    whole = torch.nn.functional.pad(ids, (0, 12 - ids.shape[1]))
    with torch.no_grad():
        found = tower.text_projection(text_tower.pooled(tower, ids))
        torch.testing.assert_close(found, tower(whole))


def test_every_text_is_learned_from_once_an_epoch():
    from benchmarks.searching.text_tower import _batches

    tokens = [[0] * (3 + row % 9) for row in range(50)]
    parts = list(_batches(tokens, 8, 0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(50)) and max(map(len, parts)) <= 8
    assert [p.tolist() for p in parts] != [p.tolist() for p in _batches(tokens, 8, 1)]


@pytest.fixture
def meaning(generator):
    from benchmarks.searching.real_clip import Meaning

    read, classifier = (torch.randn(30, size, generator=generator) for size in (20, 12))
    return read, classifier, Meaning.of(read + 1.0, classifier + 3.0)


def test_a_text_like_a_known_class_points_where_its_weights_do(meaning):
    read, classifier, found = meaning
    goals = torch.nn.functional.normalize(found.goals(read + 1.0, 40.0), dim=1)
    own = torch.nn.functional.normalize(classifier - classifier.mean(0), dim=1)
    assert (goals @ own.T).argmax(1).tolist() == list(range(30))
    # Between two of them it points between.
    middle = found.average + found.names[:2].sum(0)
    assert set((found.goals(middle[None], 40.0) @ own.T)[0].topk(2).indices.tolist()) == {0, 1}


def test_what_is_chosen_recognises_classes_by_words_alone(meaning, generator):
    from benchmarks.searching import real_clip

    read, classifier, found = meaning

    def a_set(rows, moved):
        labels = torch.arange(len(rows)).repeat_interleave(12)
        noise = torch.randn(len(labels), 12, generator=generator)
        features = classifier[rows][labels] + 0.5 * noise + moved
        return real_clip.Seen(features, labels, [""] * len(rows), read[rows] + 1.0)

    seen = {f"set {row}": a_set(torch.randperm(30)[:15], 5.0) for row in range(3)}
    assert (real_clip.centre(seen) - 5.0).abs().max() < 1.5
    sharpness, tried = real_clip.chosen_sharpness(found, seen)
    assert tried.keys() == seen.keys() and min(tried.values()) > 0.9
    goals = {name: found.goals(each.read, sharpness) for name, each in seen.items()}
    scale, again = real_clip.chosen_scale(seen, goals)
    assert again == tried and scale > 5


def test_a_tower_is_distilled_once_to_goals_of_another_width(tmp_path, monkeypatch, generator):
    from types import SimpleNamespace

    from benchmarks.searching import text_tower

    small = {"context_length": 12, "vocab_size": 200, "width": 24, "heads": 2, "layers": 2}
    monkeypatch.setattr(text_tower, "TEXT_CONFIG", {**text_tower.TEXT_CONFIG, **small})
    monkeypatch.setattr(text_tower, "start_from", lambda tower, bert: None)
    texts = [f"{row} {row + 7}" for row in range(40)]

    def tokens(texts, **_):
        return {"input_ids": [[101, *(int(word) + 1 for word in t.split()), 102] for t in texts]}

    def goals():
        calls.append(1)
        return tuple(torch.randn(40, size, generator=generator) for size in (24, 8))

    calls, teacher = [], SimpleNamespace(tokenizer=tokens, bert=None)
    given = (tmp_path / "tower.safetensors", teacher, texts, goals, {"epochs": 25, "sharpness": 16})
    tower, facts = text_tower.trained(*given)
    assert facts["cosines"]["goal"][-1] > facts["cosines"]["goal"][0] + 0.2
    again, known = text_tower.trained(*given)
    assert known == facts and len(calls) == 1
    for found in (tower, again):
        assert text_tower.features_of(found, tokens, texts).shape == (40, 8)
    assert torch.equal(*(text_tower.features_of(t, tokens, texts) for t in (tower, again)))


def test_base_and_new_classes_share_nothing_and_tests_are_few(task, monkeypatch):
    from benchmarks.searching import real_clip, real_few_shot

    monkeypatch.setattr(real_clip, "open_set", lambda data, name: task)
    base, new = (real_few_shot.half(Path(), "five", part) for part in ("base", "new"))
    assert base.classes + new.classes == task.classes and len(base.classes) == 3
    assert base.class_counts() == [6, 6, 6] and new.class_counts() == [6, 6]
    assert base.test.images_per_class == (real_few_shot.TESTS,) * 3


def test_tables_hold_complete_runs_alone(tmp_path):
    from benchmarks.searching.real_tables import real_tables
    from vprompt.results.records import Records

    records = Records(tmp_path / "real")
    assert real_tables(records) == ""
    rows = {"zero-shot": {"base": 0.5, "new": 0.6, "hm": 0.55}, "linear probe": {"base": 0.7}}
    rows["uniform of equal parameters"] = {"base": 0.6, "new": 0.5, "hm": 0.54}
    run = {"set": "pacs", "shots": 1, "image_size": 128, "rows": rows, "complete": True}
    found = {"image": [2, 0], "text": [0, 4]}
    for draw in (1, 2):
        more = {"draw": draw, "found": found, "search": {"gap": {"gap": 0.1}}}
        records.write(f"few_shot_128px_pacs_1shots_draw{draw}", {**run, **more})
    records.write("few_shot_128px_pacs_1shots_draw3", {**run, "draw": 3, "complete": False})
    told = {"set": "cifar100", "classes": 100, "model": {"image_size": 224}}
    told["test"] = {"written": {"acc1": 0.41}, "folders": {"acc1": 0.4}}
    records.write("zero_shot_cifar100", told)
    text = real_tables(records)
    assert "| cifar100 | 100 | 224 | 41.0 | 40.0 | 34 |" in text
    assert "2 draws of pacs (2 runs)" in text
    assert "| linear probe | 70.0 | - | - | +20.0 (+20.0 to +20.0) |" in text
    assert "| pacs | 1 | 2.0 | 4.0 | 2.0 | +10.0 |" in text
