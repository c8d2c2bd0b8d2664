"""Vocabularies that grow: the files' rows stay to the bit, rows that are made are their mean."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import runs
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from jaxft.errors import ConfigError
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.weights import base
from jaxft.weights.places import new_tokens, source, vocabulary

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def silent(line: str) -> None:
    """Take a line and drop it."""


@given(
    stored=st.integers(1, 40),
    rows=st.integers(1, 60),
    width=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
def test_rows_that_are_there_are_kept_to_the_bit_and_others_are_their_mean(
    stored, rows, width, dtype, seed
):
    shape = (stored, width) if width else (stored,)  # the bias of a head has one number a token
    table = (3 + np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
    grown = vocabulary.with_rows(table, rows)
    assert (grown.shape, grown.dtype) == ((rows, *shape[1:]), table.dtype)
    assert grown[:stored].tobytes() == table[:rows].tobytes()
    mean = table.astype(np.float64).mean(axis=0).astype(np.float32).astype(dtype)
    assert grown[stored:].tobytes() == np.broadcast_to(mean, grown[stored:].shape).tobytes()


def test_a_table_of_several_chunks_has_the_mean_of_all(monkeypatch):
    monkeypatch.setattr(vocabulary, "_CHUNK_ROWS", 7)
    table = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.testing.assert_array_equal(vocabulary.with_rows(table, 21)[20], table.mean(axis=0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of 260 tokens, tied."""
    return runs.write_model(tmp_path_factory.mktemp("grown") / "model")


@pytest.fixture(scope="module")
def found(folder):
    return source.resolve(str(folder), None, silent)


@pytest.fixture(scope="module")
def padded(folder, tmp_path_factory):
    """The same with an embedding of 264 rows, four of them free."""
    return source.resolve(
        str(with_rows(folder, tmp_path_factory.mktemp("padded"), 264)), None, silent
    )


@pytest.fixture(scope="module")
def cut(folder, tmp_path_factory):
    """The same with an embedding of 258 rows, for 260 tokens."""
    return source.resolve(str(with_rows(folder, tmp_path_factory.mktemp("cut"), 258)), None, silent)


def with_rows(folder, copy, rows):
    """Write the model again with another number of rows."""
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    extra = np.full((max(rows - len(table), 0), table.shape[1]), 0.25, np.float32)
    tensors["model.embed_tokens.weight"] = np.concatenate([table[:rows], extra])
    safetensors.numpy.save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def added(found, tokens):
    """Return a model with new tokens, and what was said of them."""
    lines = []
    return new_tokens.with_new_tokens(found, tokens, lines.append), lines


def test_a_model_without_new_tokens_is_the_one_that_was_found(found):
    assert added(found, []) == (found, [])


def test_new_tokens_are_in_the_config_the_tokenizer_and_the_weights(found):
    grown, lines = added(found, ["<tool>", "</tool>"])
    assert lines == [
        "New tokens: '<tool>' is 260, '</tool>' is 261.",
        "Embedding and head grow from 260 to 262 rows; a row that is made begins as the mean of "
        "those in the model's files.",
    ]
    assert grown.config() == {**found.config(), "vocab_size": 262}
    assert grown.new_ids == (260, 261)
    ids = grown.tokenizer()("a<tool>b</tool>", add_special_tokens=False).input_ids
    assert [number for number in ids if number >= 260] == [260, 261]
    spec = base.read_spec(grown)[1]
    mesh = meshes.single_device_mesh()
    trees = [
        base.Base(each, *base.read_spec(each), mesh, "float32", None).load(
            base_network(base.read_spec(each)[1])
        )
        for each in (found, grown)
    ]
    before, after = (np.asarray(tree["embed"]["kernel"]) for tree in trees)
    assert after.shape[0] == spec.vocab_size == 262
    np.testing.assert_array_equal(after[:260], before)
    np.testing.assert_allclose(after[260:], np.tile(before.mean(axis=0), (2, 1)), atol=1e-7)


