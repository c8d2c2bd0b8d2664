"""Tiny models of each architecture through a GGUF file, held to the models they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import cases
import reference_gguf
import reference_models
import reference_runs
import reference_texts
import torch
import transformers
from cases.shapes import GROUPED, LINEAR, LLAMA3, LONG, WINDOW
from jax.sharding import Mesh
from reference_runs import TOLERANCE, Record

from jaxft.models import families
from jaxft.models.network import base_network
from jaxft.weights import load
from jaxft.weights.formats import gguf

pytestmark = pytest.mark.reference

# What a GGUF keeps in float32 is chosen so that float32 has it exactly.
SHAPE = GROUPED | {"rms_norm_eps": 2**-7}
TIED = SHAPE | {"tie_word_embeddings": True}
LLAMA31 = LLAMA3 | {"rope_theta": 500_000.0, "original_max_position_embeddings": 8192}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
}
YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 64,
}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}
GEMMA = TIED | {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
GLOBAL_LINEAR = {
    "full_attention": LINEAR | {"rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
LOCAL_BASE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
EVERY_OTHER = ["sliding_attention", "full_attention", "sliding_attention"]
LONG_PHI = LONG | {"attention_factor": 1.25, "original_max_position_embeddings": 40}
PART = LONG_PHI | {
    "partial_rotary_factor": 0.75,
    "short_factor": LONG["short_factor"][:6],
    "long_factor": LONG["long_factor"][:6],
}
PHI_KEYS = {"rope.scaling.original_context_length": 40, "rope.scaling.attn_factor": 1.25}

LLAMA, QWEN2, QWEN3 = (
    transformers.LlamaConfig,
    transformers.Qwen2Config,
    transformers.Qwen3Config,
)
GEMMA3, PHI3 = transformers.Gemma3TextConfig, transformers.Phi3Config

CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "llama": (LLAMA, SHAPE, {"rope.dimension_count": 16}),
    "llama-tied-linear": (LLAMA, TIED | {"rope_parameters": LINEAR}, LINEAR_KEYS),
    "llama-yarn": (LLAMA, SHAPE | {"rope_parameters": YARN}, YARN_KEYS),
    "llama-3.1": (LLAMA, SHAPE | {"rope_parameters": LLAMA31}, {}),
    # Not Llama 3.1's original length: the factors themselves stand in the config.
    "llama-other-factors": (LLAMA, SHAPE | {"rope_parameters": LLAMA3}, {}),
    "qwen2": (QWEN2, SHAPE, {}),
    "qwen2-tied-yarn": (QWEN2, TIED | {"rope_parameters": YARN}, YARN_KEYS),
    "qwen3": (QWEN3, SHAPE | {"head_dim": 24}, {}),
    "qwen3-tied": (QWEN3, TIED | {"head_dim": 16, "num_key_value_heads": 4}, {}),
    "gemma3": (
        GEMMA3,
        GEMMA | {"num_hidden_layers": 7, "rope_parameters": GLOBAL_LINEAR},
        LINEAR_KEYS | {"attention.sliding_window": WINDOW},
    ),
    "gemma3-every-other-capped": (
        GEMMA3,
        GEMMA
        | {
            "layer_types": EVERY_OTHER,
            "rope_parameters": LOCAL_BASE,
            "final_logit_softcapping": 20.0,
        },
        {
            "attention.sliding_window": WINDOW,
            "attention.sliding_window_pattern": 2,
            "rope.freq_base_swa": 300.0,
            "final_logit_softcapping": 20.0,
        },
    ),
    "phi3-window": (
        PHI3,
        SHAPE | {"sliding_window": WINDOW},
        {"attention.sliding_window": WINDOW, "rope.dimension_count": 16},
    ),
    "phi3-long": (
        PHI3,
        SHAPE | {"rope_parameters": LONG_PHI, "original_max_position_embeddings": 40},
        PHI_KEYS | {"attention.sliding_window": 0},
    ),
    "phi3-long-part-tied": (
        PHI3,
        TIED | {"rope_parameters": PART, "original_max_position_embeddings": 40},
        PHI_KEYS | {"attention.sliding_window": 0, "rope.dimension_count": 12},
    ),
}

Made = tuple[transformers.PreTrainedModel, Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    torch.set_num_threads(1)
    made: dict[str, Made] = {}

    def one(name: str) -> Made:
        if name not in made:
            config_class, features, keys = CASES[name]
            config = config_class(**(cases.TOKENS | features))
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager"
            )
            reference_models.randomise(model, reference_models.STD, seed=sum(name.encode()))
            path = tmp_path_factory.mktemp("gguf") / f"{name}.gguf"
            made[name] = model.eval(), reference_gguf.write(model, path, keys)
        return made[name]

    return one


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_the_models_own(name: str, make: Callable[[str], Made]) -> None:
    model, path = make(name)
    expected = {key: values.numpy() for key, values in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    checkpoint = gguf.open_gguf(path)
    assert set(checkpoint.infos()) == set(expected)
    for key, values in expected.items():
        if model.config.model_type == "gemma3_text" and key.endswith("norm.weight"):
            values = values + np.float32(1) - np.float32(1)  # all that is left of it in the file
        read = checkpoint.read(key)
        np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32), err_msg=key)


@pytest.mark.parametrize("name", [name for name in CASES if name != "llama-other-factors"])
def test_the_config_means_the_model(name: str, make: Callable[[str], Made]) -> None:
    model, path = make(name)
    theirs, ours = model.config.to_dict(), gguf.gguf_config(path)
    assert ours["model_type"] == theirs["model_type"]
    family = families.family_of(ours)
    assert family.spec_from_config(ours) == family.spec_from_config(theirs)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(
    name: str, make: Callable[[str], Made], one_device: Mesh, record_property: Record
) -> None:
    model, path = make(name)
    config = gguf.gguf_config(path)
    family = families.family_of(config)
    network = base_network(family.spec_from_config(config))
    tree = load.load_base(
        gguf.open_gguf(path),
        family,
        network,
        dtype="float32",
        mesh=one_device,
        progress=lambda _: None,
        quantization=None,
        rounding=None,
    )
    text = reference_texts.draw((53, 47, 31, 34), "right", cases.VOCAB_SIZE, seed=7)
    ours = reference_runs.our_logits(network, tree, text, one_device)
    theirs = reference_runs.torch_logits(model, text)
    distance = reference_runs.difference(ours, theirs, text)
    record_property("family", family.model_type)
    record_property("format", "gguf")
    record_property("difference", distance)
    assert distance < TOLERANCE


def test_a_gguf_is_also_what_transformers_makes_of_it(make: Callable[[str], Made]) -> None:
    # Of the others it drops keys: a Qwen 3's width of heads, a Phi-3's factors and window, a
    # Gemma 3's scaling.
    for name in ("llama", "qwen2"):
        _, path = make(name)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        checkpoint = gguf.open_gguf(path)
        for key, values in theirs.state_dict().items():
            np.testing.assert_array_equal(checkpoint.read(key), values.numpy(), err_msg=key)
