r"""The rows of a text file: its paragraphs.

Blocks of lines with blank lines between them are one row each, `{"text": "two\nlines"}`. No line
feed within a block is lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.files import opening


def paragraphs(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield blocks of lines with blank lines between them, each as one text."""
    for is_blank, block in itertools.groupby(opening.lines(path), lambda line: not line[1].strip()):
        if not is_blank:
            numbers, lines = zip(*block, strict=True)
            text = "\n".join(line.rstrip("\r\n") for line in lines)
            yield RowPlace(str(path), numbers[0]), {"text": text}
