"""OPT: learned positions that begin at row 2, layer norms before or after, a plain MLP, biases.

The 350m model norms after each sublayer and has an embedding narrower than its residual stream.

Source: transformers `configuration_opt.py`, `modeling_opt.py` (defaults and names).
"""

from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, plain
from jaxft.models.families.gpt import BIASES, read_gpt
from jaxft.models.families.keys import Key, activation, choice, keys_config
from jaxft.models.spec import ModelSpec

_MODEL = "model.decoder"
_LAYER = f"{_MODEL}.layers.{{layer}}"

TENSORS = (
    plain("embed/kernel", f"{_MODEL}.embed_tokens.weight"),
    plain("positions/kernel", f"{_MODEL}.embed_positions.weight"),
    *linear("embed_in", f"{_MODEL}.project_in"),
    *linear("embed_out", f"{_MODEL}.project_out"),
    *norm("final_norm", f"{_MODEL}.final_layer_norm"),
    *linear("head", "lm_head"),
    *linear("attn/k", f"{_LAYER}.self_attn.k_proj"),
    *linear("attn/v", f"{_LAYER}.self_attn.v_proj"),
    *linear("attn/q", f"{_LAYER}.self_attn.q_proj"),
    *linear("attn/o", f"{_LAYER}.self_attn.out_proj"),
    *norm("attn_norm", f"{_LAYER}.self_attn_layer_norm"),
    *linear("mlp/up", f"{_LAYER}.fc1"),
    *linear("mlp/down", f"{_LAYER}.fc2"),
    *norm("mlp_norm", f"{_LAYER}.final_layer_norm"),
)

_PADDING_ROWS = 2  # rows of the position table before the row of position 0

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("word_embed_proj_dim", "embed_dim", None),
    Key("ffn_dim", "mlp_dim"),
    Key("num_hidden_layers", "num_layers"),
    Key("num_attention_heads", "num_heads"),
    Key("max_position_embeddings", "max_tokens", 2048),
    activation("activation_function", "relu"),
    choice("do_layer_norm_before", "norm_placement", True, yes="pre", no="post"),
    Key("enable_bias", BIASES, True),
    Key("tie_word_embeddings", "tied_head", True),
)


def _read_opt(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an OPT."""
    reader.require("layer_norm_elementwise_affine", (True,), True)
    is_pre = reader.get("do_layer_norm_before", True)
    lacks_final_norm = reader.get("_remove_final_layer_norm", False)
    return read_gpt(
        reader,
        KEYS,
        padding_rows=_PADDING_ROWS,
        embed_dim=reader.get("word_embed_proj_dim", None) or reader.get("hidden_size"),
        final_norm=is_pre and not lacks_final_norm,
    )


def opt_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of an OPT for `spec`."""
    lacks_final_norm = spec.norm_placement == "pre" and not spec.final_norm
    return keys_config(spec, KEYS) | {"_remove_final_layer_norm": lacks_final_norm}


OPT = Family("opt", _read_opt, opt_config, TENSORS)
