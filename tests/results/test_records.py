"""Records: result files, packed into one and read as before, with nothing lost on the way."""

import json
import lzma

import pytest

FOUND = {
    "a_seed0": {"accuracy": 0.1 + 0.2, "name": "Straße", "none": None, "rows": [1, 2.5e-17]},
    "a_seed1": {"accuracy": 1.0, "text": "two\nlines\u2028and more"},
    "b_seed0": [1, 2, 3],
}


@pytest.fixture
def records(tmp_path):
    """Return the records of a folder that holds three."""
    from vprompt.results.records import Records

    made = Records(tmp_path / "runs")
    for name, record in FOUND.items():
        made.write(name, record)
    return made


def files(records):
    return {path.name: path.read_bytes() for path in records.folder.glob("*")}


def test_what_is_packed_reads_as_it_was_and_comes_back_byte_for_byte(records):
    before = files(records)
    done = records.pack()
    assert (done.records, done.added, done.left) == (3, 3, ())
    assert done.bytes_before == sum(map(len, before.values()))
    assert done.bytes_after == records.packed.stat().st_size
    assert not records.folder.exists() and records.names() == sorted(FOUND)
    assert dict(records.find()) == FOUND and "b_seed0" in records and "b" not in records
    assert [name for name, _ in records.find("a_*")] == ["a_seed0", "a_seed1"]
    assert records.unpack() == 3
    assert files(records) == before and not records.packed.exists()


def test_the_packed_file_is_lines_of_json_that_others_can_read(records):
    records.pack()
    lines = lzma.decompress(records.packed.read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": name, "record": FOUND[name]} for name in sorted(FOUND)
    ]


def test_the_bytes_are_the_same_in_whatever_order_and_steps(records, tmp_path):
    from vprompt.results.records import Records

    records.pack()
    other = Records(tmp_path / "other")
    for name in reversed(FOUND):
        other.write(name, FOUND[name])
        other.pack()
    assert other.packed.read_bytes() == records.packed.read_bytes()
    stamp = other.packed.stat().st_mtime_ns
    assert other.pack().added == 0 and other.packed.stat().st_mtime_ns == stamp


def test_a_record_that_was_written_since_counts_and_replaces_the_packed_one(records):
    records.pack()
    records.write("b_seed0", "newer")
    assert records.read("b_seed0") == "newer" and records.names() == sorted(FOUND)
    done = records.pack()
    assert (done.records, done.added) == (3, 1) and records.read("b_seed0") == "newer"


def test_a_file_that_could_not_come_back_as_it_was_stays(records):
    for name, text in {"hand": '{"b": 1, "a": 2}', "nan": '{"a": NaN}', "torn": '{"a'}.items():
        (records.folder / f"{name}.json").write_text(text)
    (records.folder / ".draft.json").write_text("{}")
    done = records.pack()
    assert done.left == ("hand", "nan", "torn") and done.records == 3
    assert records.read("hand") == {"b": 1, "a": 2}
    assert (records.folder / ".draft.json").is_file()


def test_nothing_goes_before_the_packed_file_is_there_and_right(records, monkeypatch):
    from vprompt.core.errors import VPromptError
    from vprompt.results import records as module

    before = files(records)
    whole = module._compressed
    monkeypatch.setattr(
        module, "_compressed", lambda lines: whole({k: lines[k] for k in sorted(lines)[1:]})
    )
    with pytest.raises(VPromptError, match="so nothing was packed"):
        records.pack()
    assert files(records) == before and not records.packed.exists()


def test_stopped_between_packing_and_removing_it_goes_on(records, monkeypatch):
    from pathlib import Path

    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: missing_ok or stop(path))
        records.pack()
    assert records.packed.is_file() and dict(records.find()) == FOUND
    records.pack()
    assert not records.folder.exists() and dict(records.find()) == FOUND


def test_what_is_missing_or_damaged_is_named(records, tmp_path):
    from vprompt.core.errors import VPromptError
    from vprompt.results.records import Records

    with pytest.raises(VPromptError, match=r"No file at .*c_seed0\.json"):
        records.read("c_seed0")
    with pytest.raises(VPromptError, match=r"no \.json file to pack"):
        Records(tmp_path / "none").pack()
    with pytest.raises(VPromptError, match=r"no .*runs\.jsonl\.xz to unpack"):
        records.unpack()
    records.pack()
    data = records.packed.read_bytes()
    for damaged in (data[:-20], b"no xz", lzma.compress(b'{"id": 1}\n')):
        records.packed.write_bytes(damaged)
        with pytest.raises(VPromptError, match="is damaged"):
            records.names()
