"""What a recipe refuses, and the place each mistake is reported at."""

from __future__ import annotations

import pydantic
import pytest
from recipe_builders import RECIPE, mistake

from jaxft import config
from jaxft.errors import ConfigError

TOKENS = (
    "Expected a list (not empty) of integers (at least 0), a mapping (not empty) of names "
    "to lists (not empty) of integers (at least 0) or null."
)


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
        ("lora.r=eight", '`lora.r` is "eight"', "an integer (at least 1)."),
        ("lora.r=0", "`lora.r` is 0", "an integer (at least 1)."),
        ("lora.r=2.5", "`lora.r` is 2.5", "an integer (at least 1)."),
        ("lora.r=true", "`lora.r` is true", "an integer (at least 1)."),
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
            "of names to integers (at least 1).",
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
        ("data.train=[]", "`data.train` is []", "a list (not empty) of keys and values"),
        ("data.train=3", "`data.train` is 3", "keys and values, from: path, weight"),
        ("data.train={weight: 1}", "`data.train.0.path` is missing", "A file, a folder, a pattern"),
        ("data.train={path: a/b, weight: 0}", "`data.train.weight` is 0", "more than 0"),
        ("data.train=[{path: a/b, wieght: 2}]", "`data.train.0.wieght`", "`data.train.0.weight`?"),
        ("data.train={path: a/b, columns: {text: 1}}", "columns.text` is 1", "Put it in quotes."),
        ("data.hold_out=1", "`data.hold_out` is 1", "a number (more than 0, less than 1)."),
        ("data.hold_out=ten", '`data.hold_out` is "ten"', "from: fraction, by"),
        ("data.train_on=answer", '"answer"', "`assistant`, `last_assistant`"),
        ("data.overlong=cut", '"cut"', "`truncate`, `drop`, `split` or `error`"),
        ("data.shuffle_buffer=0", "is 0", "at least 1"),
        ("model.path=", "`model.path` is null", "text"),
        ("model.revision=12e4", "`model.revision` is 120000.0", "Put it in quotes."),
        ("mesh.data=0", "`mesh.data` is 0", "an integer (at least 1) or `auto`."),
        ("mesh.fsdp=auto", '`mesh.fsdp` is "auto"', "an integer (at least 1)."),
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
    assert error.remedy.startswith("Add it. The folder of the run")


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


@pytest.mark.parametrize("override", ["lora.r", "--lora.r", "=3", "lora.=3", ".r=3"])
def test_an_override_that_is_not_key_value_is_refused(recipe, override):
    error = mistake(recipe, override)
    assert error.found == f"override `{override}` is not key=value"


def test_an_override_below_a_value_is_refused(recipe):
    error = mistake(recipe, "lora.r.x=3")
    assert error.found == "override `lora.r.x=3`: `lora.r` is 4 and has no keys of its own"


def test_two_warmups_are_refused(recipe):
    error = mistake(recipe, text="  warmup_steps: 5\n  warmup_ratio: 0.1\n")
    assert error.found.startswith(f"{recipe}:14: both train.warmup_steps (5) and")


def test_a_warmup_with_a_constant_schedule_is_refused(recipe):
    error = mistake(recipe, "train.warmup_steps=5", "train.lr_scheduler_type=constant")
    assert "constant_with_warmup" in error.remedy


def test_evaluation_without_rows_is_refused(recipe):
    error = mistake(recipe, "data.eval=null", "train.eval_strategy=steps")
    assert "no rows are held out" in error.found
    assert error.found.startswith("override `train.eval_strategy=steps`: ")


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


@pytest.mark.parametrize("kind", [False, "gaussian", "pissa", "eva"])
def test_an_adapter_that_goes_on_does_not_begin_in_another_way(kind):
    assert config.LoraConfig(init_from="some/adapter").init_lora_weights is True
    with pytest.raises(pydantic.ValidationError, match="init_from is set together with"):
        config.LoraConfig(init_from="some/adapter", init_lora_weights=kind)


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


@pytest.mark.parametrize(
    ("overrides", "found", "remedy"),
    [
        (["data.hold_out=0.1"], "data.eval and data.hold_out are both set", "Keep one"),
        (["data.packing=true", "data.group_by_length=true"], "are both set", "Keep one"),
        (["data.train=[{path: a/b, weight: 2}, c/d]"], "some have none", "Give every source"),
        (
            ["data.eval=null", "data.hold_out=0.1", "data.streaming=true"],
            "data.streaming is set beside hold_out",
            "set streaming to false",
        ),
    ],
)
def test_options_of_the_data_that_contradict_each_other_are_refused(
    recipe, overrides, found, remedy
):
    error = mistake(recipe, *overrides)
    assert found in error.found
    assert remedy in error.remedy


def test_held_out_rows_may_be_a_part_of_the_training_rows(recipe):
    overrides = ["data.eval=null", "data.hold_out=0.1", "train.eval_strategy=steps"]
    loaded = config.load_config(recipe, overrides)
    assert loaded.data.has_held_out_rows
    assert loaded.data.hold_out == config.HoldOutConfig(fraction=0.1)
