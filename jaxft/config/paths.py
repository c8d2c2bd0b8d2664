"""Whether a path, a pattern or a name on the Hub leads anywhere, and the nearest name if not.

Separate from placing, which knows recipes, because sources of rows look for files too. A pattern is
`data/*.jsonl` or `data/**/train-*`; a name on the Hub is `owner/name`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from jaxft.errors import nearest

# A name may end in a version, as `owner/name-v1.5` does, but not in letters as files do.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILE_ENDING = re.compile(r"\.[A-Za-z]\w*$")


def is_pattern(path: str) -> bool:
    """Say whether a path stands for all files that match it."""
    return any(sign in path for sign in "*?[") and not Path(path).exists()


def matches(pattern: str) -> list[Path]:
    """Return the files that a pattern stands for, in order; hidden files are left out."""
    found = (Path(name) for name in glob.iglob(pattern, recursive=True))
    return sorted(path for path in found if path.is_file())


def leads_somewhere(path: str) -> bool:
    """Say whether there is a file or a folder, or for a pattern at least one file."""
    return Path(path).exists() or (is_pattern(path) and bool(matches(path)))


def may_be_on_hub(written: str, folders: Sequence[Path]) -> bool:
    """Say whether a path that does not exist can be the name of a data set on the Hub.

    Args:
        written: The text in the recipe, such as `owner/name`.
        folders: Where a path would start. If one of them has a folder `owner`, a file in it was
            meant.
    """
    if not _HUB_NAME.fullmatch(written) or _FILE_ENDING.search(written):
        return False
    owner = written.partition("/")[0]
    return not any((folder / owner).is_dir() for folder in folders)


def missing_remedy(path: Path, otherwise: str) -> str:
    """Name the file beside `path` that is spelled most like it, or say something else."""
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} either. {otherwise}"
    near = nearest(path.name, [entry.name for entry in folder.iterdir()])
    return f"Did you mean {folder / near}?" if near else otherwise
