"""Models of others as transformers reads them: what config.json leaves out, what files hold more.

Each test gives one folder to both sides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import cases
import reference_models
import reference_runs
import reference_texts
import safetensors.torch
import torch
import transformers
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import TOLERANCE

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.families.family import Family
from jaxft.models.network import base_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import base, load
from jaxft.weights.places.source import Source

pytestmark = pytest.mark.reference

TEXT = reference_texts.draw((53, 35), "right", cases.VOCAB_SIZE, seed=3)
# Without them no model can be made, and every file has them.
SIZES = {
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"),
    *("n_embd", "n_embed", "n_head", "n_layer", "num_heads", "num_layers", "text_config"),
    *("attention_heads", "d_model", "ffn_dim", "n_heads", "n_layers", "model_type"),
    "max_position_embeddings",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# Changes of a Llama's config.json, as files have them.
SPELLINGS: dict[str, dict[str, Any]] = {
    "yarn-finetuned": {"rope_scaling": {**YARN, "finetuned": True}},
    "yarn-attn-factor": {"rope_scaling": {**YARN, "attn_factor": 0.5}},
    "yarn-attention-factor": {"rope_scaling": {**YARN, "attention_factor": 0.5}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 44},
    "dynamic-short": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "full-attention": {"layer_types": ["full_attention"] * 3},
    "no-window": {"use_sliding_window": False},
}
BUFFERS = {
    "model.rotary_emb.inv_freq": torch.ones(8),
    "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 8, 8),
    "model.layers.1.self_attn.masked_bias": torch.ones(1),
}


def both(folder: Path, mesh: Mesh) -> float:
    """Return how far the logits of the two sides are from each other, of a folder."""
    source = Source("model", folder, None, None, "local folder")
    family, spec = base.read_spec(source)
    tree = load.load_base(
        source.checkpoint(),
        family,
        base_network(spec),
        dtype="float32",
        mesh=mesh,
        progress=lambda _: None,
        quantization=None,
        rounding=None,
    )
    ours = reference_runs.our_logits(base_network(spec), tree, TEXT, mesh)
    theirs = reference_runs.torch_logits(reference_models.open_torch(folder), TEXT)
    return reference_runs.difference(ours, theirs, TEXT)


def copy(model: TinyModel, folder: Path, config: dict[str, Any], tensors: Any = None) -> Path:
    """Write a model with changes of its config.json, and with what a function makes of tensors."""
    folder.mkdir(exist_ok=True)
    own = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    if "rope_scaling" in config:
        own.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(own | config), encoding="utf-8")
    found = safetensors.torch.load_file(model.folder / "model.safetensors")
    made = {**found} if tensors is None else tensors(found)
    safetensors.torch.save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_in_config_json_means_what_it_means_to_transformers(
    name: str, tmp_path: Path, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    folder = copy(tiny_model("llama"), tmp_path / "model", SPELLINGS[name])
    assert both(folder, one_device) < TOLERANCE


def spec_or_none(family: Family, config: dict[str, Any]) -> ModelSpec | None:
    """Return what a config.json describes; `None` if that is not handled, as experts are."""
    try:
        return family.spec_from_config(config)
    except UnsupportedModelError:
        return None


@pytest.mark.parametrize("name", cases.CASES)
def test_what_config_json_leaves_out_is_what_the_class_has(name: str) -> None:
    config_class, features = cases.CASES[name]
    fields = cases.COMMON[config_class] | features
    if "text_config" in fields:
        fields |= {"text_config": cases.TOKENS | fields["text_config"]}
    written = json.loads(json.dumps(config_class(**cases.TOKENS | fields).to_dict()))
    family = families.family_of(written)
    for key in sorted(written.keys() - SIZES):
        if (key, name) == ("layer_types", "exaone4-no-window"):
            continue  # transformers divides by zero
        shorter = {each: value for each, value in written.items() if each != key}
        full = json.loads(json.dumps(config_class.from_dict(dict(shorter)).to_dict()))
        assert spec_or_none(family, shorter) == spec_or_none(family, full), key


def test_a_mistral_that_does_not_say_its_kv_heads_has_eight() -> None:
    config = dict.fromkeys(("hidden_size", "num_attention_heads", "num_hidden_layers"), 8)
    config |= {"model_type": "mistral", "vocab_size": 8, "intermediate_size": 8}
    family = families.family_of(config)
    assert family.spec_from_config(config).num_kv_heads == 8
    assert transformers.MistralConfig.from_dict(config).num_key_value_heads == 8


def test_buffers_beside_the_weights_are_passed_over(
    tmp_path: Path, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    folder = copy(tiny_model("llama"), tmp_path / "model", {}, lambda found: {**found, **BUFFERS})
    assert both(folder, one_device) < TOLERANCE


def test_of_a_tied_pair_the_heads_name_alone_serves(
    tmp_path: Path, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    def renamed(found: dict[str, Any]) -> dict[str, Any]:
        return {"lm_head.weight": found.pop("model.embed_tokens.weight"), **found}

    folder = copy(tiny_model("llama-tied"), tmp_path / "model", {}, renamed)
    assert both(folder, one_device) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mistral3"])
def test_a_head_that_is_another_is_not_tied_whatever_config_json_says(
    name: str, tmp_path: Path, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    folder = copy(tiny_model(name), tmp_path / "model", {"tie_word_embeddings": True})
    assert both(folder, one_device) < TOLERANCE


def test_a_model_with_other_parts_is_tied_unless_it_says_otherwise(
    tmp_path: Path, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    def without_head(found: dict[str, Any]) -> dict[str, Any]:
        return {name: each for name, each in found.items() if "lm_head" not in name}

    folder = copy(tiny_model("gemma3"), tmp_path / "model", {}, without_head)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["tie_word_embeddings"]
    assert config["text_config"]["tie_word_embeddings"] is False
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert both(folder, one_device) < TOLERANCE
