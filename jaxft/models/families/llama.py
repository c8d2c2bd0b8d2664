"""Llama and its likes: RMS norms, rotary positions, grouped queries, a gated MLP.

SmolLM2 is a Llama by its config.json. Mistral differs by its sliding window alone. Other families
that are a Llama with some features more begin with `read_llama` and `llama_config`.

Source: transformers `configuration_llama.py`, `configuration_mistral.py`, `modeling_llama.py`,
`modeling_mistral.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, Tensor, linear, norm, plain
from jaxft.models.families.rope_config import context_config, read_rope, rope_config
from jaxft.models.spec import BlockSpec, ModelSpec, NormSpec, Rope


def llama_tensors(base: str) -> tuple[Tensor, ...]:
    """Return the name table of a Llama whose modules but the head are below `base`."""
    layer = f"{base}.layers.{{layer}}"
    return (
        plain("embed/kernel", f"{base}.embed_tokens.weight"),
        *norm("final_norm", f"{base}.norm"),
        *linear("head", "lm_head"),
        *norm("attn_norm", f"{layer}.input_layernorm"),
        *linear("attn/q", f"{layer}.self_attn.q_proj"),
        *linear("attn/k", f"{layer}.self_attn.k_proj"),
        *linear("attn/v", f"{layer}.self_attn.v_proj"),
        *linear("attn/o", f"{layer}.self_attn.o_proj"),
        *norm("attn/q_norm", f"{layer}.self_attn.q_norm"),
        *norm("attn/k_norm", f"{layer}.self_attn.k_norm"),
        *norm("mlp_norm", f"{layer}.post_attention_layernorm"),
        *linear("mlp/gate", f"{layer}.mlp.gate_proj"),
        *linear("mlp/up", f"{layer}.mlp.up_proj"),
        *linear("mlp/down", f"{layer}.mlp.down_proj"),
    )


TENSORS = llama_tensors("model")


def read_llama(
    config: ConfigReader,
    *,
    biases: tuple[bool, bool, bool] = (False, False, False),
    windows: tuple[int | None, ...] | None = None,
    ropes: tuple[Rope, ...] | None = None,
    theta: float = 10_000.0,
    partial: float | None = None,
    interleaved: bool = False,
) -> ModelSpec:
    """Read what Llama and its likes share, without `finish`.

    Args:
        config: The config.json.
        biases: Of queries, keys and values; of the attention output; of the MLP.
        windows: Of each layer; none if not given.
        ropes: Of each layer; if not given, config.json has one for all.
        theta: The family's default base of rotary positions.
        partial: As in `read_rope`.
        interleaved: Whether the pairs that are turned are neighbours, as in `Rope`.
    """
    num_heads, model_dim = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = read_head_dim(config)
    num_layers = config.get("num_hidden_layers")
    if ropes is None:
        rope = read_rope(
            config, head_dim=head_dim, theta=theta, partial=partial, interleaved=interleaved
        )
        ropes = (rope,) * num_layers
    qkv_bias, out_bias, mlp_bias = biases
    return ModelSpec(
        vocab_size=config.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads", num_heads) or num_heads,
        head_dim=head_dim,
        attn_scale=head_dim**-0.5,
        mlp_dim=config.get("intermediate_size"),
        mlp="gated",
        activation=read_activation(config.get("hidden_act", "silu")),
        norm=NormSpec("rms", config.get("rms_norm_eps", 1e-6), scale="plain", bias=False),
        norm_placement="pre",
        final_norm=True,
        positions=None,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        tied_head=config.get("tie_word_embeddings", False),
        blocks=tuple(
            BlockSpec(window, rope)
            for window, rope in zip(windows or (None,) * num_layers, ropes, strict=True)
        ),
        **ABSENT,
    )


def read_head_dim(config: ConfigReader) -> int:
    """Return the width of a head."""
    width = config.get("head_dim", None)
    return int(width or config.get("hidden_size") // config.get("num_attention_heads"))


def llama_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of Llama and its likes says of `spec`."""
    ropes = [block.rope for block in spec.blocks if block.rope is not None]
    rope = {}
    if ropes:
        rope = {"rope_parameters": rope_config(ropes[0], spec.head_dim)} | context_config(ropes[0])
    return rope | {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "intermediate_size": spec.mlp_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": activation_name(spec.activation),
        "rms_norm_eps": spec.norm.eps,
        "tie_word_embeddings": spec.tied_head,
    }


def llama_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Llama."""
    reader = ConfigReader(config)
    attention_bias, mlp_bias = reader.get("attention_bias", False), reader.get("mlp_bias", False)
    reader.require("rope_interleaved", (False, None))  # SmolLM2 writes it
    spec = read_llama(reader, biases=(attention_bias, attention_bias, mlp_bias))
    reader.finish()
    return spec


def biased_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Llama says of `spec`, its biases included."""
    return llama_config(spec) | {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}


def mistral_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Mistral."""
    reader = ConfigReader({"num_key_value_heads": 8} | dict(config))
    window = reader.get("sliding_window", 4096)
    spec = read_llama(reader, windows=(window,) * reader.get("num_hidden_layers"))
    reader.finish()
    return spec


def _mistral_config(spec: ModelSpec) -> dict[str, Any]:
    return llama_config(spec) | {"sliding_window": spec.blocks[0].window}


_TARGETS = ("q_proj", "v_proj")

LLAMA = Family("llama", llama_spec, biased_config, TENSORS, IGNORED, _TARGETS, "lm_head", "model.")
MISTRAL = Family(
    "mistral", mistral_spec, _mistral_config, TENSORS, IGNORED, _TARGETS, "lm_head", "model."
)
