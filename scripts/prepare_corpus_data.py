"""Make the rows of configs/corpus.yaml: chapters of two of Jane Austen's novels.

    python scripts/prepare_corpus_data.py corpus_austen.txt configs/data

The first argument is a text file with the novels one after another: a paragraph on each line, a
blank line between paragraphs, and a line such as "CHAPTER IV" above each chapter. The second is the
folder to write into. The model trains on the first chapters of Emma and is measured on the first
chapters of Mansfield Park, another novel. No random numbers are drawn: the same file gives the same
rows.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from prepare_common import Row, write_rows

NUM_CHAPTERS = {"Emma": 9, "Mansfield Park": 2}


def main() -> None:
    """Read the novels, cut them into chapters, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the novels, as plain text")
    parser.add_argument(
        "folder", type=Path, help="where corpus.train.jsonl and corpus.eval.jsonl go"
    )
    arguments = parser.parse_args()
    text = arguments.source.read_text(encoding="utf-8")
    for name, novel in (("train", "Emma"), ("eval", "Mansfield Park")):
        rows = chapters(text, novel)[: NUM_CHAPTERS[novel]]
        write_rows(arguments.folder / f"corpus.{name}.jsonl", rows)


def chapters(text: str, novel: str) -> list[Row]:
    """Return the chapters of one novel, in order, each a row of its whole text.

    Args:
        text: All novels, each beginning with its title in capitals.
        novel: The title of the one that is wanted.
    """
    rows: list[Row] = []
    is_inside = False
    for paragraph in text.split("\n\n"):
        paragraph = paragraph.strip()
        if paragraph in {title.upper() for title in NUM_CHAPTERS}:
            is_inside = paragraph == novel.upper()
        elif not is_inside:
            continue
        elif re.fullmatch(r"CHAPTER [IVX]+", paragraph):
            rows.append({"text": "", "chapter": f"{novel}, {len(rows) + 1}"})
        elif rows and not re.fullmatch(r"VOLUME [IVX]+|FINIS", paragraph):
            # Underscores around words stand for italics, which plain text has none of.
            plain = paragraph.replace("_", "")
            rows[-1]["text"] += f"\n\n{plain}" if rows[-1]["text"] else plain
    return rows


if __name__ == "__main__":
    main()
