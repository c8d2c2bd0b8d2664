"""Tiny models of the families that are a Llama with some changes."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LLAMA3, LONG, WINDOW, YARN, Cases, Common

PHI3, GRANITE = transformers.Phi3Config, transformers.GraniteConfig
GRANITE4, HYPERCLOVAX = transformers.GraniteMoeHybridConfig, transformers.HyperCLOVAXConfig
GLM, GLM4 = transformers.GlmConfig, transformers.Glm4Config

FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.3,
    "logits_scaling": 5.0,
}
DENSE = {
    "num_local_experts": 0,
    "layer_types": ["full_attention"] * 3,
    "shared_intermediate_size": 88,
    "intermediate_size": 11008,  # of the experts that it has not
    "time_step_limit": None,  # of the state spaces that it has not; the default is infinite
}

COMMON: Common = {
    PHI3: GROUPED,
    GRANITE: GROUPED | FACTORS,
    GRANITE4: GROUPED | FACTORS | DENSE,
    HYPERCLOVAX: GROUPED | FACTORS,
    GLM: GROUPED | {"head_dim": 16},
    GLM4: GROUPED | {"head_dim": 16},
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
WHOLE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 500.0,
        "partial_rotary_factor": 1.0,
    }
}
HALF_YARN = YARN | {"partial_rotary_factor": 0.5}

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
    "granitemoehybrid": (GRANITE4, {"position_embedding_type": "rope"}),
    "granitemoehybrid-bias-no-positions-tied": (
        GRANITE4,
        {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "hyperclovax": (HYPERCLOVAX, {}),
    "hyperclovax-biases-pre-tied": (
        HYPERCLOVAX,
        {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "use_post_norm": False,
            "attention_multiplier": None,
        },
    ),
    "glm": (GLM, {}),
    "glm-wide-whole-tied": (GLM, WHOLE | {"head_dim": 24, "tie_word_embeddings": True}),
    "glm-one-kv-head-unbiased": (GLM, {"attention_bias": False, "num_key_value_heads": 1}),
    "glm4": (GLM4, {}),
    "glm4-no-bias-yarn-tied": (
        GLM4,
        {"attention_bias": False, "rope_parameters": HALF_YARN, "tie_word_embeddings": True},
    ),
}
