"""Shape of the package: public names, the direction of imports, and what may stand where."""

import ast
import functools
import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "vprompt"
FILES = sorted(ROOT.rglob("*.py"))
PLUGINS = {"backbones", "tasks", "adapters", "transfer", "metrics"}
# From the bottom up: a room imports those of earlier lines, and its own files.
ROOMS = (
    "core",
    "prompts data",
    "models",
    "artifacts",
    "learning",
    "opening stages",
    "pooling",
    "verbs",
    "results",
    "backbones tasks adapters transfer metrics",
    "outcome",
    "flow",
    "searching",
    "inference report",
    "exchange web",
    "bench",
    "cli",
    "__main__",
)


def module_name(path):
    """Return `transfer.best` for `transfer/best.py`, `transfer` for its folder, `` for the root."""
    return (
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")
    )


MODULES = {module_name(path): path for path in FILES}


def every_file(check):
    """Make one test of a check that each file has to pass; every file that fails is named."""

    def test():
        failed = []
        for path in FILES:
            try:
                check(path)
            except AssertionError as error:
                failed.append(f"{path.relative_to(ROOT)}: {error}")
        assert not failed, "\n".join(failed)

    test.__name__ = check.__name__
    return test


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Return the absolute name of everything a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path):
    """Return the modules of this package that a file imports."""
    found = set()
    for name in imported(path):
        parts = name.split(".")[1:] if name.split(".")[0] == "vprompt" else None
        while parts and ".".join(parts) not in MODULES:
            parts.pop()
        if parts:
            found.add(".".join(parts))
    return found


def line(module):
    """Return the line of `ROOMS` that a module's room stands in."""
    room = module.partition(".")[0]
    return next((row for row, rooms in enumerate(ROOMS) if room in rooms.split()), None)


