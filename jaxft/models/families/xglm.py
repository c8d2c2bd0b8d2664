"""XGLM: sines and cosines for positions, scaled embeddings, otherwise an OPT with norms before.

Source: transformers `configuration_xglm.py`, `modeling_xglm.py` (defaults and names).
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, Tensor, linear, norm, plain
from jaxft.models.spec import BlockSpec, ModelSpec, NormSpec, Sinusoidal


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

_NORM_EPS = 1e-5  # torch's default; the config has no field for it
_OFFSET = 2  # rows of the table of positions that are for padding


def xglm_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an XGLM."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("d_model"), reader.get("attention_heads")
    reader.require("add_cross_attention", (False,), False)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=(model_dim // num_heads) ** -0.5,
        mlp_dim=reader.get("ffn_dim"),
        mlp="plain",
        activation=read_activation(reader.get("activation_function", "gelu")),
        norm=NormSpec("layer", _NORM_EPS, scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=Sinusoidal(_OFFSET),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(None, None),) * reader.get("num_layers"),
        **ABSENT | {"embed_scale": read_embed_scale(reader, model_dim)},
    )
    reader.finish()
    return spec


def read_embed_scale(config: ConfigReader, model_dim: int) -> float:
    """Return the factor on token embeddings of which config.json says only whether there is one."""
    return math.sqrt(model_dim) if config.get("scale_embedding", True) else 1.0


def xglm_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an XGLM says of `spec`."""
    return {
        "vocab_size": spec.vocab_size,
        "d_model": spec.model_dim,
        "ffn_dim": spec.mlp_dim,
        "num_layers": len(spec.blocks),
        "attention_heads": spec.num_heads,
        "activation_function": activation_name(spec.activation),
        "scale_embedding": spec.embed_scale != 1.0,
        "tie_word_embeddings": spec.tied_head,
    }


XGLM = Family(
    "xglm", xglm_spec, xglm_config, TENSORS, IGNORED, ("q_proj", "v_proj"), "lm_head", "model."
)
