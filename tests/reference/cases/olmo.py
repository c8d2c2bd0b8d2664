"""Tiny OLMos."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LINEAR, WINDOW, YARN, Cases, Common

OLMO, OLMO2, OLMO3 = (
    transformers.OlmoConfig,
    transformers.Olmo2Config,
    transformers.Olmo3Config,
)

WINDOWS = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
NO_EPS = {key: value for key, value in GROUPED.items() if key != "rms_norm_eps"}
COMMON: Common = {OLMO: NO_EPS, OLMO2: GROUPED, OLMO3: GROUPED | WINDOWS}

BIAS_TIED = {"attention_bias": True, "tie_word_embeddings": True}
ROPES = {
    "full_attention": YARN | {"truncate": True},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}

CASES: Cases = {
    "olmo": (OLMO, {}),
    "olmo-bias-tied-linear": (OLMO, BIAS_TIED | {"rope_parameters": LINEAR}),
    "olmo2": (OLMO2, {}),
    "olmo2-bias-tied-gelu": (OLMO2, BIAS_TIED | {"hidden_act": "gelu"}),
    "olmo2-ungrouped-yarn": (OLMO2, {"num_key_value_heads": 4, "rope_parameters": YARN}),
    "olmo3": (OLMO3, {}),
    "olmo3-ropes": (OLMO3, {"rope_parameters": ROPES}),
    "olmo3-bias-tied": (OLMO3, BIAS_TIED | {"num_key_value_heads": 1}),
}
