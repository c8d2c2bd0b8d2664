"""Rotary positions in config.json: `rope_parameters`, and what stood for it before transformers 5.

Source: transformers `modeling_rope_utils.py: RotaryEmbeddingConfigMixin`, and the functions that
compute each kind's frequencies, for what a missing field means.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.windows import FULL, SLIDING
from jaxft.models.spec import (
    AlphaScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ModelSpec,
    Rope,
    YarnScaling,
)

_KINDS = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")
_Kind = LinearScaling | Llama3Scaling | YarnScaling | LongScaling | DynamicScaling | None


def read_rope(
    config: ConfigReader,
    *,
    head_dim: int,
    theta: float,
    partial: float | None = None,
    interleaved: bool = False,
    layer_type: str = "",
) -> Rope:
    """Read the rotary embedding of a model, or of its layers of one type.

    Args:
        config: The config.json.
        head_dim: Width of a head.
        theta: The family's default base.
        partial: The family's default share of a head's channels that are turned; `None` where
            all are, whatever config.json says.
        interleaved: As in `Rope`.
        layer_type: Of the layers, where `rope_parameters` has one set for each type.

    Raises:
        UnsupportedModelError: If the scaling is of a kind not handled, or lacks a field.
    """
    older = config.get("rope_scaling", None)
    found = dict(older or config.get("rope_parameters", None) or {})
    config.get("rope_parameters", None)
    if layer_type in found:
        found = dict(found[layer_type])
    outside = (config.get("rope_theta", None), config.get("partial_rotary_factor", None))
    theta = found.pop("rope_theta", None) or outside[0] or theta
    share = found.pop("partial_rotary_factor", None) or outside[1] or partial or 1.0
    if partial is None and share != 1.0:
        raise UnsupportedModelError(
            f"The model's config.json has partial_rotary_factor={share}, where a model of its type "
            "turns every channel.",
            "Take the config.json that belongs to the weights.",
        )
    return Rope(float(theta), int(head_dim * share), interleaved, _read_scaling(found, config))


def with_rope(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with the family's default rope if it has none."""
    has_rope = any(config.get(key) for key in ("rope_parameters", "rope_scaling"))
    return dict(config) | ({} if has_rope else {"rope_parameters": default})


def read_ropes(
    config: ConfigReader,
    *,
    head_dim: int,
    windows: Sequence[int | None],
    theta: float,
    local_theta: float,
    local_key: str = "",
) -> tuple[Rope, ...]:
    """Read the rotary embedding of each layer, where those with a window have one of their own.

    Args:
        config: The config.json.
        head_dim: Width of a head.
        windows: Of each layer.
        theta: The family's default base in layers without a window.
        local_theta: The same in layers with one.
        local_key: What that base was called before transformers 5; "" if it had no key, and
            `rope_theta` was that of the other layers alone, as `rope_scaling` always was.

    Raises:
        UnsupportedModelError: If a scaling is of a kind not handled, or lacks a field.

    Source: transformers `configuration_gemma3.py: Gemma3TextConfig.convert_rope_params_to_dict`,
    and that of `configuration_olmo3.py`.
    """
    given = dict(config.get("rope_parameters", None) or {})
    if set(given) - {FULL, SLIDING}:
        raise UnsupportedModelError(
            f"The model's config.json has rope_parameters with {', '.join(sorted(given))}.",
            f"Handled here: one set for {FULL}, one for {SLIDING}.",
        )
    full, local = (dict(given.get(kind) or {}) for kind in (FULL, SLIDING))
    full |= config.get("rope_scaling", None) or {}
    thetas = (
        full.pop("rope_theta", None) or config.get("rope_theta", None) or theta,
        local.pop("rope_theta", None) or (local_key and config.get(local_key, None)) or local_theta,
    )
    ropes = []
    for fields, base in zip((full, local), thetas, strict=True):
        fields.pop("truncate", None)  # transformers does not look for it here
        ropes.append(Rope(float(base), head_dim, False, _read_scaling(fields, config)))
    return tuple(ropes[0] if window is None else ropes[1] for window in windows)


def _read_scaling(found: dict[str, Any], config: ConfigReader) -> Any:
    """Return a `Rope.scaling` from the fields that are left of it.

    A field that transformers does not look for in such a kind, as `finetuned`, is not looked at.
    """
    kind = found.pop("rope_type", None) or found.get("type") or "default"
    found.pop("type", None)
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"The model's config.json has a rope of kind {kind!r}.",
            f"Handled here: {', '.join(_KINDS)}.",
        )
    return _Scaling(kind, found, config).read()


