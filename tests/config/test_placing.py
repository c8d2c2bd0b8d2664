"""Where paths in a recipe start, and what is said about those that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_builders import RECIPE, mistake

from jaxft import config


def train_paths(recipe, *overrides: str) -> list[str]:
    return [source.path for source in config.load_config(recipe, overrides).data.train]


def test_paths_start_at_the_recipe_and_output_dir_where_the_command_runs(recipe):
    loaded = config.load_config(Path("recipes/recipe.yaml"))
    assert [source.path for source in loaded.data.train] == [
        str(recipe.parent / "data" / "rows.jsonl")
    ]
    assert loaded.train.output_dir == Path("runs/test")


def test_a_model_folder_beside_the_recipe_is_found(recipe):
    (recipe.parent / "some" / "model").mkdir(parents=True)
    assert config.load_config(recipe).model.path == str(recipe.parent / "some" / "model")


def test_a_path_on_the_command_line_starts_where_the_command_runs(recipe):
    Path("mine.jsonl").touch()
    Path("data").mkdir()
    Path("data/rows.jsonl").touch()
    assert train_paths(recipe, "data.train=mine.jsonl") == [str(Path.cwd() / "mine.jsonl")]
    assert train_paths(recipe, "data.train=data/rows.jsonl") == [
        str(Path.cwd() / "data/rows.jsonl")
    ]


def test_a_path_on_the_command_line_may_start_at_the_recipe(recipe):
    assert train_paths(recipe, "data.train=data/held_out.jsonl") == [
        str(recipe.parent / "data" / "held_out.jsonl")
    ]


def test_a_tilde_is_the_home_folder(recipe, monkeypatch):
    monkeypatch.setenv("HOME", str(recipe.parent))
    loaded = config.load_config(recipe, ["data.train=~/data/rows.jsonl", "train.output_dir=~/out"])
    assert loaded.data.train[0].path == str(recipe.parent / "data" / "rows.jsonl")
    assert loaded.train.output_dir == recipe.parent / "out"


def test_a_missing_data_file_is_reported_with_its_line_and_the_nearest_file(recipe):
    recipe.write_text(RECIPE.replace("data/rows.jsonl", "data/row.jsonl"))
    error = mistake(recipe)
    assert error.found == f"{recipe}:7: `data.train` names data/row.jsonl, which is not there"
    assert error.remedy == f"Did you mean {recipe.parent / 'data' / 'rows.jsonl'}?"


def test_a_missing_folder_is_named(recipe):
    error = mistake(recipe, "data.eval=nowhere/rows.jsonl")
    assert error.found.startswith("override `data.eval=nowhere/rows.jsonl`: `data.eval` names")
    assert f"There is no folder {Path.cwd() / 'nowhere'}" in error.remedy


def test_the_adapter_to_go_on_from_starts_at_the_recipe_and_must_be_there(recipe):
    (recipe.parent / "first" / "adapter").mkdir(parents=True)
    loaded = config.load_config(recipe, ["lora.init_from=first/adapter"])
    assert loaded.lora.init_from == str(recipe.parent / "first" / "adapter")
    error = mistake(recipe, "lora.init_from=first/adaptor")
    assert "`lora.init_from` names first/adaptor, which is not there" in error.found
    assert "Give the folder of an adapter" in error.remedy


# Sources of rows


@pytest.mark.parametrize(
    "written",
    [
        "data/rows.jsonl",
        "[data/rows.jsonl]",
        "{path: data/rows.jsonl}",
        "[{path: data/rows.jsonl}]",
    ],
)
def test_a_source_can_be_a_word_a_mapping_or_an_item_of_a_list(recipe, written):
    recipe.write_text(RECIPE.replace("train: data/rows.jsonl", f"train: {written}"))
    assert train_paths(recipe) == [str(recipe.parent / "data" / "rows.jsonl")]


def test_folders_and_patterns_start_at_the_recipe_too(recipe):
    folder = recipe.parent / "data"
    assert train_paths(recipe, "data.train=data") == [str(folder)]
    assert train_paths(recipe, "data.train=data/*.jsonl") == [str(folder / "*.jsonl")]
    recipe.write_text(RECIPE.replace("train: data/rows.jsonl", "train: '**/r*.jsonl'"))
    assert train_paths(recipe) == [str(recipe.parent / "**" / "r*.jsonl")]


@pytest.mark.parametrize("name", ["owner/name", "openai/gsm8k", "team/chat-v1.5"])
def test_a_name_on_the_hub_stays_as_it_is(recipe, name):
    assert train_paths(recipe, f"data.train={name}") == [name]
    assert train_paths(recipe, f"data.train=[data/rows.jsonl, {name}]")[1] == name


def test_a_name_like_that_of_a_file_is_on_the_hub_if_it_has_a_split(recipe):
    assert train_paths(recipe, "data.train={path: owner/name.en, split: train}") == [
        "owner/name.en"
    ]


@pytest.mark.parametrize(
    ("written", "name", "words"),
    [
        ("data/row.jsonl", "data.train", "Did you mean"),
        ("data/rows", "data.train", "Paths there start at"),  # there is a folder `data`
        ("squad", "data.train", "a data set on the Hub is `owner/name`"),
        ("owner/name.jsonl", "data.train", "There is no folder"),
        ("data/*.csv", "data.train", "Paths there start at"),
        ("[data/rows.jsonl, data/row.jsonl]", "data.train.1", "Did you mean"),
        ("[{path: data/row.jsonl, weight: 2}]", "data.train.0.path", "Did you mean"),
    ],
)
def test_each_source_that_is_missing_is_named_with_its_line(recipe, written, name, words):
    recipe.write_text(RECIPE.replace("train: data/rows.jsonl", f"train: {written}"))
    error = mistake(recipe)
    assert error.found.startswith(f"{recipe}:7: `{name}` names ")
    assert words in error.remedy


def test_a_source_in_a_list_is_reported_with_a_line_of_its_own(recipe):
    lines = "train:\n    - data/rows.jsonl\n    - path: data/row.jsonl\n      weight: 1"
    recipe.write_text(RECIPE.replace("train: data/rows.jsonl", lines))
    assert mistake(recipe).found.startswith(f"{recipe}:9: `data.train.1.path` names")


# Chat templates


@pytest.mark.parametrize("name", ["chatml", "alpaca", "alpaca-ko"])
def test_a_built_in_template_is_no_file(recipe, name):
    assert config.load_config(recipe, [f"data.chat_template={name}"]).data.chat_template == name


def test_another_template_is_a_file_that_is_placed(recipe):
    file = recipe.parent / "mine.jinja"
    file.touch()
    loaded = config.load_config(
        recipe,
        [
            "data.chat_template=mine.jinja",
            "data.train={path: data/rows.jsonl, chat_template: mine.jinja}",
        ],
    )
    assert loaded.data.chat_template == loaded.data.train[0].chat_template == str(file)


def test_a_template_that_is_nowhere_is_named(recipe):
    assert mistake(recipe, "data.chat_template=chatlm").remedy == "Did you mean `chatml`?"
    error = mistake(recipe, "data.train={path: data/rows.jsonl, chat_template: x.jinja}")
    assert "`data.train.chat_template` names x.jinja, which is not there" in error.found
    assert "chatml, alpaca, alpaca-ko" in error.remedy
