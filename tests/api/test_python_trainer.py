"""`Trainer`: the command line's run from Python, and what Python adds to it."""

from __future__ import annotations

import json

import api_runs
import datasets
import numpy as np
import pytest
import runs

import jaxft
from jaxft.data.examples import encode
from jaxft.errors import ConfigError, DataError
from jaxft.training.prepare import reading

pytestmark = pytest.mark.slow

IDS = np.arange(2, 11, dtype=np.int32)[None]


class Recorder(jaxft.TrainerCallback):
    """Writes down what it is told, and may stop the run."""

    def __init__(self, stop_after=None):
        self.events, self.stop_after = [], stop_after

    def note(self, name, state):
        self.events.append((name, state.global_step))

    def on_train_begin(self, args, state, control, **kwargs):
        assert (state.max_steps, control.should_training_stop) == (4, False)
        self.note("begin", state)

    def on_step_end(self, args, state, control, **kwargs):
        assert state.epoch == pytest.approx(state.global_step / 4)
        self.note("step", state)
        if state.global_step == self.stop_after:
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert state.log_history[-1] == {"step": state.global_step, **logs}
        self.note("log", state)

    def on_save(self, args, state, control, **kwargs):
        self.note("save", state)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        assert metrics["eval_loss"] > 0
        self.note("evaluate", state)

    def on_train_end(self, args, state, control, **kwargs):
        assert (args.output_dir / "adapter" / "adapter_model.safetensors").exists()
        self.note("end", state)


# The same run


