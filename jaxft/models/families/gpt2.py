"""GPT-2: learned positions, layer norms before, one fused projection for q, k and v.

Its linear modules are transformers' `Conv1D`, whose weights are [in, out] as ours are. PEFT puts
one adapter on `c_attn`, over q, k and v together.

Source: transformers `configuration_gpt2.py`, `modeling_gpt2.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.family import (
    ConfigReader,
    Family,
    Tensor,
    linear,
    plain,
    read_activation,
)
from jaxft.models.spec import BlockSpec, Learned, ModelSpec

_LAYER = "transformer.h.{layer}"


def _conv1d(module: str, theirs: str, *parts: str) -> tuple[Tensor, Tensor]:
    return linear(module, f"{_LAYER}.{theirs}", parts=parts, transposed=False)


TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    plain("positions/kernel", "transformer.wpe.weight"),
    plain("final_norm/scale", "transformer.ln_f.weight"),
    plain("final_norm/bias", "transformer.ln_f.bias"),
    *linear("head", "lm_head"),
    plain("attn_norm/scale", f"{_LAYER}.ln_1.weight"),
    plain("attn_norm/bias", f"{_LAYER}.ln_1.bias"),
    *_conv1d("attn/qkv", "attn.c_attn", "attn/q", "attn/k", "attn/v"),
    *_conv1d("attn/o", "attn.c_proj"),
    plain("mlp_norm/scale", f"{_LAYER}.ln_2.weight"),
    plain("mlp_norm/bias", f"{_LAYER}.ln_2.bias"),
    *_conv1d("mlp/up", "mlp.c_fc"),
    *_conv1d("mlp/down", "mlp.c_proj"),
)

# The causal mask, stored as weights by old versions.
_IGNORED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)


def gpt2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GPT-2."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("n_embd"), reader.get("n_head")
    reader.require("scale_attn_weights", (True,), True)
    reader.require("scale_attn_by_inverse_layer_idx", (False,), False)
    reader.require("add_cross_attention", (False,), False)
    reader.get("reorder_and_upcast_attn", False)  # float32 attention, which it always is here
    for key in _UNUSED:
        reader.get(key, None)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        mlp_dim=reader.get("n_inner", None) or 4 * model_dim,
        mlp="plain",
        activation=read_activation(reader.get("activation_function", "gelu_new")),
        norm="layer",
        norm_eps=reader.get("layer_norm_epsilon", 1e-5),
        norm_placement="pre",
        final_norm=True,
        positions=Learned(rows=reader.get("n_positions", 1024), offset=0),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(window=None),) * reader.get("n_layer"),
    )
    reader.finish()
    return spec


# Of the heads that classify; and a former name of n_positions.
_UNUSED = (
    "n_ctx",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
)

GPT2 = Family(
    "gpt2", gpt2_spec, TENSORS, _IGNORED, ("c_attn",), "lm_head", "transformer.", is_conv1d=True
)
