"""Sliding windows in config.json: which layers have one, and how wide it is."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.spec import ModelSpec


class Windows(NamedTuple):
    """How a family's config.json says which layers have a window; see `read_windows`.

    Attributes:
        read: Returns the window of each layer.
        write: Returns what config.json says of the windows of a spec.
    """

    read: Callable[[ConfigReader], tuple[int | None, ...]]
    write: Callable[[ModelSpec], dict[str, Any]]


FULL, SLIDING = "full_attention", "sliding_attention"


def each_nth_full(num_layers: int, period: int) -> list[str]:
    """Return the attention of layers of which each `period`-th has no window, the others have."""
    return [SLIDING if number % period else FULL for number in range(1, num_layers + 1)]


def read_layer_types(config: ConfigReader, default: Sequence[str]) -> list[str]:
    """Return which attention each layer has; `default` where config.json does not list it.

    Raises:
        UnsupportedModelError: If there are kinds that are not handled, or too few or too many.
    """
    kinds = list(config.get("layer_types", None) or default)
    if len(kinds) != len(default) or set(kinds) - {FULL, SLIDING}:
        raise UnsupportedModelError(
            f"The model's config.json has {len(kinds)} layer_types, {sorted(set(kinds))}.",
            f"Handled here: one for each of its {len(default)} layers, {FULL} or {SLIDING}.",
        )
    return kinds


def read_windows(
    config: ConfigReader, default: Sequence[str], window: int | None
) -> tuple[int | None, ...]:
    """Return the window of each layer, in tokens; `None` for a layer that sees everything.

    Args:
        config: The config.json.
        default: The attention of each layer where config.json does not list it.
        window: The window of the layers that have one.

    Raises:
        UnsupportedModelError: As `read_layer_types`; or if layers slide and there is no window.
    """
    kinds = read_layer_types(config, default)
    if SLIDING in kinds and not window:
        raise UnsupportedModelError(
            f"The model's config.json has layers of {SLIDING} and no sliding_window.",
            "transformers does not run it either; take the config.json of the weights.",
        )
    return tuple(window if kind == SLIDING else None for kind in kinds)


def windows_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what config.json says of the windows, the inverse of `read_windows`."""
    windows = [block.window for block in spec.blocks]
    kinds = [FULL if window is None else SLIDING for window in windows]
    width = next(filter(None, windows), None)
    return {"layer_types": kinds} | ({"sliding_window": width} if width else {})
