"""Falcon: attention and MLP in parallel; one kv head, several, or as many as query heads.

The fused projection holds the queries, the key and the value of the first kv head, then those of
the second, and so on: 7B has one kv head, 40B, 180B and 11B have several. Checkpoints with ALiBi
(falcon-rw) are refused: transformers rounds their slopes to bfloat16 and multiplies them by the
scale of the scores.

Source: transformers `configuration_falcon.py`, `modeling_falcon.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, plain
from jaxft.models.families.gpt import BIASES, read_gpt
from jaxft.models.families.keys import Key, activation, keys_config
from jaxft.models.families.rope_config import context_config, read_rope, rope_config
from jaxft.models.spec import ModelSpec

_LAYER = "transformer.h.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")
_OTHERS = ("no", "one_norm")

TENSORS = (
    plain("embed/kernel", "transformer.word_embeddings.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_attn", parallel=("two_norms",)),
    *norm("mlp_norm", f"{_LAYER}.ln_mlp", parallel=("two_norms",)),
    *norm("attn_norm", f"{_LAYER}.input_layernorm", parallel=_OTHERS),
    *norm("mlp_norm", f"{_LAYER}.post_attention_layernorm", parallel=_OTHERS),
    *linear("attn/qkv", f"{_LAYER}.self_attention.query_key_value", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.self_attention.dense"),
    *linear("mlp/up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_LAYER}.mlp.dense_4h_to_h"),
)

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("ffn_hidden_size", "mlp_dim", None),
    Key("num_hidden_layers", "num_layers"),
    Key("num_attention_heads", "num_heads"),
    Key("bias", BIASES, False),
    activation("activation", "gelu"),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    Key("tie_word_embeddings", "tied_head", True),
)


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json in which `hidden_size` has the value of its other name, `n_embed`."""
    other_name = config.get("n_embed")
    return dict(config) | ({"hidden_size": other_name} if other_name else {})


def _read_falcon(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a Falcon."""
    reader.get("n_embed", None)
    num_heads = reader.get("num_attention_heads")
    reader.require("alibi", (False,), False)
    reader.require("apply_residual_connection_post_layernorm", (False,), False)
    rope = read_rope(reader, head_dim=reader.get("hidden_size") // num_heads, theta=10_000.0)
    num_kv_heads, parallel = _read_architecture(reader, num_heads)
    return read_gpt(reader, KEYS, rope=rope, num_kv_heads=num_kv_heads, parallel=parallel)


def _read_architecture(reader: ConfigReader, num_heads: int) -> tuple[int, str]:
    """Return the number of kv heads and the value of `ModelSpec.parallel`."""
    num_kv_heads = reader.get("num_kv_heads", None) or num_heads
    is_multi_query = reader.get("multi_query", True)
    if reader.get("new_decoder_architecture", False):
        reader.require("parallel_attn", (True,), True)
        reader.require("num_ln_in_parallel_attn", (None, 1, 2))
        num_norms = reader.get("num_ln_in_parallel_attn", None) or 2
        return num_kv_heads, "one_norm" if num_norms == 1 else "two_norms"
    reader.require("num_ln_in_parallel_attn", (None, 1))
    if not is_multi_query:
        reader.require("num_kv_heads", (None, num_heads))
    is_parallel = reader.get("parallel_attn", True)
    return 1 if is_multi_query else num_heads, "one_norm" if is_parallel else "no"


def falcon_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a Falcon for `spec`."""
    rope, num_kv_heads = spec.blocks[0].rope, spec.num_kv_heads
    assert rope is not None
    is_new = spec.parallel == "two_norms" or 1 < num_kv_heads < spec.num_heads
    num_norms = {"num_ln_in_parallel_attn": 2 if spec.parallel == "two_norms" else 1}
    return {
        **keys_config(spec, KEYS),
        "num_kv_heads": num_kv_heads if is_new else spec.num_heads,
        "new_decoder_architecture": is_new,
        "multi_query": is_new or num_kv_heads == 1,
        "parallel_attn": spec.parallel != "no",
        **(num_norms if is_new else {}),
        "alibi": False,
        "rope_parameters": rope_config(rope, spec.head_dim),
        **context_config(rope),
    }


FALCON = Family(
    "falcon",
    _read_falcon,
    falcon_config,
    TENSORS,
    default_targets=("query_key_value",),
    base_prefix="transformer.",
    settle=_settled,
)