def test_a_gguf_grows_like_a_folder(write_llama):
    path = write_llama()
    stored = source.Source("tiny", path.parent, path, None, "GGUF file")
    grown = vocabulary.resized(stored, 303)
    assert (stored.config()["vocab_size"], grown.config()["vocab_size"]) == (300, 303)
    for name, info in stored.checkpoint().infos().items():
        before, after = stored.checkpoint().read(name), grown.checkpoint().read(name)
        assert after.shape == grown.checkpoint().infos()[name].shape
        assert len(after) - len(before) == (3 if info.shape[0] == 300 else 0)
        assert after[: len(before)].tobytes() == before.tobytes()


def test_a_caller_cannot_change_the_tokenizer_of_another(found):
    grown, _ = added(found, ["<tool>"])
    grown.tokenizer().add_tokens(["<more>"])
    assert "<more>" not in grown.tokenizer().get_vocab()


def test_tokens_named_twice_or_there_already_are_said_and_keep_their_rows(found):
    grown, lines = added(found, ["<|im_end|>", "<tool>", "<tool>"])
    end = found.tokenizer().get_vocab()["<|im_end|>"]
    assert lines[:3] == [
        "model.new_tokens names 1 of its tokens twice.",
        f"Tokens of the model already, whose rows stay as they are: '<|im_end|>' is {end}.",
        "New tokens: '<tool>' is 260.",
    ]
    assert (grown.rows, grown.new_ids) == (261, (260,))


def test_free_rows_of_the_embedding_are_taken_first_and_begin_as_they_are(padded):
    grown, lines = added(padded, ["<tool>", "</tool>"])
    assert lines[1] == (
        "The embedding has 264 rows, more than there were tokens: 2 of the new tokens take a free "
        "one, which begins as it is in the model's files."
    )
    assert (grown.rows, grown.new_ids) == (264, (260, 261))
    table = grown.checkpoint().read("model.embed_tokens.weight")
    assert table.tobytes() == padded.checkpoint().read("model.embed_tokens.weight").tobytes()
    more, _ = added(padded, [f"<{number}>" for number in range(6)])
    assert (more.rows, more.new_ids) == (266, tuple(range(260, 266)))


def test_tokens_that_the_embedding_has_no_row_for_are_given_one(cut):
    names = {number: token for token, number in cut.tokenizer().get_vocab().items()}
    grown, lines = added(cut, [names[259], "<tool>"])
    assert (grown.rows, grown.new_ids) == (261, (259, 260))
    assert lines[1] == (
        f"1 more tokens of the tokenizer had no row and get one, such as {names[258]!r}."
    )


def test_a_tokenizer_that_goes_beyond_the_embedding_is_said(cut, found):
    lines = []
    new_tokens.note_beyond(cut.tokenizer(), 258, lines.append)
    assert "2 tokens beyond the embedding's 258 rows, from '<|im_start|>' (258) on" in lines[0]
    new_tokens.note_beyond(found.tokenizer(), 260, lines.append)
    assert len(lines) == 1


def test_a_text_that_the_tokenizer_does_not_take_is_refused(found, monkeypatch):
    tokenizer = type(found.tokenizer())
    monkeypatch.setattr(tokenizer, "add_tokens", lambda self, tokens: 0)
    with pytest.raises(ConfigError, match="does not take"):
        added(found, ["<tool>"])


def test_a_model_carries_a_tokenizer_that_has_more_than_its_own(found, padded):
    tokenizer = found.tokenizer()
    assert new_tokens.carrying(found, tokenizer) is found
    tokenizer.add_tokens(["<tool>"])
    carried = new_tokens.carrying(padded, tokenizer)
    assert (carried.rows, carried.new_ids) == (264, (260,))
    assert "<tool>" in carried.tokenizer().get_vocab()
    # No row is made unless it is asked for: such a token is refused where it stands in the data.
    assert new_tokens.carrying(found, tokenizer).new_ids == ()


def test_a_folder_without_a_tokenizer_carries_none(folder, tmp_path, found):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    bare = source.Source("bare", tmp_path, None, None, "local folder")
    assert new_tokens.carrying(bare, found.tokenizer()) is bare
