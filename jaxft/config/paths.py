"""Checks of paths, patterns and names on the Hub, and the nearest name for a missing file.

A pattern is `data/*.jsonl` or `data/**/train-*`; a name on the Hub is `owner/name`. Recipes
(`placing`) and sources of rows both use this file.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from jaxft.errors import nearest

# A name on the Hub may end in a version, as in `owner/name-v1.5`, but not in the ending of a file.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILE_ENDING = re.compile(r"\.[A-Za-z]\w*$")


def is_pattern(path: str) -> bool:
    """Return whether a path is a pattern, which stands for all files that match it."""
    return any(sign in path for sign in "*?[") and not Path(path).exists()


def matches(pattern: str) -> list[Path]:
    """Return the files that match a pattern, sorted, without hidden files."""
    found = (Path(name) for name in glob.iglob(pattern, recursive=True))
    return sorted(path for path in found if path.is_file())


def leads_somewhere(path: str) -> bool:
    """Return whether a path exists, or a pattern matches at least one file."""
    return Path(path).exists() or (is_pattern(path) and bool(matches(path)))


def may_be_on_hub(written: str, folders: Sequence[Path]) -> bool:
    """Return whether a path that does not exist can be the name of a data set on the Hub.

    Args:
        written: The text in the recipe, such as `owner/name`.
        folders: The folders where a path may start. If one of them contains a folder `owner`, the
            text is taken for a path.
    """
    if not _HUB_NAME.fullmatch(written) or _FILE_ENDING.search(written):
        return False
    owner = written.partition("/")[0]
    return not any((folder / owner).is_dir() for folder in folders)


def missing_remedy(path: Path, otherwise: str) -> str:
    """Return a remedy for a missing path: the most similar name in its folder, or `otherwise`."""
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} either. {otherwise}"
    near = nearest(path.name, [entry.name for entry in folder.iterdir()])
    return f"Did you mean {folder / near}?" if near else otherwise
