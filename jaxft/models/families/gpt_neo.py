"""GPT-Neo: learned positions; layers with a window alternate with layers that see all tokens.

Its attention scores are not divided by the square root of the head dimension.

Source: transformers `configuration_gpt_neo.py`, `modeling_gpt_neo.py` (defaults and names).
"""

from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, activation, keys_config
from jaxft.models.spec import ModelSpec

_LAYER = "transformer.h.{layer}"
_ATTENTION = f"{_LAYER}.attn.attention"

TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    plain("positions/kernel", "transformer.wpe.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_1"),
    *linear("attn/k", f"{_ATTENTION}.k_proj"),
    *linear("attn/v", f"{_ATTENTION}.v_proj"),
    *linear("attn/q", f"{_ATTENTION}.q_proj"),
    *linear("attn/o", f"{_ATTENTION}.out_proj"),
    *norm("mlp_norm", f"{_LAYER}.ln_2"),
    *linear("mlp/up", f"{_LAYER}.mlp.c_fc"),
    *linear("mlp/down", f"{_LAYER}.mlp.c_proj"),
)

# The masks, which old versions stored among the weights.
_IGNORED = (*IGNORED, r"transformer\.h\.\d+\.attn\.attention\.bias")
_GLOBAL, _LOCAL = "global", "local"

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("num_heads", "num_heads"),
    Key("num_layers", "num_layers"),
    Key("intermediate_size", "mlp_dim", None),
    Key("max_position_embeddings", "max_tokens", 2048),
    activation("activation_function", "gelu_new"),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    Key("tie_word_embeddings", "tied_head", True),
)


def _read_gpt_neo(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a GPT-Neo."""
    window, num_layers = reader.get("window_size", 256), reader.get("num_layers")
    # Each entry is a pattern of layers and the number of its repeats.
    types = reader.get("attention_types", None) or [[[_GLOBAL, _LOCAL], 12]]
    kinds = [kind for pattern, repeats in types for _ in range(repeats) for kind in pattern]
    if len(kinds) != num_layers or set(kinds) - {_GLOBAL, _LOCAL}:
        raise UnsupportedModelError(
            f"The model's config.json has attention_types for {len(kinds)} layers of "
            f"{num_layers}, {', '.join(sorted(set(kinds)))}.",
            f"Handled here: {_GLOBAL} or {_LOCAL} for each layer.",
        )
    reader.get("attention_layers", None)  # repeats attention_types
    windows = [window if kind == _LOCAL else None for kind in kinds]
    return read_gpt(reader, KEYS, windows=windows, attn_scale=1.0, qkv_bias=False)


def gpt_neo_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a GPT-Neo for `spec`."""
    windows = [block.window for block in spec.blocks]
    kinds = [_GLOBAL if window is None else _LOCAL for window in windows]
    period = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
    local = [window for window in windows if window is not None]
    types = {"attention_types": [[kinds[:period], len(kinds) // period]]}
    return keys_config(spec, KEYS) | types | ({"window_size": local[0]} if local else {})


GPT_NEO = Family(
    "gpt_neo", _read_gpt_neo, gpt_neo_config, TENSORS, _IGNORED, base_prefix="transformer."
)
