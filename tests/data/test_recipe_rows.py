"""The recipes in configs/ and their rows, which configs/data/README.md makes promises about."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from jaxft.config import recipe
from jaxft.data.rows.row import Dialogue, Row, Text
from jaxft.data.sources.source import open_rows

ROOT = Path(__file__).parents[2]
DATA = ROOT / "configs" / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
# A line of the table at the top: its files, and how many rows they have.
TABLE = re.findall(r"^\| (`[^|]*`) \| ([\d, ]+) \|", README.partition("\n## ")[0], re.MULTILINE)
ROWS_OF = {
    name: int(count)
    for names, counts in TABLE
    for name, count in zip(re.findall(r"`(.*?)`", names), counts.split(", "), strict=True)
}

# Two texts are alike when this part of their runs of so many characters is the same.
RUN = 8
ALIKE = 0.6

of_every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@functools.cache
def rows(path: Path, side: str) -> list[Row]:
    data = recipe.load_config(path).data
    chosen = data.eval if side == "eval" and data.eval else data.train
    return [row for each in open_rows(chosen, data.hold_out, side) for row in each]


def passages(row: Row) -> list[tuple[str, str]]:
    """Return pairs of what is asked and what is said; nobody asks for a text."""
    if isinstance(row, Text):
        return [("", paragraph) for paragraph in row.text.split("\n\n")]
    assert isinstance(row, Dialogue)
    question, answer = (message["content"] for message in row.messages[-2:])
    # What follows the instruction is what this row is about.
    return [(question.rpartition("\n\n")[2], answer)]


def runs(text: str) -> frozenset[str]:
    plain = " ".join(re.findall(r"\w+", text.casefold()))
    return frozenset(plain[at : at + RUN] for at in range(max(1, len(plain) - RUN + 1)))


def are_alike(one: frozenset[str], two: frozenset[str]) -> bool:
    # Two sets cannot share more than the smaller one has.
    if min(len(one), len(two)) < ALIKE * max(len(one), len(two)):
        return False
    return len(one & two) >= ALIKE * len(one | two)


@of_every_recipe
def test_a_recipe_names_its_command_time_and_losses(path):
    header = path.read_text(encoding="utf-8").partition("\nmodel:")[0]
    assert f"#   Command    jaxft train configs/{path.name}\n" in header
    assert re.search(r"#   Time       \d+ min( \d+ s)? on two CPU cores", header)
    before, after = re.search(r"held-out loss ([\d.]+) before, ([\d.]+) after", header).groups()
    assert float(after) < float(before)
    assert "docs/four-kinds.md" in header or path.stem == "quickstart"


@of_every_recipe
def test_every_row_says_and_teaches_something(path):
    for side in ("train", "eval"):
        mine = rows(path, side)
        assert mine
        for row in mine:
            assert all(answer.strip() for _, answer in passages(row))
            assert isinstance(row, Text) or all(m["content"].strip() for m in row.messages)


@of_every_recipe
def test_no_row_stands_on_both_sides_nor_one_that_is_alike(path):
    train, held_out = (
        [
            (runs(question), runs(answer))
            for row in rows(path, side)
            for question, answer in passages(row)
            # Every novel has people who say "Yes, sir."
            if question or len(answer) > 100
        ]
        for side in ("train", "eval")
    )
    both = [
        (mine, theirs)
        for mine in held_out
        for theirs in train
        if are_alike(mine[0], theirs[0]) and are_alike(mine[1], theirs[1])
    ]
    assert both == []


def test_likeness_is_told():
    assert are_alike(runs("Copy the file foo.txt to bar.txt"), runs("copy the file foo.txt to bar"))
    assert not are_alike(runs("Copy a file to a folder"), runs("Show the size of a folder"))


@of_every_recipe
def test_held_out_are_a_twentieth_to_a_quarter_of_the_rows(path):
    num_train, num_eval = (
        sum(len(answer) for row in rows(path, side) for _, answer in passages(row))
        for side in ("train", "eval")
    )
    assert 0.05 < num_eval / (num_train + num_eval) < 0.25


def test_tools_stand_on_one_side():
    path = ROOT / "configs" / "instruction.yaml"
    train, held_out = (
        {re.search(r"`(.*?)`", row.messages[0]["content"])[1] for row in rows(path, side)}
        for side in ("train", "eval")
    )
    assert not train & held_out
    assert len(held_out) >= 5


def test_one_recipe_is_korean_through_and_through():
    path = ROOT / "configs" / "korean.yaml"
    assert recipe.load_config(path).data.chat_template == "alpaca-ko"
    for side in ("train", "eval"):
        for row in rows(path, side):
            assert all(re.search("[가-힣]", message["content"]) for message in row.messages)


def test_every_file_is_listed_with_its_rows():
    counts = {path.name: path.read_bytes().count(b"\n") for path in DATA.glob("*.jsonl")}
    assert counts == ROWS_OF


def test_the_rows_stay_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*")) < 2**20


@pytest.mark.parametrize(
    ("name", "holder"),
    [
        ("python", "Python Software Foundation;\nAll Rights Reserved"),
        ("eg", "Copyright (c) 2015 Sam Sudar"),
        ("django", "Copyright (c) Django Software Foundation and individual contributors."),
    ],
)
def test_a_licence_stands_beside_what_it_covers(name, holder):
    assert holder in (DATA / "licences" / f"{name}.txt").read_text(encoding="utf-8")
    assert f"`licences/{name}.txt`" in README
    attribution = " ".join(README.partition("\n## Questions about Python")[2].split())
    assert {"python": "© 2001-2023 Python Software Foundation; All Rights Reserved"}.get(
        name, holder.rstrip(".")
    ) in attribution


def test_every_licence_belongs_to_some_rows():
    assert {path.name for path in (DATA / "licences").iterdir()} == set(
        re.findall(r"`licences/(.*?)`", README)
    )
