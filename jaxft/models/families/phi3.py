"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: a Llama whose projections are fused.

Its rope has one set of factors for texts of up to `original_max_position_embeddings` tokens and
another one for longer texts. It may rotate only a part of each head's channels.

Source: transformers `configuration_phi3.py`, `modeling_phi3.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, replaced
from jaxft.models.families.keys import Key, with_keys
from jaxft.models.families.llama import KEYS, llama_config, llama_tensors, read_llama
from jaxft.models.spec import LongScaling, ModelSpec

_LAYER = "model.layers.{layer}"

TENSORS = replaced(
    llama_tensors("model"),
    *linear("attn/qkv", f"{_LAYER}.self_attn.qkv_proj", parts=("attn/q", "attn/k", "attn/v")),
    *linear("mlp/gate_up", f"{_LAYER}.mlp.gate_up_proj", parts=("mlp/gate", "mlp/up")),
)

_KEYS = with_keys(KEYS, Key("sliding_window", "window", None))
_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}
# Keys of Phi-4-mini's config.json that transformers does not read.
_UNUSED = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
}
_OLD_KINDS = ("su", "yarn")  # older names of "longrope"


def _read_phi3(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a Phi-3."""
    for key, value in _UNUSED.items():
        reader.require(key, (value,), value)
    reader.get("original_max_position_embeddings")
    return read_llama(reader, _KEYS, partial=1.0)


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json in which a rope with an old name has its new name, "longrope"."""
    renamed = dict(config)
    for key in ("rope_parameters", "rope_scaling"):
        found = dict(config.get(key) or {})
        if (found.get("rope_type") or found.get("type")) in _OLD_KINDS:
            renamed[key] = found | {"rope_type": "longrope"}
    return renamed


def phi3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a Phi-3 for `spec`."""
    rope, written = spec.blocks[0].rope, llama_config(spec, _KEYS)
    if rope is not None and isinstance(rope.scaling, LongScaling):
        original = rope.scaling.original_max_positions
        written["original_max_position_embeddings"] = original
    return written


PHI3 = Family(
    "phi3",
    _read_phi3,
    phi3_config,
    TENSORS,
    default_targets=("qkv_proj",),
    defaults=_DEFAULTS,
    settle=_renamed,
)
