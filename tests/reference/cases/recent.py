"""Tiny models of the families that are a Llama with some changes."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LLAMA3, LONG, WINDOW, Cases, Common

PHI3, GRANITE = transformers.Phi3Config, transformers.GraniteConfig

COMMON: Common = {
    PHI3: GROUPED,
    GRANITE: GROUPED
    | {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.15,
        "residual_multiplier": 0.3,
        "logits_scaling": 5.0,
    },
}
# Every prompt that is continued is longer, so that one set of factors stays in use. From so short
# a text the magnitude would be 1.5, and attention so sharp that rounding is all that is seen.
LONG_FROM_12 = {
    "rope_parameters": LONG | {"original_max_position_embeddings": 12, "attention_factor": 0.9},
    "original_max_position_embeddings": 12,
}
LONG_FROM_40 = {"rope_parameters": LONG, "original_max_position_embeddings": 40}
PART = {
    "rope_parameters": LONG
    | {
        "partial_rotary_factor": 0.75,
        "short_factor": LONG["short_factor"][:6],
        "long_factor": LONG["long_factor"][:6],
        "attention_factor": 1.3,
    },
    "original_max_position_embeddings": 40,
}

CASES: Cases = {
    "phi3": (PHI3, LONG_FROM_12),
    "phi3-long-window": (PHI3, LONG_FROM_40 | {"sliding_window": WINDOW}),
    "phi3-long-part-tied": (PHI3, PART | {"tie_word_embeddings": True}),
    "phi3-plain": (PHI3, {"num_key_value_heads": None, "hidden_act": "gelu"}),
    "granite": (GRANITE, {}),
    "granite-biases-tied": (
        GRANITE,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "granite-rope-llama3": (GRANITE, {"rope_parameters": LLAMA3, "hidden_act": "gelu"}),
}
