"""XGLM: sines and cosines for positions, scaled embeddings, otherwise an OPT with norms before.

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
    """Return the name table of a decoder that is named as those of encoder-decoders are.

    Args:
        base: What all modules but the head are below.
        final_norm: The name of the final norm.
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

_OFFSET = 2  # rows of the table of positions that are for padding

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
    """Read a decoder of which config.json says whether its token embeddings are scaled.

    Arguments as of `read_gpt`; the factor is the root of their width.
    """
    spec = read_gpt(reader, keys, **features)
    is_scaled = reader.get("scale_embedding", True)
    return dataclasses.replace(spec, embed_scale=math.sqrt(spec.model_dim) if is_scaled else 1.0)


def scaled_config(spec: ModelSpec, keys: tuple[Key, ...]) -> dict[str, Any]:
    """Return what config.json says of `spec`, the inverse of `read_scaled`."""
    return keys_config(spec, keys) | {"scale_embedding": spec.embed_scale != 1.0}


def _read_xglm(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an XGLM."""
    reader.require("add_cross_attention", (False,), False)
    return read_scaled(reader, KEYS, positions=Sinusoidal(_OFFSET))


XGLM = Family("xglm", _read_xglm, functools.partial(scaled_config, keys=KEYS), TENSORS)
