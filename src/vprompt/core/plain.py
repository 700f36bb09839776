"""Plain: texts of strangers, so that terminals, cards, tables and spreadsheets only show them.

Names of folders, classes, sources and methods may hold anything; nothing of it is to be obeyed.
"""

import re
from typing import Any

_LOST = "\N{REPLACEMENT CHARACTER}"
_MARKS = re.compile(r"([\\|`<>\[\]])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """Return text without control characters: a stranger's label must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else _LOST for c in text)


def line(text: Any) -> str:
    """Return a text as one line without control characters."""
    return "".join(c if c.isprintable() else _LOST for c in str(text))


def in_markdown(text: Any) -> str:
    """Return a text as one line that Markdown shows as it is: no cell, link, code or HTML in it."""
    return _MARKS.sub(r"\\\1", line(text))


def in_code(text: Any) -> str:
    """Return a text as one line that may stand between backticks in Markdown."""
    return line(text).replace("`", "'")


def in_cell(text: Any) -> Any:
    """Return what a spreadsheet shows and does not compute: an apostrophe before a formula's sign.

    Numbers stay as they are.
    """
    if not isinstance(text, str) or not text.lstrip(" ").startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
