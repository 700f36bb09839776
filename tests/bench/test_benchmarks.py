"""The benchmarks' own command: what it lists, that every name runs, and what its results hold."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 1_000_000  # bytes of all packed results


@pytest.fixture(autouse=True)
def rooms(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def benchmarks(monkeypatch, capsys):
    """Return a function that runs `python -m benchmarks` here: `(exit, stdout)`."""

    def run(*words):
        main = importlib.import_module("benchmarks.__main__").main
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        try:
            main()
        except SystemExit as stopped:
            return stopped.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_the_list_has_a_line_for_every_name_and_imports_no_torch():
    code = (
        "import sys; sys.argv = ['benchmarks']; from benchmarks.__main__ import main; main(); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines() if line[:2] == "  "]
    names = [name for name, _ in lines]
    scripts = [p for p in (ROOT / "benchmarks").rglob("*.py") if "\ndef main(" in p.read_text()]
    assert len(names) == len(set(names)) == len(scripts) - 1  # but for the command itself
    assert all(summary.endswith((".", "?")) or "?" in summary for _, summary in lines)
    assert {"tables", "pools.sources", "speed.ratios"} <= set(names)


def test_every_name_says_how_it_is_called(benchmarks, monkeypatch):
    from benchmarks import __main__ as command

    known = command.commands()
    monkeypatch.setattr(command, "commands", lambda: known)  # every file is read for them
    for name in known:
        code, out = benchmarks(name, "--help")
        assert code == 0 and f"python -m benchmarks {name}" in out, name


def test_an_unknown_name_is_told_what_is_like_it(benchmarks):
    code, _ = benchmarks("pool.source")
    assert "No benchmark is called 'pool.source'. Did you mean pools.sources" in code


def test_commands_in_the_documents_are_commands_that_exist():
    from benchmarks.__main__ import commands

    known = commands().keys()
    pages = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    pages += [*(ROOT / "benchmarks").glob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    for page in pages:
        text = page.read_text()
        assert {*re.findall(r"-m benchmarks ([a-z_.]*[a-z])", text)} <= known, page
        assert not re.search(r"benchmarks/\w+\.py", text), page


def test_results_are_one_small_file_for_every_benchmark():
    from vprompt.bench.store import Store

    results = ROOT / "benchmarks" / "results"
    packed = list(results.rglob("*.jsonl.xz"))
    assert sum(path.stat().st_size for path in packed) < LIMIT
    for folder in (path.parent for path in results.glob("*/bench.json")):
        store = Store(folder)
        assert {cell.id for cell in store.cells()} <= store.finished().keys() or folder.name in (
            "ablation-200",
        )
        assert not (folder / "runs").exists()


def test_the_written_tables_are_those_of_the_results(tmp_path, monkeypatch, benchmarks):
    from benchmarks import ROOT as folder
    from benchmarks import tables

    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert benchmarks("tables")[0] == 0
    assert (tmp_path / "RESULTS.md").read_text() == (folder / "RESULTS.md").read_text()


def test_a_benchmark_finds_its_packed_records_and_adds_to_them(tmp_path, monkeypatch):
    from benchmarks import found_in
    from vprompt.results.records import Records

    records = Records(tmp_path / "transfer")
    for name in ("compare_b", "compare_a", "choose_a"):
        records.write(name, name)
    records.pack()
    records.write("compare_c", "compare_c")
    assert found_in(records, "compare") == ["compare_a", "compare_b", "compare_c"]
    assert len(found_in(records)) == 4


def test_the_walk_that_was_timed_is_the_one_on_the_page():
    import json

    from benchmarks import first_hour

    page = (ROOT / "docs" / "first-hour.md").read_text("utf-8")
    record = json.loads(first_hour.RESULT.read_text("utf-8"))
    assert [each["typed"] for each in record["walk"]] == [t for _, t in first_hour.typed_on(page)]
    assert abs(record["minutes"]["in all"] - first_hour.minutes(page, record["walk"])["in all"]) < 1
    assert record["minutes"]["in all"] < 15
    said = [(e["announced"], e["seconds"]) for e in (*record["walk"], *record["others"])]
    for announced, seconds in said:
        if announced is not None:
            assert 1 / 1.5 < seconds / announced < 1.5, (announced, seconds)
