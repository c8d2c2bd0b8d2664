"""The journal of a stream: a file of JSON lines that says where each block begins.

    {"stream": "5f0c..."}
    {"block": 0, "epoch": 0, "rows": 0, "sequences": 0}
    {"block": 1, "epoch": 0, "rows": 1000, "sequences": 212}

With it a resumed run finds the block in which its next batch begins, without encoding the blocks
before. The file is only an index: without it, all blocks are encoded again from the start, with the
same result. An unfinished line of a killed run is cut off, and the journal of another stream is
overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxft.errors import DataError


class Mark(NamedTuple):
    """The beginning of a block of a stream.

    Attributes:
        block: The number of the block, counted over all epochs.
        epoch: The number of times that the sources were read to their end before it.
        rows: The number of rows before it in this epoch.
        sequences: The number of sequences before it, over all epochs.
    """

    block: int
    epoch: int
    rows: int
    sequences: int


START = Mark(0, 0, 0, 0)


class Journal:
    """The marks of one stream, in a file that only one process writes."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        """Read the marks of an earlier run.

        Args:
            path: The file, which need not exist. None keeps no marks.
            fingerprint: Identifies the stream.
        """
        self._path = path
        self._head = _line({"stream": fingerprint})
        self._size, self._latest = 0, -1
        for size, mark in self._read():
            self._size, self._latest = size, mark.block

    def find(self, sequence: int) -> Mark:
        """Return the mark of the last known block that begins at a sequence or before it."""
        found = START
        for _, mark in self._read():
            if mark.sequences > sequence:
                break
            found = mark
        return found

    def note(self, mark: Mark) -> None:
        """Write a mark to the file, unless it is there already.

        Args:
            mark: The mark of the block after the last one in the file, or of an earlier block.

        Raises:
            DataError: The file cannot be written.
        """
        if self._path is None or mark.block <= self._latest:
            return
        text = _line(mark._asdict())
        if not self._size:
            text = self._head + text
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(text)
        except OSError as error:
            raise DataError(
                f"The journal of the stream, {self._path}, cannot be written: {error.strerror}.",
                "Make room there, or let this user write to it.",
            ) from error
        self._size, self._latest = self._size + len(text), mark.block

    def _read(self) -> Iterator[tuple[int, Mark]]:
        """Yield the marks in the file, each with the position in the file where its line ends."""
        if self._path is None or not self._path.is_file():
            return
        with self._path.open("rb") as file:
            head = file.readline()
            if head != self._head:
                return
            size = len(head)
            for number, line in enumerate(file):
                mark = _parsed(line)
                if mark is None or mark.block != number:
                    return
                size += len(line)
                yield size, mark


def _line(values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _parsed(line: bytes) -> Mark | None:
    """Return the mark in a line; None if the line is incomplete."""
    try:
        return Mark(**json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None
