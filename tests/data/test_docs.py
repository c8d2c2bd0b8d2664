"""docs/data.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from data_builders import make_tokenizer

from jaxft.data import files, report, shapes, tokens
from jaxft.data.rows import Place

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(text) for text in re.findall(r"\| `(\{.*\})` \|", PAGE)]


def learned(value: dict, tokenizer) -> str:
    example = tokens.encode_row(shapes.parse_row(value, Place("docs", 1)), tokenizer)
    pieces = report.split_pieces(example, tokenizer)
    return "".join(piece.text for piece in pieces if piece.is_target)


def test_the_examples_are_rows_of_which_that_is_learned():
    tokenizer = make_tokenizer()
    assert [learned(value, tokenizer) for value in EXAMPLES[:-1]] == [
        "4<|im_end|>",
        "4<|im_end|>\n",
        " 4</s>",
        "4<|im_end|>",
        "4<|im_end|>",
        "4<|im_end|>",
        "wo and two are four.</s>",
    ]
    assert learned(EXAMPLES[-1], tokenizer) == tokenizer.decode([9, 2])


def test_the_plain_prompt_is_the_one_shown():
    alpaca = next(value for value in EXAMPLES if "instruction" in value)
    tokenizer = make_tokenizer(None)
    row = tokens.encode_row(shapes.parse_row(alpaca, Place("docs", 1)), tokenizer)
    text = tokenizer.decode(row.input_ids).removesuffix("</s>")
    indented = "\n".join(f"    {line}" if line else "" for line in text.split("\n"))
    assert f"\n\n{indented}\n\n" in PAGE


def test_the_endings_are_those_that_are_read():
    assert tuple(re.findall(r"^\| `(\.\w+)` \|", PAGE, re.MULTILINE)) == files.ENDINGS


@pytest.mark.parametrize("shape", shapes.SHAPES.split("}, {"))
def test_every_shape_has_its_example(shape):
    names = set(re.findall(r'"(\w+)"', shape))
    assert any(names & set(value) for value in EXAMPLES)


def test_every_field_that_is_refused_is_listed():
    _, _, refused = PAGE.partition("## What is refused")
    used = {name for value in EXAMPLES for name in value}
    assert set(re.findall(r"`(\w+)`", refused)) >= shapes.FIELDS - used
