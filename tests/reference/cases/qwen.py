"""Tiny Qwens."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, WINDOW, YARN, Cases, Common

QWEN2, QWEN3 = transformers.Qwen2Config, transformers.Qwen3Config

COMMON: Common = {QWEN2: GROUPED, QWEN3: GROUPED | {"head_dim": 24}}

# The first layer sees everything, by either spelling.
LATER = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
LISTED = LATER | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}

CASES: Cases = {
    "qwen2": (QWEN2, {}),
    "qwen2-tied-later-windows": (QWEN2, LATER | {"tie_word_embeddings": True}),
    "qwen2-listed-windows": (QWEN2, LISTED | {"num_key_value_heads": 1}),
    "qwen2-window-not-used-yarn": (QWEN2, {"sliding_window": WINDOW, "rope_parameters": YARN}),
    "qwen3": (QWEN3, {}),
    "qwen3-tied-bias-later-windows": (
        QWEN3,
        LATER | {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3-ungrouped-listed-windows": (
        QWEN3,
        LISTED | {"num_key_value_heads": 4, "hidden_act": "gelu"},
    ),
}
