"""GPT-NeoX and Pythia: rotary positions on a quarter of a head, a parallel residual.

Source: transformers `configuration_gpt_neox.py`, `modeling_gpt_neox.py` (defaults and names).
"""

from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, activation, choice, keys_config
from jaxft.models.families.rope_config import context_config, read_rope, rope_config
from jaxft.models.spec import ModelSpec

_LAYER = "gpt_neox.layers.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")

TENSORS = (
    plain("embed/kernel", "gpt_neox.embed_in.weight"),
    *norm("final_norm", "gpt_neox.final_layer_norm"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.input_layernorm"),
    *norm("mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    *linear("attn/qkv", f"{_LAYER}.attention.query_key_value", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.attention.dense"),
    *linear("mlp/up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_LAYER}.mlp.dense_4h_to_h"),
)

# The mask, which old versions stored among the weights.
_IGNORED = (*IGNORED, r"gpt_neox\.layers\.\d+\.attention\.bias")
# Files call the head `embed_out`, as transformers 4 did. transformers 5 calls the module `lm_head`
# and still writes `embed_out`.
_RENAMES = ((r"^embed_out\.", "lm_head."),)
_FILE_NAMES = ((r"^lm_head\.", "embed_out."),)


KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("intermediate_size", "mlp_dim"),
    Key("num_hidden_layers", "num_layers"),
    Key("num_attention_heads", "num_heads"),
    activation("hidden_act", "gelu"),
    Key("layer_norm_eps", "norm_eps", 1e-5),
    Key("attention_bias", ("qkv_bias", "out_bias"), True),
    choice("use_parallel_residual", "parallel", True, yes="two_norms", no="no"),
    Key("tie_word_embeddings", "tied_head", False),
)


def _read_gpt_neox(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a GPT-NeoX."""
    head_dim = reader.get("hidden_size") // reader.get("num_attention_heads")
    # transformers 4 wrote these two keys; its last versions wrote them under both names.
    theta = float(reader.get("rotary_emb_base", 10_000))
    partial = float(reader.get("rotary_pct", 0.25))
    reader.require("rope_theta", (theta, None))
    reader.require("partial_rotary_factor", (partial, None))
    rope = read_rope(reader, head_dim=head_dim, theta=theta, partial=partial)
    return read_gpt(reader, KEYS, rope=rope)


def gpt_neox_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a GPT-NeoX for `spec`."""
    rope = spec.blocks[0].rope
    assert rope is not None
    share = {"partial_rotary_factor": rope.rotary_dim / spec.head_dim}
    written = {"rope_parameters": rope_config(rope, spec.head_dim) | share}
    return keys_config(spec, KEYS) | written | context_config(rope)


GPT_NEOX = Family(
    "gpt_neox",
    _read_gpt_neox,
    gpt_neox_config,
    TENSORS,
    _IGNORED,
    ("query_key_value",),
    base_prefix="gpt_neox.",
    renames=_RENAMES,
    file_names=_FILE_NAMES,
)