class _Scaling:
    """The fields of one kind of scaling, and where to look for those that are missing."""

    def __init__(self, kind: str, found: Mapping[str, Any], config: ConfigReader) -> None:
        self._kind, self._found, self._config = kind, found, config

    def read(self) -> _Kind:
        if self._kind == "default":
            return None
        if self._kind == "linear":
            return LinearScaling(self._number("factor"))
        if self._kind == "llama3":
            low, high = (self._number(f"{end}_freq_factor") for end in ("low", "high"))
            return Llama3Scaling(self._number("factor"), low, high, self._original_length())
        if self._kind == "dynamic":
            context = self._config.get("max_position_embeddings")
            return DynamicScaling(self._number("factor"), context)
        return self._yarn() if self._kind == "yarn" else self._long()

    def _yarn(self) -> YarnScaling:
        original, found = self._original_length(), self._found
        factor = self._factor(original)
        magnitude = found.get("attention_factor")
        if magnitude is None:
            scale, divisor = found.get("mscale"), found.get("mscale_all_dim")
            if scale and divisor:
                magnitude = _yarn_magnitude(factor, scale) / _yarn_magnitude(factor, divisor)
            else:
                magnitude = _yarn_magnitude(factor, 1.0)
        return YarnScaling(
            factor=factor,
            beta_fast=float(found.get("beta_fast") or 32),
            beta_slow=float(found.get("beta_slow") or 1),
            original_max_positions=original,
            is_truncated=bool(found.get("truncate", True)),
            magnitude=float(magnitude),
        )

    def _long(self) -> LongScaling:
        original = self._original_length()
        magnitude = self._found.get("attention_factor")
        if magnitude is None:
            grown = math.log(max(self._factor(original), 1.0)) / math.log(original)
            magnitude = math.sqrt(1 + grown)
        short, long = (tuple(map(float, self._required(f"{n}_factor"))) for n in ("short", "long"))
        return LongScaling(short, long, original, float(magnitude))

    def _factor(self, original: int) -> float:
        factor = self._found.get("factor")
        return float(factor or self._config.get("max_position_embeddings") / original)

    def _original_length(self) -> int:
        key = "original_max_position_embeddings"
        inside, outside = self._found.get(key), self._config.get(key, None)
        return int(outside or inside or self._config.get("max_position_embeddings"))

    def _number(self, field: str) -> float:
        return float(self._required(field))

    def _required(self, field: str) -> Any:
        if self._found.get(field) is None:
            raise UnsupportedModelError(
                f"The model's config.json has a {self._kind} rope without {field}.",
                "Take the config.json that belongs to the weights.",
            )
        return self._found[field]


def _yarn_magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def rope_config(rope: Rope, head_dim: int) -> dict[str, Any]:
    """Return the `rope_parameters` of a rotary embedding, the inverse of `read_rope`."""
    written: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.rotary_dim != head_dim:
        written["partial_rotary_factor"] = rope.rotary_dim / head_dim
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        written |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        written |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    elif isinstance(scaling, YarnScaling):
        written |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "original_max_position_embeddings": scaling.original_max_positions,
            "truncate": scaling.is_truncated,
            "attention_factor": scaling.magnitude,
        }
    elif isinstance(scaling, LongScaling):
        written |= {
            "rope_type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            "original_max_position_embeddings": scaling.original_max_positions,
            "attention_factor": scaling.magnitude,
        }
    elif isinstance(scaling, AlphaScaling):
        # Without a factor transformers warns; it reads none.
        written |= {"rope_type": "dynamic", "alpha": scaling.alpha, "factor": 1.0}
    elif isinstance(scaling, DynamicScaling):
        written |= {"rope_type": "dynamic", "factor": scaling.factor}
    return written


def context_config(rope: Rope) -> dict[str, Any]:
    """Return what config.json says outside of `rope_parameters` and a rotary embedding needs."""
    scaling = rope.scaling
    if isinstance(scaling, DynamicScaling):
        return {"max_position_embeddings": scaling.max_positions}
    return {}


def ropes_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the `rope_parameters` of a model with two ropes, the inverse of `read_ropes`."""
    return {
        FULL if block.window is None else SLIDING: rope_config(block.rope, spec.head_dim)
        for block in spec.blocks
        if block.rope is not None
    }
