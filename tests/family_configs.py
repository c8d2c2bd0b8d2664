"""A small config.json for every family but OPT and GPT-2, which `small_models` has."""

from __future__ import annotations

from typing import Any

from jaxft.models.families import FAMILIES
from jaxft.models.spec import ModelSpec

_OF_GPT = {"vocab_size": 112, "n_embd": 64, "n_head": 4, "n_layer": 3}
_OF_LLAMA = {
    "vocab_size": 112,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}
# The smallest config.json of families that no other spec here stands for.
CONFIGS: list[dict[str, Any]] = [
    {
        "model_type": "gpt_neo",
        "vocab_size": 112,
        "hidden_size": 64,
        "num_heads": 4,
        "num_layers": 24,
    },
    {"model_type": "gptj", **_OF_GPT, "rotary_dim": 8},
    {"model_type": "bloom", "vocab_size": 112, "n_embed": 64, "n_head": 4, "n_layer": 3},
    {
        "model_type": "xglm",
        "vocab_size": 112,
        "d_model": 64,
        "ffn_dim": 160,
        "attention_heads": 4,
        "num_layers": 3,
    },
    {"model_type": "gpt_neox", **_OF_LLAMA, "intermediate_size": 160},
    {"model_type": "phi", **_OF_LLAMA, "intermediate_size": 160, "qk_layernorm": True},
    *(
        {"model_type": "falcon", **_OF_LLAMA, **kind}
        for kind in ({}, {"parallel_attn": False}, {"new_decoder_architecture": True})
    ),
    {"model_type": "gpt_bigcode", **_OF_GPT},
    {"model_type": "mpt", "vocab_size": 112, "d_model": 64, "n_heads": 4, "n_layers": 3},
    {"model_type": "biogpt", **_OF_LLAMA, "intermediate_size": 160},
    {
        "model_type": "granitemoehybrid",
        **_OF_LLAMA,
        "num_local_experts": 0,
        "layer_types": ["attention"] * 3,
        "position_embedding_type": "rope",
    },
]
_OTHERWISE = {config["model_type"] for config in CONFIGS} | {"opt", "gpt2"}
# All others have the keys of a Llama.
CONFIGS += [
    {"model_type": family.model_type, **_OF_LLAMA, "intermediate_size": 160}
    for family in FAMILIES
    if family.model_type not in _OTHERWISE and not family.text_families
]
CONFIGS += [
    {
        "model_type": family.model_type,
        "text_config": {
            "model_type": family.text_families[0].model_type,
            **_OF_LLAMA,
            "intermediate_size": 160,
        },
    }
    for family in FAMILIES
    if family.text_families
]


def field_of(spec: ModelSpec, name: str) -> Any:
    """Return a field of a spec, or of the MLP that all of its layers have."""
    of_mlp = {"mlp_dim": "dim", "mlp_bias": "bias", "activation": "activation"}
    if name in of_mlp:
        return getattr(spec.blocks[0].mlp, of_mlp[name])
    return getattr(spec, name)
