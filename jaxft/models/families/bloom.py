"""BLOOM: ALiBi, a norm after the embedding, a fused projection that is laid out by head.

Source: transformers `configuration_bloom.py`, `modeling_bloom.py` (defaults and names).
"""

import functools
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, choice, keys_config
from jaxft.models.spec import Alibi, ModelSpec

_LAYER = "transformer.h.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")

TENSORS = (
    plain("embed/kernel", "transformer.word_embeddings.weight"),
    *norm("embed_norm", "transformer.word_embeddings_layernorm"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.input_layernorm"),
    *linear("attn/qkv", f"{_LAYER}.self_attention.query_key_value", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.self_attention.dense"),
    *norm("mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    *linear("mlp/up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_LAYER}.mlp.dense_4h_to_h"),
)

# Keys of the published files that the model never reads. They configured the kernels of the code
# that trained it.
_UNUSED = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "n_inner",
    "offset_alibi",
    "seq_length",
    "skip_bias_add",
    "skip_bias_add_qkv",
)


# Other names that config.json may have for these keys. The other name wins where both are there.
_OTHER_NAMES = {
    "n_embed": "hidden_size",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("n_head", "num_heads"),
    Key("n_layer", "num_layers"),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    choice(
        "apply_residual_connection_post_layernorm",
        "norm_placement",
        False,
        yes="pre_residual",
        no="pre",
    ),
    Key("tie_word_embeddings", "tied_head", True),
)


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json in which other names are replaced by the usual ones."""
    renamed = {name: config[other] for other, name in _OTHER_NAMES.items() if config.get(other)}
    return dict(config) | renamed


def _read_bloom(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a BLOOM."""
    for key in (*_OTHER_NAMES, *_UNUSED):
        reader.get(key, None)
    reader.require("slow_but_exact", (False,), False)  # transformers omits biases if it is set
    return read_gpt(reader, KEYS, activation="gelu_tanh", positions=Alibi(), embed_norm=True)


BLOOM = Family(
    "bloom",
    _read_bloom,
    functools.partial(keys_config, keys=KEYS),
    TENSORS,
    default_targets=("query_key_value",),
    base_prefix="transformer.",
    settle=_settled,
)
