"""The text part of Muse Glimmer: norms before and after each sublayer, gated attention.

A norm without weights follows the embedding, and others norm queries and keys. The output of
attention is multiplied by the sigmoid of another projection of its input. Layers without a window
have no positions.

Source: transformers `configuration_muse_glimmer.py: MuseGlimmerTextConfig`,
`modeling_muse_glimmer.py` (defaults and names).
"""

import dataclasses
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families import gemma
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, Tensor, linear
from jaxft.models.families.keys import Key, activation, with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    llama_config,
    read_head_dim,
    read_llama,
)
from jaxft.models.families.rope_config import read_rope
from jaxft.models.families.windows import FULL, SLIDING, read_windows, windows_config
from jaxft.models.spec import ModelSpec, NormSpec

_DEFAULTS = {
    "vocab_size": 202_048,
    "hidden_size": 6656,
    "intermediate_size": 19968,
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
}
_KEYS = with_keys(
    KEYS,
    ATTENTION_BIAS,
    activation("hidden_activation", "silu"),
    Key("output_multiplier", "logit_scale", 0.19611613513818404),
    Key("final_logit_softcapping", "logit_softcap", 20.0),
)
_PERIOD = 4  # of four layers, the last one has neither a window nor positions
_DIGITS = 12  # significant digits of `qk_scale_factor` when it is recovered from `attn_scale`


def muse_tensors(base: str) -> tuple[Tensor, ...]:
    """Return the name table of a Muse Glimmer whose modules, except the head, are below `base`."""
    gate = linear("attn/gate", f"{base}.layers.{{layer}}.self_attn.gate_proj")
    return (*gemma.gemma_tensors(base), *gate)


def _read_muse(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of the text part of a Muse Glimmer."""
    reader.get("hidden_act", None)  # nothing reads it
    num_layers = reader.get("num_hidden_layers")
    is_open = [(num_layers - 1 - layer) % _PERIOD == 0 for layer in range(num_layers)]
    default = [FULL if each else SLIDING for each in is_open]
    windows = read_windows(reader, default, reader.get("sliding_window", 2048))
    is_turned = _read_turned(reader, is_open)
    spec = read_llama(reader, _KEYS, windows=windows, is_turned=is_turned)
    factor, eps = reader.get("qk_scale_factor", 3.87), spec.norm.eps
    output_eps = reader.get("post_norm_eps", 1e-8)
    weightless = NormSpec("rms", eps, scale="none", bias=False)
    output = NormSpec("rms", output_eps, scale="offset", bias=False)
    return dataclasses.replace(
        spec,
        embed_norm=True,
        attn_scale=factor / spec.head_dim**0.5,
        attn_gate=True,
        qk_norm="head",
        norm=dataclasses.replace(spec.norm, scale="offset"),
        other_norms=(
            ("attn_out_norm", output),
            ("embed_norm", weightless),
            ("final_norm", spec.norm),
            ("k_norm", weightless),
            ("mlp_out_norm", output),
            ("q_norm", weightless),
        ),
        norm_placement="sandwich",
    )


def _read_turned(reader: ConfigReader, is_open: list[bool]) -> list[bool]:
    """Return whether each layer has rotary positions: its base is not 0.

    Raises:
        UnsupportedModelError: A layer has another base than the model's; transformers uses one.
    """
    thetas = reader.get("layer_rope_theta", None)
    if thetas is None:
        return [not each for each in is_open]
    theta = read_rope(reader, head_dim=read_head_dim(reader), theta=10_000.0).theta
    if len(thetas) != len(is_open) or {*filter(None, thetas)} - {theta}:
        raise UnsupportedModelError(
            f"The model's config.json has {len(thetas)} layer_rope_theta, {sorted(set(thetas))}.",
            f"Handled here: one for each of its {len(is_open)} layers, 0 or the rope_theta of "
            f"them all, {theta}.",
        )
    return [bool(theta) for theta in thetas]


def muse_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of the text part of a Muse Glimmer for `spec`."""
    return {
        **llama_config(spec, _KEYS),
        **windows_config(spec),
        "post_norm_eps": spec.norm_of("attn_out_norm").eps,
        "qk_scale_factor": float(f"{spec.attn_scale * spec.head_dim**0.5:.{_DIGITS}g}"),
        "layer_rope_theta": [block.rope.theta if block.rope else 0 for block in spec.blocks],
    }


MUSE_GLIMMER_TEXT = Family(
    "muse_glimmer_text", _read_muse, muse_config, muse_tensors("model"), defaults=_DEFAULTS
)