def calls(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


# Public names


def test_all_is_what_can_be_imported_lazily():
    import vprompt

    assert set(vprompt.__all__) == {*vprompt._HOMES, "VPromptError"}
    assert vprompt.__all__ == sorted(vprompt.__all__)


def test_every_public_name_is_what_its_home_says():
    import importlib

    import vprompt

    for name, (home, attribute) in vprompt._HOMES.items():
        assert getattr(vprompt, name) is getattr(importlib.import_module(home), attribute)
    assert issubclass(vprompt.VPromptError, ValueError)


def test_an_unknown_name_is_an_attribute_error():
    import vprompt

    with pytest.raises(AttributeError, match="no attribute 'larn'"):
        vprompt.larn  # noqa: B018


def test_type_checkers_see_the_same_names():
    [block] = [node for node in tree(ROOT / "__init__.py").body if isinstance(node, ast.If)]
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    import vprompt

    assert seen == set(vprompt._HOMES)


# Directions


def test_every_entry_of_the_package_has_its_line():
    entries = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert entries - {"__init__"} == {room for rooms in ROOMS for room in rooms.split()}


@every_file
def test_imports_point_downwards(path):
    me = module_name(path)
    for other in own_imports(path) if me else ():  # the front hands out what is below
        same = me.partition(".")[0] == other.partition(".")[0]
        assert same or line(other) < line(me) or plug_ins(me, other), f"{me} imports {other}"


def picture(page):
    """Return the rooms of a page's picture, a list for every line, from the top down."""
    text = (ROOT.parents[1] / page).read_text(encoding="utf-8")
    drawn = text[text.index("    cli/ ") :].partition("\n\n")[0]
    known = {room + "/" * (ROOT / room).is_dir() for rooms in ROOMS for room in rooms.split()}
    lines = [re.sub("[├└─│]", " ", row).split() for row in drawn.splitlines()]
    return [[*itertools.takewhile(known.__contains__, words)] for words in lines]


def test_the_picture_in_the_documents_shows_all_rooms_and_no_import_runs_up_in_it():
    lines = picture("docs/concepts.md")
    assert lines == picture("CONTRIBUTING.md")
    place = {room.strip("/"): row for row, rooms in enumerate(lines) for room in rooms}
    assert {*place} == {*" ".join(ROOMS).split()} - {"__main__"}
    for me, path in MODULES.items():
        for other in own_imports(path) if me and me != "__main__" else ():
            mine, theirs = (module.partition(".")[0] for module in (me, other))
            up = place[mine] > place[theirs] and not plug_ins(me, other)
            assert not up, f"{me} imports {other}, which stands above it"


def plug_ins(*modules):
    """Say that both are plug-ins, whose imports have a rule of their own."""
    return all(module.partition(".")[0] in PLUGINS for module in modules)


def test_every_package_says_what_lives_there_and_what_may_not():
    for init in [path for path in FILES if path.stem == "__init__"]:
        assert len(ast.get_docstring(tree(init)).splitlines()) >= 3, init


def test_no_module_imports_itself_through_others():
    below = {module: own_imports(path) for module, path in MODULES.items() if module}
    done = set()

    def visit(module, trail):
        assert module not in trail, f"a circle: {' -> '.join([*trail, module])}"
        if module not in done:
            for other in below[module]:
                visit(other, [*trail, module])
            done.add(module)

    # A folder's `__init__` re-exports its files, so only files count here.
    for module in below:
        below[module] -= {other for other in below[module] if MODULES[other].stem == "__init__"}
    for module in below:
        visit(module, [])


@every_file
def test_plug_ins_do_not_import_one_another(path):
    me = module_name(path)
    kind = me.partition(".")[0]
    if kind not in PLUGINS:
        return
    for other in own_imports(path):
        other_kind, _, other_name = other.partition(".")
        if other_kind not in PLUGINS or other in (me, kind):
            continue
        shared = other_kind == kind and other_name.startswith("_")
        parents = {"backbones.timm_vit", "backbones.open_clip"}
        family = {me, other} & parents and other_kind == kind == "backbones"
        scores = (kind, other_kind) == ("transfer", "metrics")
        assert shared or family or scores, f"{me} imports {other}"


@every_file
def test_model_libraries_are_known_to_backbones_alone(path):
    if "backbones" not in path.parts:
        assert not {name.split(".")[0] for name in imported(path)} & {"timm", "open_clip"}


@every_file
def test_the_network_is_known_to_the_hub_and_to_backbones_alone(path):
    network = {"huggingface_hub", "requests", "httpx", "urllib", "socket", "http"}
    if path.name == "listening.py" and "web" in path.parts:
        network -= {"socket"}  # it takes calls and makes none
    if path.name not in ("hub.py", "fetching.py") and "backbones" not in path.parts:
        assert not {name for name in imported(path) if name.split(".")[0] in network}


@every_file
def test_only_the_command_line_prints(path):
    if not module_name(path).startswith("cli"):
        names = [node.func.id for node in calls(path) if isinstance(node.func, ast.Name)]
        assert "print" not in names
        assert "typer" not in {name.split(".")[0] for name in imported(path)}


@every_file
def test_what_is_printed_cannot_steer_a_terminal(path):
    """Every text of a stranger is made printable, or is JSON, which escapes control characters."""
    name = module_name(path)
    if not name.startswith("cli") or name == "cli.terminal":
        return
    for node in calls(path):
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            made = {each.func for each in ast.walk(node.args[0]) if isinstance(each, ast.Call)}
            named = {ast.unparse(function).rpartition(".")[2] for function in made}
            assert named & {"printable", "dumps", "as_json"}, ast.unparse(node)


@every_file
def test_nothing_is_ever_unpickled(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in calls(path):
        name = ast.unparse(node.func)
        assert name not in ("torch.save", "torch.jit.load")
        if name == "torch.load":  # reads the state dicts of other programs, and no code in them
            safe = [k for k in node.keywords if k.arg == "weights_only"]
            assert safe and safe[0].value.value is True, "torch.load without weights_only=True"
            assert "backbones" in path.parts
        if name in ("np.load", "numpy.load"):
            safe = [k for k in node.keywords if k.arg == "allow_pickle"]
            assert safe and safe[0].value.value is False, "np.load without allow_pickle=False"


@every_file
def test_nothing_global_is_seeded(path):
    names = {ast.unparse(node.func) for node in calls(path)}
    assert not names & {"np.random.seed", "random.seed"}
    if "torch.manual_seed" in names:  # then within a fork that is thrown away
        assert "torch.random.fork_rng" in names


# Words and sizes


@every_file
def test_every_module_class_and_function_says_what_it_is(path):
    module = tree(path)
    assert ast.get_docstring(module), path
    for node in module.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not public:
            continue
        assert ast.get_docstring(node), f"{path}: {node.name}"
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"{path}: {node.name}.{method.name}"


@every_file
def test_a_file_is_short_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_a_checkout_without_its_history_is_small():
    """Results are packed (`vprompt bench pack`), figures lean, pools a few kilobytes a prompt."""
    root = ROOT.parents[1]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout")
    files = [root / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 12e6


@pytest.mark.parametrize("verb", ["learn", "combine"])
def test_a_main_line_fits_on_one_page(verb):
    [function] = [node for node in tree(ROOT / "flow.py").body if getattr(node, "name", "") == verb]
    assert function.end_lineno - function.lineno < 60
    assert [argument.arg for argument in function.args.args] == ["task", "settings"]


def test_there_is_no_file_for_what_found_no_place():
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "misc", "common"}
