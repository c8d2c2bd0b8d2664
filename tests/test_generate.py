"""The verb's answer: which base model, with which adapter, in front of a model on disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import byte_tokenizer
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.artifacts import loaded
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError, DataError, JaxftError
from jaxft.generation import completion
from jaxft.generation.completion import Generator
from jaxft.generation.decoding import CachedDecoder
from jaxft.generation.sampling import GREEDY
from jaxft.lora import targets
from jaxft.models.families import llama
from jaxft.verbs import generate
from jaxft.weights import base, layout, names

SPEC = dataclasses.replace(tiny.SPEC, vocab_size=byte_tokenizer.VOCAB_SIZE)
CONFIG = tiny.SMOLLM2_CONFIG | {
    "vocab_size": SPEC.vocab_size,
    "hidden_size": SPEC.model_dim,
    "num_attention_heads": SPEC.num_heads,
    "num_key_value_heads": SPEC.num_kv_heads,
    "head_dim": SPEC.head_dim,
    "intermediate_size": SPEC.blocks[0].mlp.dim,
    "num_hidden_layers": len(SPEC.blocks),
}
LORA = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
NETWORK = targets.adapted_network(LORA, llama.LLAMA, SPEC)
TRAINED, FROZEN = tiny.split(tiny.random_leaves(NETWORK, seed=2))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The folder of a tiny model, with the frozen leaves as Hugging Face names them."""
    folder = tmp_path_factory.mktemp("model")
    tensors = {}
    leaves = trees.flatten(FROZEN)
    for name, slots in names.slots(llama.LLAMA, NETWORK).items():
        tensors[name] = layout.join(leaves, slots)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    byte_tokenizer.byte_level().save_pretrained(folder)
    return folder


@pytest.fixture
def write_adapter(tmp_path):
    """Return a function that writes the adapter's folder, naming its base as told."""

    def write(base_name: str | None) -> Path:
        config = peft_format.adapter_config(LORA, llama.LLAMA, SPEC, base_name or "", None)
        tensors = peft_format.to_tensors(TRAINED, llama.LLAMA, NETWORK)
        peft_format.save_adapter(tmp_path / "adapter", tensors, config)
        return tmp_path / "adapter"

    return write


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr(base, "resolve_dtype", lambda choice: "float32")


def ask(**changed: Any) -> str:
    return "".join(load(**changed).answer("Wer?"))


def load(**changed: Any) -> generate.Answerer:
    options = {
        "adapter": None,
        "model": None,
        "max_new_tokens": 12,
        "how": GREEDY,
        "stop_strings": (),
        "eos_token_ids": None,
    }
    return generate.load(generate.Asked(**(options | changed)))


def expected(adapters: trees.Tree) -> str:
    """Answer by the leaves that were written, without reading a file."""
    decoder = CachedDecoder(NETWORK, stop_ids=(0, 2), mesh=tiny.one_device(), dtype="float32")
    chat = [{"role": "user", "content": "Wer?"}]
    tree = trees.combine(FROZEN, adapters)
    generator = Generator(decoder, byte_tokenizer.byte_level())
    return completion.complete(generator, tree, [chat], max_new_tokens=12, how=GREEDY)[0]


def test_the_answer_is_the_tuned_models_and_names_its_base(model, write_adapter, capsys):
    answer = ask(adapter=write_adapter(str(model)))
    assert answer == expected(TRAINED)
    said = capsys.readouterr()
    assert said.out == ""
    assert f"Base model: {model} (local folder {model})" in said.err.splitlines()


def test_without_an_adapter_the_base_answers(model):
    base_answer = ask(model=str(model))
    assert base_answer == expected(jax.tree.map(np.zeros_like, TRAINED))
    assert base_answer != expected(TRAINED)


def test_a_model_that_is_given_replaces_the_one_that_the_adapter_names(model, write_adapter):
    adapter = write_adapter("somebody/else")
    assert ask(adapter=adapter, model=str(model)) == expected(TRAINED)


def test_an_answer_ends_where_the_models_generation_config_says(model, tmp_path):
    whole = ask(model=str(model))
    last = next(letter for letter in whole[3:] if letter.isascii())
    stopping = shutil.copytree(model, tmp_path / "stopping")
    stop_ids = byte_tokenizer.byte_level()(last)["input_ids"]
    (stopping / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_ids}))
    assert ask(model=str(stopping)) == whole[: whole.index(last)]


@pytest.mark.parametrize("prompt", ["a<|new|>", [{"role": "user", "content": "a<|new|>"}]])
def test_a_token_beyond_the_embedding_is_refused_in_text_and_in_a_chat(prompt):
    tokenizer = byte_tokenizer.byte_level()
    tokenizer.add_tokens(["<|new|>"])
    decoder = CachedDecoder(NETWORK, stop_ids=(0,), mesh=tiny.one_device(), dtype="float32")
    generator, tree = Generator(decoder, tokenizer), trees.combine(FROZEN, TRAINED)
    with pytest.raises(DataError, match=f"token {SPEC.vocab_size}, and"):
        completion.complete(generator, tree, [prompt], max_new_tokens=2, how=GREEDY)
    with pytest.raises(DataError, match=f"token {SPEC.vocab_size}, and"):
        list(completion.stream(generator, tree, prompt, max_new_tokens=2, how=GREEDY))


