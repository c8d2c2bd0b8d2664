"""What the scripts that prepare rows share: reading, writing, and telling texts that are alike.

`is_alike("Add the file foo.py", "Add the file bar.py")` is true: a model that has seen one of them
has nearly seen the other, so they must not stand on both sides of a split.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, str]

# Two texts are alike when this part of their characters stands in both, in the same order.
ALIKE = 0.85


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON Lines, and say how many."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{path}: {len(rows)} rows, {len(text.encode()):,} bytes")


def is_alike(one: str, two: str) -> bool:
    """Return whether two texts are nearly the same, apart from case."""
    matcher = difflib.SequenceMatcher(None, one.casefold(), two.casefold(), autojunk=False)
    # The first two are upper bounds of the third, and much quicker.
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return all(bound() >= ALIKE for bound in bounds)


def is_near_any(text: str, others: Iterable[str]) -> bool:
    """Return whether a text is alike any of the others."""
    return any(is_alike(text, other) for other in others)
