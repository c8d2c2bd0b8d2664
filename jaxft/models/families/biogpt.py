"""BioGPT: an XGLM with learned positions and other keys in config.json.

Source: transformers `configuration_biogpt.py`, `modeling_biogpt.py` (defaults and names).
"""

import functools

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import Key, activation
from jaxft.models.families.xglm import bart_tensors, read_scaled, scaled_config
from jaxft.models.spec import ModelSpec

TENSORS = bart_tensors("biogpt", "layer_norm", "output_projection")

_PADDING_ROWS = 2  # rows of the position table before the row of position 0

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("intermediate_size", "mlp_dim"),
    Key("num_hidden_layers", "num_layers"),
    Key("num_attention_heads", "num_heads"),
    Key("max_position_embeddings", "max_tokens", 1024),
    activation("hidden_act", "gelu"),
    Key("tie_word_embeddings", "tied_head", True),
)


def _read_biogpt(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a BioGPT."""
    reader.get("layer_norm_eps", None)  # transformers ignores it and uses torch's default
    return read_scaled(reader, KEYS, padding_rows=_PADDING_ROWS)


BIOGPT = Family(
    "biogpt",
    _read_biogpt,
    functools.partial(scaled_config, keys=KEYS),
    TENSORS,
    head_name="output_projection",
    base_prefix="biogpt.",
)
