"""The run's folder: what may be there, and what a run is known by."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft.config import TrainConfig, load_config
from jaxft.errors import CheckpointError, ConfigError, WeightsError
from jaxft.training.prepare import folder

# Another value for every option of the recipe's train section.
OTHER = {
    "per_device_train_batch_size": 2,  # with half the accumulation: the same global batch
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 2,
    "num_train_epochs": 1.0,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2.0,
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.5,
    "loraplus_lr_ratio": 4.0,
    "gradient_checkpointing": "true",
    "logging_steps": 5,
    "eval_strategy": "epoch",
    "eval_steps": 2,
    "save_strategy": "epoch",
    "save_steps": 3,
    "save_total_limit": 1,
    "resume_from_checkpoint": "true",
    "seed": 8,
    "dataloader_drop_last": "true",
}
NO_ADAPTER = ["lora.r=8", "lora.lora_alpha=8", "lora.lora_dropout=0.0"]
# The batch, the steps and the folder are in it by themselves; there is one optimizer.
NOT_TRIED = {"output_dir", "max_steps", "optim"}
NUMERIC = {
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "loraplus_lr_ratio",
    "seed",
    "dataloader_drop_last",
}


@pytest.fixture(scope="module")
def known(plan_of):
    """The fingerprint of the recipe's run."""
    return plan_of().identity.fingerprint


def differing(known, plan):
    now = plan.identity.fingerprint
    assert now.keys() == known.keys()
    return {key for key in known if now[key] != known[key]}


def test_every_option_of_the_section_is_tried():
    assert OTHER.keys() | NOT_TRIED == TrainConfig.model_fields.keys()


def test_what_numbers_depend_on_is_in_the_fingerprint_and_nothing_else(plan_of, known, tmp_path):
    place = f"train.output_dir={tmp_path / 'run'}"
    folder.open_checkpoints(plan_of(place)).close()
    pretend_a_checkpoint(tmp_path)  # which is this run's, if its fingerprint is
    for option, value in OTHER.items():
        words = [f"train.{option}={value}"]
        if option == "per_device_train_batch_size":
            words.append("train.gradient_accumulation_steps=1")
        if option == "resume_from_checkpoint":
            words.append(place)
        changed = differing(known, plan_of(*words))
        expected = {f"train.{option}"} if option in NUMERIC else set()
        # Dropping the last batch changes the steps of an epoch, not those of the run.
        assert changed == expected, option


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["train.max_steps=5"], {"num_steps"}),
        (["train.max_steps=-1", "train.num_train_epochs=1"], set()),
        (["train.per_device_train_batch_size=3"], {"global_batch"}),
        (["lora.r=3"], {"lora"}),
        (["lora.lora_dropout=0.1"], {"lora"}),
        (["data.shuffle=false"], {"data.shuffle"}),
        (["data.packing=false"], {"data.packing", "sequence_length"}),
        (["model.dtype=bfloat16"], {"dtype"}),
        (["data.train={eval}"], {"data.train"}),
        (["data.eval={train}"], {"data.eval"}),
        (["data.eval=null", "train.eval_strategy=no"], {"data.eval"}),
    ],
)
def test_model_rows_and_adapter_are_in_it(plan_of, known, recipe, words, changed):
    files = {name: recipe.parent / f"{name}.jsonl" for name in ("train", "eval")}
    plan = plan_of(*[word.format(**files) for word in words])
    assert differing(known, plan) == changed


def test_rows_are_known_by_their_tokens_and_not_by_their_file(plan_of, known, recipe, tmp_path):
    shutil.copy(recipe.parent / "train.jsonl", tmp_path / "moved.jsonl")
    assert differing(known, plan_of(f"data.train={tmp_path / 'moved.jsonl'}")) == set()
    rows = runs.make_rows(60, seed=1)
    rows[59]["messages"][1]["content"] += "!"
    runs.write_rows(tmp_path / "other.jsonl", rows)
    assert differing(known, plan_of(f"data.train={tmp_path / 'other.jsonl'}")) == {"data.train"}


def test_another_tuning_of_the_same_model_in_the_same_place_is_noticed(plan_of, tmp_path):
    model = runs.write_model(tmp_path / "model")
    plan = plan_of(f"model.path={model}")
    before = plan.identity.fingerprint
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"][0, 0] += np.float32(1e-3)
    safetensors.numpy.save_file(tensors, model / "model.safetensors")
    assert differing(before, plan_of(f"model.path={model}")) == {"weights"}


@pytest.fixture
def open_run(plan_of, tmp_path):
    """Return a function that checks this test's folder and opens it, with overrides."""

    def open_run(*overrides):
        plan = plan_of(f"train.output_dir={tmp_path / 'run'}", *overrides)
        return folder.open_checkpoints(plan)

    return open_run


