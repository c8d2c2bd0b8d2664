"""The scripts that made the recipes' rows."""

from __future__ import annotations

import gettext
import importlib
import io
import struct
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "configs" / "data"
SOURCES = ROOT.parent / "shared" / "data"


@pytest.fixture
def script(monkeypatch):
    """Return what imports a script, which finds the others beside it."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


def compiled(messages: dict[str, str]) -> bytes:
    """Return a catalogue as msgfmt writes it. Source: GNU gettext manual, "GNU MO Files"."""
    pairs = sorted(messages.items())
    texts = [text.encode() for side in zip(*pairs, strict=True) for text in side]
    table, start = b"", 28 + 8 * len(texts)
    for text in texts:
        table += struct.pack("<2I", len(text), start)
        start += len(text) + 1
    header = (0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return struct.pack("<7I", *header) + table + b"".join(text + b"\0" for text in texts)


@pytest.mark.parametrize(
    ("name", "source", "written"),
    [
        ("corpus_data", "corpus_austen.txt", ["corpus.train.jsonl", "corpus.eval.jsonl"]),
        ("qa_data", "qa_python_faq.jsonl", ["qa.jsonl"]),
        ("style_pairs", "style_kjv.jsonl", ["style-pairs.train.jsonl", "style-pairs.eval.jsonl"]),
    ],
)
def test_the_script_gives_these_very_rows(
    name, source, written, script, tmp_path, monkeypatch, capsys
):
    if not (SOURCES / source).exists():
        pytest.skip("what these rows were made of is absent")
    monkeypatch.setattr("sys.argv", [name, str(SOURCES / source), str(tmp_path)])
    script(f"prepare_{name}").main()
    said = capsys.readouterr().out
    for each in written:
        assert (tmp_path / each).read_bytes() == (DATA / each).read_bytes()
        assert f"{tmp_path / each}: " in said


def test_a_chapter_is_a_row_of_its_own_novel(script):
    emma = "EMMA|By Jane Austen|VOLUME I|CHAPTER I|She was _handsome_.|Yes.|CHAPTER II|He came."
    later = "|VOLUME II|CHAPTER I|It rained.|FINIS|MANSFIELD PARK|(1814)|CHAPTER I|Long ago."
    novels = f"{emma}{later}".replace("|", "\n\n")
    chapters = script("prepare_corpus_data").chapters
    assert chapters(novels, "Emma") == [
        {"text": "She was handsome.\n\nYes.", "chapter": "Emma, 1"},
        {"text": "He came.", "chapter": "Emma, 2"},
        {"text": "It rained.", "chapter": "Emma, 3"},
    ]
    assert chapters(novels, "Mansfield Park") == [
        {"text": "Long ago.", "chapter": "Mansfield Park, 1"}
    ]


@pytest.mark.parametrize(
    ("answer", "is_fit"),
    [
        ("x" * 100, True),
        ("x" * 99, False),
        ("x" * 1500, False),
        ("x" * 100 + "\n- A tuple: >>> def func1(a): ... return a", False),
        ("x" * 100 + "\n\n```\n>>> 1 + 1\n2\n```", True),
        ("x" * 100 + " Start ‣ Programs", False),
        ("x" * 100 + " Details here.", False),
        ("See the tutorial. " + "x" * 100, False),
    ],
)
def test_an_answer_that_lost_a_part_of_it_is_left_out(answer, is_fit, script):
    assert script("prepare_qa_data").is_fit(answer) is is_fit


def test_a_command_has_the_sentence_above_it(script):
    page = """# cp

copy a file to another

    cp original.txt copy.txt


`cp` has many flags. Copy a directory using the recursive (`-R`)
flag:

    cp -R <directory> \\
        <copy>


It can also do this:

    cp -i a b


show what is there

    $ cp -v a b
    a -> b


read the manual

    man hier


Flags differ from system to system.
"""
    rows = script("prepare_instruction_data").examples("cp", page)
    assert [(row["input"], row["output"]) for row in rows] == [
        ("Copy a file to another", "cp original.txt copy.txt"),
        ("Copy a directory using the recursive (`-R`) flag", "cp -R <directory> \\\n    <copy>"),
    ]
    assert {row["instruction"] for row in rows} == {"Write a shell command with `cp`."}


def test_a_wish_stands_once_and_not_for_two_tools_that_are_alike(script):
    pages = {
        "less": "Show the manual of the tool\n\n    man less\n\n"
        "Show the manual of the tool:\n\n    man <less>\n",
        "lesser": "Show the manual of the tool\n\n    man lesser\n",
    }
    rows = script("prepare_instruction_data").choose(pages)
    assert [row["output"] for row in rows] == ["man less"]


def test_a_catalogue_is_read_as_gettext_reads_it(script):
    messages = {"": "Language: ko\nContent-Type: text/plain; charset=UTF-8\n"}
    messages |= {"Log in": "로그인", "month\x04May": "5월", "a “b”": "“나”", "Empty": ""}
    data = compiled(messages)
    theirs = gettext.GNUTranslations(io.BytesIO(data))
    mine = dict(script("prepare_korean_data").catalogue(data))
    assert mine == messages
    assert all(theirs.gettext(english) == korean for english, korean in mine.items() if english)


def test_a_message_keeps_its_part_and_loses_its_context(script, tmp_path):
    for part in ("conf", "contrib/auth"):
        folder = tmp_path / part / "locale" / "ko" / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "django.mo").write_bytes(compiled({f"{part}\x04Log in": " 로그인 "}))
    found = list(script("prepare_korean_data").messages(tmp_path))
    assert [row["part"] for row in found] == ["django.conf", "django.contrib.auth"]
    assert {(row["input"], row["output"]) for row in found} == {("Log in", "로그인")}


@pytest.mark.parametrize(
    ("english", "korean", "is_fit"),
    [
        ("Delete %(name)s", "%(name)s 삭제", True),
        ("Delete %(name)s", "삭제", False),
        ("Add %s to {}", "{}에 %s 추가", True),
        ("Add %s to {}", "%s에 %s 추가", False),
        ("Read the <a href=x>notes</a>", "<a href=x>기록</a> 읽기", True),
        ("Read the <a href=x>notes</a>", "기록 읽기", False),
        ("A day\0Some days", "며칠", False),
        ("Mon", "월", False),
        ("PostgreSQL", "PostgreSQL", False),
        ("Log in", "로그인  하기", False),
        ("Context:", "컨텍스트 :", False),
        ("Choose a Date", "시간 선택", False),
    ],
)
def test_a_message_is_fit_when_its_translation_carries_all_of_it(english, korean, is_fit, script):
    assert script("prepare_korean_data").is_fit(english, korean) is is_fit


def test_a_message_alike_a_held_out_one_is_not_trained_on(script):
    module = script("prepare_korean_data")

    def row(english: str, korean: str, part: str) -> dict[str, str]:
        return {
            "instruction": module.INSTRUCTION,
            "input": english,
            "output": korean,
            "part": f"django.{part}",
        }

    held_out = row("Enter a valid username.", "유효한 사용자 이름을 입력하세요.", "contrib.auth")
    alike = row("Enter a valid user name.", "올바른 이름을 넣어 주세요.", "conf")
    other = row("Log in again", "다시 로그인하기", "contrib.admin")
    again = other | {"part": "django.conf"}
    assert module.split([held_out, alike, other, again]) == ([other], [held_out])
