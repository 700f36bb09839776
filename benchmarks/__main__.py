"""`python -m benchmarks NAME [options]`: run a benchmark; without a name, list what there is.

A name says where its file is: `pools.sources` is benchmarks/pools/sources.py.
"""

import ast
import difflib
import importlib
import sys

from benchmarks import ROOT

USAGE = "python -m benchmarks NAME [options]; `python -m benchmarks NAME --help` says which."


def main() -> None:
    """Run the benchmark that is named, or list all."""
    known = commands()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(listing(known))
        return
    name = sys.argv[1]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        sys.exit(f"No benchmark is called {name!r}.{meant} `python -m benchmarks` lists them all.")
    sys.argv = [f"python -m benchmarks {name}", *sys.argv[2:]]
    importlib.import_module(f"benchmarks.{name}").main()


def commands() -> dict[str, str]:
    """Return what each benchmark is for, by name, from the files' first lines: none is imported."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name != "__main__" and any(getattr(node, "name", "") == "main" for node in tree.body):
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def listing(known: dict[str, str]) -> str:
    """Return the names with a line each, those of a folder together."""
    width = max(map(len, known)) + 2
    rooms: dict[str, list[str]] = {}
    for name, line in known.items():
        rooms.setdefault(name.rpartition(".")[0], []).append(f"  {name:<{width}}{line}")
    return "\n\n".join([USAGE, *("\n".join(lines) for lines in rooms.values())])


if __name__ == "__main__":
    main()
