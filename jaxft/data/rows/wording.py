"""Words for values and for names of fields, for error messages.

`kind([])` is "an empty list", and `names(["prompt", "id"])` is `"prompt", "id"`. Whatever a row
holds, the words are short, stand on one line and can be printed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

_LONGEST = 60
_MOST_NAMES = 20


def kind(value: object) -> str:
    """Return the type of a value in words, such as "a number"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def shown(name: object) -> str:
    """Return a name or a text, shortened and without control codes or half characters."""
    text = str(name)
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(name: object) -> str:
    """Return the result of `shown` in double quotes."""
    return f'"{shown(name)}"'


def names(of: Collection[object]) -> str:
    """Return names in double quotes with commas between them, such as `"prompt", "id"`."""
    listed = ", ".join(map(quoted, itertools.islice(of, _MOST_NAMES)))
    left = len(of) - _MOST_NAMES
    return f"{listed} and {left:,} more" if left > 0 else listed or "none"
