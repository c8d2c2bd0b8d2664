"""Rotary positions in config.json: `rope_parameters`, and its older keys from transformers 4.

Source: transformers `modeling_rope_utils.py: RotaryEmbeddingConfigMixin`; for the defaults of
missing fields, its functions that compute the frequencies of each kind.
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
    """Return the rotary embedding of a model, or of its layers of one type.

    Args:
        config: The config.json.
        head_dim: The dimension of a head.
        theta: The family's default base.
        partial: The family's default share of a head's channels that are rotated; `None` if the
            family always rotates all.
        interleaved: Whether neighbouring channels are rotated together; `Rope` explains it.
        layer_type: The type of the layers, if `rope_parameters` has one set for each type.

    Raises:
        UnsupportedModelError: The kind of scaling is not supported, or it lacks a field.
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
    """Return a config.json that has the family's default rope if it had none."""
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
    """Return the rotary embedding of each layer of a model with two: layers with a window have one.

    Before transformers 5, `rope_theta` and `rope_scaling` were those of layers without a window.

    Args:
        config: The config.json.
        head_dim: The dimension of a head.
        windows: The window of each layer.
        theta: The family's default base in layers without a window.
        local_theta: The family's default base in layers with a window.
        local_key: The key of the latter before transformers 5; "" if there was none.

    Raises:
        UnsupportedModelError: A kind of scaling is not supported, or it lacks a field.

    Source: transformers `configuration_gemma3.py: Gemma3TextConfig.convert_rope_params_to_dict`,
    and the same method in `configuration_olmo3.py`.
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
        fields.pop("truncate", None)  # transformers ignores it in these models
        ropes.append(Rope(float(base), head_dim, False, _read_scaling(fields, config)))
    return tuple(ropes[0] if window is None else ropes[1] for window in windows)


def _read_scaling(found: dict[str, Any], config: ConfigReader) -> Any:
    """Return the `Rope.scaling` that the fields of a rope describe.

    Fields that transformers does not read for this kind, such as `finetuned`, are ignored.
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
    """Reads the fields of one kind of scaling; config.json supplies missing ones."""

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
        # transformers does not use the factor, but warns if it is missing.
        written |= {"rope_type": "dynamic", "alpha": scaling.alpha, "factor": 1.0}
    elif isinstance(scaling, DynamicScaling):
        written |= {"rope_type": "dynamic", "factor": scaling.factor}
    return written


def context_config(rope: Rope) -> dict[str, Any]:
    """Return the keys of config.json outside of `rope_parameters` that a rope needs."""
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
