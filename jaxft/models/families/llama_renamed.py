"""Families that are a Llama with other names and defaults.

EXAONE 3 and 3.5 have other names for some keys of config.json. Their files also name tensors
differently from transformers' class; adapters use the names of the class.

Source: transformers `configuration_exaone.py`, `configuration_iquestcoder.py`;
`conversion_mapping.py` for the names in files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.llama import ATTENTION_BIAS, MLP_BIAS, llama_family

_EXAONE_KEYS = {
    "num_layers": "num_hidden_layers",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
_EXAONE_RENAMES = (
    (r"^transformer\.wte\.", "model.embed_tokens."),
    (r"^transformer\.h\.", "model.layers."),
    (r"^transformer\.ln_f\.", "model.norm."),
    (r"\.attn\.attention\.", ".self_attn."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.ln_1\.", ".input_layernorm."),
    (r"\.ln_2\.", ".post_attention_layernorm."),
    (r"\.mlp\.c_fc_0\.", ".mlp.gate_proj."),
    (r"\.mlp\.c_fc_1\.", ".mlp.up_proj."),
    (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
)
_EXAONE_FILE_NAMES = (
    (r"^model\.embed_tokens\.", "transformer.wte."),
    (r"^model\.norm\.", "transformer.ln_f."),
    (r"^model\.layers\.", "transformer.h."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.self_attn\.", ".attn.attention."),
    (r"\.input_layernorm\.", ".ln_1."),
    (r"\.post_attention_layernorm\.", ".ln_2."),
    (r"\.mlp\.gate_proj\.", ".mlp.c_fc_0."),
    (r"\.mlp\.up_proj\.", ".mlp.c_fc_1."),
    (r"\.mlp\.down_proj\.", ".mlp.c_proj."),
)


_DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5}

IQUESTCODER = llama_family(
    "iquestcoder", ATTENTION_BIAS, MLP_BIAS, defaults=_DEFAULTS | {"head_dim": 128}
)
_TRANSFORMERS = llama_family(  # with the names that transformers uses
    "exaone", ATTENTION_BIAS, MLP_BIAS, defaults=_DEFAULTS, theta=500_000.0
)


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of an EXAONE 3 or 3.5 with the keys of transformers' class."""
    return {_EXAONE_KEYS.get(key, key): value for key, value in config.items()}


EXAONE = dataclasses.replace(
    _TRANSFORMERS,
    settle=_settled,
    renames=_EXAONE_RENAMES,
    file_names=_EXAONE_FILE_NAMES,
)
