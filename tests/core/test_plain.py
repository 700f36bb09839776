"""Plain: what strangers call things is shown, never obeyed."""

import pytest


@pytest.mark.parametrize(
    "text, cell",
    [
        ("=1+1", "'=1+1"),
        ("@sum", "'@sum"),
        ("-cmd", "'-cmd"),
        (" =1", "' =1"),
        ("-1.5", "-1.5"),
        ("+1e3", "+1e3"),
        ("cat", "cat"),
        (-2, -2),
    ],
)
def test_a_spreadsheet_computes_nothing(text, cell):
    from vprompt.core.plain import in_cell

    assert in_cell(text) == cell


def test_markdown_shows_a_name_as_it_is():
    from vprompt.core.plain import in_code, in_markdown

    assert in_markdown("a|b<i>`c`\n[x](y)") == "a\\|b\\<i\\>\\`c\\`\ufffd\\[x\\](y)"
    assert in_code("a`b\x1b[2J") == "a'b\ufffd[2J"
    assert in_markdown("few_shot(a=1)") == "few_shot(a=1)"


def test_a_terminal_is_not_steered():
    from vprompt.core.plain import printable

    assert printable("a\x1b[31mb\r\n\ud800") == "a\ufffd[31mb\ufffd\n\ufffd"


def test_wide_json_is_the_same_value_in_fewer_lines():
    import json

    from vprompt.core.wide import WIDTH, wide_json

    long = "a text that is longer than a line of these files may be, " * 3
    value = {"b": [1, 2.5, None, True], "a": {"deep": [*range(60)], "text": long, 3: ()}, "c": {}}
    text = wide_json(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    lines = text.splitlines()
    assert any("[1, 2.5, null, true]" in line for line in lines) and text.endswith("}\n")
    assert all(len(line) <= WIDTH for line in lines if long not in line)
