"""GPT-BigCode (SantaCoder, the first StarCoder): a GPT-2 with one kv head.

Its linear modules are torch's `Linear`. With one kv head, the fused projection holds all queries,
then k, then v. With several, it holds q, k and v of the first head, then of the second, and so on.
Both are the layout `by_head` of `Tensor`.

Source: transformers `configuration_gpt_bigcode.py`, `modeling_gpt_bigcode.py` (defaults, names).
"""

from typing import Any

from jaxft.models.families import gpt2
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, plain
from jaxft.models.families.keys import activation, keys_config, with_keys
from jaxft.models.spec import ModelSpec

_LAYER = "transformer.h.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")

TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    plain("positions/kernel", "transformer.wpe.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_1"),
    *linear("attn/qkv", f"{_LAYER}.attn.c_attn", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.attn.c_proj"),
    *norm("mlp_norm", f"{_LAYER}.ln_2"),
    *linear("mlp/up", f"{_LAYER}.mlp.c_fc"),
    *linear("mlp/down", f"{_LAYER}.mlp.c_proj"),
)

# The dtype of attention (always float32 in jaxft), and keys of a former inference runner.
_UNUSED = (
    "attention_softmax_in_fp32",
    "inference_runner",
    "max_batch_size",
    "max_sequence_length",
    "num_key_value_heads",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "runner_max_sequence_length",
    "scale_attention_softmax_in_fp32",
    "validate_runner_input",
)


KEYS = with_keys(gpt2.KEYS, activation("activation_function", "gelu_pytorch_tanh"))


def _read_gpt_bigcode(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a GPT-BigCode."""
    for key in _UNUSED:
        reader.get(key, None)
    one_head = {"num_kv_heads": 1} if reader.get("multi_query", True) else {}
    return gpt2.read_gpt2(reader, KEYS, **one_head)


def gpt_bigcode_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a GPT-BigCode for `spec`."""
    heads = {"multi_query": spec.num_kv_heads == 1, "num_key_value_heads": spec.num_kv_heads}
    return keys_config(spec, KEYS) | heads


GPT_BIGCODE = Family(
    "gpt_bigcode",
    _read_gpt_bigcode,
    gpt_bigcode_config,
    TENSORS,
    (*IGNORED, gpt2.CAUSAL_MASK),
    ("c_attn",),
    base_prefix="transformer.",
)