def pretend_a_checkpoint(path, step=2):
    """Put a folder where the checkpoint of a step would be."""
    (path / "run" / "checkpoints" / str(step)).mkdir(parents=True)


def test_the_recipe_that_is_written_is_the_one_that_runs(open_run, plan_of, tmp_path):
    open_run("train.learning_rate=3e-4", "lora.r=3").close()
    again = load_config(tmp_path / "run" / "config.yaml")
    assert (
        again
        == plan_of(
            f"train.output_dir={tmp_path / 'run'}", "train.learning_rate=3e-4", "lora.r=3"
        ).config
    )


@pytest.mark.parametrize("resume", ["auto", "false"])
def test_a_new_folder_is_opened(open_run, tmp_path, resume):
    open_run(f"train.resume_from_checkpoint={resume}").close()
    assert (tmp_path / "run" / "checkpoints" / "fingerprint.json").is_file()


def test_resuming_for_certain_needs_a_checkpoint(open_run, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_run("train.resume_from_checkpoint=true")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume", ["auto", "true"])
def test_a_folder_with_this_runs_checkpoints_is_opened(open_run, tmp_path, resume):
    open_run().close()
    pretend_a_checkpoint(tmp_path)
    open_run(f"train.resume_from_checkpoint={resume}").close()


def test_starting_anew_over_checkpoints_is_refused(open_run, tmp_path):
    open_run().close()
    pretend_a_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="resume_from_checkpoint is false"):
        open_run("train.resume_from_checkpoint=false")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("train.seed=8", "train.seed was 7, now 8"),
        ("train.learning_rate=0.1", "train.learning_rate was 0.02, now 0.1"),
        ("lora.r=3", "it differs in lora"),
        ("data.packing=false", "data.packing was true, now false"),
    ],
)
def test_another_runs_checkpoints_are_refused_before_anything_is_written(
    open_run, tmp_path, word, named
):
    open_run().close()
    pretend_a_checkpoint(tmp_path)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=named):
        open_run(word)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_file_in_the_folders_place_is_refused(open_run, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=r"run cannot be a folder: .*/run is a file"):
        open_run()
    assert (tmp_path / "run").read_text() == "mine"


def test_a_recipe_that_no_run_wrote_is_not_overwritten(open_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine: 1\n")
    with pytest.raises(ConfigError, match=r"holds a config\.yaml that no run wrote"):
        open_run()
    assert (tmp_path / "run" / "config.yaml").read_text() == "mine: 1\n"


def test_a_folder_that_cannot_be_made_is_said(plan_of, tmp_path, monkeypatch):
    monkeypatch.setattr(folder.os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="is not yours to write"):
        plan_of(f"train.output_dir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    "where", ["model", "model/run", "model/deep/run", "run/../model/x", "link/x"]
)
def test_the_base_models_folder_is_not_written_to(plan_of, recipe, where):
    link = recipe.parent / "link"
    if not link.is_symlink():
        link.symlink_to(recipe.parent / "model")
    with pytest.raises(ConfigError, match="is the base model's folder, lies in it"):
        plan_of(f"train.output_dir={recipe.parent / where}")


@pytest.mark.parametrize("name", ["adapter", "checkpoints", "model"])
def test_a_base_model_that_the_run_would_write_over_is_refused(plan_of, tmp_path, name):
    model = runs.write_model(tmp_path / "run" / name)
    with pytest.raises(ConfigError, match="or has it inside"):
        plan_of(f"model.path={model}", f"train.output_dir={tmp_path / 'run'}")


def test_the_rows_of_a_run_are_found_by_its_recipe_while_they_are_there(plan_of, tmp_path):
    rows = runs.write_rows(tmp_path / "eval.jsonl", runs.make_rows(3, seed=1))
    plan = plan_of(f"train.output_dir={tmp_path / 'run'}", f"data.eval={rows}")
    assert folder.data_of(plan.folder) is None
    with folder.open_checkpoints(plan):
        pass
    assert folder.data_of(plan.folder) == plan.config.data
    rows.unlink()
    assert folder.data_of(plan.folder) is None


@pytest.mark.parametrize(
    ("name", "mark", "words"),
    [
        ("adapter", "adapter_config.json", []),
        ("model", "verification.json", ["tuning=full", *NO_ADAPTER]),
    ],
)
def test_what_lies_in_the_place_of_the_result_is_said_at_once(plan_of, tmp_path, name, mark, words):
    words = (f"train.output_dir={tmp_path / 'run'}", *words)
    place = tmp_path / "run" / name
    place.mkdir(parents=True)
    plan_of(*words)
    (place / "mine").touch()
    with pytest.raises(WeightsError, match=f"{name} exists and is not empty"):
        plan_of(*words)
    (place / mark).touch()
    plan_of(*words)
