"""Rows as people have them: QA, instructions in English and Korean, a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_builders import CHATML, make_encoding, make_tokenizer

from jaxft.config import SourceConfig
from jaxft.data.chats import builtin
from jaxft.data.examples import encode, report
from jaxft.data.rows.row import Dialogue, Text
from jaxft.data.sources.source import RowSource, open_rows

FOLDER = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the files are not beside this copy")


def opened(name: str, **options) -> RowSource:
    (source,) = open_rows([SourceConfig(path=str(FOLDER / name), **options)], None, "train")
    return source


@pytest.mark.parametrize(
    ("name", "count", "fields"),
    [
        ("qa_python_faq.jsonl", 174, ("question", "answer")),
        ("instruct_shell_eg.jsonl", 646, ("instruction", "output")),
        ("instruct_gnome_help_ko.jsonl", 262, ("instruction", "output")),
    ],
)
@pytest.mark.parametrize("template", [CHATML, None])
def test_answers_are_supervised_and_questions_are_not(name, count, fields, template):
    source = opened(name)
    rows = list(source)
    assert len(rows) == count
    assert {type(row) for row in rows} == {Dialogue}
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    tokenizer = make_tokenizer(template)
    if template is None:
        tokenizer.chat_template = builtin.resolve("alpaca", tokenizer)
    examples = encode.encode_source(source, make_encoding(tokenizer))
    assert len(examples) == count
    for index in range(20):
        question, answer = (json.loads(lines[index])[field] for field in fields)
        before, supervised, *after = report.split_pieces(examples[index], tokenizer)
        assert not before.is_target
        assert supervised.is_target
        assert question in before.text
        assert supervised.text == answer + ("<|im_end|>" if template else "</s>")
        assert [piece.text for piece in after] == (["\n"] if template else [])


def test_a_corpus_is_supervised_paragraph_by_paragraph():
    source = opened("corpus_austen.txt")
    rows = list(source)
    text = (FOLDER / "corpus_austen.txt").read_text(encoding="utf-8")
    assert {type(row) for row in rows} == {Text}
    assert "\n\n".join(row.text for row in rows).split() == text.split()
    assert (rows[0].text, str(rows[4].place)) == ("EMMA", f"{FOLDER / 'corpus_austen.txt'}:9")
    tokenizer = make_tokenizer(adds_start=True)
    examples = encode.encode_source(source, make_encoding(tokenizer))
    assert (examples.targets == examples.lengths - 1).all()
    assert tokenizer.decode(examples[0].input_ids) == "<s>EMMA</s>"


def test_columns_under_other_names_are_read():
    source = opened("style_kjv.jsonl", columns={"prompt": "modern", "completion": "archaic"})
    rows = list(source)
    assert len(rows) == 4000
    assert rows[0].unused == ("ref",)
