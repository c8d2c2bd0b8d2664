"""What a recipe refuses, and the place each mistake is reported at."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
from recipe_builders import RECIPE, mistake

from jaxft import config
from jaxft.errors import ConfigError


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


def test_wrong_values_are_answered_as_in_the_file_of_messages(recipe):
    """Each paragraph of messages.txt is an override, what was found, and the remedy."""
    golden = (Path(__file__).parent / "messages.txt").read_text(encoding="utf-8")
    said = []
    for paragraph in golden.strip().split("\n\n"):
        override = paragraph.splitlines()[0]
        error = mistake(recipe, override)
        found = error.found.removeprefix(f"override `{override}`: ")
        said.append(f"{override}\n  {found}\n  {error.remedy}")
    assert "\n\n".join(said) + "\n" == golden


def test_quotes_are_not_advised_for_the_values_of_a_mapping(recipe):
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
