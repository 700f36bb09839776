"""Registry: one string for a plug-in and its settings, and an answer to every typing mistake."""

import inspect
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = ("adapters", "backbones", "metrics", "tasks", "transfer")
WORDS = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.tuples(SCALARS, SCALARS))


@settings(max_examples=100, deadline=None)
@given(WORDS, st.dictionaries(WORDS.map(lambda word: f"{word}_"), VALUES, max_size=4))
def test_writing_a_spec_and_reading_it_back_changes_nothing(name, chosen):
    from vprompt.core.registry import Spec, parse

    spec = Spec(name, chosen)
    again = parse(str(spec))
    assert again == spec
    assert [type(v) for v in again.settings.values()] == [
        type(spec.settings[k]) for k in again.settings
    ]
    assert str(again) == str(spec)


@pytest.mark.parametrize("word", ["if", "lambda", "None", "True", "not", "a²", "aµ", "inf"])
def test_words_that_python_reads_otherwise_survive_too(word):
    from vprompt.core.registry import Spec, parse

    assert parse(str(Spec("plug", {"value": word}))).settings == {"value": word}


@pytest.mark.parametrize(
    "text, name, chosen",
    [
        ("hgprompt", "hgprompt", {}),
        ("hgprompt()", "hgprompt", {}),
        ("  hgprompt ( ) ", "hgprompt", {}),
        ("elpv(target=module)", "elpv", {"target": "module"}),
        (
            "vpt(deep=True, num_virtual_tokens=[1, 0])",
            "vpt",
            {"deep": True, "num_virtual_tokens": [1, 0]},
        ),
        ("folder(root='/a, b/(c)')", "folder", {"root": "/a, b/(c)"}),
        ("x(rate=-1e-3, n=None)", "x", {"rate": -1e-3, "n": None}),
        ("x(a=1,\n  b=2,)", "x", {"a": 1, "b": 2}),
    ],
)
def test_specs_are_read_as_a_person_types_them(text, name, chosen):
    from vprompt.core.registry import Spec, parse

    assert parse(text) == Spec(name, chosen)


def test_settings_are_written_in_one_order():
    from vprompt.core.registry import parse

    assert str(parse("x(b=two, a=1)")) == str(parse("x(a=1, b='two')")) == "x(a=1, b=two)"


def test_a_hyphen_in_a_name_means_the_same_with_and_without_settings():
    from vprompt.core.registry import parse

    assert parse("timm-vit").name == parse("timm-vit(seed=1)").name == "timm_vit"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ("Cannot read ''", "name and its settings")),
        ("x(", ("Cannot read", "name and its settings")),
        ("x)", ("Cannot read", "name and its settings")),
        ("x(a=)", ("settings of", r"name\(key=value\)")),
        ("x(a=b c)", ("settings of", "quotes around values")),
        ("x(a=/tmp/x)", ("settings of", "quotes")),
        ("x(a=b/c)", ("value 'b / c'", "quotes")),
        ("x(a=open('f'))", ("value", "open", "quotes")),
        ("x(3)", ("needs its name", r"x\(key=value\)")),
        ("x(**{'a': 1})", ("needs its name",)),
    ],
)
def test_specs_that_cannot_be_read_say_what_to_write(text, words, refused):
    from vprompt.core.registry import parse

    with refused(*words):
        parse(text)


@pytest.mark.parametrize("text", ["x(a=1),y(b=2)", "x(a=1)(b=2)", "x(a=1)+f(b=2)", "x(a=1) or y()"])
def test_more_than_one_plug_in_in_a_spec_is_refused(text, refused):
    from vprompt.core.registry import parse

    with refused("Cannot read"):
        parse(text)


def test_a_setting_given_twice_is_refused(refused):
    from vprompt.core.registry import parse

    with refused("x", "a"):
        parse("x(a=1, a=2)")


# Finding.


@pytest.mark.parametrize("kind", KINDS)
def test_the_plug_ins_of_a_kind_are_the_files_of_its_folder(kind):
    from pathlib import Path

    import vprompt
    from vprompt.core import registry

    folder = Path(vprompt.__file__).parent / kind
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert registry.names(kind) == sorted(files)


