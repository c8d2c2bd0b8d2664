"""The sizes and ropes that many tiny models share."""

from __future__ import annotations

from typing import Any

import transformers

Config = type[transformers.PreTrainedConfig]
Common = dict[Config, dict[str, Any]]
Cases = dict[str, tuple[Config, dict[str, Any]]]

WINDOW = 11  # tokens; a third of the shortest row


# All sizes differ, so that no dimension can stand in for another: heads x head_dim is the width.
GROUPED = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-2,  # large enough that a norm without it is another norm
    "tie_word_embeddings": False,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
# Head width 16 gives wavelengths 6, 20, 63, 199, ...: with these factors the first is left alone,
# the next two are interpolated and the others are stretched, all within a row's length.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
# One of the rows drawn is longer than the context, `max_position_embeddings`, that goes with it.
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 3.0}
CONTEXT = 44
# Two of the rows drawn are longer than the length that the model began with, two are not.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + n / 8 for n in range(8)],
    "long_factor": [2.0 + n for n in range(8)],
    "original_max_position_embeddings": 40,
}
