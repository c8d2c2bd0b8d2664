"""Granite: a Llama with factors on embeddings, attention scores, residuals and logits.

Granite 4 (`granitemoehybrid`) is supported for models with neither experts nor state-space layers.
HyperCLOVA X has the same factors, and norms the outputs of attention and MLP too.

Source: transformers `configuration_granite.py`, `configuration_granitemoehybrid.py`,
`configuration_hyperclovax.py` and their `modeling_*.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, replaced
from jaxft.models.families.keys import Key, choice, with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    MLP_BIAS,
    TENSORS,
    llama_config,
    llama_family,
    read_llama,
)
from jaxft.models.families.windows import FULL, read_layer_types
from jaxft.models.spec import ModelSpec

# The factors on embeddings, attention scores and residuals.
_FACTORS = (
    Key("embedding_multiplier", "embed_scale", 1.0),
    Key("attention_multiplier", "attn_scale", 1.0),
    Key("residual_multiplier", "residual_scale", 1.0),
)
_DIVISOR = Key("logits_scaling", "logit_scale", 1.0, lambda each: 1 / each, lambda each: 1 / each)

GRANITE = llama_family("granite", ATTENTION_BIAS, MLP_BIAS, *_FACTORS, _DIVISOR)


_OLD_KIND = "attention"  # the old name of `FULL`
_GRANITE4_KEYS = with_keys(
    KEYS,
    ATTENTION_BIAS,
    *_FACTORS,
    _DIVISOR,
    Key("shared_intermediate_size", "mlp_dim", 1024),
)
_NO_MIXTURE = {"num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"}
# Keys about experts, initialization and state spaces, and an older name of `layer_types`.
_UNREAD = {"intermediate_size", "init_method", "layers_block_type", "time_step_limit"}


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of a Granite 4 whose `layer_types` has the kinds of other models."""
    layers = config.get("layer_types") or config.get("layers_block_type") or ["mamba"]
    kinds = [FULL if kind == _OLD_KIND else kind for kind in layers]
    return dict(config) | {"layer_types": kinds}


def _read_granite4(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a dense Granite 4."""
    reader.require("num_local_experts", (0,), 8)
    reader.require("normalization_function", ("rmsnorm",), "rmsnorm")
    num_layers = len(read_layer_types(reader, [FULL] * reader.get("num_hidden_layers")))
    unused = {key for key in reader.config if key.startswith("mamba_")} | _NO_MIXTURE
    for key in unused | _UNREAD:
        reader.get(key, None)
    is_turned = [reader.get("position_embedding_type", None) == "rope"] * num_layers
    return read_llama(reader, _GRANITE4_KEYS, is_turned=is_turned)


def granite4_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a dense Granite 4 for `spec`."""
    return llama_config(spec, _GRANITE4_KEYS) | {
        "layer_types": [FULL] * len(spec.blocks),
        "num_local_experts": 0,
        "position_embedding_type": "rope" if spec.blocks[0].rope else None,
    }


_LAYER = "model.layers.{layer}"
_GRANITE4_TENSORS = replaced(
    TENSORS,
    *linear("mlp/gate_up", f"{_LAYER}.shared_mlp.input_linear", parts=("mlp/gate", "mlp/up")),
    *linear("mlp/down", f"{_LAYER}.shared_mlp.output_linear"),
)
_HYPERCLOVAX_TENSORS = (
    *TENSORS,
    *norm("attn_out_norm", f"{_LAYER}.post_norm1"),
    *norm("mlp_out_norm", f"{_LAYER}.post_norm2"),
)
GRANITE4 = Family(
    "granitemoehybrid", _read_granite4, granite4_config, _GRANITE4_TENSORS, settle=_settled
)
HYPERCLOVAX = llama_family(
    "hyperclovax",
    ATTENTION_BIAS,
    MLP_BIAS,
    *with_keys(_FACTORS, Key("attention_multiplier", "attn_scale", None)),
    Key("logits_scaling", "logit_scale", 1.0),  # it multiplies by this; Granite divides
    choice("use_post_norm", "norm_placement", True, yes="sandwich", no="pre"),
    tensors=_HYPERCLOVAX_TENSORS,
)
