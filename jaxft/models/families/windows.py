"""Sliding windows in config.json: their width, and the list of layers that have one."""

from collections.abc import Sequence
from typing import Any

from jaxft.models.families.config_reader import FULL, SLIDING, ConfigReader, read_layer_types
from jaxft.models.spec import ModelSpec


def read_windows(
    config: ConfigReader, default: Sequence[str], window: int | None
) -> tuple[int | None, ...]:
    """Return the window of each layer.

    Args:
        config: The config.json.
        default: The attention of each layer where config.json does not list it.
        window: Of the layers that have one.
    """
    return tuple(window if kind == SLIDING else None for kind in read_layer_types(config, default))


def windows_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what config.json says of the windows, the inverse of `read_windows`."""
    windows = [block.window for block in spec.blocks]
    written: dict[str, Any] = {
        "layer_types": [FULL if window is None else SLIDING for window in windows]
    }
    widths = [window for window in windows if window is not None]
    return written | ({"sliding_window": widths[0]} if widths else {})
