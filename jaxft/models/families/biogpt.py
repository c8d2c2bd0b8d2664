"""BioGPT: an XGLM with learned positions, and with keys of its own in config.json.

Source: transformers `configuration_biogpt.py`, `modeling_biogpt.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family
from jaxft.models.families.xglm import bart_tensors, read_embed_scale
from jaxft.models.spec import BlockSpec, Learned, ModelSpec, NormSpec

TENSORS = bart_tensors("biogpt", "layer_norm", "output_projection")

_NORM_EPS = 1e-5  # torch's default; the one of config.json is never read
_PADDING_ROWS = 2  # of the table of positions, before that of position 0


def biogpt_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a BioGPT."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("hidden_size"), reader.get("num_attention_heads")
    reader.get("layer_norm_eps", None)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=(model_dim // num_heads) ** -0.5,
        mlp_dim=reader.get("intermediate_size"),
        mlp="plain",
        activation=read_activation(reader.get("hidden_act", "gelu")),
        norm=NormSpec("layer", _NORM_EPS, scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=Learned(
            rows=reader.get("max_position_embeddings", 1024) + _PADDING_ROWS, offset=_PADDING_ROWS
        ),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(None, None),) * reader.get("num_hidden_layers"),
        **ABSENT | {"embed_scale": read_embed_scale(reader, model_dim)},
    )
    reader.finish()
    return spec


def biogpt_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a BioGPT says of `spec`."""
    assert isinstance(spec.positions, Learned)
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "intermediate_size": spec.mlp_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": spec.num_heads,
        "max_position_embeddings": spec.positions.rows - _PADDING_ROWS,
        "hidden_act": activation_name(spec.activation),
        "scale_embedding": spec.embed_scale != 1.0,
        "tie_word_embeddings": spec.tied_head,
    }


BIOGPT = Family(
    "biogpt",
    biogpt_spec,
    biogpt_config,
    TENSORS,
    IGNORED,
    ("q_proj", "v_proj"),
    "output_projection",
    "biogpt.",
)
