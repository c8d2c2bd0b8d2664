"""Ministral and Ministral 3.

Ministral is a Mistral whose config.json lists the layers that have a window. Ministral 3 has a
window on all layers or on none, like a Mistral, and scales its queries up with their position; the
fields of its rope say how.

Source: transformers `configuration_ministral.py`, `modeling_ministral.py` (defaults and names);
`configuration_ministral3.py`, `modeling_ministral3.py`.
"""

import functools
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import Key, with_keys
from jaxft.models.families.llama import (
    KEYS,
    TENSORS,
    llama_config,
    llama_family,
    read_llama,
)
from jaxft.models.families.rope_config import with_rope
from jaxft.models.families.windows import FULL, SLIDING, Windows, read_windows, windows_config
from jaxft.models.spec import ModelSpec, QueryScaling

_DEFAULTS = {"num_key_value_heads": 8}


def _read_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    window = reader.get("sliding_window", 4096)
    default = [FULL if window is None else SLIDING] * reader.get("num_hidden_layers")
    return read_windows(reader, default, window)


MINISTRAL = llama_family(
    "ministral", defaults=_DEFAULTS, windows=Windows(_read_windows, windows_config)
)


_KEYS_3 = with_keys(KEYS, Key("sliding_window", "window", None))
_DEFAULTS_3 = _DEFAULTS | {"head_dim": 128, "rms_norm_eps": 1e-5}
_ROPE_3 = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _read_ministral3(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a Ministral 3.

    Raises:
        UnsupportedModelError: The rope lacks the fields that scale the queries, or another
            feature is not supported.
    """
    found = reader.get("rope_scaling", None) or reader.get("rope_parameters", None)
    beta = found.get("llama_4_scaling_beta")
    length = found.get("original_max_position_embeddings")
    length = reader.get("original_max_position_embeddings", None) or length
    if beta is None or not length:
        raise UnsupportedModelError(
            "The model's config.json has rope_parameters without llama_4_scaling_beta or "
            "original_max_position_embeddings.",
            "transformers does not run it either; take the config.json of the weights.",
        )
    scaling = QueryScaling(float(beta), int(length))
    return read_llama(reader, _KEYS_3, query_scaling=scaling)


def ministral3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a Ministral 3 for `spec`."""
    written = llama_config(spec, _KEYS_3)
    if spec.query_scaling is not None:
        written["rope_parameters"] |= {
            "llama_4_scaling_beta": spec.query_scaling.beta,
            "original_max_position_embeddings": spec.query_scaling.length,
        }
    return written


MINISTRAL3 = Family(
    "ministral3",
    _read_ministral3,
    ministral3_config,
    TENSORS,
    defaults=_DEFAULTS_3,
    settle=functools.partial(with_rope, default=_ROPE_3),
)
