"""OLMo 1, 2 and 3: a Llama with norms in other places.

OLMo 1 has layer norms without weights. OLMo 2 and 3 do not norm the inputs of attention and MLP
but their outputs, and they norm queries and keys over all heads together. OLMo 3 has a window in
three layers of four, and another rope in the fourth.

Source: transformers `configuration_olmo.py`, `configuration_olmo2.py`, `configuration_olmo3.py`,
`modeling_olmo.py`, `modeling_olmo2.py`, `modeling_olmo3.py` (defaults and names).
"""

import functools
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import with_keys, without_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    OUTPUT_NORM_TENSORS,
    TENSORS,
    llama_config,
    llama_family,
    read_head_dim,
    read_llama,
)
from jaxft.models.families.rope_config import read_ropes, ropes_config
from jaxft.models.families.windows import each_nth_full, read_windows, windows_config
from jaxft.models.spec import ModelSpec, NormSpec

_KEYS = with_keys(KEYS, ATTENTION_BIAS)
_OLMO_KEYS = without_keys(_KEYS, "norm_eps")
_DEFAULTS = {"rms_norm_eps": 1e-5}
_OLMO3_THETA = 500_000.0


def _read_olmo(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an OLMo 1."""
    reader.require("clip_qkv", (None,))
    reader.get("rms_norm_eps", None)  # nothing reads it
    norm = NormSpec("layer", 1e-5, scale="none", bias=False)
    return read_llama(reader, _OLMO_KEYS, norm=norm)


def _read_olmo3(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an OLMo 3."""
    default = each_nth_full(reader.get("num_hidden_layers"), 4)
    windows = read_windows(reader, default, reader.get("sliding_window", 4096))
    ropes = read_ropes(
        reader,
        head_dim=read_head_dim(reader),
        windows=windows,
        theta=_OLMO3_THETA,
        local_theta=_OLMO3_THETA,
    )
    return read_llama(
        reader, _KEYS, windows=windows, ropes=ropes, qk_norm="full", norm_placement="output"
    )


def olmo3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of an OLMo 3 for `spec`."""
    ropes = {"rope_parameters": ropes_config(spec)}
    return llama_config(spec, _KEYS) | windows_config(spec) | ropes


OLMO = Family("olmo", _read_olmo, functools.partial(llama_config, keys=_OLMO_KEYS), TENSORS)
OLMO2 = llama_family(
    "olmo2",
    ATTENTION_BIAS,
    defaults=_DEFAULTS,
    tensors=OUTPUT_NORM_TENSORS,
    qk_norm="full",
    norm_placement="output",
)
OLMO3 = Family("olmo3", _read_olmo3, olmo3_config, OUTPUT_NORM_TENSORS, defaults=_DEFAULTS)
