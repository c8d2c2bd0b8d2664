"""docs/data.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from data_builders import make_encoding, make_tokenizer

from jaxft.config import DataConfig
from jaxft.data.chats import builtin
from jaxft.data.examples import report, tokens
from jaxft.data.rows import flags, shapes
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import files

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(text) for text in re.findall(r"\| `(\{.*?\})` \| ", PAGE)]
SUPERVISED = re.findall(r"\[\[(.*?)\]\]\]?` \|$", PAGE, re.MULTILINE)


def supervised(value: dict, tokenizer) -> str:
    row = shapes.parse_row(value, RowPlace("docs", 1))
    (example,) = tokens.encode_row(row, make_encoding(tokenizer)).examples
    pieces = report.split_pieces(example, tokenizer)
    return "".join(piece.text for piece in pieces if piece.is_target)


def test_the_parts_between_marks_are_supervised():
    assert len(EXAMPLES) == 8
    tokenizer = make_tokenizer()
    shown = [text.replace("\\|", "|") for text in SUPERVISED[: len(EXAMPLES)]]
    assert [supervised(value, tokenizer) for value in EXAMPLES[:-1]] == shown[:-1]
    assert supervised(EXAMPLES[-1], tokenizer) == tokenizer.decode(json.loads(f"[{shown[-1]}]"))


def test_the_plain_prompt_is_the_one_shown():
    alpaca = next(value for value in EXAMPLES if "instruction" in value)
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = builtin.resolve(builtin.DEFAULT, tokenizer)
    row = shapes.parse_row(alpaca, RowPlace("docs", 1))
    (example,) = tokens.encode_row(row, make_encoding(tokenizer)).examples
    text = tokenizer.decode(example.input_ids).removesuffix("</s>")
    indented = "\n".join(f"    {line}" if line else "" for line in text.split("\n"))
    assert f"\n\n{indented}\n\n" in PAGE


def test_the_endings_are_those_that_are_read():
    assert tuple(re.findall(r"^\| `(\.\w+)` \|", PAGE, re.MULTILINE)) == files.ENDINGS


@pytest.mark.parametrize("shape", shapes.SHAPES.split("}, {"))
def test_every_shape_has_its_example(shape):
    names = set(re.findall(r'"(\w+)"', shape))
    assert any(names & set(value) for value in EXAMPLES)


def test_every_field_and_mark_that_is_looked_at_is_named():
    assert {*re.findall(r"\w+", PAGE)} >= {*shapes.FIELDS, *flags.MARKS}


@pytest.mark.parametrize("option", DataConfig.model_fields)
def test_every_option_is_named(option):
    assert re.search(rf"\b{option}\b", PAGE)


def test_the_built_in_templates_are_named():
    for name in builtin.BUILT_IN:
        assert f"`{name}`" in PAGE
