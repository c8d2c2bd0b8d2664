"""Tiny Llamas, Mistrals and SmolLMs."""

from __future__ import annotations

import transformers

from cases.shapes import (
    CONTEXT,
    DYNAMIC,
    GROUPED,
    LINEAR,
    LLAMA3,
    LONG,
    WINDOW,
    YARN,
    Cases,
    Common,
)

LLAMA, MISTRAL = transformers.LlamaConfig, transformers.MistralConfig
MINISTRAL, SMOLLM3 = transformers.MinistralConfig, transformers.SmolLM3Config

COMMON: Common = {
    LLAMA: GROUPED,
    MISTRAL: GROUPED,
    MINISTRAL: GROUPED | {"head_dim": 24},  # transformers fails without one
    SMOLLM3: GROUPED,
}
# The second layer has no rope, by either spelling.
SECOND = {"no_rope_layer_interval": 2}
LISTED = SECOND | {"no_rope_layers": [1, 0, 0]}
WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW}

CASES: Cases = {
    "llama": (LLAMA, {}),
    "llama-tied": (LLAMA, {"tie_word_embeddings": True}),
    "llama-attention-bias-gelu": (LLAMA, {"attention_bias": True, "hidden_act": "gelu"}),
    "llama-mlp-bias-gelu-tanh": (LLAMA, {"mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-ungrouped-relu": (LLAMA, {"num_key_value_heads": 4, "hidden_act": "relu"}),
    "llama-one-kv-head-wide": (LLAMA, {"num_key_value_heads": 1, "head_dim": 24}),
    "llama-rope-linear": (LLAMA, {"rope_parameters": LINEAR}),
    "llama-rope-llama3": (LLAMA, {"rope_parameters": LLAMA3}),
    "llama-rope-yarn": (LLAMA, {"rope_parameters": YARN}),
    "llama-rope-long": (LLAMA, {"rope_parameters": LONG}),
    "llama-rope-dynamic": (
        LLAMA,
        {"rope_parameters": DYNAMIC, "max_position_embeddings": CONTEXT},
    ),
    "mistral-window": (MISTRAL, {"sliding_window": WINDOW, "head_dim": 16}),
    "mistral-no-window": (MISTRAL, {"sliding_window": None, "head_dim": 16}),
    "ministral": (
        MINISTRAL,
        {
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "ministral-windows": (MINISTRAL, {"sliding_window": WINDOW}),
    "ministral-no-window-tied": (
        MINISTRAL,
        {
            "layer_types": ["full_attention"] * 3,
            "tie_word_embeddings": True,
            "rope_parameters": LINEAR,
        },
    ),
    "smollm3": (SMOLLM3, SECOND),
    "smollm3-every-rope-tied": (SMOLLM3, {"tie_word_embeddings": True}),
    "smollm3-windows": (SMOLLM3, LISTED | WINDOWS | {"attention_bias": True}),
    "smollm3-listed-windows": (
        SMOLLM3,
        SECOND
        | WINDOWS
        | {
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "mlp_bias": True,
            "rope_parameters": LINEAR,
        },
    ),
}
