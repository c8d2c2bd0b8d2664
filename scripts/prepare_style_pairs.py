"""Make the rows of configs/style.yaml: more verses in modern and in King James English.

    python scripts/prepare_style_pairs.py style_kjv.jsonl configs/data

The first argument is a JSON Lines file with the fields `modern`, `archaic` and `ref` ("Gen 1:1");
the second is the folder to write into. The rows keep these fields, which the recipe maps, and none
of them is a row of the quickstart. No random numbers are drawn: the same file gives the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import prepare_style_data as quickstart
from prepare_common import Row, read_rows, write_rows

NUM_TRAIN_ROWS = 600
NUM_EVAL_ROWS = 80

# Characters of a verse and its rewriting together: a little shorter than the quickstart's.
MODERATE_LENGTH = range(70, 320)


def main() -> None:
    """Read the verses, leave the quickstart's out, split the rest, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="verses: modern, archaic, ref")
    parser.add_argument("folder", type=Path, help="where style-pairs.*.jsonl go")
    arguments = parser.parse_args()
    train, evaluation = split(read_rows(arguments.source))
    write_rows(arguments.folder / "style-pairs.train.jsonl", train)
    write_rows(arguments.folder / "style-pairs.eval.jsonl", evaluation)


def split(verses: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return training verses and held-out verses, of other books and in other words."""
    verses = list(verses)
    taken = {verse["ref"] for side in quickstart.split(verses)[:2] for verse in side}
    fit = [verse for verse in verses if verse["ref"] not in taken and is_moderate(verse)]
    evaluation = [v for v in fit if quickstart.book(v) in quickstart.EVAL_BOOKS][:NUM_EVAL_ROWS]
    held_out = {f: [quickstart.runs(v[f]) for v in evaluation] for f in ("modern", "archaic")}
    train = [
        verse
        for verse in fit
        if quickstart.book(verse) not in quickstart.EVAL_BOOKS
        and not any(quickstart.is_near(quickstart.runs(verse[f]), held_out[f]) for f in held_out)
    ]
    return train[:NUM_TRAIN_ROWS], evaluation


def is_moderate(verse: Row) -> bool:
    """Return whether a verse and its rewriting together are of moderate length."""
    return len(verse["modern"]) + len(verse["archaic"]) in MODERATE_LENGTH


if __name__ == "__main__":
    main()
