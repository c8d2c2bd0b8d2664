"""Config.json as transformers 4 wrote it says what transformers 5 makes of it.

The files are shortened from published ones; where they leave something out, the class's default
counts, sizes included.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import transformers

from jaxft.models import families

pytestmark = pytest.mark.reference

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "vocab_size": 112,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}

OLD: dict[str, dict[str, Any]] = {
    "qwen2": {**SIZES, "model_type": "qwen2", "rope_theta": 1e6, "sliding_window": 32768},
    "qwen2-windows": {
        **SIZES,
        "model_type": "qwen2",
        "max_window_layers": 5,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        "use_mrope": False,
        "use_sliding_window": True,
    },
    "qwen3": {**SIZES, "model_type": "qwen3", "rope_scaling": None, "rope_theta": 1e6},
    "gemma": {**SIZES, "model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None},
    "gemma2": {
        **SIZES,
        "model_type": "gemma2",
        "cache_implementation": "hybrid",
        "hidden_act": "silu",
        "query_pre_attn_scalar": 144,
        "rope_theta": 5000.0,
    },
    "gemma3-text": {
        **SIZES,
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "rope_local_base_freq": 5000.0,
        "rope_theta": 2e6,
        "sliding_window": 512,
        "sliding_window_pattern": 3,
    },
    "gemma3": {
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"model_type": "siglip_vision_model"},
    },
    "mistral3": {
        "model_type": "mistral3",
        "image_token_index": 10,
        "text_config": {
            **SIZES,
            "head_dim": 128,
            "model_type": "mistral",
            "num_key_value_heads": 2,
            "rope_theta": 1e9,
            "sliding_window": None,
        },
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "pixtral"},
        "vision_feature_layer": -1,
    },
    "ministral": {**SIZES, "model_type": "ministral", "head_dim": 16, "rope_theta": 1e8},
    "smollm3": {
        **SIZES,
        "model_type": "smollm3",
        "layer_types": ["full_attention"] * 8,
        "max_window_layers": 28,
        "no_rope_layers": [1, 1, 1, 0] * 2,
        "rope_theta": 5e6,
        "sliding_window": None,
    },
    "smollm3-short": {**SIZES, "model_type": "smollm3"},
    "olmo": {**SIZES, "model_type": "olmo", "clip_qkv": None, "rope_theta": 5e5},
    "olmo2": {**SIZES, "model_type": "olmo2", "num_key_value_heads": 4, "rope_theta": 5e5},
    "olmo3": {
        **SIZES,
        "model_type": "olmo3",
        "rope_scaling": {**YARN, "attention_factor": 1.2, "beta_fast": 32, "beta_slow": 1},
        "rope_theta": 1e6,
    },
    "vaultgemma": {**SIZES, "model_type": "vaultgemma", "rope_theta": 5000.0},
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_config_is_read_as_transformers_reads_it(name: str) -> None:
    old = OLD[name]
    family = families.family_of(old)
    config_class = type(transformers.AutoConfig.for_model(old["model_type"]))
    new = config_class.from_dict(old).to_dict()
    spec = family.spec_from_config(old)
    assert spec == family.spec_from_config(new)
    assert spec == family.spec_from_config(family.config_from_spec(spec))
    theirs = config_class.from_dict(old).get_text_config()
    assert (spec.vocab_size, spec.head_dim) == (
        theirs.vocab_size,
        getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
    )
    assert spec.num_kv_heads == theirs.num_key_value_heads
