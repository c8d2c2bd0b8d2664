"""GPT-Neo: learned positions, layers that see a window between layers that see everything.

Its attention scores are not divided by the root of the head width.

Source: transformers `configuration_gpt_neo.py`, `modeling_gpt_neo.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.spec import BlockSpec, Learned, ModelSpec, NormSpec

_LAYER = "transformer.h.{layer}"
_ATTENTION = f"{_LAYER}.attn.attention"

TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    plain("positions/kernel", "transformer.wpe.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_1"),
    *linear("attn/k", f"{_ATTENTION}.k_proj"),
    *linear("attn/v", f"{_ATTENTION}.v_proj"),
    *linear("attn/q", f"{_ATTENTION}.q_proj"),
    *linear("attn/o", f"{_ATTENTION}.out_proj"),
    *norm("mlp_norm", f"{_LAYER}.ln_2"),
    *linear("mlp/up", f"{_LAYER}.mlp.c_fc"),
    *linear("mlp/down", f"{_LAYER}.mlp.c_proj"),
)

# The masks, stored as weights by old versions.
_IGNORED = (*IGNORED, r"transformer\.h\.\d+\.attn\.attention\.bias")
_GLOBAL, _LOCAL = "global", "local"


def gpt_neo_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GPT-Neo."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("hidden_size"), reader.get("num_heads")
    window, num_layers = reader.get("window_size", 256), reader.get("num_layers")
    # Each entry is a pattern and how often it is repeated.
    types = reader.get("attention_types", None) or [[[_GLOBAL, _LOCAL], 12]]
    kinds = [kind for pattern, repeats in types for _ in range(repeats) for kind in pattern]
    if len(kinds) != num_layers or set(kinds) - {_GLOBAL, _LOCAL}:
        raise UnsupportedModelError(
            f"The model's config.json has attention_types for {len(kinds)} layers of "
            f"{num_layers}, {', '.join(sorted(set(kinds)))}.",
            f"Handled here: {_GLOBAL} or {_LOCAL} for each layer.",
        )
    reader.get("attention_layers", None)  # what follows from attention_types
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=1.0,
        mlp_dim=reader.get("intermediate_size", None) or 4 * model_dim,
        mlp="plain",
        activation=read_activation(reader.get("activation_function", "gelu_new")),
        norm=NormSpec("layer", reader.get("layer_norm_epsilon", 1e-5), scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=Learned(rows=reader.get("max_position_embeddings", 2048), offset=0),
        qkv_bias=False,
        out_bias=True,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=tuple(BlockSpec(window if kind == _LOCAL else None, None) for kind in kinds),
        **ABSENT,
    )
    reader.finish()
    return spec


def gpt_neo_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a GPT-Neo says of `spec`."""
    assert isinstance(spec.positions, Learned)
    windows = [block.window for block in spec.blocks]
    kinds = [_GLOBAL if window is None else _LOCAL for window in windows]
    period = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
    local = [window for window in windows if window is not None]
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "num_heads": spec.num_heads,
        "num_layers": len(kinds),
        "attention_types": [[kinds[:period], len(kinds) // period]],
        **({"window_size": local[0]} if local else {}),
        "intermediate_size": spec.mlp_dim,
        "max_position_embeddings": spec.positions.rows,
        "activation_function": activation_name(spec.activation),
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": spec.tied_head,
    }


GPT_NEO = Family(
    "gpt_neo",
    gpt_neo_spec,
    gpt_neo_config,
    TENSORS,
    _IGNORED,
    ("q_proj", "v_proj"),
    "lm_head",
    "transformer.",
)
