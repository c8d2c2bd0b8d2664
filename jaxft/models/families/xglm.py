"""XGLM: an OPT with sinusoidal positions and scaled embeddings.

Source: transformers `configuration_xglm.py`, `modeling_xglm.py` (defaults and names).
"""

import dataclasses
import functools
import math
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, Tensor, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, activation, keys_config
from jaxft.models.spec import ModelSpec, Sinusoidal


def bart_tensors(base: str, final_norm: str, head: str) -> tuple[Tensor, ...]:
    """Return the name table of a decoder with the module names of BART.

    Args:
        base: The module that holds all others except the head, "model".
        final_norm: The name of the final norm below `base`.
        head: The name of the head.
    """
    layer = f"{base}.layers.{{layer}}"
    return (
        plain("embed/kernel", f"{base}.embed_tokens.weight"),
        plain("positions/kernel", f"{base}.embed_positions.weight"),
        *norm("final_norm", f"{base}.{final_norm}"),
        *linear("head", head),
        *linear("attn/k", f"{layer}.self_attn.k_proj"),
        *linear("attn/v", f"{layer}.self_attn.v_proj"),
        *linear("attn/q", f"{layer}.self_attn.q_proj"),
        *linear("attn/o", f"{layer}.self_attn.out_proj"),
        *norm("attn_norm", f"{layer}.self_attn_layer_norm"),
        *linear("mlp/up", f"{layer}.fc1"),
        *linear("mlp/down", f"{layer}.fc2"),
        *norm("mlp_norm", f"{layer}.final_layer_norm"),
    )


TENSORS = bart_tensors("model", "layer_norm", "lm_head")

_OFFSET = 2  # rows of the position table before the row of position 0

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("d_model", "model_dim"),
    Key("ffn_dim", "mlp_dim"),
    Key("num_layers", "num_layers"),
    Key("attention_heads", "num_heads"),
    activation("activation_function", "gelu"),
    Key("tie_word_embeddings", "tied_head", True),
)


def read_scaled(reader: ConfigReader, keys: tuple[Key, ...], **features: Any) -> ModelSpec:
    """Return the spec of a decoder whose config.json has the key `scale_embedding`.

    The key says whether token embeddings are multiplied by the square root of their width. The
    arguments are those of `read_gpt`.
    """
    spec = read_gpt(reader, keys, **features)
    is_scaled = reader.get("scale_embedding", True)
    return dataclasses.replace(spec, embed_scale=math.sqrt(spec.model_dim) if is_scaled else 1.0)


def scaled_config(spec: ModelSpec, keys: tuple[Key, ...]) -> dict[str, Any]:
    """Return the config.json keys for `spec`, the inverse of `read_scaled`."""
    return keys_config(spec, keys) | {"scale_embedding": spec.embed_scale != 1.0}


def _read_xglm(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an XGLM."""
    reader.require("add_cross_attention", (False,), False)
    return read_scaled(reader, KEYS, positions=Sinusoidal(_OFFSET))


XGLM = Family("xglm", _read_xglm, functools.partial(scaled_config, keys=KEYS), TENSORS)