def test_every_kind_is_known():
    from vprompt.core import registry

    assert sorted(registry.VERBS) == sorted(KINDS)


def test_listing_plug_ins_imports_neither_torch_nor_timm():
    code = (
        "import sys; from vprompt import registry; "
        "print([registry.names(kind) for kind in registry.VERBS]); "
        "heavy = {'torch', 'timm', 'sklearn', 'scipy', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hgprompt" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_plug_in_has_a_summary_and_settings_with_defaults(kind):
    from vprompt.core import registry

    for name in registry.names(kind):
        text = registry.summary(kind, name)
        assert text.endswith(".") and ":" in text and len(text) < 120, name
        parameters = inspect.signature(registry.find(kind, name)).parameters.values()
        known = registry.settings(kind, name)
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                assert parameter.name in known or parameter.name == "generator"
            else:
                # What the stage hands over comes by position, and every plug-in needs it.
                assert parameter.default is inspect.Parameter.empty, (name, parameter.name)
        required = [k for k, v in known.items() if v is inspect.Parameter.empty]
        assert not required or kind == "tasks", name  # only a task needs to be told where it is
        assert inspect.getdoc(registry.find(kind, name)), name
        paper = registry.reference(kind, name)
        assert paper is None or len(paper) > 20, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_shown_signature_reads_back_as_the_defaults(kind):
    from vprompt.core import registry

    for name in registry.names(kind):
        known = registry.settings(kind, name)
        if inspect.Parameter.empty not in known.values():
            assert registry.parse(name + registry.signature(kind, name)).settings == known


def test_a_required_setting_is_shown_as_dots():
    from vprompt.core import registry

    assert registry.signature("tasks", "folder").startswith("(root=..., ")


def test_a_reference_is_the_papers_line():
    from vprompt.core import registry

    assert "arXiv 2504.12311" in registry.reference("transfer", "hgprompt")
    assert registry.reference("transfer", "uniform") is None


def test_a_misspelt_plug_in_is_answered_with_the_nearest(refused):
    from vprompt.core import registry

    with refused("No transfer method called 'unifrom'", "Did you mean 'uniform'", "hgprompt"):
        registry.build("transfer", "unifrom")


def test_a_name_like_no_other_is_answered_with_the_list(refused):
    from vprompt.core import registry

    with refused("No metric called 'zzz'. There are: .*hscore"):
        registry.find("metrics", "zzz")


def test_a_misspelt_kind_is_answered_with_the_nearest(refused):
    from vprompt.core import registry

    with refused("No kind of plug-in called 'transfers'", "Did you mean 'transfer'"):
        registry.names("transfers")


def test_an_unknown_setting_is_answered_with_all_there_are(refused):
    from vprompt.core import registry

    with refused("hgprompt has no setting 'lamda'", "Did you mean 'lambda_'", "preset='robust'"):
        registry.build("transfer", "hgprompt(lamda=2)")


def test_a_plug_in_without_settings_says_so(refused):
    from vprompt.core import registry

    with refused("uniform has no setting 'power'", "no settings"):
        registry.build("transfer", "uniform(power=2)")


def test_building_binds_the_settings_and_leaves_the_rest_at_their_defaults():
    from vprompt.core import registry
    from vprompt.transfer.hgprompt import weigh

    built = registry.build("transfer", "hgprompt(score=trace_ratio)")
    assert (built.func, built.keywords) == (weigh, {"score": "trace_ratio"})


def test_another_package_can_bring_a_plug_in(monkeypatch):
    import importlib.metadata

    from vprompt.core import registry

    before = registry.names("transfer")
    entry = importlib.metadata.EntryPoint("shouting", "builtins:print", "vprompt.transfer")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [entry] if group == "vprompt.transfer" else [],
    )
    assert registry.names("transfer") == sorted([*before, "shouting"])
    assert registry.find("transfer", "shouting") is print
    assert "shouting" not in registry.names("metrics")
