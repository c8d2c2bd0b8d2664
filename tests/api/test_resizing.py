"""Resized embeddings in Python, by transformers' names: tokens added, saved and read again."""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest
import runs
from api_runs import ARGS, ROWS
from transformers import AutoTokenizer

import jaxft
from jaxft.errors import ConfigError, DataError, UnsupportedModelError
from jaxft.weights.places import new_tokens
from jaxft.weights.places import tokenizer as tokenizers


@pytest.fixture
def base(workshop):
    """A fresh handle on a Llama of 260 tokens."""
    if not (workshop / "llama").exists():
        runs.write_model(workshop / "llama")
    return jaxft.AutoModelForCausalLM.from_pretrained(workshop / "llama", dtype="float32")


def test_the_first_rows_stay_and_new_ones_are_the_mean(base):
    before = np.asarray(base(np.array([[1, 2, 3]])).logits)
    table = np.asarray(base.tree()["embed"]["kernel"])
    with pytest.raises(DataError, match="token 261"):
        base(np.array([[261]]))
    base.resize_token_embeddings(262)
    grown = np.asarray(base.tree()["embed"]["kernel"])
    np.testing.assert_array_equal(grown[:260], table)
    np.testing.assert_allclose(grown[260:], np.tile(table.mean(axis=0), (2, 1)), atol=1e-7)
    after = np.asarray(base(np.array([[1, 2, 3]])).logits)
    np.testing.assert_allclose(after[..., :260], before, atol=1e-5)
    np.testing.assert_allclose(after[..., 260], before.mean(axis=-1), atol=1e-4)
    assert base(np.array([[261]])).logits.shape == (1, 1, 262)
    assert base.config["vocab_size"] == 262


def test_rows_are_rounded_up_and_cut_as_in_transformers(base):
    base.resize_token_embeddings(pad_to_multiple_of=4)
    assert base.network.spec.vocab_size == 260
    base.resize_token_embeddings(261, pad_to_multiple_of=32)
    assert base.network.spec.vocab_size == 288
    base.resize_token_embeddings(250)
    assert base.tree()["embed"]["kernel"].shape == (250, runs.WIDTH)


@pytest.mark.parametrize(
    "arguments",
    [
        {"new_num_tokens": 0},
        {"pad_to_multiple_of": 0},
        {"new_num_tokens": 261, "mean_resizing": False},
    ],
)
def test_what_cannot_be_a_number_of_rows_is_refused(base, arguments):
    with pytest.raises(ConfigError, match="resize_token_embeddings was given"):
        base.resize_token_embeddings(**arguments)


def test_a_model_with_an_adapter_has_the_rows_that_it_has(base):
    model = jaxft.get_peft_model(base, jaxft.LoraConfig(r=2))
    model.resize_token_embeddings(260)
    with pytest.raises(ConfigError, match="with the rows that it has"):
        model.resize_token_embeddings(261)


def test_tokens_added_to_the_models_own_tokenizer_are_saved_and_read(base, workshop, tmp_path):
    base.tokenizer.add_tokens(["<go>", "</go>"])
    base.resize_token_embeddings(len(base.tokenizer))
    lora = jaxft.LoraConfig(r=2, trainable_token_indices=[260, 261])
    model = jaxft.get_peft_model(base, lora)
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), model.trained_leaves())
    model.set_trained_leaves(moved)
    model.save_pretrained(tmp_path / "adapter")
    stored = jaxft.AutoModelForCausalLM.from_pretrained(workshop / "llama", dtype="float32")
    again = jaxft.PeftModel.from_pretrained(stored, tmp_path / "adapter")
    assert again.tokenizer("<go>", add_special_tokens=False).input_ids == [260]
    ids = np.array([[260, 5, 261, 9]])
    np.testing.assert_array_equal(again(ids).logits, model(ids).logits)
    again.save_pretrained(tmp_path / "again")
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        written = (tmp_path / side / name for side in ("adapter", "again"))
        assert len({path.read_bytes() for path in written}) == 1


