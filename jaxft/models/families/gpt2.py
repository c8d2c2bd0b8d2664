"""GPT-2: learned positions, layer norms before, one fused projection for q, k and v.

Its linear modules are transformers' `Conv1D`, whose weights are [in, out] as ours are. PEFT puts
one adapter on `c_attn`, over q, k and v together.

Source: transformers `configuration_gpt2.py`, `modeling_gpt2.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, Tensor, linear, norm, plain
from jaxft.models.spec import BlockSpec, Learned, ModelSpec, NormSpec

_LAYER = "transformer.h.{layer}"


def _conv1d(module: str, theirs: str, *parts: str) -> tuple[Tensor, Tensor]:
    return linear(module, f"{_LAYER}.{theirs}", parts=parts, transposed=False)


TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    plain("positions/kernel", "transformer.wpe.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_1"),
    *_conv1d("attn/qkv", "attn.c_attn", "attn/q", "attn/k", "attn/v"),
    *_conv1d("attn/o", "attn.c_proj"),
    *norm("mlp_norm", f"{_LAYER}.ln_2"),
    *_conv1d("mlp/up", "mlp.c_fc"),
    *_conv1d("mlp/down", "mlp.c_proj"),
)

# The causal mask, stored as weights by old versions.
_IGNORED = (*IGNORED, r"transformer\.h\.\d+\.attn\.bias")


def gpt2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GPT-2."""
    reader = ConfigReader(config)
    reader.require("scale_attn_by_inverse_layer_idx", (False,), False)
    reader.get("reorder_and_upcast_attn", False)  # float32 attention, which it always is here
    spec = read_gpt2(reader, activation="gelu_new")
    reader.finish()
    return spec


def read_gpt2(reader: ConfigReader, *, activation: str) -> ModelSpec:
    """Read what GPT-2 and its likes share, without `finish`.

    Args:
        reader: The config.json.
        activation: The family's default one.
    """
    model_dim, num_heads = reader.get("n_embd"), reader.get("n_head")
    reader.require("scale_attn_weights", (True,), True)
    reader.require("add_cross_attention", (False,), False)
    reader.get("n_ctx", None)  # a former name of n_positions
    return ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=(model_dim // num_heads) ** -0.5,
        mlp_dim=reader.get("n_inner", None) or 4 * model_dim,
        mlp="plain",
        activation=read_activation(reader.get("activation_function", activation)),
        norm=NormSpec("layer", reader.get("layer_norm_epsilon", 1e-5), scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=Learned(rows=reader.get("n_positions", 1024), offset=0),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(window=None, rope=None),) * reader.get("n_layer"),
        **ABSENT,
    )


def gpt2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a GPT-2 says of `spec`."""
    assert isinstance(spec.positions, Learned)
    return {
        "vocab_size": spec.vocab_size,
        "n_embd": spec.model_dim,
        "n_head": spec.num_heads,
        "n_layer": len(spec.blocks),
        "n_inner": spec.mlp_dim,
        "n_positions": spec.positions.rows,
        "activation_function": activation_name(spec.activation),
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": spec.tied_head,
    }


GPT2 = Family(
    "gpt2",
    gpt2_spec,
    gpt2_config,
    TENSORS,
    _IGNORED,
    ("c_attn",),
    "lm_head",
    "transformer.",
    is_conv1d=True,
)
