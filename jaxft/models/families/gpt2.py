"""GPT-2: learned positions, layer norms before each sublayer, a fused projection for q, k and v.

Its linear modules are transformers' `Conv1D`, whose weights are [in, out], like our leaves. PEFT
puts one adapter on `c_attn`, for q, k and v together.

Source: transformers `configuration_gpt2.py`, `modeling_gpt2.py` (defaults and names).
"""

import functools
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, Tensor, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, activation, keys_config
from jaxft.models.spec import ModelSpec

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

CAUSAL_MASK = r"transformer\.h\.\d+\.attn\.bias"  # old versions stored it among the weights


KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("n_embd", "model_dim"),
    Key("n_head", "num_heads"),
    Key("n_layer", "num_layers"),
    Key("n_inner", "mlp_dim", None),
    Key("n_positions", "max_tokens", 1024),
    activation("activation_function", "gelu_new"),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    Key("tie_word_embeddings", "tied_head", True),
)


def _read_own(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a GPT-2."""
    reader.require("scale_attn_by_inverse_layer_idx", (False,), False)
    reader.get("reorder_and_upcast_attn", False)  # asks for float32 attention, as jaxft always does
    return read_gpt2(reader)


def read_gpt2(reader: ConfigReader, keys: tuple[Key, ...] = KEYS, **features: Any) -> ModelSpec:
    """Read the keys that GPT-2 and GPT-BigCode share, with the arguments of `read_gpt`."""
    reader.require("scale_attn_weights", (True,), True)
    reader.require("add_cross_attention", (False,), False)
    reader.get("n_ctx", None)  # a former name of n_positions
    return read_gpt(reader, keys, **features)


GPT2 = Family(
    "gpt2",
    _read_own,
    functools.partial(keys_config, keys=KEYS),
    TENSORS,
    (*IGNORED, CAUSAL_MASK),
    ("c_attn",),
    base_prefix="transformer.",
    is_conv1d=True,
)
