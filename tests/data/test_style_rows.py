"""The quickstart's rows, which configs/data/README.md makes promises about."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from data_builders import read_rows

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "data"
VERSES = ROOT.parent / "shared" / "data" / "style_kjv.jsonl"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "prepare_style_data", ROOT / "scripts" / "prepare_style_data.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def objects(name: str) -> list[dict]:
    lines = (FOLDER / f"style.{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.mark.parametrize(("name", "count"), [("train", 600), ("eval", 100)])
def test_every_row_is_one_question_and_its_answer(name, count):
    rows = read_rows(FOLDER / f"style.{name}.jsonl")
    assert len(rows) == count
    for row in rows:
        assert [message["role"] for message in row.messages] == ["user", "assistant"]
        assert row.messages[0]["content"].startswith("Rewrite in the style of the King James")


def test_no_book_and_no_verse_stands_on_both_sides(script):
    train, evaluation = objects("train"), objects("eval")
    assert not script.books(train) & script.books(evaluation)
    for index in (0, 1):
        mine, theirs = (
            [script.runs(row["messages"][index]["content"].split("\n")[-1]) for row in rows]
            for rows in (train, evaluation)
        )
        assert not any(script.is_near(each, theirs) for each in mine)


def test_a_verse_told_twice_is_a_near_duplicate(script):
    one = script.runs("And it came to pass in the days of Ahasuerus, the king;")
    two = script.runs("Now it came to pass in the days of Ahasuerus (the king)!")
    assert script.is_near(one, [two])
    assert not script.is_near(one, [script.runs("And it came to pass that he went up from there.")])


def test_near_duplicates_are_left_out_of_the_training_rows(script):
    text = "x" * 40 + " who was it that came up out of the river to meet you"
    verses = [{"modern": text, "archaic": text, "ref": ref} for ref in ("Job 1:1", "Gen 1:1")]
    train, evaluation, num_near = script.split(verses)
    assert (train, evaluation, num_near) == ([], verses[:1], 1)


@pytest.mark.skipif(not VERSES.exists(), reason="the verses these rows were picked from are absent")
def test_the_script_gives_these_very_rows(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prepare_style_data.py", str(VERSES), str(tmp_path)])
    script.main()
    for name in ("style.train.jsonl", "style.eval.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    assert "600 rows from 49 books" in capsys.readouterr().out
