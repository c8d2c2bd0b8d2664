"""Make the rows of configs/korean.yaml: Django's messages in English and in Korean.

    pip download --no-deps django==5.2.19
    unzip -q django-5.2.19-py3-none-any.whl -d unpacked
    python scripts/prepare_korean_data.py unpacked/django configs/data

The first argument is the folder of the package `django`, unpacked or installed; the second is the
folder to write into. The messages of some of Django's parts are held out. No random numbers are
drawn: the same package gives the same rows.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prepare_common import Row, is_near_any, write_rows

INSTRUCTION = "다음 화면 문구를 한국어로 옮기세요."

# Parts of Django whose messages are held out.
EVAL_PARTS = frozenset({"django.contrib.auth", "django.contrib.gis", "django.contrib.postgres"})

# Messages whose translation says something else or is broken, found by reading all of them.
WRONG = frozenset(
    {
        "Added {name} “{object}”.",
        "Asturian",
        "Changed {fields} for {name} “{object}”.",
        "Choose a Date",
        "Debugging window (serialized value)",
        "Delete all Features",
        "Deleted {name} “{object}”.",
        "Deleting the selected %(objects_name)s would result in deleting related objects, but your"
        " account doesn't have permission to delete the following types of objects:",
        "Extent Aggregate Field",
        "Future %(verbose_name_plural)s not available because %(class_name)s.allow_future is"
        " False.",
        "Humanize",
        "Item %(nth)s in the array did not validate:",
        "Line string",
        "Multi-line string",
        "Password reset complete",
        "Password reset sent",
        "Select %s to view",
        "Serbian Latin",
        "The base Geometry field — maps to the OpenGIS Specification Geometry type.",
        "Toggle navigation",
        "Toggle sorting",
        "Topics, references, &amp; how-to\u2019s",
        "Udmurt",
        "Unknown content",
        "View %s",
        "You may edit it again below.",
        "enable comments",
        "redirect from",
        "redirect to",
        "session data",
    }
)

# Characters of a message: no abbreviations such as "Mon", and no page of text.
MODERATE_LENGTH = range(4, 400)

# Where a value is put in, such as %(name)s, %s, {name} and {}; and marks of HTML.
_PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[a-z]|\{\w*\}|</?\w+")
_HANGUL = re.compile(r"[가-힣]")
# Spaces where none belong: two, at the end of a line, before a full stop or a colon.
_LOOSE_SPACE = re.compile(r" [ \n.:]")


def main() -> None:
    """Read the catalogues, choose the fit messages, and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the package django")
    parser.add_argument(
        "folder", type=Path, help="where korean.train.jsonl and korean.eval.jsonl go"
    )
    arguments = parser.parse_args()
    train, evaluation = split(messages(arguments.source))
    write_rows(arguments.folder / "korean.train.jsonl", train)
    write_rows(arguments.folder / "korean.eval.jsonl", evaluation)


def messages(package: Path) -> Iterator[Row]:
    """Read every message that the Korean catalogues translate, in the order of their files."""
    for path in sorted(package.glob("**/locale/ko/LC_MESSAGES/*.mo")):
        inside = path.relative_to(package).parts
        part = ".".join(("django", *inside[: inside.index("locale")]))
        for english, korean in catalogue(path.read_bytes()):
            # A message that is ambiguous by itself has its context before an end of transmission.
            english = english.rpartition("\x04")[2].strip()
            yield {
                "instruction": INSTRUCTION,
                "input": english,
                "output": korean.strip(),
                "part": part,
            }


def catalogue(data: bytes) -> Iterator[tuple[str, str]]:
    """Return the messages of a compiled catalogue and their translations.

    Unreviewed ("fuzzy") translations are not in it.

    Source: GNU gettext manual, "The Format of GNU MO Files".
    """
    magic, _, count, originals, translations = struct.unpack_from("<5I", data)
    if magic != 0x950412DE:
        raise ValueError("not a little-endian message catalogue")
    for index in range(count):
        yield _text(data, originals + 8 * index), _text(data, translations + 8 * index)


def _text(data: bytes, entry: int) -> str:
    """Return the text whose length and place stand at `entry`."""
    length, start = struct.unpack_from("<2I", data, entry)
    return data[start : start + length].decode("utf-8")


def split(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return training rows and held-out rows, none of which is alike one on the other side."""
    chosen: dict[str, Row] = {}
    for row in rows:
        if is_fit(row["input"], row["output"]):
            chosen.setdefault(row["input"].casefold(), row)
    evaluation = [row for row in chosen.values() if row["part"] in EVAL_PARTS]
    held_out = {field: [row[field] for row in evaluation] for field in ("input", "output")}
    train = [
        row
        for row in chosen.values()
        if row["part"] not in EVAL_PARTS
        and not any(is_near_any(row[field], held_out[field]) for field in held_out)
    ]
    return train, evaluation


def is_fit(english: str, korean: str) -> bool:
    """Return whether a message and its translation teach something, and nothing wrong."""
    return (
        len(english) in MODERATE_LENGTH
        and "\0" not in english  # singular and plural, of which Korean has one form
        and english not in WRONG
        and _HANGUL.search(korean) is not None
        and not _LOOSE_SPACE.search(english + "\n" + korean)
        and Counter(_PLACEHOLDER.findall(english)) == Counter(_PLACEHOLDER.findall(korean))
    )


if __name__ == "__main__":
    main()
