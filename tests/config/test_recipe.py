"""What a recipe means, and how it is written."""

from __future__ import annotations

import inspect
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from jaxft import config
from jaxft.config import options

REPO = Path(__file__).parent.parent.parent


def test_a_recipe_gives_its_values_and_the_rest_are_the_known_defaults(recipe):
    loaded = config.load_config(recipe)
    assert loaded.model == config.ModelConfig(path="some/model", revision=None, dtype="auto")
    assert loaded.lora == config.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    assert loaded.data.max_length == 1024
    assert (loaded.data.packing, loaded.data.shuffle) == (False, True)
    assert loaded.mesh == config.MeshConfig(data="auto", fsdp=1, tensor=1)


def test_a_recipe_may_be_named_by_a_text(recipe):
    assert config.load_config(str(recipe)) == config.load_config(recipe)


def test_training_defaults_are_those_of_training_arguments():
    train = config.TrainConfig(output_dir="run")
    assert (train.per_device_train_batch_size, train.per_device_eval_batch_size) == (8, 8)
    assert (train.gradient_accumulation_steps, train.num_train_epochs) == (1, 3.0)
    assert (train.max_steps, train.learning_rate, train.lr_scheduler_type) == (-1, 5e-5, "linear")
    assert (train.weight_decay, train.adam_beta1, train.adam_beta2) == (0.0, 0.9, 0.999)
    assert (train.adam_epsilon, train.max_grad_norm) == (1e-8, 1.0)
    assert (train.logging_steps, train.save_steps, train.seed) == (500, 500, 42)
    assert (train.eval_strategy, train.save_strategy) == ("no", "steps")


def test_scientific_notation_is_a_number_and_no_is_a_word(recipe):
    train = config.load_config(recipe).train
    assert train.learning_rate == 0.002
    assert train.eval_strategy == "no"


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [
        ("train.learning_rate=3e-4", "train", 3e-4),
        ("train.learning_rate=1", "train", 1.0),
        ("train.eval_strategy=no", "train", "no"),
        ("train.output_dir=2026-01-02", "train", Path("2026-01-02")),
        ("train.resume_from_checkpoint=false", "train", False),
        ("train.optim=adamw_torch_fused", "train", "adamw"),
        ("lora.target_modules=[k_proj,o_proj]", "lora", ["k_proj", "o_proj"]),
        ("lora.target_modules=all-linear", "lora", "all-linear"),
        ("lora.target_modules=.*\\.q_proj", "lora", ".*\\.q_proj"),
        ("lora.target_modules=null", "lora", None),
        ("lora.target_modules=", "lora", None),
        ("lora.bias=all", "lora", "all"),
        ("lora.bias=lora_only", "lora", "lora_only"),
        ("lora.modules_to_save=[lm_head]", "lora", ["lm_head"]),
        ("lora.modules_to_save=null", "lora", None),
        ("model.dtype=bfloat16", "model", "bfloat16"),
        ("model.path=other/model", "model", "other/model"),
        ("mesh.data=2", "mesh", 2),
        ("data.packing=true", "data", True),
    ],
)
def test_an_override_is_read_like_the_recipe(recipe, override, section, value):
    loaded = config.load_config(recipe, [override])
    name = override.split("=")[0].split(".")[1]
    assert getattr(getattr(loaded, section), name) == value
    assert type(getattr(getattr(loaded, section), name)) is type(value) or isinstance(value, Path)


def test_the_last_of_two_overrides_wins(recipe):
    assert config.load_config(recipe, ["lora.r=2", "lora.r=3"]).lora.r == 3


def test_overriding_a_section_replaces_it(recipe):
    loaded = config.load_config(recipe, ["lora={r: 2}"])
    assert loaded.lora == config.LoraConfig(r=2)


def test_a_model_can_be_a_word_or_a_section(recipe):
    short = config.load_config(recipe, ["model=a/b"]).model
    long = config.load_config(recipe, ["model={path: a/b, revision: v1}"]).model
    assert short == config.ModelConfig(path="a/b")
    assert long == config.ModelConfig(path="a/b", revision="v1")
    assert config.load_config(recipe, ["model.revision=v2"]).model.path == "some/model"


def test_an_empty_section_is_all_defaults(recipe):
    assert config.load_config(recipe, ["lora=", "mesh="]).lora == config.LoraConfig()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 0),
        ({"warmup_steps": 5}, 5),
        ({"warmup_steps": 1}, 1),
        ({"warmup_steps": 0.1}, 7),  # a share is rounded up
        ({"warmup_ratio": 0.1}, 7),
        ({"warmup_ratio": 1.0}, 61),
    ],
)
def test_warmup_counts_steps_or_a_share_of_them(options, steps):
    assert config.TrainConfig(output_dir="run", **options).warmup(61) == steps


def test_evaluations_come_as_often_as_log_lines_unless_said_otherwise():
    assert config.TrainConfig(output_dir="run", logging_steps=7).evaluation_interval == 7
    train = config.TrainConfig(output_dir="run", logging_steps=7, eval_steps=3)
    assert train.evaluation_interval == 3


