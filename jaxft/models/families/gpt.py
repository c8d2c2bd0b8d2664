"""GPT-2 and similar decoders: layer norms with a bias, and an MLP without a gate."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT
from jaxft.models.families.keys import Key, read_keys, spec_of
from jaxft.models.spec import Learned, ModelSpec, NormSpec, Rope

BIASES = ("qkv_bias", "out_bias", "mlp_bias")


def read_gpt(
    reader: ConfigReader,
    keys: Iterable[Key],
    *,
    rope: Rope | None = None,
    windows: Sequence[int | None] | None = None,
    padding_rows: int = 0,
    **features: Any,
) -> ModelSpec:
    """Return the spec of a GPT-2 or a similar model.

    Args:
        reader: The config.json.
        keys: The keys to read. If one of them sets "max_tokens", positions are learned.
        rope: The rotary positions of every layer; `None` for none.
        windows: The window of each layer; if not given, no layer has one.
        padding_rows: The number of rows of the position table before the row of position 0.
        features: Fields of `spec_of` that differ from GPT-2's; they override those of `keys`.
    """
    fields = read_keys(reader, keys) | features
    model_dim, num_heads = fields["model_dim"], fields["num_heads"]
    head_dim, num_layers = model_dim // num_heads, fields.pop("num_layers")
    positions = None
    if "max_tokens" in fields:
        positions = Learned(rows=fields.pop("max_tokens") + padding_rows, offset=padding_rows)
    usual = ABSENT | {
        "embed_dim": model_dim,
        "num_kv_heads": num_heads,
        "head_dim": head_dim,
        "attn_scale": head_dim**-0.5,
        "mlp": "plain",
        "norm": NormSpec("layer", fields.pop("norm_eps", 1e-5), scale="plain", bias=True),
        "norm_placement": "pre",
        "final_norm": True,
        "positions": positions,
        **dict.fromkeys(BIASES, True),
    }
    fields["mlp_dim"] = fields.get("mlp_dim") or 4 * model_dim
    return spec_of(usual | fields, windows or (None,) * num_layers, (rope,) * num_layers)
