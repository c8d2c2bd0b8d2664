"""docs/four-kinds.md says what the recipes in configs/ do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from data_builders import make_encoding, make_tokenizer

from jaxft.config import recipe
from jaxft.data.chats import builtin
from jaxft.data.examples import report, tokens
from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "four-kinds.md").read_text(encoding="utf-8")
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "quickstart")
# As SmolLM2 has it.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

for_every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def section(path: Path) -> str:
    """Return the part of the page that tells how to run a recipe."""
    command = f"\n    jaxft train configs/{path.name}\n"
    (found,) = (part for part in PAGE.split("\n## ")[2:] if command in part)
    return found


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", section(path), re.DOTALL)


@for_every_recipe
def test_the_row_is_supervised_as_shown(path):
    data = recipe.load_config(path).data
    tokenizer = make_tokenizer(TEMPLATE, eos_token="<|im_end|>", extra_merges=(("E", "m"),))
    if data.chat_template:
        tokenizer.chat_template = builtin.resolve(data.chat_template, tokenizer)
    value = json.loads(blocks(path, "json")[0])
    row = shapes.parse_row(value, RowPlace("page", 1), data.train[0].columns)
    (example,) = tokens.encode_row(row, make_encoding(tokenizer)).examples
    shown = report.mark_targets(example, tokenizer, before="[[", after="]]")
    assert [shown.removesuffix("\n")] == blocks(path, "text")


@for_every_recipe
def test_the_losses_are_those_of_the_header(path):
    header = path.read_text(encoding="utf-8").partition("\nmodel:")[0]
    before, after = re.search(r"held-out loss ([\d.]+) before, ([\d.]+) after", header).groups()
    words = " ".join(section(path).split())
    assert f"Held-out loss: {before} before, {after} after" in words


# The corpus has a whole chapter in each row, which the page shortens.
@pytest.mark.parametrize("path", RECIPES[1:], ids=lambda path: path.stem)
def test_the_row_stands_in_the_recipes_file(path):
    value = json.loads(blocks(path, "json")[0])
    lines = Path(recipe.load_config(path).data.train[0].path).read_text(encoding="utf-8")
    assert value in [json.loads(line) for line in lines.split("\n") if line]


def test_every_recipe_stands_in_the_table():
    assert [path.name for path in RECIPES if f"configs/{path.name}" not in PAGE] == []
