"""Tiny models of families that transformers has had since its fifth version, or little longer."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LINEAR, LLAMA3, Cases, Common

HUNYUAN = transformers.HunYuanDenseV1Config
EXAONE, IQUESTCODER = transformers.ExaoneConfig, transformers.IQuestCoderConfig

_SIZES = GROUPED | {"head_dim": 16}
ALPHA = {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 50.0, "factor": 1.0}
TIED = {"tie_word_embeddings": True}
BIASES = {"attention_bias": True, "mlp_bias": True}

COMMON: Common = {
    HUNYUAN: _SIZES,
    EXAONE: _SIZES,
    IQUESTCODER: _SIZES,
}
CASES: Cases = {
    "hunyuan_v1_dense": (HUNYUAN, {"rope_parameters": ALPHA}),
    "hunyuan_v1_dense-bias-linear-tied": (
        HUNYUAN,
        TIED | {"attention_bias": True, "rope_parameters": LINEAR},
    ),
    "exaone": (EXAONE, {}),
    "exaone-biases-llama3-tied": (EXAONE, TIED | BIASES | {"rope_parameters": LLAMA3}),
    "iquestcoder": (IQUESTCODER, {}),
    "iquestcoder-biases-wide-tied": (IQUESTCODER, TIED | BIASES | {"head_dim": 24}),
}
