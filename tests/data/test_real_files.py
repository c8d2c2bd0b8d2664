"""Rows as people have them: QA, instructions in English and Korean, a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_builders import CHATML, make_tokenizer

from jaxft.data import encode, report, sources
from jaxft.data.rows import Question, Text

FOLDER = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the files are not beside this copy")


@pytest.mark.parametrize(
    ("name", "count", "fields"),
    [
        ("qa_python_faq.jsonl", 174, ("question", "answer")),
        ("instruct_shell_eg.jsonl", 646, ("instruction", "output")),
        ("instruct_gnome_help_ko.jsonl", 262, ("instruction", "output")),
    ],
)
@pytest.mark.parametrize("template", [CHATML, None])
def test_answers_are_learned_and_questions_are_not(name, count, fields, template):
    rows = sources.read_rows(FOLDER / name)
    assert len(rows) == count
    assert {type(row) for row in rows} == {Question}
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    tokenizer = make_tokenizer(template)
    examples = encode.encode_rows(rows[:20], tokenizer, 100_000)
    assert len(examples) == 20
    for index in range(20):
        question, answer = (json.loads(lines[index])[field] for field in fields)
        before, learned, *after = report.split_pieces(examples[index], tokenizer)
        assert not before.is_target
        assert learned.is_target
        assert question in before.text
        assert learned.text == answer + ("<|im_end|>" if template else "</s>")
        assert [piece.text for piece in after] == (["\n"] if template else [])


def test_a_corpus_is_learned_paragraph_by_paragraph():
    rows = sources.read_rows(FOLDER / "corpus_austen.txt")
    text = (FOLDER / "corpus_austen.txt").read_text(encoding="utf-8")
    assert {type(row) for row in rows} == {Text}
    assert "\n\n".join(row.text for row in rows).split() == text.split()
    assert (rows[0].text, rows[4].place) == ("EMMA", f"{FOLDER / 'corpus_austen.txt'}:9")
    tokenizer = make_tokenizer(adds_start=True)
    examples = encode.encode_rows(rows[:20], tokenizer, 100_000)
    assert (examples.targets == examples.lengths - 1).all()
    assert tokenizer.decode(examples[0].input_ids) == "<s>EMMA</s>"
