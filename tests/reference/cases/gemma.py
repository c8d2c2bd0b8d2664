"""Tiny Gemmas."""

from __future__ import annotations

import transformers

from cases.shapes import GROUPED, LINEAR, LLAMA3, WINDOW, YARN, Cases, Common

GEMMA, GEMMA2 = transformers.GemmaConfig, transformers.Gemma2Config
GEMMA3, VAULT = transformers.Gemma3TextConfig, transformers.VaultGemmaConfig

# Heads that are not the model's width together, and a scale that is not theirs.
SHAPE = GROUPED | {"head_dim": 24, "tie_word_embeddings": True}
SCALED = SHAPE | {"query_pre_attn_scalar": 40, "sliding_window": WINDOW}
# Caps that scores and logits reach.
CAPPED = SCALED | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 20.0}
PLAIN = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
UNTIED = {"attention_bias": True, "tie_word_embeddings": False}
# Layers with a window and layers without, each with a rope of its own.
BOTH = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ROPES = {
    "full_attention": LLAMA3,
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}

COMMON: Common = {GEMMA: SHAPE, GEMMA2: CAPPED, GEMMA3: SCALED | BOTH, VAULT: CAPPED}

CASES: Cases = {
    "gemma": (GEMMA, {}),
    "gemma-untied-bias-linear": (GEMMA, UNTIED | {"rope_parameters": LINEAR}),
    "gemma-one-kv-head-legacy-gelu": (GEMMA, {"num_key_value_heads": 1, "hidden_act": "gelu"}),
    "gemma2": (GEMMA2, {}),
    "gemma2-uncapped-untied-bias": (GEMMA2, PLAIN | UNTIED | {"hidden_activation": "gelu"}),
    "gemma2-listed-windows": (
        GEMMA2,
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "gemma3-text": (GEMMA3, {}),
    "gemma3-text-capped-untied-bias": (GEMMA3, UNTIED | {"final_logit_softcapping": 20.0}),
    "gemma3-text-ropes": (GEMMA3, {"rope_parameters": ROPES, "hidden_activation": "silu"}),
    "gemma3-text-yarn": (
        GEMMA3,
        {"rope_parameters": ROPES | {"full_attention": YARN | {"truncate": True}}},
    ),
    "vaultgemma": (VAULT, {}),
    "vaultgemma-uncapped-untied-bias": (VAULT, PLAIN | UNTIED),
}
