"""Tables of the config.json keys that each set one value of a spec.

    KEYS = (
        Key("n_embd", "model_dim"),
        Key("n_head", "num_heads"),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
    )

`read_keys` turns a config.json into ``{"model_dim": 768, "num_heads": 12, "norm_eps": 1e-5}``, from
which a family makes its `ModelSpec`. `keys_config` turns the spec into the config.json again. A
value that depends on several keys does not fit into a table; the family reads and writes it in its
own functions.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import REQUIRED, ConfigReader
from jaxft.models.spec import AttentionSpec, BlockSpec, MLPSpec, ModelSpec, Rope

# The values that a `Key` may name beside the fields of `ModelSpec` (and its property
# `max_tokens`). A value of a layer is the same in all layers.
_INSIDE: Mapping[str, Callable[[ModelSpec], Any]] = {
    "norm_eps": lambda spec: spec.norm.eps,
    "num_layers": lambda spec: len(spec.blocks),
    "window": lambda spec: spec.blocks[0].window,
    "mlp": lambda spec: spec.blocks[0].mlp.kind,
    "mlp_dim": lambda spec: spec.blocks[0].mlp.dim,
    "mlp_bias": lambda spec: spec.blocks[0].mlp.bias,
    "activation": lambda spec: spec.blocks[0].mlp.activation,
}


def _same(value: Any) -> Any:
    return value


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of config.json and the field that it sets.

    Attributes:
        theirs: The key in config.json.
        ours: A field of `ModelSpec`, "max_tokens", or one of `_INSIDE`; several if the key sets
            them all to the same value.
        default: The default of transformers' config class; without one, the key must be there.
        read: Turns the value in config.json into the field's.
        write: Turns the field's value into the one in config.json.
    """

    theirs: str
    ours: str | tuple[str, ...]
    default: Any = REQUIRED
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the key sets."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def choice(theirs: str, ours: str, default: bool, *, yes: str, no: str) -> Key:
    """Return the key of a flag that chooses between two values of a field."""
    return Key(theirs, ours, default, lambda flag: yes if flag else no, lambda each: each == yes)


def activation(theirs: str, default: str) -> Key:
    """Return the key of the MLP's activation."""
    return Key(theirs, "activation", default, read_activation, activation_name)


def with_keys(keys: tuple[Key, ...], *lines: Key) -> tuple[Key, ...]:
    """Return a table with `lines` added; a line replaces the one for the same fields."""
    fields = {line.ours for line in lines}
    return (*(key for key in keys if key.ours not in fields), *lines)


def without_keys(keys: tuple[Key, ...], *fields: str) -> tuple[Key, ...]:
    """Return a table without the keys that set the named fields."""
    return tuple(key for key in keys if key.ours not in fields)


def read_keys(reader: ConfigReader, keys: Iterable[Key]) -> dict[str, Any]:
    """Return the value of each field that the keys set.

    Raises:
        UnsupportedModelError: A key without a default is missing.
    """
    values = ((key, key.read(reader.get(key.theirs, key.default))) for key in keys)
    return {field: value for key, value in values for field in key.fields}


def keys_config(spec: ModelSpec, keys: Iterable[Key]) -> dict[str, Any]:
    """Return the values of these config.json keys for `spec`, the inverse of `read_keys`."""
    return {key.theirs: key.write(_value(spec, key.fields[0])) for key in keys}


def spec_of(
    fields: Mapping[str, Any], windows: Sequence[int | None], ropes: Sequence[Rope | None]
) -> ModelSpec:
    """Return the spec of a model whose layers all have attention and the same MLP.

    Args:
        fields: The fields of `ModelSpec` except `blocks`, and "mlp", "mlp_dim", "mlp_bias" and
            "activation" of the MLP.
        windows: The window of each layer; `None` for none.
        ropes: The rotary positions of each layer; `None` for none.
    """
    own = dict(fields)
    kind, dim, bias = (own.pop(name) for name in ("mlp", "mlp_dim", "mlp_bias"))
    mlp = MLPSpec(kind, dim, own.pop("activation"), bias)
    blocks = (
        BlockSpec(AttentionSpec(window, rope), mlp)
        for window, rope in zip(windows, ropes, strict=True)
    )
    return ModelSpec(**own, blocks=tuple(blocks))


def _value(spec: ModelSpec, field: str) -> Any:
    return _INSIDE[field](spec) if field in _INSIDE else getattr(spec, field)
