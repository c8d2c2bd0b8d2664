"""Make the rows of configs/qa.yaml: questions about Python, and their answers.

    python scripts/prepare_qa_data.py qa_python_faq.jsonl configs/data

The first argument is a JSON Lines file with the fields `question`, `answer` and `source` (the page
of Python's FAQ); the second is the folder to write into. The recipe itself holds rows out. No
random numbers are drawn: the same file gives the same rows.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from prepare_common import Row, read_rows, write_rows

# Characters of an answer: no bare pointers to another page, and none of the essays.
MODERATE_LENGTH = range(100, 1500)

# Marks of an answer that lost something when it was taken from its page: code within the line of a
# list, the arrows of a menu, what a link pointed to.
_DAMAGED = re.compile(
    r"^- .*(>>> | \.\.\. )|‣|\bhere\.$|^See |previous question|\b(above|below)\b", re.MULTILINE
)

# The page of a package in an index, which becomes the name of the package.
_PACKAGE_PAGE = re.compile(r"https://[^/\s]+/project/([^/\s]+)/")


def main() -> None:
    """Read the questions, choose the fit ones, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="questions: question, answer, source")
    parser.add_argument("folder", type=Path, help="where qa.jsonl goes")
    arguments = parser.parse_args()
    write_rows(arguments.folder / "qa.jsonl", fit(read_rows(arguments.source)))


def fit(rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose answer is of moderate length and whole, packages by their names."""
    return [
        {**row, "answer": _PACKAGE_PAGE.sub(r"\1", row["answer"])}
        for row in rows
        if is_fit(row["answer"])
    ]


def is_fit(answer: str) -> bool:
    """Return whether an answer is of moderate length and whole."""
    return len(answer) in MODERATE_LENGTH and not _DAMAGED.search(answer)


if __name__ == "__main__":
    main()
