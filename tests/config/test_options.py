"""The list of options: what it says of each, and docs/recipe.md, which shows it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from jaxft.config import kinds, options
from jaxft.errors import ConfigError

ROOT = Path(__file__).parents[2]
ALL = {option.name: option for part in options.parts() for option in part.options}


def test_the_page_lists_the_options_as_they_are_now(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("recipe_page")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.page(page) == page, "run python scripts/recipe_page.py"


def test_an_option_has_a_type_a_default_a_meaning_and_a_source():
    assert ALL["lora.r"] == options.Option(
        "lora.r",
        "integer (at least 1)",
        "8",
        "The rank of the update, such as 16.",
        "PEFT LoraConfig.r",
    )
    assert ALL["train.output_dir"].default == "required"
    assert ALL["data.train_on"].source == "jaxft"


def test_a_meaning_is_whole_sentences_on_one_line():
    for option in ALL.values():
        assert option.meaning.endswith("."), option.name
        assert "\n" not in option.meaning, option.name
        assert option.meaning[0].isupper() or option.meaning[0] == "`", option.name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train.output_dir", "path"),
        ("train.learning_rate", "number (more than 0)"),
        ("data.packing", "true or false"),
        ("data.accept", "list of text"),
        ("data.hold_out.by", "text or null"),
        ("train.optim", "`adamw`"),
        ("train.eval_strategy", "one of: `no`, `steps`, `epoch`"),
        ("model.quantization", "one of: `nf4`, `int4`, `int8`, `fp8`, `null`"),
        ("mesh.data", "integer (at least 1) or `auto`"),
        ("train.resume_from_checkpoint", "one of: `true`, `false`, `auto`"),
        ("lora.target_modules", "list (not empty) of text; text; or null"),
        ("lora.rank_pattern", "mapping of names to integers (at least 1)"),
        ("data.train", "list (not empty) of keys and values"),
    ],
)
def test_a_type_is_said_in_words(name, kind):
    assert ALL[name].kind == kind


def test_a_message_has_the_same_words_with_their_articles():
    field = FieldInfo.from_annotation(int | list[str] | None)
    assert kinds.expected(field) == "an integer, a list of text or null"
    assert kinds.listed(field) == "integer; list of text; or null"


def test_nested_sections_stand_behind_the_section_that_holds_them():
    names = [part.names for part in options.parts()]
    assert names[2:6] == [("lora",), ("lora.eva_config",), ("data",), ("data.train", "data.eval")]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["seed"], ["train.seed"]),
        (["train.seed", "lora.r"], ["lora.r", "train.seed"]),
        (["hold_out"], ["data.hold_out"]),
        (["data.hold_out"], ["data.hold_out", "data.hold_out.fraction", "data.hold_out.by"]),
        (["revision"], ["model.revision", "data.train.revision"]),
    ],
)
def test_options_can_be_chosen_by_name(words, shown):
    chosen = [option.name for part in options.select(words) for option in part.options]
    assert chosen == shown


def test_a_section_is_chosen_with_the_sections_inside_it():
    assert [part.names[0] for part in options.select(["lora"])] == ["lora", "lora.eva_config"]
    assert options.select([]) == options.parts()


@pytest.mark.parametrize(("word", "remedy"), [("sed", "`train.seed`"), ("zzz", "one of: model,")])
def test_an_unknown_name_is_answered_with_the_nearest(word, remedy):
    with pytest.raises(ConfigError) as raised:
        options.select([word])
    assert raised.value.found == f"no option or section is called `{word}`"
    assert remedy.strip("`").split(".")[-1] in raised.value.remedy


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_longer_than_the_terminal(width):
    text = options.as_text(options.parts(), width)
    lines = text.splitlines()
    assert max(len(line) for line in lines if len(line.split()) > 1) <= width
    assert "  lora.r = 8" in lines