def test_the_quickstart_recipe_is_valid():
    loaded = config.load_config(REPO / "configs" / "quickstart.yaml")
    assert loaded.train.max_steps == 50
    assert loaded.train.learning_rate == 2e-3
    assert (loaded.lora.r, loaded.lora.lora_alpha) == (8, 16)


def test_every_option_has_a_help_text():
    nested = (config.SourceConfig, config.HoldOutConfig, config.EvaConfig)
    for section in [*options.sections().values(), *nested]:
        assert inspect.getdoc(section)
        for name, field in section.model_fields.items():
            assert field.description, name


def test_a_section_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        config.LoraConfig().r = 3


def test_a_dump_keeps_the_order_of_the_sections(recipe):
    lines = config.dump_config(config.load_config(recipe)).splitlines()
    assert [line for line in lines if not line.startswith((" ", "-"))] == [
        "model:",
        "tuning:",
        "lora:",
        "data:",
        "train:",
        "mesh:",
    ]
    assert lines[1] == "  path: some/model"


words = st.text(string.ascii_letters + string.digits + " -_.#:'\"[]{}&*!|>%@~éß雪\\/", min_size=1)
fractions = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-12, 1e3)
counts = st.integers(1, 10**6)
hub_sources = st.builds(
    config.SourceConfig,
    path=st.sampled_from([__file__, "owner/name", str(REPO / "*.toml")]),
    columns=st.dictionaries(words, words, max_size=2),
    chat_template=st.none() | st.sampled_from(["chatml", __file__]),
    config=st.none() | words,
    split=st.none() | words,
    revision=st.none() | words,
)
run_configs = st.builds(
    config.RunConfig,
    model=st.builds(
        config.ModelConfig,
        path=words.map(lambda word: f"none/{word}"),
        revision=st.none() | words,
        dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    ),
    lora=st.builds(
        config.LoraConfig,
        r=counts,
        lora_alpha=counts,
        lora_dropout=fractions,
        target_modules=st.none() | words | st.lists(words, min_size=1),
        bias=st.just("none"),
    ),
    data=st.builds(
        config.DataConfig,
        train=st.just(Path(__file__)) | st.lists(hub_sources, min_size=1, max_size=3),
        eval=st.just(REPO / "pyproject.toml") | hub_sources,
        train_on=st.sampled_from(["assistant", "completion", "all"]),
        chat_template=st.none() | st.just("alpaca"),
        chat_template_kwargs=st.dictionaries(words, st.booleans() | words, max_size=2),
        eos_token=st.none() | words,
        overlong=st.sampled_from(["truncate", "drop", "split", "error"]),
        max_length=st.integers(2, 10**6),
        packing=st.booleans(),
        shuffle=st.booleans(),
    ),
    train=st.builds(
        config.TrainConfig,
        output_dir=words.filter(lambda word: not word.startswith("~")).map(Path),
        max_steps=st.just(-1) | counts,
        num_train_epochs=positive,
        learning_rate=positive,
        lr_scheduler_type=st.sampled_from(["linear", "cosine", "constant_with_warmup"]),
        warmup_steps=fractions | counts.map(float),
        optim=st.sampled_from(["adamw", "adamw_torch"]),
        weight_decay=fractions,
        adam_epsilon=positive,
        max_grad_norm=fractions,
        eval_strategy=st.sampled_from(["no", "steps", "epoch"]),
        save_strategy=st.sampled_from(["no", "steps", "epoch"]),
        eval_steps=st.none() | counts,
        save_total_limit=st.none() | counts,
        resume_from_checkpoint=st.booleans() | st.just("auto"),
        seed=st.integers(0, 2**32 - 1),
    ),
    mesh=st.builds(config.MeshConfig, data=counts | st.just("auto"), fsdp=counts, tensor=counts),
)


@given(run_configs)
def test_a_dumped_config_loads_as_the_same(tmp_path_factory, run_config):
    recipe = tmp_path_factory.mktemp("dump") / "config.yaml"
    recipe.write_text(config.dump_config(run_config), encoding="utf-8")
    assert config.load_config(recipe) == run_config


def test_a_bare_path_is_written_as_it_was(recipe):
    text = config.dump_config(config.load_config(recipe))
    assert YAML(typ="safe").load(text)["data"]["train"] == str(recipe.parent / "data/rows.jsonl")
    several = ["data.train=[owner/name, {path: a/b, columns: {text: body}}]"]
    text = config.dump_config(config.load_config(recipe, several))
    assert "train:\n  - owner/name\n  - path: a/b\n    columns:\n      text: body\n" in text


@given(fraction=fractions.filter(bool), by=st.none() | words)
def test_what_is_held_out_is_written_and_read_back(tmp_path_factory, fraction, by):
    whole = config.RunConfig(
        model=config.ModelConfig(path="a/b"),
        data=config.DataConfig(
            train="owner/name", hold_out=config.HoldOutConfig(fraction=fraction, by=by)
        ),
        train=config.TrainConfig(output_dir="run"),
    )
    recipe = tmp_path_factory.mktemp("dump") / "config.yaml"
    recipe.write_text(config.dump_config(whole), encoding="utf-8")
    assert config.load_config(recipe) == whole
