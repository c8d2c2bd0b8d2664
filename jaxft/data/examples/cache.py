"""Examples on disk: written chunk by chunk, and memory-mapped for reading.

A folder holds `tokens` (int32, all examples one after the other), `masks` (uint8, one for each
token), `table` (a line of `chunk.TABLE` for each example) and `facts.json`: the report, the
fingerprint and the exact sizes of the other three files. The folder is renamed to its final name
in one step, when it is complete and on the disk. So a killed run leaves no incomplete folder under
that name, and two runs may write the same folder at once. The files are plain arrays and not Arrow:
an example is two slices, read in a tenth of the time that a row of a `datasets.Dataset` takes.
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

# A writer changes its files every few seconds; older unfinished folders are from killed writers.
_UNFINISHED = ".unfinished"
_DEAD_AFTER_S = 24 * 3600


class StoredExamples(NamedTuple):
    """Examples that are memory-mapped from disk.

    Attributes:
        input_ids: The tokens of all examples, one after the other.
        loss_mask: 1 where a token is supervised.
        table: A line of `chunk.TABLE` for each example.
        files: The files in which the rows stand.
        report: The report on the encoding of the rows.
        fingerprint: A digest of all tokens and masks, see `Fingerprint`.
        end_ids: The tokens that end supervised parts.
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
        """Free the memory of the pages that were read; they are loaded again when needed.

        The system would free them only when no memory is left. Until then the run would seem to use
        as much memory as its files have bytes.
        """
        for each in self.maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                each.madvise(mmap.MADV_DONTNEED)


class Fingerprint:
    """A digest of the tokens and masks of examples, in order. It identifies the data of a run."""

    def __init__(self) -> None:
        """Start without examples."""
        self._digest = hashlib.sha256()

    def add(self, input_ids: Int32[np.ndarray, " t"], loss_mask: UInt8[np.ndarray, " t"]) -> None:
        """Add an example."""
        self._digest.update(len(input_ids).to_bytes(8, "little"))
        self._digest.update(input_ids.astype("<i4", copy=False).data)
        self._digest.update(loss_mask.data)

    def hexdigest(self) -> str:
        """Return the digest of the examples that were added."""
        return self._digest.hexdigest()


def load(folder: Path, files: Sequence[str]) -> StoredExamples | None:
    """Map the examples in a folder; None if the folder is missing or incomplete.

    Args:
        folder: The folder that `write` was given.
        files: The present names of the files of rows, which may have been moved since `write`.
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
    """Write chunks into a folder, unless they hold no example at all, and return the report.

    Args:
        folder: The folder, in which `load` found nothing.
        chunks: The chunks, which may be computed while they are written.
        max_length: The largest number of tokens in an example, for the report.
        files: The names of the files of rows.

    Raises:
        OSError: The disk is full, or writing is not permitted.
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
    """Write the three large files; return the tally and the facts for `facts.json`."""
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
    """Wait until the bytes of a file are on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _rename(unfinished: Path, folder: Path, files: Sequence[str]) -> None:
    """Give a complete folder its final name, unless another run was faster."""
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
    """Return a path beside the folder that no other run uses."""
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{_UNFINISHED}")


def _remove_leftovers(parent: Path) -> None:
    """Remove the unfinished folders of killed writers."""
    for folder in parent.glob(f"*{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # another run removes it, or finishes it
            times = [file.stat().st_mtime for file in (folder, *folder.iterdir())]
            if max(times) < time.time() - _DEAD_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
