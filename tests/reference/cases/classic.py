"""Tiny models of the years before Llama: GPT-Neo, GPT-J, BLOOM, XGLM, GPT-NeoX."""

from __future__ import annotations

import transformers

from cases.shapes import LINEAR, WINDOW, YARN, Cases, Common

GPT_NEO, GPTJ = transformers.GPTNeoConfig, transformers.GPTJConfig
BLOOM, XGLM = transformers.BloomConfig, transformers.XGLMConfig
GPT_NEOX = transformers.GPTNeoXConfig

COMMON: Common = {
    GPT_NEO: {
        "hidden_size": 64,
        "intermediate_size": 88,
        "num_heads": 16,  # narrow ones: nothing divides their scores, which are sharp enough
        "num_layers": 3,
        "attention_types": [[["global", "local", "local"], 1]],
        "window_size": WINDOW,
        "max_position_embeddings": 96,
        "layer_norm_epsilon": 1e-2,
    },
    GPTJ: {
        "n_embd": 64,
        "n_inner": 88,
        "n_head": 4,
        "n_layer": 3,
        "rotary_dim": 12,
        "layer_norm_epsilon": 1e-2,
    },
    BLOOM: {"hidden_size": 64, "n_head": 4, "n_layer": 3, "layer_norm_epsilon": 1e-2},
    XGLM: {"d_model": 64, "ffn_dim": 88, "attention_heads": 4, "num_layers": 3},
    GPT_NEOX: {
        "hidden_size": 64,
        "intermediate_size": 88,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": 256,
        "layer_norm_eps": 1e-2,
    },
}

CASES: Cases = {
    "gpt-neo": (GPT_NEO, {}),
    "gpt-neo-global-untied-relu": (
        GPT_NEO,
        {
            "attention_types": [[["global"], 3]],
            "intermediate_size": None,
            "tie_word_embeddings": False,
            "activation_function": "relu",
            "window_size": 256,
        },
    ),
    "gptj": (GPTJ, {}),
    "gptj-tied-whole-rope-gelu": (
        GPTJ,
        {
            "rotary_dim": 16,
            "n_inner": None,
            "tie_word_embeddings": True,
            "activation_function": "gelu",
        },
    ),
    "bloom": (BLOOM, {}),
    "bloom-six-heads-untied": (
        BLOOM,
        {"n_head": 6, "hidden_size": 72, "tie_word_embeddings": False},
    ),
    "bloom-residual-after-norm": (BLOOM, {"apply_residual_connection_post_layernorm": True}),
    "xglm": (XGLM, {}),
    "xglm-unscaled-untied-relu": (
        XGLM,
        {"scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "gpt-neox": (GPT_NEOX, {}),
    "gpt-neox-serial-no-bias-tied": (
        GPT_NEOX,
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_fast",
        },
    ),
    "gpt-neox-whole-rope-linear": (
        GPT_NEOX,
        {"rope_parameters": LINEAR | {"partial_rotary_factor": 1.0}},
    ),
    "gpt-neox-half-rope-yarn": (
        GPT_NEOX,
        {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
    ),
}