def test_a_draw_is_repeated_by_its_seed(model):
    drawn, other = (dataclasses.replace(GREEDY, temperature=1.0, seed=seed) for seed in (1, 2))
    first = ask(model=str(model), how=drawn)
    assert ask(model=str(model), how=drawn) == first
    assert ask(model=str(model), how=other) != first


def test_an_end_token_that_is_given_replaces_the_models_own(model):
    whole = ask(model=str(model))
    last = next(letter for letter in whole[3:] if letter.isascii())
    ids = byte_tokenizer.byte_level()(last)["input_ids"]
    assert ask(model=str(model), eos_token_ids=ids) == whole[: whole.index(last)]


def test_an_end_token_that_the_model_does_not_have_is_refused(model):
    with pytest.raises(DataError, match="token 9999, and"):
        load(model=str(model), eos_token_ids=[9999])


def test_limits_of_a_draw_without_a_draw_are_said(model, capsys):
    load(model=str(model), how=dataclasses.replace(GREEDY, top_p=0.9))
    assert "Nothing is drawn at temperature 0" in capsys.readouterr().err
    load(model=str(model), how=dataclasses.replace(GREEDY, top_p=0.9, temperature=1.0))
    assert "Nothing is drawn" not in capsys.readouterr().err


def test_an_answer_ends_with_a_stop_string(model):
    whole = ask(model=str(model), max_new_tokens=24)
    string = whole[2:5]
    assert string.isascii()
    assert (
        ask(model=str(model), max_new_tokens=24, stop_strings=("never", string))
        == (whole[: whole.index(string) + len(string)])
    )


@pytest.mark.parametrize("how", [GREEDY, dataclasses.replace(GREEDY, temperature=1.0, seed=1)])
def test_a_file_of_prompts_is_answered_the_same_in_batches_of_any_size(model, how, tmp_path):
    chat = [{"role": "user", "content": "Wer?"}]
    rows = [{"prompt": "Wer?"}, {"messages": [*chat, {"role": "assistant", "content": "Ich."}]}]
    rows += [{"prompt": chat}, {"prompt": "a longer question"}, {"text": "Wer?"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answerer = load(model=str(model), how=how)
    answered = [json.loads(line) for line in answerer.answers(str(file), 2)]
    assert [list(row) for row in answered] == [
        ["prompt", "answer"],
        ["messages", "answer"],
        ["messages", "answer"],
        ["prompt", "answer"],
        ["prompt", "answer"],
    ]
    assert answered[1]["messages"] == chat
    assert [json.loads(line) for line in answerer.answers(str(file), 5)] == answered
    answers = [row["answer"] for row in answered]
    assert answers[0] == "".join(answerer.answer("Wer?"))
    if how is GREEDY:
        assert answers[1] == answers[2] == answers[4] == answers[0] != answers[3]
    else:
        assert len(set(answers)) == len(answers)


@pytest.mark.parametrize(
    ("row", "said"),
    [({"question": "Wer?"}, "no prompt"), ({"messages": []}, "no prompt"), (3, "no prompt")],
)
def test_a_row_without_a_prompt_is_refused_with_its_line(model, row, said, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt": "Wer?"}}\n{json.dumps(row)}\n')
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{said}"):
        list(load(model=str(model)).answers(str(file), 2))


def test_a_chat_goes_on_from_all_that_was_said(model):
    answerer = load(model=str(model))
    first, second = ("".join(pieces) for pieces in answerer.chat(["Wer?\n", "\n", "Und?\n"]))
    assert first == "".join(answerer.answer("Wer?"))
    said = [
        {"role": "user", "content": "Wer?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Und?"},
    ]
    assert second == "".join(answerer.answer(said)) != "".join(answerer.answer("Und?"))


def test_an_adapter_or_a_model_is_needed():
    with pytest.raises(AdapterError, match=r"(?s)Neither an adapter.*--model"):
        ask()


def test_an_adapter_that_names_no_base_says_how_to(write_adapter):
    with pytest.raises(AdapterError, match=r"(?s)adapter_config\.json names no base.*--model"):
        ask(adapter=write_adapter(None))


def test_an_adapter_of_another_model_is_refused(model, write_adapter):
    adapter = write_adapter(str(model))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["v_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(JaxftError, match=r"down_proj"):
        ask(adapter=adapter)


def test_the_adapters_revision_goes_with_its_name():
    config = {"base_model_name_or_path": "a/b", "revision": "v1"}
    assert loaded.base_name(config, None, Path("x")) == ("a/b", "v1")
    assert loaded.base_name(config, "c/d", Path("x")) == ("c/d", None)
