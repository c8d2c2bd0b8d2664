"""Tiny models of the families that are a Llama with layer norms."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, WINDOW, YARN, Cases, Common

STARCODER2, STABLELM = transformers.Starcoder2Config, transformers.StableLmConfig
COHERE, COHERE2 = transformers.CohereConfig, transformers.Cohere2Config
NEMOTRON, JAIS2 = transformers.NemotronConfig, transformers.Jais2Config

_SIZES = {key: value for key, value in GROUPED.items() if key != "rms_norm_eps"}

COMMON: Common = {
    STARCODER2: _SIZES | {"norm_epsilon": 1e-2},
    STABLELM: _SIZES | {"layer_norm_eps": 1e-2},
    COHERE: _SIZES | {"layer_norm_eps": 1e-2, "logit_scale": 0.3},
    COHERE2: _SIZES | {"layer_norm_eps": 1e-2, "logit_scale": 0.3, "sliding_window": WINDOW},
    NEMOTRON: _SIZES | {"norm_eps": 1e-2},
    JAIS2: _SIZES | {"layer_norm_eps": 1e-2},
}
HALF = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
BIASES = {"attention_bias": True, "mlp_bias": True}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}

CASES: Cases = {
    "starcoder2": (STARCODER2, {"sliding_window": WINDOW}),
    "starcoder2-no-bias-tied": (STARCODER2, {"use_bias": False, "tie_word_embeddings": True}),
    "stablelm": (STABLELM, {"use_qkv_bias": True}),
    "stablelm-parallel-half-tied": (
        STABLELM,
        {"use_parallel_residual": True, "rope_parameters": HALF, "tie_word_embeddings": True},
    ),
    "cohere-grouped": (COHERE, {}),
    "cohere-bias-theta-tied": (
        COHERE,
        {
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
            "tie_word_embeddings": True,
        },
    ),
    "cohere2": (
        COHERE2,
        {"layer_types": ["sliding_attention", "full_attention"] * 2} | {"num_hidden_layers": 4},
    ),
    "cohere2-pattern-bias-tied": (
        COHERE2,
        {"num_hidden_layers": 5, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "cohere2-no-positions": (
        COHERE2,
        {
            "sliding_window": 4096,
            "layer_types": ["full_attention"] * 3,
            "num_key_value_heads": None,
        },
    ),
    "nemotron": (NEMOTRON, {}),
    "nemotron-biases-wide-tied": (NEMOTRON, BIASES | {"head_dim": 24, "tie_word_embeddings": True}),
    "jais2-biased": (JAIS2, {}),
    "jais2-no-bias-yarn-tied": (
        JAIS2,
        NO_BIASES | {"rope_parameters": YARN, "tie_word_embeddings": True},
    ),
}
