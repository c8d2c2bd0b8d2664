"""GPT-J: one norm for attention and MLP side by side, interleaved rotary positions on a part.

Source: transformers `configuration_gptj.py`, `modeling_gptj.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.spec import BlockSpec, ModelSpec, NormSpec, Rope

_LAYER = "transformer.h.{layer}"

TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_1"),
    *linear("attn/k", f"{_LAYER}.attn.k_proj"),
    *linear("attn/v", f"{_LAYER}.attn.v_proj"),
    *linear("attn/q", f"{_LAYER}.attn.q_proj"),
    *linear("attn/o", f"{_LAYER}.attn.out_proj"),
    *linear("mlp/up", f"{_LAYER}.mlp.fc_in"),
    *linear("mlp/down", f"{_LAYER}.mlp.fc_out"),
)

# The mask and the table of angles, stored as weights by old versions.
_IGNORED = (*IGNORED, r"transformer\.h\.\d+\.attn\.(bias|embed_positions)")
_THETA = 10_000.0  # the config has no field for it


def gptj_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GPT-J."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("n_embd"), reader.get("n_head")
    rope = Rope(_THETA, reader.get("rotary_dim", 64), interleaved=True, scaling=None)
    reader.get("n_positions", 2048)  # how many angles are computed beforehand
    for key in ("rotary", "scale_attn_weights"):
        reader.require(key, (True,), True)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=(model_dim // num_heads) ** -0.5,
        mlp_dim=reader.get("n_inner", None) or 4 * model_dim,
        mlp="plain",
        activation=read_activation(reader.get("activation_function", "gelu_new")),
        norm=NormSpec("layer", reader.get("layer_norm_epsilon", 1e-5), scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=None,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", False),
        blocks=(BlockSpec(None, rope),) * reader.get("n_layer"),
        **ABSENT | {"parallel": "one_norm", "head_bias": True},
    )
    reader.finish()
    return spec


def gptj_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a GPT-J says of `spec`."""
    rope = spec.blocks[0].rope
    assert rope is not None
    return {
        "vocab_size": spec.vocab_size,
        "n_embd": spec.model_dim,
        "n_head": spec.num_heads,
        "n_layer": len(spec.blocks),
        "n_inner": spec.mlp_dim,
        "rotary_dim": rope.rotary_dim,
        "activation_function": activation_name(spec.activation),
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": spec.tied_head,
    }


GPTJ = Family(
    "gptj",
    gptj_spec,
    gptj_config,
    TENSORS,
    _IGNORED,
    ("q_proj", "v_proj"),
    "lm_head",
    "transformer.",
)
