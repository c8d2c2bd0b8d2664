"""Encoded rows on disk: written chunk by chunk, and read by index without being loaded.

A folder holds `tokens` (int32, all examples one after the other), `masks` (uint8, one for each
token), `table` (a line of `chunk.TABLE` for each example) and `facts.json`: the report, the
fingerprint and the exact sizes of the other three. It gets its name in one step, when it is whole
and on the disk, so a run that is killed, or one of two that write the same, leaves nothing that
could be taken for more than it is. Plain files rather than Arrow: an example is two slices, read
in a tenth of the time that a row of a `datasets.Dataset` takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from jaxft.data.examples.chunk import TABLE, Chunk, File
from jaxft.data.examples.report import Report
from jaxft.data.examples.tally import Tally
from jaxft.data.rows.row import RowPlace

_DTYPES: dict[str, np.dtype] = {"tokens": np.dtype("<i4"), "masks": np.dtype("u1"), "table": TABLE}
_FACTS = "facts.json"

# A writer touches its files every few seconds; what is older was left by one that was killed.
_UNFINISHED = ".unfinished"
_DEAD_AFTER_S = 24 * 3600


class StoredExamples(NamedTuple):
    """Encoded rows, mapped from disk.

    Attributes:
        input_ids: The tokens of all examples, one after the other.
        loss_mask: 1 where they are supervised.
        table: A line of `chunk.TABLE` for each example.
        files: What the places of the rows are in.
        report: What became of the rows.
        fingerprint: A digest of all tokens and masks, see `Fingerprint`.
        end_ids: The tokens that end the supervised part.
        maps: The files behind the arrays.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]
    table: Shaped[np.ndarray, " n"]
    files: list[File]
    report: Report
    fingerprint: str
    end_ids: tuple[int, ...]
    maps: tuple[mmap.mmap, ...]

    def release(self) -> None:
        """Give back the memory of all that was read; it is there again when it is read again.

        The system would do so only when there is no room left, and until then a run would seem to
        take as much as its files have.
        """
        for each in self.maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                each.madvise(mmap.MADV_DONTNEED)


class Fingerprint:
    """A digest of the tokens and targets of examples, in order, by which a run knows its data."""

    def __init__(self) -> None:
        """Begin with no example."""
        self._digest = hashlib.sha256()

    def add(self, input_ids: Int32[np.ndarray, " t"], loss_mask: UInt8[np.ndarray, " t"]) -> None:
        """Add an example."""
        self._digest.update(len(input_ids).to_bytes(8, "little"))
        self._digest.update(input_ids.astype("<i4", copy=False).data)
        self._digest.update(loss_mask.data)

    def hexdigest(self) -> str:
        """Return the digest of what was added."""
        return self._digest.hexdigest()


def load(folder: Path, files: Sequence[str]) -> StoredExamples | None:
    """Map what an earlier run wrote; None if there is nothing, or not all of it.

    Args:
        folder: As given to `write`.
        files: What the places of the rows name now: the same files may have been moved since.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in _DTYPES}
        if sizes != facts["sizes"]:
            return None
        now = dict(zip(facts["names"], files, strict=True))
        first = {
            name: str(RowPlace(now[source], number, unit))
            for name, (source, number, unit) in facts["first"].items()
        }
        maps = {name: _map(folder / name) for name in _DTYPES}
        tokens, masks, table = (np.frombuffer(maps[name], _DTYPES[name]) for name in _DTYPES)
        return StoredExamples(
            input_ids=tokens,
            loss_mask=masks,
            table=table,
            files=[(now[source], unit) for source, unit in facts["files"]],
            report=Report(**facts["report"] | {"first": first}),
            fingerprint=facts["fingerprint"],
            end_ids=tuple(facts["end_ids"]),
            maps=tuple(maps.values()),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def write(folder: Path, chunks: Iterable[Chunk], max_length: int, files: Sequence[str]) -> Report:
    """Write chunks, and keep them under the folder's name if they hold any example.

    Args:
        folder: Where to; `load` finds nothing there.
        chunks: What to write, computed as it is written.
        max_length: The most tokens of an example, for the report.
        files: What the places of the rows name.

    Raises:
        OSError: There is no room, or no permission.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    unfinished = _beside(folder)
    unfinished.mkdir()
    try:
        total, facts = _write_chunks(unfinished, chunks)
        report = total.report(max_length)
        if report.examples:
            facts |= {"names": list(files), "report": dataclasses.asdict(report)}
            with (unfinished / _FACTS).open("w", encoding="utf-8") as file:
                json.dump(facts, file)
                _sync(file)
            _rename(unfinished, folder, files)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _write_chunks(folder: Path, chunks: Iterable[Chunk]) -> tuple[Tally, dict[str, Any]]:
    """Write the three large files; return what was counted and the facts about them."""
    total, fingerprint = Tally(), Fingerprint()
    files: dict[File, int] = {}
    with contextlib.ExitStack() as stack:
        tokens, masks, table = (stack.enter_context((folder / name).open("wb")) for name in _DTYPES)
        for chunk in chunks:
            lines = chunk.table.copy()
            lines["start"] += total.tokens
            numbers = [files.setdefault(file, len(files)) for file in chunk.files]
            lines["file"] = np.array(numbers, np.int32)[lines["file"]]
            tokens.write(chunk.input_ids.astype("<i4", copy=False).data)
            masks.write(chunk.loss_mask.data)
            table.write(lines.tobytes())
            for start, length in chunk.table[["start", "length"]].tolist():
                part = slice(start, start + length)
                fingerprint.add(chunk.input_ids[part], chunk.loss_mask[part])
            total.add(chunk.tally)
        for file in (tokens, masks, table):
            _sync(file)
    return total, {
        "fingerprint": fingerprint.hexdigest(),
        "end_ids": sorted(total.end_ids),
        "files": list(files),
        "first": total.first(),
        "sizes": {name: (folder / name).stat().st_size for name in _DTYPES},
    }


def _sync(file: IO[Any]) -> None:
    """Have a file's bytes on the disk before its name is."""
    file.flush()
    os.fsync(file.fileno())


def _rename(unfinished: Path, folder: Path, files: Sequence[str]) -> None:
    """Give a whole folder its name, unless another run was faster."""
    if load(folder, files) is not None:
        return
    with contextlib.suppress(FileNotFoundError):
        damaged = _beside(folder)
        folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        unfinished.rename(folder)
    except OSError:
        if load(folder, files) is None:
            raise


def _beside(folder: Path) -> Path:
    """Return a name that no other run uses."""
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{_UNFINISHED}")


def _remove_leftovers(parent: Path) -> None:
    """Remove what killed writers left."""
    for folder in parent.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # another run removes it, or finishes it
            times = [file.stat().st_mtime for file in (folder, *folder.iterdir())]
            if max(times) < time.time() - _DEAD_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
