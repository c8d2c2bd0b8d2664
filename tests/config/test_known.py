"""Names and values that people bring from elsewhere."""

from __future__ import annotations

import pytest
from recipe_builders import mistake

from jaxft import config
from jaxft.config import known, options


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("lora.use_qalora=true", "or write `use_qalora: false`."),
        ("lora.loftq_config={q: 4}", "or write `loftq_config: {}`."),
        ("train.report_to=wandb", 'or write `report_to: "none"`.'),
        ("train.load_best_model_at_end=true", "or write `load_best_model_at_end: false`."),
        ("data.packing_strategy=wrapped", 'or write `packing_strategy: "bfd"`.'),
    ],
)
def test_a_known_name_that_is_not_supported_says_so(recipe, override, remedy):
    error = mistake(recipe, override)
    assert error.found.endswith("is known, and not supported yet")
    assert error.remedy.endswith(remedy)


@pytest.mark.parametrize(
    "override",
    [
        "lora.init_lora_weights=loftq",
        "train.optim=adafactor",
        "train.lr_scheduler_type=polynomial",
        "train.save_strategy=best",
        "model.dtype=float16",
    ],
)
def test_a_known_value_that_is_not_supported_says_so(recipe, override):
    error = mistake(recipe, override)
    assert error.found.endswith("is known, and not supported yet")
    assert error.remedy.startswith("Expected ")


@pytest.mark.parametrize(
    ("override", "home"),
    [
        ("data.chat_template_path=x", "data.chat_template"),
        ("data.dataset_text_field=body", "data.train.columns"),
        ("data.assistant_only_loss=false", "data.train_on"),
        ("data.completion_only_loss=false", "data.train_on"),
        ("train.group_by_length=true", "data.group_by_length"),
        ("train.train_sampling_strategy=group_by_length", "data.group_by_length"),
    ],
)
def test_what_is_an_option_of_the_data_says_which(recipe, override, home):
    error = mistake(recipe, override)
    assert error.found.endswith("is not set here")
    assert f"`{home}" in error.remedy


def test_a_known_name_with_a_home_here_says_where(recipe):
    assert mistake(recipe, "train.bf16=true").remedy == "Use `model.dtype` instead."
    assert mistake(recipe, "train.fsdp=full_shard").remedy == "Use `mesh.fsdp` instead."


@pytest.mark.parametrize("section", ["model", "lora", "data", "train"])
def test_known_names_that_ask_for_nothing_change_nothing(recipe, section):
    table = options.sections()[section].known_elsewhere
    plain = config.load_config(recipe)
    for turn in range(max(len(entry.harmless) for entry in table.values())):
        overrides = [
            f"{section}.{name}={options.shown(entry.harmless[turn])}"
            for name, entry in table.items()
            if len(entry.harmless) > turn
        ]
        assert config.load_config(recipe, overrides) == plain


def test_no_option_is_listed_as_unsupported():
    for name, section in options.sections().items():
        assert not set(section.model_fields) & set(section.known_elsewhere), name


def test_every_hint_points_at_an_option():
    tables = (known.MODEL, known.LORA, known.DATA, known.TRAIN)
    hints = [entry.instead for table in tables for entry in table.values() if entry.instead]
    for hint in [*hints, *known.RENAMED.values()]:
        assert options.field_at(tuple(hint.split("."))) is not None, hint


def test_values_known_from_elsewhere_belong_to_an_option():
    names = {name for section in options.sections().values() for name in section.model_fields}
    assert set(known.VALUES) <= names
