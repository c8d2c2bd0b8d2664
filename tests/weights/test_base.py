"""What is read of a base model besides its tensors, and in which dtype it is used."""

from __future__ import annotations

import contextlib
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_models
import tiny

from jaxft import tree as trees
from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.models.network import base_network
from jaxft.weights import base
from jaxft.weights.places.source import Source

TOKENIZER = types.SimpleNamespace(eos_token_id=2)


@pytest.fixture
def model(tmp_path):
    """Return a function that writes files of a model's folder and gives the source."""

    def write(**files: object) -> Source:
        for name, content in ({"config": tiny.SMOLLM2_CONFIG} | files).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        return Source("tiny", tmp_path, None, None, "local folder")

    return write


def test_the_spec_is_that_of_the_config(model):
    family, spec = base.read_spec(
        model(config=tiny.SMOLLM2_CONFIG | {"tie_word_embeddings": False})
    )
    assert family.model_type == "llama"
    assert (spec.model_dim, spec.num_kv_heads, len(spec.blocks)) == (576, 3, 30)


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_head_that_is_tied_and_stored_otherwise_is_used_as_it_is_stored(
    tmp_path, capsys, is_apart
):
    folder = small_models.write(tmp_path / "model", small_models.LLAMA)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding[::-1].copy() if is_apart else embedding.copy()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    _, spec = base.read_spec(Source("tiny", folder, None, None, "local folder"))
    assert spec.tied_head is not is_apart
    assert ("ties lm_head to the embedding" in capsys.readouterr().err) is is_apart


def test_an_architecture_that_is_not_handled_is_named(model):
    with pytest.raises(UnsupportedModelError, match=r"mistrel.*\n.*mistral"):
        base.read_spec(model(config={"model_type": "mistrel"}))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"eos_token_id": [7, 5]}, (2, 5, 7)),
        ({"eos_token_id": 7}, (2, 7)),
        ({"temperature": 0.6}, (2,)),
        (None, (2, 9)),
    ],
)
def test_an_answer_ends_at_every_token_that_the_model_declares(model, declared, expected):
    files = {} if declared is None else {"generation_config": declared}
    source = model(config={"eos_token_id": 9}, **files)
    assert base.read_stop_ids(source, TOKENIZER) == expected


def test_a_model_without_an_end_token_never_stops(model):
    tokenizer = types.SimpleNamespace(eos_token_id=None)
    assert base.read_stop_ids(model(config={}), tokenizer) == ()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_generation_config_is_named(model, content):
    with pytest.raises(WeightsError, match=r"generation_config\.json"):
        base.read_stop_ids(model(generation_config=content), TOKENIZER)


@pytest.mark.parametrize(
    ("choice", "platform", "version", "expected"),
    [
        ("auto", "cpu", (0, 10, 2), "float32"),
        ("auto", "cpu", (0, 12, 0, 1), "bfloat16"),
        ("auto", "gpu", (0, 10, 2), "bfloat16"),
        ("auto", "tpu", (0, 12, 0), "bfloat16"),
        ("float32", "gpu", (0, 12, 0), "float32"),
        ("bfloat16", "cpu", (0, 10, 2), "bfloat16"),
    ],
)
def test_auto_is_the_faster_dtype(monkeypatch, choice, platform, version, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "__version_info__", version)
    assert base.resolve_dtype(choice) == expected


def test_loading_counts_every_byte_and_says_what_it_does(write_llama, capsys, monkeypatch):
    path: Path = write_llama()
    source = Source("tiny", path.parent, path, None, "GGUF file")
    family, spec = base.read_spec(source)
    counted: list[int] = []
    loading = base.console.loading

    @contextlib.contextmanager
    def watched(description: str, total: int):
        with loading(description, total) as progress:
            yield lambda amount: counted.append(amount) or progress(amount)
        assert sum(counted) == total

    monkeypatch.setattr(base.console, "loading", watched)
    held = base.Base(source, family, spec, tiny.one_device(), "bfloat16", quantization=None)
    tree = held.load(base_network(spec))
    assert len(counted) > 10
    assert capsys.readouterr().err.startswith("Loading the base model: ")
    embedding = source.checkpoint().read("model.embed_tokens.weight")
    loaded = trees.flatten(tree)["embed/kernel"]
    np.testing.assert_array_equal(np.asarray(loaded), embedding.astype(loaded.dtype))
