"""Recipes: what they mean, what they refuse, and the place each mistake is reported at."""

from __future__ import annotations

import inspect
import string
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft import config
from jaxft.config import known, problems
from jaxft.errors import ConfigError

REPO = Path(__file__).parent.parent

RECIPE = """\
# a comment
model: some/model
lora:
  r: 4
  target_modules: [q_proj, v_proj]
data:
  train: data/rows.jsonl
  eval: data/held_out.jsonl
train:
  output_dir: runs/test
  learning_rate: 2e-3
  eval_strategy: no
"""


TOKENS = (
    "Expected a list (not empty) of whole numbers (at least 0), a mapping (not empty) of each name "
    "to a list (not empty) of whole numbers (at least 0) or null."
)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A valid recipe in a folder of its own, with the command running beside it."""
    folder = tmp_path / "recipes"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").touch()
    (folder / "data" / "held_out.jsonl").touch()
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return folder / "recipe.yaml"


def mistake(recipe: Path, *overrides: str, text: str = "") -> ConfigError:
    """Return the error of loading a recipe, after `text` is appended to it."""
    recipe.write_bytes(recipe.read_bytes() + text.encode())
    with pytest.raises(ConfigError) as raised:
        config.load_config(recipe, overrides)
    return raised.value


# What a recipe means


def test_a_recipe_gives_its_values_and_the_rest_are_the_known_defaults(recipe):
    loaded = config.load_config(recipe)
    assert loaded.model == config.ModelConfig(path="some/model", revision=None, dtype="auto")
    assert loaded.lora == config.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    assert loaded.data.max_length == 1024
    assert (loaded.data.packing, loaded.data.shuffle) == (False, True)
    assert loaded.mesh == config.MeshConfig(data="auto", fsdp=1, tensor=1)


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


# Paths


def test_paths_start_at_the_recipe_and_output_dir_where_the_command_runs(recipe):
    loaded = config.load_config(Path("recipes/recipe.yaml"))
    assert loaded.data.train == recipe.parent / "data" / "rows.jsonl"
    assert loaded.data.train.is_absolute()
    assert loaded.train.output_dir == Path("runs/test")


def test_a_model_folder_beside_the_recipe_is_found(recipe):
    (recipe.parent / "some" / "model").mkdir(parents=True)
    assert config.load_config(recipe).model.path == str(recipe.parent / "some" / "model")


def test_a_path_on_the_command_line_starts_where_the_command_runs(recipe):
    Path("mine.jsonl").touch()
    Path("data").mkdir()
    Path("data/rows.jsonl").touch()
    assert config.load_config(recipe, ["data.train=mine.jsonl"]).data.train == Path.cwd() / (
        "mine.jsonl"
    )
    loaded = config.load_config(recipe, ["data.train=data/rows.jsonl"])
    assert loaded.data.train == Path.cwd() / "data/rows.jsonl"


def test_a_path_on_the_command_line_may_start_at_the_recipe(recipe):
    loaded = config.load_config(recipe, ["data.train=data/held_out.jsonl"])
    assert loaded.data.train == recipe.parent / "data" / "held_out.jsonl"


def test_a_tilde_is_the_home_folder(recipe, monkeypatch):
    monkeypatch.setenv("HOME", str(recipe.parent))
    loaded = config.load_config(recipe, ["data.train=~/data/rows.jsonl", "train.output_dir=~/out"])
    assert loaded.data.train == recipe.parent / "data" / "rows.jsonl"
    assert loaded.train.output_dir == recipe.parent / "out"


# Mistakes, each with its place


def test_an_unknown_key_is_answered_with_its_line_and_the_nearest_one(recipe):
    error = mistake(recipe, text="  learnin_rate: 1\n")
    assert error.found == f"{recipe}:13: unknown key `train.learnin_rate`"
    assert error.remedy == "Did you mean `train.learning_rate`?"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "train.learning_rate"),  # the right key in no section
        ("train.max_length", "data.max_length"),  # in the wrong section
        ("mesh.learnin_rate", "train.learning_rate"),  # both
        ("lora.rank", "lora.r"),  # the word that others use
        ("train.batch_size", "train.per_device_train_batch_size"),
        ("train.evaluation_strategy", "train.eval_strategy"),
        ("Lora.r", "lora"),
    ],
)
def test_a_misplaced_or_renamed_key_is_answered_with_its_home(recipe, key, meant):
    error = mistake(recipe, f"{key}=1")
    assert error.found.startswith(f"override `{key}=1`: unknown key")
    assert error.remedy == f"Did you mean `{meant}`?"


def test_a_key_like_no_other_is_answered_with_all_keys(recipe):
    assert mistake(recipe, "mesh.zzz=1").remedy == "`mesh` takes: data, fsdp, tensor."
    assert (
        mistake(recipe, "zzz=1").remedy == "A recipe takes: model, tuning, lora, data, train, mesh."
    )


def test_a_misspelt_required_key_is_not_called_missing(recipe):
    recipe.write_text(RECIPE.replace("output_dir", "outptu_dir"))
    error = mistake(recipe)
    assert error.found == f"{recipe}:10: unknown key `train.outptu_dir`"
    assert error.remedy == "Did you mean `train.output_dir`?"


@pytest.mark.parametrize(
    ("override", "found", "expected"),
    [
        ("lora.r=eight", '`lora.r` is "eight"', "a whole number (at least 1)."),
        ("lora.r=0", "`lora.r` is 0", "a whole number (at least 1)."),
        ("lora.r=2.5", "`lora.r` is 2.5", "a whole number (at least 1)."),
        ("lora.r=true", "`lora.r` is true", "a whole number (at least 1)."),
        (
            "lora.lora_alpha=-1",
            "`lora.lora_alpha` is -1",
            "(at least 1) or a number (more than 0).",
        ),
        ("lora.lora_dropout=1", "`lora.lora_dropout` is 1", "a number (at least 0, less than 1)."),
        ("lora.lora_dropout=-0.1", "`lora.lora_dropout` is -0.1", "at least 0"),
        ("lora.target_modules=[]", "is []", "Expected a list (not empty) of text, text or null."),
        ("lora.target_modules=[1]", "`lora.target_modules.0` is 1", "Put it in quotes."),
        (
            "lora.rank_pattern={q: 0}",
            "`lora.rank_pattern.q` is 0",
            "to a whole number (at least 1).",
        ),
        ("lora.trainable_token_indices=[a]", "`lora.trainable_token_indices.0`", TOKENS),
        ("lora.trainable_token_indices=[]", "is []", TOKENS),
        ("lora.trainable_token_indices={embed_tokens: []}", '{"embed_tokens": []}', TOKENS),
        ("lora.eva_config=3", "`lora.eva_config` is 3", "from: rho, tau, use_label_mask"),
        ("lora.eva_config.rhoo=2.0", "`lora.eva_config.rhoo`", "mean `lora.eva_config.rho`?"),
        ("lora.eva_config.zz=2", "`lora.eva_config.zz`", "`lora.eva_config` takes: rho, tau,"),
        ("lora.eva_config.rho=0.5", "`lora.eva_config.rho` is 0.5", "a number (at least 1)."),
        ("lora.eva_config.label_mask_value=0", "is 0", "Expected `-100`."),
        ("lora=8", "`lora` is 8", "keys and values, from: r, lora_alpha"),
        ("train.learning_rate=0", "`train.learning_rate` is 0", "a number (more than 0)."),
        ("train.learning_rate=.inf", "`train.learning_rate` is Infinity", "a number"),
        ("train.learning_rate='3e-4'", '`train.learning_rate` is "3e-4"', "Take the quotes away."),
        ("train.num_train_epochs=0", "`train.num_train_epochs` is 0", "more than 0"),
        ("train.max_steps=0", "train.max_steps is 0", "at least 1, or -1"),
        ("train.max_steps=-2", "`train.max_steps` is -2", "at least -1"),
        ("train.warmup_steps=-1", "`train.warmup_steps` is -1", "at least 0"),
        ("train.warmup_steps=2.5", "train.warmup_steps is 2.5", "a whole number of steps"),
        ("train.warmup_ratio=1.5", "`train.warmup_ratio` is 1.5", "at most 1"),
        ("train.gradient_accumulation_steps=0", "is 0", "at least 1"),
        ("train.logging_steps=0", "is 0", "at least 1"),
        ("train.save_steps=-5", "is -5", "at least 1"),
        ("train.eval_steps=0", "is 0", "at least 1"),
        ("train.save_total_limit=0", "is 0", "at least 1"),
        ("train.adam_beta1=1.0", "is 1.0", "less than 1"),
        ("train.adam_epsilon=0", "is 0", "more than 0"),
        ("train.max_grad_norm=-1", "is -1", "at least 0"),
        ("train.weight_decay=-1", "is -1", "at least 0"),
        ("train.seed=-1", "is -1", "less than 4294967296"),
        ("train.output_dir=", "`train.output_dir` is null", "a path."),
        ("train.lr_scheduler_type=Linear", '"Linear"', "Did you mean `linear`?"),
        ("train.eval_strategy=step", '"step"', "`no`, `steps` or `epoch`. Did you mean `steps`?"),
        ("train.resume_from_checkpoint=yes", '"yes"', "true or false or `auto`."),
        ("data.packing=yes", '`data.packing` is "yes"', "true or false."),
        ("data.max_length=1", "`data.max_length` is 1", "at least 2"),
        ("model.path=", "`model.path` is null", "text"),
        ("model.revision=12e4", "`model.revision` is 120000.0", "Put it in quotes."),
        ("mesh.data=0", "`mesh.data` is 0", "a whole number (at least 1) or `auto`."),
        ("mesh.fsdp=auto", '`mesh.fsdp` is "auto"', "a whole number (at least 1)."),
    ],
)
def test_a_wrong_value_says_what_was_found_and_what_was_expected(recipe, override, found, expected):
    error = mistake(recipe, override)
    assert error.found.startswith(f"override `{override}`: ")
    assert found in error.found
    assert expected in error.remedy


def test_of_a_mapping_the_names_are_no_values_to_be_quoted(recipe):
    assert "quotes" not in mistake(recipe, "lora.rank_pattern={q: 0}").remedy


def test_a_wrong_value_in_the_file_is_reported_with_its_line(recipe):
    recipe.write_text(RECIPE.replace("r: 4", "r: four"))
    assert mistake(recipe).found == f'{recipe}:4: `lora.r` is "four"'


def test_a_wrong_item_of_a_list_is_reported_with_its_line(recipe):
    recipe.write_text(RECIPE.replace("[q_proj, v_proj]", "\n    - q_proj\n    - 7"))
    assert mistake(recipe).found == f"{recipe}:7: `lora.target_modules.1` is 7"


@pytest.mark.parametrize("name", ["model", "data", "train"])
def test_a_missing_section_is_named(recipe, name):
    lines = RECIPE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(name))
    end = next(
        (i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines)
    )
    recipe.write_text("\n".join(lines[:start] + lines[end:]))
    assert mistake(recipe).found == f"{recipe}: `{name}` is missing"


def test_a_missing_key_is_named_with_what_it_means(recipe):
    recipe.write_text(RECIPE.replace("  output_dir: runs/test\n", ""))
    error = mistake(recipe)
    assert error.found == f"{recipe}:9: `train.output_dir` is missing"
    assert error.remedy.startswith("Add it. Folder of the run:")


def test_a_key_that_stands_twice_is_refused_with_both_lines(recipe):
    error = mistake(recipe, text="  learning_rate: 1\n")
    assert error.found == f"{recipe}:13: `train.learning_rate` stands twice"
    assert f"{recipe}:11" in error.remedy
    assert "stands twice" in mistake(recipe, "lora={r: 1, r: 2}").found


def test_malformed_yaml_is_reported_with_its_line(recipe):
    error = mistake(recipe, text="mesh: {data: 1\n")
    assert error.found.startswith(f"{recipe}:14: not YAML: ")


def test_a_malformed_override_is_named(recipe):
    error = mistake(recipe, "lora.target_modules=*q")
    assert error.found.startswith("override `lora.target_modules=*q`: not YAML: ")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- model\n- data\n", ":1: the recipe is not made of keys and values"),
        (b"just words\n", ":1: the recipe is not made of keys and values"),
        (b"model: \xff\n", "it is not UTF-8 text"),
        (b"model: a\x01b\n", "not YAML"),
        (b"? [a, b]\n: 1\n", ":1: a key is not plain text"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(recipe, content, found):
    recipe.write_bytes(content)
    assert found in mistake(recipe).found


def test_a_missing_recipe_is_answered_with_the_nearest_file(recipe):
    with pytest.raises(ConfigError) as raised:
        config.load_config(recipe.with_name("recip.yml"))
    assert raised.value.found == f"no recipe at {recipe.with_name('recip.yml')}"
    assert raised.value.remedy == f"Did you mean {recipe}?"


def test_a_folder_is_no_recipe(recipe):
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        config.load_config(recipe.parent)


def test_a_missing_data_file_is_reported_with_its_line_and_the_nearest_file(recipe):
    recipe.write_text(RECIPE.replace("data/rows.jsonl", "data/row.jsonl"))
    error = mistake(recipe)
    assert error.found == f"{recipe}:7: `data.train` names data/row.jsonl, which is not there"
    assert error.remedy == f"Did you mean {recipe.parent / 'data' / 'rows.jsonl'}?"


def test_a_missing_folder_is_named(recipe):
    error = mistake(recipe, "data.eval=nowhere/rows.jsonl")
    assert error.found.startswith("override `data.eval=nowhere/rows.jsonl`: `data.eval` names")
    assert f"There is no folder {Path.cwd() / 'nowhere'}" in error.remedy


@pytest.mark.parametrize("override", ["lora.r", "--lora.r", "=3", "lora.=3", ".r=3"])
def test_an_override_that_is_not_key_value_is_refused(recipe, override):
    error = mistake(recipe, override)
    assert error.found == f"override `{override}` is not key=value"


def test_an_override_below_a_value_is_refused(recipe):
    error = mistake(recipe, "lora.r.x=3")
    assert error.found == "override `lora.r.x=3`: `lora.r` is 4 and has no keys of its own"


# Contradictions


def test_two_warmups_are_refused(recipe):
    error = mistake(recipe, text="  warmup_steps: 5\n  warmup_ratio: 0.1\n")
    assert error.found.startswith(f"{recipe}:14: both train.warmup_steps (5) and")


def test_a_warmup_with_a_constant_schedule_is_refused(recipe):
    error = mistake(recipe, "train.warmup_steps=5", "train.lr_scheduler_type=constant")
    assert "constant_with_warmup" in error.remedy


def test_evaluation_without_rows_is_refused(recipe):
    error = mistake(recipe, "data.eval=null", "train.eval_strategy=steps")
    assert "data.eval names no file" in error.found
    assert error.found.startswith("override `train.eval_strategy=steps`: ")


# Names known from elsewhere


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("lora.use_qalora=true", "or write `use_qalora: false`."),
        ("lora.loftq_config={q: 4}", "or write `loftq_config: {}`."),
        ("lora.init_from=other", "or write `init_from: null`."),
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


@pytest.mark.parametrize("kind", ["pissa_niter_-1", "pissa_niter_", "pissa_niter_2.5", "pissa-4"])
def test_iterations_are_a_whole_number_from_zero(recipe, kind):
    error = mistake(recipe, f"lora.init_lora_weights={kind}")
    assert f'is "{kind}"' in error.found
    assert "text (of the form pissa_niter_[0-9]+)" in error.remedy


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_0", "pissa_niter_16", "olora"])
def test_a_start_from_the_weights_leaves_no_room_for_a_bias_of_b(kind):
    lora = config.LoraConfig(init_lora_weights=kind)
    assert lora.begins_with_weights
    with pytest.raises(pydantic.ValidationError, match=f"init_lora_weights='{kind}'"):
        config.LoraConfig(init_lora_weights=kind, lora_bias=True)
    assert not config.LoraConfig(init_lora_weights="gaussian").begins_with_weights


def test_an_alpha_may_be_no_whole_number_as_those_that_peft_converts_are():
    assert config.LoraConfig(lora_alpha=2**0.5).lora_alpha == 2**0.5
    assert isinstance(config.LoraConfig(lora_alpha=16).lora_alpha, int)
    with pytest.raises(pydantic.ValidationError):
        config.LoraConfig(lora_alpha=0.0)


@pytest.mark.parametrize("override", ["lora.bias=some", "lora.modules_to_save=[]"])
def test_what_else_is_trained_is_checked(recipe, override):
    error = mistake(recipe, override)
    assert error.found.startswith(f"override `{override}`: `{override.split('=')[0]}` is ")


def test_a_section_built_in_python_names_itself_and_the_nearest_option():
    with pytest.raises(pydantic.ValidationError) as raised:
        config.LoraConfig(lora_alhpa=4)
    error = config.section_error(raised.value, "lora", {"lora_alhpa": 4})
    assert error.found == "lora: unknown key `lora.lora_alhpa`"
    assert error.remedy == "Did you mean `lora.lora_alpha`?"


def test_a_known_name_with_a_home_here_says_where(recipe):
    assert mistake(recipe, "train.bf16=true").remedy == "Use `model.dtype` instead."
    assert mistake(recipe, "train.fsdp=full_shard").remedy == "Use `mesh.fsdp` instead."


@pytest.mark.parametrize("section", ["model", "lora", "data", "train"])
def test_known_names_that_ask_for_nothing_change_nothing(recipe, section):
    table = problems.sections()[section].known_elsewhere
    plain = config.load_config(recipe)
    for name, entry in table.items():
        for value in entry.harmless:
            override = f"{section}.{name}={problems.shown(value)}"
            assert config.load_config(recipe, [override]) == plain


def test_no_option_is_listed_as_unsupported():
    for name, section in problems.sections().items():
        assert not set(section.model_fields) & set(section.known_elsewhere), name


def test_every_hint_points_at_an_option():
    tables = (known.MODEL, known.LORA, known.DATA, known.TRAIN)
    hints = [entry.instead for table in tables for entry in table.values() if entry.instead]
    for hint in [*hints, *known.RENAMED.values()]:
        assert problems.field_at(tuple(hint.split("."))) is not None, hint


def test_values_known_from_elsewhere_belong_to_an_option():
    options = {name for section in problems.sections().values() for name in section.model_fields}
    assert set(known.VALUES) <= options


# The sections themselves


def test_every_option_has_a_help_text():
    for section in problems.sections().values():
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
        train=st.just(Path(__file__)),
        eval=st.just(REPO / "pyproject.toml"),
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
