"""Wide: JSON in lines that are filled, to be read by people and small in a checkout."""

import json
from typing import Any

WIDTH = 100


def wide_json(value: Any) -> str:
    """Return the text of a JSON file, keys sorted, with as many values on a line as fit."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # no tuples, no keys but texts
    return _written(plain, "", WIDTH) + "\n"


def _written(value: Any, indent: str, room: int) -> str:
    plain = json.dumps(value, sort_keys=True)
    if len(plain) <= room or not isinstance(value, dict | list):
        return plain
    keyed = isinstance(value, dict)
    inner, (opening, closing) = f"{indent}  ", "{}" if keyed else "[]"
    lines = [""]
    for item in sorted(value) if keyed else value:
        key, each = (f"{json.dumps(item)}: ", value[item]) if keyed else ("", item)
        text = f"{key}{_written(each, inner, WIDTH - len(inner) - len(key) - 1)},"
        simple = not isinstance(each, dict | list)
        if simple and lines[-1] and len(inner) + len(lines[-1]) + 1 + len(text) <= WIDTH:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
            if not simple:
                lines.append("")
    body = "".join(f"\n{inner}{line}" for line in lines if line)
    return f"{opening}{body[:-1]}\n{indent}{closing}"
