"""Families that are a Llama under another name, with other defaults.

EXAONE 3 and 3.5 name some keys of config.json otherwise, and their files have other names of
tensors than transformers' class, which the adapters follow.

Source: transformers `configuration_exaone.py`, `configuration_iquestcoder.py`;
`conversion_mapping.py` for the names in files.
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families import llama
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family
from jaxft.models.spec import ModelSpec

_TARGETS = ("q_proj", "v_proj")
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


def _read(config: dict[str, Any], theta: float) -> ModelSpec:
    reader = ConfigReader({"num_key_value_heads": 8, "rms_norm_eps": 1e-5} | config)
    bias, mlp_bias = reader.get("attention_bias", False), reader.get("mlp_bias", False)
    spec = llama.read_llama(reader, biases=(bias, bias, mlp_bias), theta=theta)
    reader.finish()
    return spec


def exaone_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an EXAONE 3 or 3.5."""
    return _read({_EXAONE_KEYS.get(key, key): value for key, value in config.items()}, 500_000.0)


def iquestcoder_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an IQuest-Coder."""
    return _read({"head_dim": 128} | dict(config), 10_000.0)


EXAONE = Family(
    "exaone",
    exaone_spec,
    llama.biased_config,
    llama.TENSORS,
    IGNORED,
    _TARGETS,
    "lm_head",
    "model.",
    renames=_EXAONE_RENAMES,
    file_names=_EXAONE_FILE_NAMES,
)
IQUESTCODER = Family(
    "iquestcoder",
    iquestcoder_spec,
    llama.biased_config,
    llama.TENSORS,
    IGNORED,
    _TARGETS,
    "lm_head",
    "model.",
)
