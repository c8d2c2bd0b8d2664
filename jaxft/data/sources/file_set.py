"""The files of a path, a folder or a pattern in a recipe, as one origin of rows.

`data/` stands for all files of rows in the folder and below it, `data/*.jsonl` for the files that
match, both in the order of their names. `files` reads a single file. A file that is named or
matched is read to its end or refused; other files in a folder are listed in `ignored`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxft.config import paths
from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import files, origin
from jaxft.errors import DataError

# Names of files in a data set's folder that describe the rows and hold none.
_NO_ROWS = {"readme", "license", "licence", "notice", "citation", "dataset_info", "dataset_infos"}

_TRAIN_WORD = re.compile(r"(?<![a-z])(train|training)(?![a-z])")
_HELD_OUT_WORD = re.compile(r"(?<![a-z])(test|val|valid|validation|dev|eval)(?![a-z])")


class FileSet:
    """Files that are read one after the other.

    Attributes:
        name: Their name in errors: the path of the file, or a text such as "3 files in data".
        paths: The files, in order.
        ignored: Other files in the folder, which hold no rows.
    """

    def __init__(self, name: str, paths: Sequence[Path], ignored: Sequence[Path] = ()) -> None:
        """Keep the paths; nothing is read yet."""
        self.name = name
        self.paths = tuple(paths)
        self.ignored = tuple(ignored)

    def values(self) -> Iterator[tuple[RowPlace, object]]:
        """Yield the values of all files with their places.

        Raises:
            DataError: A file cannot be read, is not of the kind that its name says, or is empty.
        """
        for path in self.paths:
            is_empty = True
            try:
                for place, value in files.values(path):
                    is_empty = False
                    yield place, value
            except OSError as error:
                raise _unreadable(path, error) from error
            if is_empty:
                raise DataError(
                    f"{path} is empty: it has no rows.", f"Write some: {shapes.SHAPES}."
                )

    def content(self) -> str:
        """Return a digest of the bytes and the endings of the files, in order.

        Raises:
            DataError: A file cannot be read.
        """
        total = origin.new_hash()
        for path in self.paths:
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, origin.new_hash).digest()
            except OSError as error:
                raise _unreadable(path, error) from error
            total.update(f"{files.ending(path)} ".encode() + digest)
        return total.hexdigest()


def find(path: str) -> FileSet:
    """Return the files that a path stands for.

    Args:
        path: A file, a folder, or a pattern.

    Raises:
        DataError: There is no such file, or a folder has files both for training and for testing.
    """
    if paths.is_pattern(path):
        found = paths.matches(path)
        if not found:
            raise DataError(f"{path} matches no file.", "Write a pattern such as data/*.jsonl.")
        return FileSet(str(found[0]) if len(found) == 1 else f"{len(found)} files {path}", found)
    at = Path(path)
    if at.is_dir():
        return _folder(at)
    if not at.exists():
        remedy = paths.missing_remedy(at, "Paths in a recipe start at the recipe's folder.")
        raise DataError(f"{path} does not exist.", remedy)
    return FileSet(path, [at])


def _folder(folder: Path) -> FileSet:
    """Return the files of rows in a folder and below it."""
    every = sorted(_visible_files(folder))
    rows = [path for path in every if files.ending(path) and path.stem.lower() not in _NO_ROWS]
    if not rows:
        raise DataError(
            f"{folder} has no files of rows.", f"Their names end in {', '.join(files.ENDINGS)}."
        )
    names = {path: str(path.relative_to(folder)).lower() for path in rows}
    train = [path for path in rows if _TRAIN_WORD.search(names[path])]
    held_out = [
        path for path in rows if _HELD_OUT_WORD.search(names[path]) and path not in set(train)
    ]
    if train and held_out:
        raise DataError(
            f"{folder} has files for training and others: {train[0].name}, {held_out[0].name}.",
            f"Name those that you mean with a pattern, such as {folder}/**/*train*.",
        )
    rest = [path for path in every if path not in set(rows)]
    name = str(rows[0]) if len(rows) == 1 else f"{len(rows)} files in {folder}"
    return FileSet(name, rows, rest)


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it, except those whose names begin with a dot."""
    for at, names_of_folders, names in os.walk(folder):
        names_of_folders[:] = [name for name in names_of_folders if not name.startswith(".")]
        yield from (Path(at, name) for name in names if not name.startswith("."))


def _unreadable(path: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error).partition("\n")[0]
    return DataError(f"{path} cannot be read: {reason}.", "Give a file that this user may read.")
