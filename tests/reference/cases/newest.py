"""Tiny models of families that transformers has had since its fifth version, or little longer."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LINEAR, LLAMA3, WINDOW, YARN, Cases, Common

HUNYUAN = transformers.HunYuanDenseV1Config
MINISTRAL3 = transformers.Ministral3Config
LFM2 = transformers.Lfm2Config
APERTUS = transformers.ApertusConfig
EXAONE, IQUESTCODER = transformers.ExaoneConfig, transformers.IQuestCoderConfig

_SIZES = GROUPED | {"head_dim": 16}
ALPHA = {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 50.0, "factor": 1.0}
TIED = {"tie_word_embeddings": True}
BIASES = {"attention_bias": True, "mlp_bias": True}

# Queries grow twice within the shortest row that is compared.
GROWING = YARN | {
    "original_max_position_embeddings": 12,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.7,
}

COMMON: Common = {
    HUNYUAN: _SIZES,
    MINISTRAL3: _SIZES,
    APERTUS: GROUPED,
    LFM2: {key: value for key, value in GROUPED.items() if key != "rms_norm_eps"}
    | {
        "norm_eps": 1e-2,
        "num_hidden_layers": 5,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
    },
    EXAONE: _SIZES,
    IQUESTCODER: _SIZES,
}
CASES: Cases = {
    "ministral3": (MINISTRAL3, {"rope_parameters": GROWING}),
    "ministral3-window-plain-tied": (
        MINISTRAL3,
        TIED
        | {
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 300.0,
                "original_max_position_embeddings": 20,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "hunyuan_v1_dense": (HUNYUAN, {"rope_parameters": ALPHA}),
    "hunyuan_v1_dense-bias-linear-tied": (
        HUNYUAN,
        TIED | {"attention_bias": True, "rope_parameters": LINEAR},
    ),
    "apertus": (APERTUS, {"rope_parameters": LLAMA3}),
    "apertus-bias-gelu-linear-tied": (
        APERTUS,
        TIED | {"attention_bias": True, "hidden_act": "gelu", "rope_parameters": LINEAR},
    ),
    "lfm2": (LFM2, {}),
    "lfm2-wide-linear-tied": (
        LFM2,
        TIED
        | {
            "conv_L_cache": 5,
            "layer_types": ["full_attention", "conv", "conv", "conv", "conv"],
            "rope_parameters": LINEAR,
        },
    ),
    "exaone": (EXAONE, {}),
    "exaone-biases-llama3-tied": (EXAONE, TIED | BIASES | {"rope_parameters": LLAMA3}),
    "iquestcoder": (IQUESTCODER, {}),
    "iquestcoder-biases-wide-tied": (IQUESTCODER, TIED | BIASES | {"head_dim": 24}),
}
