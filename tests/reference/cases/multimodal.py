"""Tiny models that also see, of which only the text is compared."""

from __future__ import annotations

import transformers

from cases import gemma, llama, newest
from cases.shapes import GROUPED, LINEAR, WINDOW, Cases, Common

GEMMA3, MISTRAL3 = transformers.Gemma3Config, transformers.Mistral3Config

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
UNTIED = {"tie_word_embeddings": False}

COMMON: Common = {
    GEMMA3: {"text_config": GEMMA_TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
    MISTRAL3: {"text_config": MISTRAL_TEXT, "vision_config": VISION},
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
}
