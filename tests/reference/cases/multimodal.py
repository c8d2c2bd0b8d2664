"""Tiny models that also see, of which only the text is compared."""

from __future__ import annotations

import transformers

from cases import gemma, llama, newest
from cases.shapes import GROUPED, LINEAR, WINDOW, Cases, Common

GEMMA3, MISTRAL3 = transformers.Gemma3Config, transformers.Mistral3Config
MUSE_GLIMMER = transformers.MuseGlimmerConfig

# What sees, as small as it can be.
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
GEMMA_TEXT = gemma.COMMON[gemma.GEMMA3] | {"model_type": "gemma3_text"}
MISTRAL_TEXT = GROUPED | {"model_type": "mistral", "sliding_window": None, "head_dim": 16}
MINISTRAL_TEXT = (
    llama.COMMON[llama.MINISTRAL]
    | llama.CASES["ministral"][1]
    | {"model_type": "ministral", "rope_parameters": LINEAR}
)
MINISTRAL3_TEXT = (
    newest.COMMON[newest.MINISTRAL3] | newest.CASES["ministral3"][1] | {"model_type": "ministral3"}
)
MUSE_TEXT = GROUPED | {
    "model_type": "muse_glimmer_text",
    "num_hidden_layers": 5,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "post_norm_eps": 3e-2,
    "qk_scale_factor": 1.7,
    "output_multiplier": 0.4,
    "final_logit_softcapping": 4.0,
}
MUSE_VISION = {
    key: value for key, value in VISION.items() if key not in ("image_size", "patch_size")
} | {"patch_size": 4, "pos_emb_height": 2, "pos_emb_width": 2, "max_position_embeddings": 4}
UNTIED = {"tie_word_embeddings": False}

COMMON: Common = {
    GEMMA3: {"text_config": GEMMA_TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
    MISTRAL3: {"text_config": MISTRAL_TEXT, "vision_config": VISION},
    MUSE_GLIMMER: {
        "text_config": MUSE_TEXT,
        "vision_config": MUSE_VISION,
        "projector_hidden_size": 24,
        "out_hidden_size": 64,
    },
}

CASES: Cases = {
    "gemma3": (GEMMA3, UNTIED | {"text_config": GEMMA_TEXT | UNTIED}),
    "gemma3-tied": (GEMMA3, {"text_config": GEMMA_TEXT | {"rope_parameters": gemma.ROPES}}),
    "mistral3": (MISTRAL3, UNTIED),
    "mistral3-tied-windows": (
        MISTRAL3,
        {"text_config": MISTRAL_TEXT | {"sliding_window": WINDOW, "tie_word_embeddings": True}},
    ),
    "mistral3-ministral": (MISTRAL3, UNTIED | {"text_config": MINISTRAL_TEXT}),
    "mistral3-ministral3": (MISTRAL3, UNTIED | {"text_config": MINISTRAL3_TEXT}),
    "muse_glimmer": (MUSE_GLIMMER, {}),
    "muse_glimmer-other-layers-linear-biased": (
        MUSE_GLIMMER,
        {
            "text_config": MUSE_TEXT
            | {
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
                "layer_rope_theta": [500.0, 0, 500.0],
                "rope_parameters": LINEAR,
                "attention_bias": True,
            }
        },
    ),
}
