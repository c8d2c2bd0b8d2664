"""Tiny models with learned positions: OPT and GPT-2."""

from __future__ import annotations

import transformers

from cases.shapes import Cases, Common

OPT, GPT2 = transformers.OPTConfig, transformers.GPT2Config

COMMON: Common = {
    OPT: {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
    GPT2: {
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 3,
        "n_positions": 96,
        "layer_norm_epsilon": 1e-2,
    },
}
# The embedding of the 350m model is narrower than its layers.
OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 40}

CASES: Cases = {
    "opt-smooth": (OPT, {"activation_function": "gelu"}),
    "opt": (OPT, {}),
    "opt-350m": (OPT, OPT_350M),
    "opt-350m-smooth": (OPT, OPT_350M | {"activation_function": "gelu"}),
    "opt-no-bias-untied-gelu": (
        OPT,
        {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "opt-no-final-norm": (OPT, {"_remove_final_layer_norm": True}),
    "gpt2": (GPT2, {}),
    "gpt2-untied-inner-relu": (
        GPT2,
        {"tie_word_embeddings": False, "n_inner": 88, "activation_function": "relu"},
    ),
}
