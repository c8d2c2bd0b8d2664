"""Llama and its likes: RMS norms, rotary positions, grouped queries, a gated MLP.

SmolLM2 is a Llama by its config.json. Mistral differs by its sliding window alone.

Source: transformers `configuration_llama.py`, `configuration_mistral.py`, `modeling_llama.py`,
`modeling_mistral.py` (defaults and names).
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.family import ConfigReader, Family, linear, plain, read_activation
from jaxft.models.spec import BlockSpec, ModelSpec, Rope

_LAYER = "model.layers.{layer}"

TENSORS = (
    plain("embed/kernel", "model.embed_tokens.weight"),
    plain("final_norm/scale", "model.norm.weight"),
    *linear("head", "lm_head"),
    plain("attn_norm/scale", f"{_LAYER}.input_layernorm.weight"),
    *linear("attn/q", f"{_LAYER}.self_attn.q_proj"),
    *linear("attn/k", f"{_LAYER}.self_attn.k_proj"),
    *linear("attn/v", f"{_LAYER}.self_attn.v_proj"),
    *linear("attn/o", f"{_LAYER}.self_attn.o_proj"),
    plain("mlp_norm/scale", f"{_LAYER}.post_attention_layernorm.weight"),
    *linear("mlp/gate", f"{_LAYER}.mlp.gate_proj"),
    *linear("mlp/up", f"{_LAYER}.mlp.up_proj"),
    *linear("mlp/down", f"{_LAYER}.mlp.down_proj"),
)


def read_rope(config: ConfigReader, default_theta: float) -> Rope:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Raises:
        UnsupportedModelError: If the scaling is of a kind not handled.
    """
    scaling = dict(config.get("rope_parameters", None) or config.get("rope_scaling", None) or {})
    config.get("rope_scaling", None)
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta", default_theta)
    config.get("rope_theta", None)
    kind = scaling.pop("rope_type", scaling.pop("type", "default")) or "default"
    scaling.pop("type", None)
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    if kind not in needed or set(scaling) - set(needed[kind]):
        raise UnsupportedModelError(
            f"The model's config.json has a rope of kind {kind!r} with {sorted(scaling)}.",
            "Handled here: default, linear and llama3, with transformers' fields for each.",
        )
    missing = [field for field in needed[kind] if field not in scaling]
    if missing:
        raise UnsupportedModelError(
            f"The model's config.json has a {kind} rope without {', '.join(missing)}.",
            "Take the config.json that belongs to the weights.",
        )
    return Rope(
        theta=float(theta),
        scaling=cast(Any, kind),
        factor=float(scaling.get("factor", 1.0)),
        low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
        high_freq_factor=float(scaling.get("high_freq_factor", 1.0)),
        original_max_positions=int(scaling.get("original_max_position_embeddings", 0)),
    )


def _spec(config: ConfigReader, *, window: int | None, biases: tuple[bool, bool]) -> ModelSpec:
    """Read what Llama and Mistral share. `biases` are those of attention and of the MLP."""
    num_heads, model_dim = config.get("num_attention_heads"), config.get("hidden_size")
    attention_bias, mlp_bias = biases
    config.require("rope_interleaved", (False, None))  # SmolLM2 writes it
    head_dim = config.get("head_dim", None)
    spec = ModelSpec(
        vocab_size=config.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads", num_heads) or num_heads,
        head_dim=head_dim or model_dim // num_heads,
        mlp_dim=config.get("intermediate_size"),
        mlp="gated",
        activation=read_activation(config.get("hidden_act", "silu")),
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        norm_placement="pre",
        final_norm=True,
        positions=read_rope(config, 10000.0),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=mlp_bias,
        tied_head=config.get("tie_word_embeddings", False),
        blocks=(BlockSpec(window),) * config.get("num_hidden_layers"),
    )
    config.finish()
    return spec


def llama_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Llama."""
    reader = ConfigReader(config)
    biases = (reader.get("attention_bias", False), reader.get("mlp_bias", False))
    return _spec(reader, window=None, biases=biases)


def mistral_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Mistral."""
    reader = ConfigReader(config)
    return _spec(reader, window=reader.get("sliding_window", 4096), biases=(False, False))


_IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
_TARGETS = ("q_proj", "v_proj")


def _family(model_type: str, spec: Callable[[Mapping[str, Any]], ModelSpec]) -> Family:
    return Family(
        model_type, spec, TENSORS, _IGNORED, _TARGETS, "lm_head", "model.", is_conv1d=False
    )


LLAMA = _family("llama", llama_spec)
MISTRAL = _family("mistral", mistral_spec)