def test_a_whole_model_is_saved_with_its_rows_and_its_tokenizer(base, tmp_path):
    base.tokenizer.add_tokens(["<go>"])
    base.resize_token_embeddings(261)
    base.save_pretrained(tmp_path / "model")
    again = jaxft.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    assert again.network.spec.vocab_size == 261
    assert "<go>" in again.tokenizer.get_vocab()


def test_new_tokens_can_be_given_as_in_a_recipe(workshop, base):
    model = jaxft.AutoModelForCausalLM.from_pretrained(workshop / "llama", new_tokens=["<go>"])
    assert model.network.spec.vocab_size == 261
    assert model.tokenizer("<go>", add_special_tokens=False).input_ids == [260]


def test_tokens_in_free_rows_of_a_base_are_saved_without_a_row_being_made(base, tmp_path):
    base.resize_token_embeddings(264)
    base.save_pretrained(tmp_path / "padded")

    def padded(**options):
        path = tmp_path / "padded"
        return jaxft.AutoModelForCausalLM.from_pretrained(path, dtype="float32", **options)

    lora = jaxft.LoraConfig(r=2, trainable_token_indices=[260])
    model = jaxft.get_peft_model(padded(new_tokens=["<go>"]), lora)
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), model.trained_leaves())
    model.set_trained_leaves(moved)
    model.save_pretrained(tmp_path / "adapter")
    assert "resize_token_embeddings" not in (tmp_path / "adapter" / "README.md").read_text()
    again = jaxft.PeftModel.from_pretrained(padded(), tmp_path / "adapter")
    assert again.network.spec.vocab_size == 264
    assert again.tokenizer("<go>", add_special_tokens=False).input_ids == [260]
    ids = np.array([[260, 5, 261, 9]])
    np.testing.assert_array_equal(again(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_a_trainer_saves_the_tokenizer_that_it_was_given(base, workshop, tmp_path, capsys):
    given = AutoTokenizer.from_pretrained(workshop / "llama")
    given.add_tokens(["<go>"])
    base.resize_token_embeddings(len(given))
    model = jaxft.get_peft_model(base, jaxft.LoraConfig(r=2, target_modules=["q_proj"]))
    rows = [{**row, "completion": f"<go>{row['completion']}"} for row in ROWS]
    args = jaxft.TrainingArguments(**{**ARGS, "max_steps": 1, "output_dir": tmp_path / "run"})
    jaxft.Trainer(
        model=model, args=args, train_dataset=rows, processing_class=given, max_length=32
    ).train()
    assert "new tokens in the embedding and the head are not trained" in capsys.readouterr().err
    folder = tmp_path / "run" / "adapter"
    saved = tokenizers.load_folder(folder)
    assert saved("<go>", add_special_tokens=False).input_ids == [260]
    again = jaxft.PeftModel.from_pretrained(
        jaxft.AutoModelForCausalLM.from_pretrained(workshop / "llama", dtype="float32"), folder
    )
    ids = np.array([[260, 5]])
    np.testing.assert_array_equal(again(ids).logits, model(ids).logits)


def test_a_resized_base_keeps_its_rows_beside_an_adapter_that_names_no_number(base, tmp_path):
    tokenizer = copy.deepcopy(base.tokenizer)
    model = jaxft.get_peft_model(base, jaxft.LoraConfig(r=2))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.add_tokens(["<go>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    other = jaxft.AutoModelForCausalLM.from_pretrained(base.source.name, dtype="float32")
    other.resize_token_embeddings(320)
    again = jaxft.PeftModel.from_pretrained(other, tmp_path / "adapter")
    assert again.network.spec.vocab_size == 320
    assert again.tokenizer("<go>", add_special_tokens=False).input_ids == [260]


def test_a_base_whose_tokenizer_cannot_be_read_is_used_with_another(base, monkeypatch):
    tokenizer = base.tokenizer

    def refuse(self):
        raise UnsupportedModelError("CTRLTokenizer has no fast tokenizer.", "Convert it.")

    monkeypatch.setattr(type(base.source), "tokenizer", refuse)
    assert new_tokens.carrying(base.source, tokenizer) is base.source
