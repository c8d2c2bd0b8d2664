"""Llama and Mistral: RMS norms, rotary positions, grouped-query attention, a gated MLP.

SmolLM2 has the config.json of a Llama. Mistral differs in its sliding window only. Other families
that resemble a Llama are made with `llama_family`, or begin with `read_llama`.

Source: transformers `configuration_llama.py`, `configuration_mistral.py`, `modeling_llama.py`,
`modeling_mistral.py` (defaults and names).
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import (
    ABSENT,
    Family,
    Tensor,
    linear,
    norm,
    plain,
    without_modules,
)
from jaxft.models.families.keys import (
    Key,
    activation,
    keys_config,
    read_keys,
    spec_of,
    with_keys,
)
from jaxft.models.families.rope_config import context_config, read_rope, rope_config, with_rope
from jaxft.models.families.windows import Windows
from jaxft.models.spec import ModelSpec, NormSpec, Rope


def llama_tensors(base: str) -> tuple[Tensor, ...]:
    """Return the name table of a Llama whose modules, except the head, are below `base`."""
    layer = f"{base}.layers.{{layer}}"
    return (
        plain("embed/kernel", f"{base}.embed_tokens.weight"),
        *norm("final_norm", f"{base}.norm"),
        *linear("head", "lm_head"),
        *norm("attn_norm", f"{layer}.input_layernorm"),
        *linear("attn/q", f"{layer}.self_attn.q_proj"),
        *linear("attn/k", f"{layer}.self_attn.k_proj"),
        *linear("attn/v", f"{layer}.self_attn.v_proj"),
        *linear("attn/o", f"{layer}.self_attn.o_proj"),
        *norm("attn/q_norm", f"{layer}.self_attn.q_norm"),
        *norm("attn/k_norm", f"{layer}.self_attn.k_norm"),
        *norm("mlp_norm", f"{layer}.post_attention_layernorm"),
        *linear("mlp/gate", f"{layer}.mlp.gate_proj"),
        *linear("mlp/up", f"{layer}.mlp.up_proj"),
        *linear("mlp/down", f"{layer}.mlp.down_proj"),
    )


TENSORS = llama_tensors("model")
# Of families that norm what attention and MLP give, and not what they read.
OUTPUT_NORM_TENSORS = (
    *without_modules(TENSORS, "attn_norm", "mlp_norm"),
    *norm("attn_out_norm", "model.layers.{layer}.post_attention_layernorm"),
    *norm("mlp_out_norm", "model.layers.{layer}.post_feedforward_layernorm"),
)

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "model_dim"),
    Key("intermediate_size", "mlp_dim"),
    Key("num_hidden_layers", "num_layers"),
    Key("num_attention_heads", "num_heads"),
    Key("num_key_value_heads", "num_kv_heads", None),
    Key("head_dim", "head_dim", None),
    activation("hidden_act", "silu"),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("tie_word_embeddings", "tied_head", False),
)
# Keys that many families have in addition.
ATTENTION_BIAS = Key("attention_bias", ("qkv_bias", "out_bias"), False)
MLP_BIAS = Key("mlp_bias", "mlp_bias", False)

# The kinds of norm; `read_llama` sets the eps.
RMS_NORM = NormSpec("rms", 0.0, scale="plain", bias=False)
LAYER_NORM = NormSpec("layer", 0.0, scale="plain", bias=True)


def read_llama(
    reader: ConfigReader,
    keys: Iterable[Key] = KEYS,
    *,
    norm: NormSpec = RMS_NORM,
    windows: Sequence[int | None] | None = None,
    ropes: Sequence[Rope] | None = None,
    is_turned: Sequence[bool] | None = None,
    theta: float = 10_000.0,
    partial: float | None = None,
    interleaved: bool = False,
    **features: Any,
) -> ModelSpec:
    """Return the spec of a Llama or a similar model.

    Args:
        reader: The config.json.
        keys: The keys to read.
        norm: The kind of every norm; a key for "norm_eps" overrides its eps.
        windows: The window of each layer; if not given, the one of `keys` for all layers, or none.
        ropes: The rotary positions of each layer; if not given, config.json has one for all layers.
        is_turned: Whether each layer has rotary positions; if not given, all have them.
        theta: The family's default base of rotary positions.
        partial: The family's default share of rotated channels; `read_rope` explains it.
        interleaved: Whether neighbouring channels are rotated together; `Rope` explains it.
        features: Fields of `spec_of` that differ from Llama's; they override those of `keys`.
    """
    fields = read_keys(reader, keys) | features
    head_dim, num_layers = read_head_dim(reader), fields.pop("num_layers")
    if ropes is None:
        rope = read_rope(
            reader, head_dim=head_dim, theta=theta, partial=partial, interleaved=interleaved
        )
        ropes = (rope,) * num_layers
    turned = [
        rope if turns else None
        for rope, turns in zip(ropes, is_turned or [True] * num_layers, strict=True)
    ]
    windows = windows or (fields.pop("window", None),) * num_layers
    usual = ABSENT | {
        "embed_dim": fields["model_dim"],
        "mlp": "gated",
        "norm": dataclasses.replace(norm, eps=fields.pop("norm_eps", norm.eps)),
        "norm_placement": "pre",
        "final_norm": True,
        "positions": None,
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
    }
    fields["head_dim"] = head_dim
    fields["attn_scale"] = fields.get("attn_scale") or head_dim**-0.5
    fields["num_kv_heads"] = fields["num_kv_heads"] or fields["num_heads"]
    return spec_of(usual | fields, windows, turned)


def read_head_dim(config: ConfigReader) -> int:
    """Return the dimension of a head."""
    width = config.get("head_dim", None)
    return int(width or config.get("hidden_size") // config.get("num_attention_heads"))


def llama_config(spec: ModelSpec, keys: Iterable[Key] = KEYS) -> dict[str, Any]:
    """Return the config.json keys of a Llama, or of a similar family with `keys`, for `spec`."""
    ropes = [block.rope for block in spec.blocks if block.rope is not None]
    written = keys_config(spec, keys)
    if ropes:
        rope = {"rope_parameters": rope_config(ropes[0], spec.head_dim)}
        written = rope | context_config(ropes[0]) | written
    return written


def llama_family(
    model_type: str,
    *lines: Key,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    fixed: Mapping[str, tuple[Any, ...]] = MappingProxyType({}),
    unread: Iterable[str] = (),
    rope: Mapping[str, Any] = MappingProxyType({}),
    windows: Windows | None = None,
    tensors: tuple[Tensor, ...] = TENSORS,
    **features: Any,
) -> Family:
    """Return a family that differs from Llama in the arguments only.

    Args:
        model_type: The `model_type` of its config.json.
        lines: Keys of config.json that a Llama lacks, or reads in another way.
        defaults: The defaults of transformers' config class that differ from Llama's.
        fixed: The supported values of keys that allow only some; the first is the default.
        unread: Keys that files have and transformers does not read.
        rope: The `rope_parameters` for a config.json that has none; if not given, rotary positions
            of base `theta` without scaling.
        windows: How config.json lists the layers that have a window; if not given, the window of
            `lines` is that of all layers.
        tensors: The name table.
        features: Further arguments of `read_llama`: `theta`, fields of `ModelSpec`, and so on.
    """
    keys = with_keys(KEYS, *lines)

    def read(reader: ConfigReader) -> ModelSpec:
        for key, allowed in fixed.items():
            reader.require(key, allowed, allowed[0])
        for key in unread:
            reader.get(key, None)
        listed = None if windows is None else windows.read(reader)
        return read_llama(reader, keys, windows=listed, **features)

    def config_from_spec(spec: ModelSpec) -> dict[str, Any]:
        written = llama_config(spec, keys) | ({} if windows is None else windows.write(spec))
        if "partial" in features and "rope_parameters" in written:
            # Written even if every channel is rotated: without it, the family's default applies.
            whole = {"partial_rotary_factor": 1.0}
            written["rope_parameters"] = whole | written["rope_parameters"]
        return written

    settle = functools.partial(with_rope, default=rope) if rope else dict
    return Family(model_type, read, config_from_spec, tensors, defaults=defaults, settle=settle)


LLAMA = llama_family(
    "llama",
    ATTENTION_BIAS,
    MLP_BIAS,
    fixed={"rope_interleaved": (False, None)},  # SmolLM2 has this key
)
MISTRAL = llama_family(
    "mistral",
    Key("sliding_window", "window", 4096),
    defaults={"num_key_value_heads": 8},
)
llama_spec, mistral_spec = LLAMA.spec_from_config, MISTRAL.spec_from_config
