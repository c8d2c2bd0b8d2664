"""GPT-J: attention and MLP in parallel after one norm, interleaved rotary positions on a part.

Source: transformers `configuration_gptj.py`, `modeling_gptj.py` (defaults and names).
"""

from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, activation, keys_config
from jaxft.models.spec import ModelSpec, Rope

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

# The mask and the table of angles, which old versions stored among the weights.
_IGNORED = (*IGNORED, r"transformer\.h\.\d+\.attn\.(bias|embed_positions)")
_THETA = 10_000.0  # config.json has no key for it


KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("n_embd", "model_dim"),
    Key("n_head", "num_heads"),
    Key("n_layer", "num_layers"),
    Key("n_inner", "mlp_dim", None),
    activation("activation_function", "gelu_new"),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    Key("tie_word_embeddings", "tied_head", False),
)


def _read_gptj(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a GPT-J."""
    reader.get("n_positions", 2048)  # the size of transformers' table of angles
    for key in ("rotary", "scale_attn_weights"):
        reader.require(key, (True,), True)
    return read_gpt(
        reader,
        KEYS,
        rope=Rope(_THETA, reader.get("rotary_dim", 64), interleaved=True, scaling=None),
        parallel="one_norm",
        qkv_bias=False,
        out_bias=False,
        head_bias=True,
    )


def gptj_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a GPT-J for `spec`."""
    rope = spec.blocks[0].rope
    assert rope is not None
    return keys_config(spec, KEYS) | {"rotary_dim": rope.rotary_dim}


GPTJ = Family("gptj", _read_gptj, gptj_config, TENSORS, _IGNORED, base_prefix="transformer.")
