"""Tiny models of the families that are a Llama but for a few lines."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LLAMA3, WINDOW, YARN, Cases, Common

EXAONE4, CWM = transformers.Exaone4Config, transformers.CwmConfig
ARCEE, HELIUM = transformers.ArceeConfig, transformers.HeliumConfig
ERNIE, SEED_OSS = transformers.Ernie4_5Config, transformers.SeedOssConfig

_SIZES = GROUPED | {"head_dim": 16}
_MIXED = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

COMMON: Common = {
    EXAONE4: _SIZES | {"sliding_window": WINDOW},
    CWM: _SIZES | {"sliding_window": WINDOW, "bos_token_id": 1},  # its config wants one
    ARCEE: _SIZES,
    HELIUM: _SIZES,
    ERNIE: _SIZES,
    SEED_OSS: _SIZES,
}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
TIED = {"tie_word_embeddings": True}
BIASES = {"attention_bias": True, "mlp_bias": True}

CASES: Cases = {
    "exaone4": (EXAONE4, _MIXED | {"rope_parameters": LLAMA3}),
    "exaone4-pattern-tied": (EXAONE4, TIED | {"num_hidden_layers": 5}),
    "exaone4-no-window": (
        EXAONE4,
        {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    ),
    "cwm": (CWM, {"num_hidden_layers": 5}),
    "cwm-mixed-bias-theta-tied": (CWM, _MIXED | TIED | THETA | {"mlp_bias": True}),
    "arcee": (ARCEE, {}),
    "arcee-biases-yarn-tied": (ARCEE, BIASES | TIED | {"rope_parameters": YARN}),
    "helium": (HELIUM, {}),
    "helium-biases-theta-tied": (HELIUM, BIASES | TIED | THETA),
    "ernie4_5": (ERNIE, {}),
    "ernie4_5-biases-theta-wide-tied": (ERNIE, TIED | THETA | {"use_bias": True, "head_dim": 24}),
    "seed_oss": (SEED_OSS, {}),
    "seed_oss-other-biases-wide-tied": (
        SEED_OSS,
        TIED
        | {
            "attention_bias": False,
            "attention_out_bias": True,
            "mlp_bias": True,
            "head_dim": 24,
        },
    ),
}
