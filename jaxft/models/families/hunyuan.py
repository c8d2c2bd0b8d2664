"""Dense Hunyuan: a Llama that norms queries and keys after their rotation.

Its rope has the type "dynamic" and a field `alpha`, a factor on the base. Without `alpha`,
"dynamic" is another kind of rope, which depends on the length of the text.

Source: transformers `configuration_hunyuan_v1_dense.py`, `modeling_hunyuan_v1_dense.py`.
"""

import functools

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, norm, replaced
from jaxft.models.families.keys import with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    TENSORS,
    llama_config,
    read_head_dim,
    read_llama,
)
from jaxft.models.families.rope_config import read_rope
from jaxft.models.spec import AlphaScaling, ModelSpec, Rope

_ATTENTION = "model.layers.{layer}.self_attn"
_TENSORS = replaced(
    TENSORS,
    *norm("attn/q_norm", f"{_ATTENTION}.query_layernorm"),
    *norm("attn/k_norm", f"{_ATTENTION}.key_layernorm"),
)

_KEYS = with_keys(KEYS, ATTENTION_BIAS)


def _read_hunyuan(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a dense Hunyuan."""
    reader.get("eod_token_id", None)
    ropes = (_read_rope(reader),) * reader.get("num_hidden_layers")
    return read_llama(reader, _KEYS, ropes=ropes, qk_norm="turned")


def _read_rope(reader: ConfigReader) -> Rope:
    head_dim = read_head_dim(reader)
    found = reader.get("rope_scaling", None) or reader.get("rope_parameters", None) or {}
    kind = found.get("rope_type") or found.get("type")
    if kind != "dynamic" or not found.get("alpha"):
        return read_rope(reader, head_dim=head_dim, theta=10_000.0)
    reader.get("rope_parameters", None)
    theta = found.get("rope_theta") or reader.get("rope_theta", None) or 10_000.0
    return Rope(float(theta), head_dim, False, AlphaScaling(float(found["alpha"])))


HUNYUAN_DENSE = Family(
    "hunyuan_v1_dense",
    _read_hunyuan,
    functools.partial(llama_config, keys=_KEYS),
    _TENSORS,
    defaults={"rms_norm_eps": 1e-5},
)