def test_it_is_the_command_lines_run_bit_for_bit(straight, opt, tmp_path):
    path, _, _ = straight
    runs.write_rows(tmp_path / "train.jsonl", api_runs.ROWS)
    runs.write_rows(tmp_path / "eval.jsonl", api_runs.HELD_OUT)
    recipe = {
        "model": {"path": str(opt), "dtype": "float32"},
        "lora": api_runs.LORA,
        "data": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "max_length": api_runs.MAX_LENGTH,
        },
        "train": {**api_runs.ARGS, "output_dir": str(tmp_path / "run")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert runs.status("train", str(tmp_path / "recipe.yaml")) == 0
    ours, theirs = runs.adapter_bytes(tmp_path / "run"), runs.adapter_bytes(path)
    for files in (ours, theirs):
        card = files.pop("README.md").decode()
        files["card"] = card.replace("train_dataset", "train.jsonl").replace(
            "eval_dataset", "eval.jsonl"
        )
    assert ours == theirs
    assert runs.records(tmp_path / "run") == runs.records(path)


def test_it_returns_what_was_done_and_the_model_has_it(straight, opt):
    path, model, output = straight
    lines = runs.records(path)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert output.global_step == 4
    assert output.training_loss == losses[-1] < losses[0]
    assert output.metrics == {"eval_loss": lines[-1]["eval_loss"]}
    base = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")
    again = jaxft.PeftModel.from_pretrained(base, path / "adapter")
    # The one on four devices, the other on one.
    np.testing.assert_allclose(model(IDS).logits, again(IDS).logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        model.generate(IDS, max_new_tokens=3), again.generate(IDS, max_new_tokens=3)
    )
    assert np.abs(np.asarray(model(IDS).logits) - np.asarray(base(IDS).logits)).max() > 1e-2


def test_a_model_that_was_used_before_trains_the_same(straight, make_trainer, make_model, tmp_path):
    model = make_model()
    model(IDS)
    trainer = make_trainer(model=model, eval_dataset=api_runs.HELD_OUT)
    before = trainer.evaluate()
    output = trainer.train()
    assert runs.adapter_bytes(tmp_path / "run") == runs.adapter_bytes(straight[0])
    after = trainer.evaluate()
    assert after["eval_loss"] == pytest.approx(output.metrics["eval_loss"], rel=1e-6)
    assert abs(after["eval_loss"] - before["eval_loss"]) > 1e-2
    trainer.save_model(tmp_path / "saved")
    saved = (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()
    assert saved == runs.adapter_bytes(straight[0])["adapter_model.safetensors"]


def test_the_same_call_again_goes_on_where_a_run_was(straight, make_trainer, tmp_path):
    options = {"eval_dataset": api_runs.HELD_OUT}
    stopped = make_trainer(callbacks=[Recorder(stop_after=2)], **options)
    assert stopped.train().global_step == 2
    assert runs.saved_steps(tmp_path / "run") == [2]
    again = make_trainer(callbacks=[recorder := Recorder()], **options)
    assert again.train().global_step == 4
    assert ("step", 3) in recorder.events
    assert ("step", 2) not in recorder.events
    assert runs.adapter_bytes(tmp_path / "run") == runs.adapter_bytes(straight[0])
    assert [line["step"] for line in again.state.log_history] == [1, 2, 2, 3, 4, 4]
    # Done: it only says so.
    third = make_trainer(callbacks=[recorder := Recorder()], **options)
    assert third.train().global_step == 4
    assert recorder.events == [("begin", 0), ("end", 4)]


# Callbacks


def test_callbacks_are_told_in_order(make_trainer):
    args = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2}
    recorder = Recorder()
    trainer = make_trainer(args=args, eval_dataset=api_runs.HELD_OUT)
    trainer.add_callback(recorder)
    trainer.train()
    assert recorder.events == [
        ("begin", 0),
        ("evaluate", 0),
        ("step", 1),
        ("log", 2),
        ("save", 2),
        ("step", 2),
        ("evaluate", 3),
        ("step", 3),
        ("log", 4),
        ("save", 4),
        ("step", 4),
        ("evaluate", 4),
        ("end", 4),
    ]


def test_a_callback_ends_the_run_as_if_its_step_were_the_last(make_trainer, make_model, tmp_path):
    model = make_model()
    args = {"logging_steps": 100, "save_strategy": "no"}
    options = {"eval_dataset": api_runs.HELD_OUT, "callbacks": [Recorder(stop_after=3)]}
    trainer = make_trainer(args=args, model=model, **options)
    output = trainer.train()
    lines = runs.records(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 3]
    assert lines[0]["target_tokens"] > 0
    assert output == (3, lines[0]["loss"], {"eval_loss": lines[1]["eval_loss"]})
    assert trainer.evaluate()["eval_loss"] == pytest.approx(lines[1]["eval_loss"], rel=1e-6)
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    # The adapter is that of the third step.
    model.save_pretrained(tmp_path / "live")
    assert (tmp_path / "live" / "adapter_model.safetensors").read_bytes() == runs.adapter_bytes(
        tmp_path / "run"
    )["adapter_model.safetensors"]


def test_a_callback_for_what_never_happens_is_refused(make_trainer):
    class Epochs(jaxft.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            raise AssertionError

    class Saving(jaxft.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = True

    with pytest.raises(ConfigError, match="Epochs has on_epoch_end, which is never called"):
        make_trainer(callbacks=[Epochs()])
    with pytest.raises(ConfigError, match=r"control\.should_save"):
        make_trainer(callbacks=[Saving]).train()


# Data


def test_tokens_train_as_the_text_that_they_are(straight, make_trainer, make_model, tmp_path):
    tokenizer = make_model().tokenizer

    def tokenized(row):
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    options = {
        "train_dataset": datasets.Dataset.from_list([tokenized(row) for row in api_runs.ROWS]),
        "eval_dataset": [tokenized(row) for row in api_runs.HELD_OUT],
    }
    make_trainer(**options).train()
    assert runs.adapter_bytes(tmp_path / "run") == runs.adapter_bytes(straight[0])


def test_tokens_need_no_tokenizer(opt, make_trainer, tmp_path):
    import shutil

    bare = shutil.copytree(opt, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").unlink()
    model = jaxft.AutoModelForCausalLM.from_pretrained(bare, dtype="float32")
    model = jaxft.get_peft_model(model, jaxft.LoraConfig(**api_runs.LORA))
    rows = [{"input_ids": list(range(2, 12))}] * 8
    assert make_trainer(model=model, train_dataset=rows).train().global_step == 4


def test_a_tokenizer_can_be_given_under_either_name(opt, make_model, make_trainer):
    tokenizer = make_model().tokenizer
    for name in ("tokenizer", "processing_class"):
        model = make_model()
        trainer = make_trainer(model=model, eval_dataset=api_runs.HELD_OUT, **{name: tokenizer})
        trainer.evaluate()
        assert "tokenizer" not in vars(model)  # the model's own was not loaded


def test_rows_are_needed(make_trainer):
    with pytest.raises(ConfigError, match="no train_dataset"):
        make_trainer(train_dataset=None).train()
    with pytest.raises(ConfigError, match="no eval_dataset"):
        make_trainer().evaluate()
    with pytest.raises(DataError, match="train_dataset row 1"):
        make_trainer(train_dataset=[api_runs.ROWS[0], {"txt": "a"}]).train()


def test_an_evaluation_reads_the_held_out_rows_once_and_as_such(make_trainer, monkeypatch, capsys):
    encoded, encode_source = [], encode.encode_source

    def counted(source, *given):
        encoded.append(source.name)
        return encode_source(source, *given)

    monkeypatch.setattr(encode, "encode_source", counted)
    monkeypatch.setattr(reading, "_SILENT_S", 0.0)
    # Fewer rows than a batch to learn from has.
    args = {"per_device_train_batch_size": 4, "dataloader_drop_last": True}
    found = make_trainer(args=args, eval_dataset=api_runs.HELD_OUT).evaluate()
    assert found["eval_loss"] > 0
    assert encoded == ["eval_dataset"]
    said = capsys.readouterr().err
    assert "Held-out rows: encoding" in said
    assert "Training rows" not in said


# What is refused


def test_only_an_adapter_that_may_be_trained_is(straight, opt, make_trainer):
    base = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")
    with pytest.raises(ConfigError, match=r"(?s)no adapter.*get_peft_model"):
        make_trainer(model=base, tuning="lora")
    read = jaxft.PeftModel.from_pretrained(base, straight[0] / "adapter")
    with pytest.raises(ConfigError, match=r"(?s)is_trainable=False.*is_trainable=True"):
        make_trainer(model=read)


def test_an_adapter_that_was_read_is_trained_on(straight, opt, make_trainer, tmp_path):
    base = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")
    model = jaxft.PeftModel.from_pretrained(base, straight[0] / "adapter", is_trainable=True)
    trainer = make_trainer(model=model, eval_dataset=api_runs.HELD_OUT)
    ended = runs.records(straight[0])[-1]["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ended, rel=1e-5)
    trainer.train()
    assert runs.records(tmp_path / "run")[0]["loss"] < runs.records(straight[0])[0]["loss"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"data_collator": len}, "data_collator is known, and not supported"),
        ({"optimizers": (1, None)}, "optimizers is known, and not supported"),
        ({"model_init": len}, "model_init is known, and not supported"),
        ({"train_datset": []}, r"(?s)no argument train_datset.*Did you mean train_dataset"),
        ({"zzz": 1}, r"(?s)no argument zzz.*It takes model, args, "),
    ],
)
def test_arguments_that_are_not_supported_say_so(make_trainer, options, found):
    with pytest.raises(ConfigError, match=found):
        make_trainer(**options)


def test_arguments_that_ask_for_nothing_are_accepted(make_trainer):
    make_trainer(data_collator=None, optimizers=(None, None), callbacks=None)


def test_another_librarys_arguments_are_refused(make_model):
    with pytest.raises(ConfigError, match=r"(?s)args is a builtins\.dict.*TrainingArguments"):
        jaxft.Trainer(make_model(), {"output_dir": "x"}, train_dataset=api_runs.ROWS)


def test_a_run_from_the_weights_goes_on_with_the_start_that_it_had(
    make_trainer, make_model, tmp_path, monkeypatch
):
    def trainer(place, **options):
        args = {"output_dir": tmp_path / place}
        return make_trainer(model=make_model(init_lora_weights="pissa"), args=args, **options)

    whole = trainer("whole")
    whole.train()
    trainer("run", callbacks=[Recorder(stop_after=2)]).train()
    svd = np.linalg.svd
    monkeypatch.setattr(
        np.linalg,
        "svd",
        lambda w, **k: [f * s for f, s in zip(svd(w, **k), (-1, 1, -1), strict=True)],
    )
    again = trainer("run")
    again.train()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        written = runs.adapter_bytes(tmp_path / "run")[name]
        assert written == runs.adapter_bytes(tmp_path / "whole")[name]
    # What the model has now is what was trained, beside what it began as then.
    again.save_model(tmp_path / "saved")
    saved = (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()
    assert saved == runs.adapter_bytes(tmp_path / "whole")["adapter_model.safetensors"]
