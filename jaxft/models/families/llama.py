"""Llama and its likes: RMS norms, rotary positions, grouped queries, a gated MLP.

SmolLM2 is a Llama by its config.json. Mistral differs by its sliding window alone. Other families
that are a Llama with some differences are a `llama_family`, or begin with `read_llama`.

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
    """Return the name table of a Llama whose modules but the head are below `base`."""
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
# Lines that many families have more.
ATTENTION_BIAS = Key("attention_bias", ("qkv_bias", "out_bias"), False)
MLP_BIAS = Key("mlp_bias", "mlp_bias", False)

# The kinds of norm; the eps is what config.json says.
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
    """Read what Llama and its likes share.

    Args:
        reader: The config.json.
        keys: What it says.
        norm: The kind of every norm; its eps counts where no key says one.
        windows: Of each layer; if not given, the one of `keys` for all, or none.
        ropes: Of each layer; if not given, config.json has one for all.
        is_turned: Which layers turn queries and keys; if not given, all do.
        theta: The family's default base of rotary positions.
        partial: As in `read_rope`.
        interleaved: Whether the pairs that are turned are neighbours, as in `Rope`.
        features: Fields as of `spec_of` that are not as in Llama; they count before those of the
            keys.
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
    """Return the width of a head."""
    width = config.get("head_dim", None)
    return int(width or config.get("hidden_size") // config.get("num_attention_heads"))


def llama_config(spec: ModelSpec, keys: Iterable[Key] = KEYS) -> dict[str, Any]:
    """Return what the config.json of Llama and its likes says of `spec`."""
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
    """Return a family that is a Llama but for what is said here.

    Args:
        model_type: As config.json has it.
        lines: Keys of config.json that a Llama has not, or has otherwise.
        defaults: What transformers' config class has for keys that are missing, where that is not
            what Llama's has.
        fixed: Keys of which only some values are handled; the first is the default.
        unread: Keys that files have and transformers does not read.
        rope: The `rope_parameters` of a config.json that has none; if not given, `theta` says all.
        windows: Where config.json lists layers with and without a window; if not given, the one of
            `lines` is of all layers.
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
            # Said even where every channel is turned: unsaid, the family's own share is.
            whole = {"partial_rotary_factor": 1.0}
            written["rope_parameters"] = whole | written["rope_parameters"]
        return written

    settle = functools.partial(with_rope, default=rope) if rope else dict
    return Family(model_type, read, config_from_spec, tensors, defaults=defaults, settle=settle)


LLAMA = llama_family(
    "llama",
    ATTENTION_BIAS,
    MLP_BIAS,
    fixed={"rope_interleaved": (False, None)},  # SmolLM2 writes it
)
MISTRAL = llama_family(
    "mistral",
    Key("sliding_window", "window", 4096),
    defaults={"num_key_value_heads": 8},
)
llama_spec, mistral_spec = LLAMA.spec_from_config, MISTRAL.spec_from_config
