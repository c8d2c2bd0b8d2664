"""Make the quickstart's rows from verses in modern and in King James English.

    python scripts/prepare_style_data.py style_kjv.jsonl configs/data

The first argument is a JSON Lines file with the fields `modern`, `archaic` and `ref` ("Gen 1:1");
the second is the folder to write into. No random numbers are drawn: the same file gives the same
rows.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

INSTRUCTION = "Rewrite in the style of the King James Bible:\n"

# One book each of history, wisdom, gospel, prophecy and letters, none of which retells a book
# that stays on the other side (as Chronicles retells Kings, and Matthew retells Mark).
EVAL_BOOKS = frozenset({"Judg", "Job", "John", "Dan", "Hos", "Eph"})

NUM_TRAIN_ROWS = 600
NUM_EVAL_ROWS = 100

# Characters of a verse and its rewriting together: no fragments, and none of the very longest.
MODERATE_LENGTH = range(70, 560)

# Two verses are near-duplicates when they share this part of their runs of five words.
WORDS_IN_A_RUN = 5
NEAR_DUPLICATE = 0.2


def main() -> None:
    """Read the verses, split them, write the two files and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="verses: modern, archaic, ref")
    parser.add_argument("folder", type=Path, help="where style.train.jsonl and style.eval.jsonl go")
    arguments = parser.parse_args()
    lines = arguments.source.read_text(encoding="utf-8").split("\n")
    verses = [json.loads(line) for line in lines if line]
    train, evaluation, num_near = split(verses)
    for name, chosen in (("train", train), ("eval", evaluation)):
        path = arguments.folder / f"style.{name}.jsonl"
        path.write_text("".join(map(to_line, chosen)), encoding="utf-8", newline="\n")
        print(f"{path}: {len(chosen)} rows from {len(books(chosen))} books")
    print(f"{num_near} verses left out of the training rows as near-duplicates of evaluation rows")


def split(verses: Iterable[dict[str, str]]) -> tuple[list, list, int]:
    """Return training verses, evaluation verses, and how many near-duplicates were left out."""
    moderate = [v for v in verses if len(v["modern"]) + len(v["archaic"]) in MODERATE_LENGTH]
    evaluation = [v for v in moderate if book(v) in EVAL_BOOKS][:NUM_EVAL_ROWS]
    held_out = {field: [runs(v[field]) for v in evaluation] for field in ("modern", "archaic")}
    train: list[dict[str, str]] = []
    num_near = 0
    for verse in moderate:
        if book(verse) in EVAL_BOOKS or len(train) == NUM_TRAIN_ROWS:
            continue
        if any(is_near(runs(verse[field]), held_out[field]) for field in held_out):
            num_near += 1
        else:
            train.append(verse)
    return train, evaluation, num_near


def book(verse: dict[str, str]) -> str:
    """Return the book that a verse stands in."""
    return verse["ref"].rsplit(" ", 1)[0]


def books(verses: Iterable[dict[str, str]]) -> set[str]:
    """Return the books that verses stand in."""
    return {book(verse) for verse in verses}


def runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs of five words in a text, without case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    starts = range(max(1, len(words) - WORDS_IN_A_RUN + 1))
    return {tuple(words[start : start + WORDS_IN_A_RUN]) for start in starts}


def is_near(mine: set[tuple[str, ...]], others: Iterable[set[tuple[str, ...]]]) -> bool:
    """Return whether the Jaccard similarity with any of the others reaches the limit."""
    return any(len(mine & other) >= NEAR_DUPLICATE * len(mine | other) for other in others)


def to_line(verse: dict[str, str]) -> str:
    """Return a verse as one line: a chat of one question and its answer."""
    messages = [
        {"role": "user", "content": INSTRUCTION + verse["modern"]},
        {"role": "assistant", "content": verse["archaic"]},
    ]
    return json.dumps({"messages": messages, "ref": verse["ref"]}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
