from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights.formats import gguf_file
from jaxft.weights.places import tokenizer

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tiny.gguf", {})


def tokens_of(fast: PreTrainedTokenizerFast, text: str) -> list[str]:
    return fast.convert_ids_to_tokens(fast(text).input_ids)


def test_merges_apply_in_order(smollm: Any) -> None:
    assert tokens_of(smollm, "the the") == ["t", "he", "Ġthe"]


def test_smollm_splits_digits_and_gpt2_does_not(
    smollm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    assert tokens_of(smollm, "a12 3") == ["a", "1", "2", "Ġ", "3"]
    gpt2 = tiny_tokenizer(tmp_path / "tiny.gguf", {"tokenizer.ggml.pre": "gpt-2"})
    assert tokens_of(gpt2, "a12 3") == ["a", "12", "Ġ", "3"]


def test_special_tokens_encode_as_single_ids(smollm: Any) -> None:
    assert smollm("<|end|><|start|>a<|stop|><user>").input_ids == [0, 1, smollm.vocab["a"], 2, 3]
    roles = (smollm.unk_token_id, smollm.bos_token_id, smollm.eos_token_id, smollm.pad_token_id)
    assert roles == (0, 1, 2, 2)


def test_user_defined_tokens_are_text_and_control_tokens_are_not(smollm: Any) -> None:
    ids = smollm("<|start|>a<user>b<|stop|>").input_ids
    assert smollm.decode(ids, skip_special_tokens=True) == "a<user>b"
    assert smollm.decode(ids) == "<|start|>a<user>b<|stop|>"


# Text that happens to spell an added token is that token; it still decodes to itself.
@given(st.text(st.characters(codec="utf-8")) | st.text("<|start>user12 the\n"))
def test_decoding_gives_back_any_text(smollm: Any, text: str) -> None:
    assert smollm.decode(smollm(text).input_ids) == text


def test_the_chat_template_is_the_files(smollm: Any) -> None:
    chat = [{"role": "user", "content": "hi"}]
    text = smollm.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|start|>user\nhi<|stop|>\n<|start|>assistant\n"


def test_bos_and_eos_are_added_where_the_file_says_so(
    smollm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    letter = smollm.vocab["a"]
    assert smollm("a").input_ids == [letter]
    keys = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    framed = tiny_tokenizer(tmp_path / "tiny.gguf", keys)
    assert framed("a").input_ids == [1, letter, 2]
    assert framed("a", add_special_tokens=False).input_ids == [letter]


def test_a_saved_tokenizer_loads_from_its_folder_and_encodes_the_same(
    smollm: Any, tmp_path: Path
) -> None:
    smollm.save_pretrained(tmp_path)
    loaded = tokenizer.load_folder(tmp_path)
    text = "<|start|>the 1234 <user> naïve\n\n  你好<|stop|>"
    assert loaded(text).input_ids == smollm(text).input_ids
    assert loaded.chat_template == smollm.chat_template
    assert loaded.pad_token_id == 2


@pytest.mark.parametrize(
    ("keys", "kind", "found"),
    [
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModelError, "of the kind bert"),
        ({"tokenizer.ggml.model": "llama"}, WeightsError, "lacks scores"),
        ({"tokenizer.ggml.pre": "tekken"}, UnsupportedModelError, "cuts text as tekken"),
        ({"tokenizer.ggml.pre": None}, UnsupportedModelError, "cuts text as default"),
        ({"tokenizer.ggml.add_space_prefix": True}, UnsupportedModelError, "a space first"),
        ({"tokenizer.ggml.merges": None}, WeightsError, "lacks merges"),
        ({"tokenizer.ggml.token_type": [1]}, WeightsError, "damaged"),
        ({"tokenizer.ggml.bos_token_id": 9999}, WeightsError, "damaged"),
        ({"tokenizer.ggml.merges": ["q q"]}, WeightsError, "damaged"),
        ({"tokenizer.ggml.merges": ["qq"]}, WeightsError, "damaged"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_exactly_is_refused(
    tiny_tokenizer: Any, tmp_path: Path, keys: dict[str, Any], kind: type[Exception], found: str
) -> None:
    with pytest.raises(kind, match=found):
        tiny_tokenizer(tmp_path / "tiny.gguf", keys)


def test_a_file_without_a_tokenizer_says_what_it_lacks(write_llama: Write) -> None:
    path = write_llama()
    assert "tokenizer.ggml.tokens" not in gguf_file.read_gguf(path).metadata
    with pytest.raises(WeightsError, match="lacks model, tokens, token_type, merges"):
        tokenizer.load_gguf(path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(WeightsError, match="no tokenizer can be loaded") as caught:
        tokenizer.load_folder(tmp_path)
    assert str(tmp_path) in caught.value.found


def test_a_damaged_tokenizer_file_is_a_weights_error(smollm: Any, tmp_path: Path) -> None:
    smollm.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="no tokenizer can be loaded"):
        tokenizer.load_folder(tmp_path)


def test_only_the_advice_about_torch_is_silenced(
    smollm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.warning("PyTorch was not found. Models won't be available.")
    logger.warning("something else")
    assert [record.getMessage() for record in said] == ["something else"]
