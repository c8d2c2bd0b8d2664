"""Tiny models of the years about Llama's, of other descent than it: GPT-Neo to Falcon."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LINEAR, WINDOW, YARN, Cases, Common

GPT_NEO, GPTJ = transformers.GPTNeoConfig, transformers.GPTJConfig
BLOOM, XGLM = transformers.BloomConfig, transformers.XGLMConfig
GPT_NEOX, PHI, FALCON = (
    transformers.GPTNeoXConfig,
    transformers.PhiConfig,
    transformers.FalconConfig,
)
GPT_BIGCODE, MPT = transformers.GPTBigCodeConfig, transformers.MptConfig
BIOGPT = transformers.BioGptConfig

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
    PHI: {key: value for key, value in GROUPED.items() if key != "rms_norm_eps"}
    | {"num_key_value_heads": None, "layer_norm_eps": 1e-2},
    FALCON: {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": 256,
        "layer_norm_epsilon": 1e-2,
    },
    GPT_BIGCODE: {
        "n_embd": 64,
        "n_inner": 88,
        "n_head": 4,
        "n_layer": 3,
        "n_positions": 96,
        "layer_norm_epsilon": 1e-2,
    },
    MPT: {"d_model": 64, "n_heads": 4, "n_layers": 3, "layer_norm_epsilon": 1e-2},
    BIOGPT: {
        "hidden_size": 64,
        "intermediate_size": 88,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": 96,
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
    # The one whose greedy continuation does not end in one token.
    "xglm-one-layer": (
        XGLM,
        {"num_layers": 1, "scale_embedding": False, "tie_word_embeddings": False},
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
    "phi": (PHI, {}),
    "phi-qk-norm-grouped-gelu": (
        PHI,
        {
            "qk_layernorm": True,
            "num_key_value_heads": 2,
            "hidden_act": "gelu",
            "rope_parameters": LINEAR | {"partial_rotary_factor": 0.25},
        },
    ),
    "phi-one-kv-head-tied-whole-rope": (
        PHI,
        {
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": YARN | {"partial_rotary_factor": 1.0},
        },
    ),
    "falcon": (FALCON, {}),
    "falcon-new": (
        FALCON,
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 88},
    ),
    "falcon-new-one-norm-bias-untied": (
        FALCON,
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": LINEAR,
        },
    ),
    "falcon-serial-by-head-bias-relu": (
        FALCON,
        {"multi_query": False, "parallel_attn": False, "bias": True, "activation": "relu"},
    ),
    "gpt-bigcode": (GPT_BIGCODE, {}),
    "gpt-bigcode-by-head-untied-relu": (
        GPT_BIGCODE,
        {
            "multi_query": False,
            "n_inner": None,
            "tie_word_embeddings": False,
            "activation_function": "relu",
        },
    ),
    "mpt": (MPT, {}),
    "mpt-six-heads-scale-untied": (
        MPT,
        {
            "n_heads": 6,
            "d_model": 72,
            "attn_config": {"softmax_scale": 0.4},
            "tie_word_embeddings": False,
        },
    ),
    "biogpt": (BIOGPT, {}),
    "biogpt-unscaled-untied-relu": (
        BIOGPT,
        {"scale_embedding": False, "tie_word_embeddings": False, "hidden_act": "relu"},
    ),
}
