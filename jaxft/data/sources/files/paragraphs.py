r"""The rows of a text file, one for each paragraph.

A paragraph is a block of lines between blank lines, and becomes `{"text": "two\nlines"}`. Line
feeds inside a paragraph are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.files import opening


def paragraphs(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield each paragraph as a row of text, with the place of its first line."""
    for is_blank, block in itertools.groupby(opening.lines(path), lambda line: not line[1].strip()):
        if not is_blank:
            numbers, lines = zip(*block, strict=True)
            text = "\n".join(line.rstrip("\r\n") for line in lines)
            yield RowPlace(str(path), numbers[0]), {"text": text}
