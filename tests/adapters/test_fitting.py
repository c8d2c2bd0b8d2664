"""Adapters of others on a small model: what is left out, what is used of the base, what is said.

That the logits are PEFT's, `tests/reference/test_foreign_adapters_reference.py` holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_models

from jaxft.adapters import fitting, peft_format, tables
from jaxft.artifacts import loaded
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import targets
from jaxft.weights import base
from jaxft.weights.places.source import Source

ORIGIN = Path("some/adapter")
CONFIG = LoraConfig(r=2, target_modules=["q_proj"])
HEAD, EMBED = "base_model.model.lm_head", "base_model.model.model.embed_tokens"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return an untied Llama in a folder."""
    folder = tmp_path_factory.mktemp("fitting") / "model"
    small_models.write(folder, small_models.LLAMA | {"tie_word_embeddings": False})
    return Source("tiny", folder, None, None, "local folder")


def tensors_for(source, lora):
    """Return random tensors of an adapter on the queries of a model."""
    family, spec = base.read_spec(source)
    network = targets.adapted_network(lora, family, spec)
    rng = np.random.default_rng(0)
    shapes = {"lora_A.weight": (2, spec.model_dim), "lora_B.weight": (spec.model_dim, 2)}
    return {
        name: rng.standard_normal(shapes[".".join(name.split(".")[-2:])]).astype(np.float32)
        for name in peft_format.names_of(family, network)
    }


def stored(source, name):
    return source.checkpoint().read(name)


def test_a_plain_adapter_is_as_it_was_and_nothing_is_said(source, capsys):
    tensors = tensors_for(source, CONFIG)
    found = fitting.fitted(source, CONFIG, tensors, ORIGIN)
    assert found.source is source
    assert found.lora == CONFIG
    assert found.tensors.keys() == tensors.keys()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": ["q_proj", "c_attn"]}, "target_modules: c_attn."),
        ({"exclude_modules": ["nothing"]}, "exclude_modules: nothing."),
        ({"exclude_modules": r".*vision.*"}, "exclude_modules: .*vision.*."),
        ({"rank_pattern": {"v_proj": 5}}, "rank_pattern: v_proj."),
        ({"alpha_pattern": {"^q_proj": 5}}, "alpha_pattern: ^q_proj."),
        ({"layers_to_transform": [0, 1, 9]}, "layers_to_transform: 9."),
        ({"modules_to_save": ["score"]}, "modules_to_save: score."),
    ],
)
def test_what_matches_nothing_is_passed_over_and_said(source, capsys, fields, said):
    lora = CONFIG.model_copy(update=fields)
    found = fitting.fitted(source, lora, tensors_for(source, CONFIG), ORIGIN)
    assert said in capsys.readouterr().err
    loaded.network_of(found.lora, found.tensors, *base.read_spec(source), ORIGIN)
    again = fitting.fitted(source, found.lora, found.tensors, ORIGIN)
    assert again.lora == found.lora
    assert capsys.readouterr().err == ""


def test_a_module_that_eva_gave_no_rank_is_as_in_the_base(source, capsys):
    tensors = tensors_for(source, CONFIG)
    fewer = {name: each for name, each in tensors.items() if "layers.1" not in name}
    eva = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="eva")
    found = fitting.fitted(source, eva, fewer, ORIGIN)
    assert found.lora.target_modules == ["model.layers.0.self_attn.q_proj"]
    assert "no rank to 1 of the 2 modules" in capsys.readouterr().err
    loaded.network_of(found.lora, found.tensors, *base.read_spec(source), ORIGIN)
    # Of any other adapter it is a sign of another base model, which is then refused.
    assert fitting.fitted(source, CONFIG, fewer, ORIGIN).lora == CONFIG


@pytest.mark.parametrize("fields", [{"rank_pattern": {"(": 2}}, {"exclude_modules": "("}])
def test_what_is_no_expression_is_refused(source, fields):
    lora = CONFIG.model_copy(update=fields)
    found = fitting.fitted(source, lora, tensors_for(source, CONFIG), ORIGIN)
    with pytest.raises(AdapterError, match="no regular expression"):
        loaded.network_of(found.lora, found.tensors, *base.read_spec(source), ORIGIN)


def test_a_copy_of_the_bases_own_embedding_changes_nothing(source, capsys):
    beside = {f"{EMBED}.weight": stored(source, "model.embed_tokens.weight")}
    found = fitting.fitted(source, CONFIG, tensors_for(source, CONFIG) | beside, ORIGIN)
    assert found.source is source
    assert not set(beside) & set(found.tensors)
    assert capsys.readouterr().err == ""


def test_another_embedding_takes_the_place_of_the_bases(source, capsys):
    family, spec = base.read_spec(source)
    rows = {
        "model.embed_tokens.weight": np.ones((spec.vocab_size + 3, spec.model_dim), np.float32),
        "lm_head.weight": np.zeros((spec.vocab_size + 3, spec.model_dim), np.float32),
    }
    beside = {f"base_model.model.{name}": each for name, each in rows.items()}
    found = fitting.fitted(source, CONFIG, tensors_for(source, CONFIG) | beside, ORIGIN)
    assert "embed_tokens.weight" in capsys.readouterr().err
    assert base.read_spec(found.source)[1].vocab_size == spec.vocab_size + 3
    for name, each in rows.items():
        np.testing.assert_array_equal(stored(found.source, name), each)
    norm = "model.norm.weight"
    np.testing.assert_array_equal(stored(found.source, norm), stored(source, norm))
    # It is written beside the adapter again, under the names that PEFT has there.
    network = targets.adapted_network(CONFIG, family, base.read_spec(found.source)[1])
    assert tables.to_write(found.source, family, network).tensors.keys() == beside.keys()
    adapted = LoraConfig(r=2, target_modules=["lm_head"], modules_to_save=["embed_tokens"])
    network = targets.adapted_network(adapted, family, base.read_spec(found.source)[1])
    written = tables.to_write(found.source, family, network).tensors
    assert written.keys() == {f"{HEAD}.base_layer.weight"}


def test_an_embedding_with_more_rows_than_the_head_is_refused(source):
    _, spec = base.read_spec(source)
    more = {f"{EMBED}.weight": np.ones((spec.vocab_size + 3, spec.model_dim), np.float32)}
    with pytest.raises(AdapterError, match="rows of the head are not in the adapter's file"):
        fitting.fitted(source, CONFIG, tensors_for(source, CONFIG) | more, ORIGIN)
