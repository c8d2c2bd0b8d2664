"""Sliding windows in config.json: which layers have one, and how wide it is."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.spec import ModelSpec


class Windows(NamedTuple):
    """The two functions of a family whose config.json lists the layers that have a window.

    Attributes:
        read: Returns the window of each layer; `read_windows` does most of the work.
        write: Returns the keys of config.json about the windows of a spec.
    """

    read: Callable[[ConfigReader], tuple[int | None, ...]]
    write: Callable[[ModelSpec], dict[str, Any]]


FULL, SLIDING = "full_attention", "sliding_attention"


def each_nth_full(num_layers: int, period: int) -> list[str]:
    """Return the attention of each layer: every `period`-th is full, the others have a window."""
    return [SLIDING if number % period else FULL for number in range(1, num_layers + 1)]


def read_layer_types(config: ConfigReader, default: Sequence[str]) -> list[str]:
    """Return the attention of each layer; `default` if config.json does not list it.

    Raises:
        UnsupportedModelError: A kind is not supported, or there is not one for each layer.
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
    """Return the window of each layer, in tokens; `None` for a layer that sees all tokens.

    Args:
        config: The config.json.
        default: The attention of each layer if config.json does not list it.
        window: The window of the layers that have one.

    Raises:
        UnsupportedModelError: `read_layer_types` raises it, or layers have a window and `window`
            is missing.
    """
    kinds = read_layer_types(config, default)
    if SLIDING in kinds and not window:
        raise UnsupportedModelError(
            f"The model's config.json has layers of {SLIDING} and no sliding_window.",
            "transformers does not run it either; take the config.json of the weights.",
        )
    return tuple(window if kind == SLIDING else None for kind in kinds)


def windows_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the keys of config.json about windows, the inverse of `read_windows`."""
    windows = [block.window for block in spec.blocks]
    kinds = [FULL if window is None else SLIDING for window in windows]
    width = next(filter(None, windows), None)
    return {"layer_types": kinds} | ({"sliding_window": width} if width else {})
