"""Tiny Llamas and Mistrals."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LINEAR, LLAMA3, LONG, WINDOW, YARN, Cases, Common

LLAMA, MISTRAL = transformers.LlamaConfig, transformers.MistralConfig

COMMON: Common = {LLAMA: GROUPED, MISTRAL: GROUPED}

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
    "mistral-window": (MISTRAL, {"sliding_window": WINDOW, "head_dim": 16}),
    "mistral-no-window": (MISTRAL, {"sliding_window": None, "head_dim": 16}),
}
