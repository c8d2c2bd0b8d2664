"""The weights formats of a model folder; a further format is one more entry.

The search for a model and its loading both use this list. If a folder has several formats, the
first one in the list is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from jaxft.errors import WeightsError
from jaxft.weights.formats import flax_msgpack, safetensors, shards, torch_pickle
from jaxft.weights.formats.checkpoint import Checkpoint


class _CheckpointFormat(NamedTuple):
    """A weights format.

    Attributes:
        name: Its common name.
        marks: Two files of which one must exist: the file of all weights, or the index of shards.
        shards: A pattern for the names of shards.
        open: Opens a folder, reading headers only.
    """

    name: str
    marks: tuple[str, str]
    shards: str
    open: Callable[[Path], Checkpoint]


# In order of preference. Safetensors needs no conversion and no trust; pickles come last.
_FORMATS = (
    _CheckpointFormat(
        "safetensors",
        (safetensors.SINGLE, safetensors.INDEX),
        "model-*.safetensors",
        safetensors.open_safetensors,
    ),
    _CheckpointFormat(
        "Flax msgpack",
        (flax_msgpack.SINGLE, flax_msgpack.INDEX),
        "flax_model-*.msgpack",
        flax_msgpack.open_flax,
    ),
    _CheckpointFormat(
        "PyTorch pickle",
        (torch_pickle.SINGLE, torch_pickle.INDEX),
        "pytorch_model-*.bin",
        torch_pickle.open_torch,
    ),
)

# Files of other formats, which an error message names.
_UNREADABLE = ("*.bin", "*.msgpack", "*.h5", "*.pt", "*.pth", "*.safetensors", "*.gguf")


def open_folder(folder: Path) -> Checkpoint:
    """Open the weights of a model folder.

    Raises:
        WeightsError: There are no readable weights, or they are damaged.
    """
    return _chosen(folder).open(folder)


class WeightFiles(NamedTuple):
    """The files of a model's weights.

    Attributes:
        format: The common name of the format.
        files: The single file, or the shards.
    """

    format: str
    files: tuple[Path, ...]


def weight_files(folder: Path) -> WeightFiles:
    """Return the files that `open_folder` reads.

    Raises:
        WeightsError: There are no readable weights, or the index of the shards is damaged.
    """
    chosen = _chosen(folder)
    single, index = (folder / mark for mark in chosen.marks)
    return WeightFiles(chosen.name, (single,) if single.exists() else shards.listed(index))


def lack(folder: Path) -> str:
    """Return in words what a folder lacks to be a model; "" if it lacks nothing."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return "an adapter, not a model (no config.json)"
        return "there is no config.json"
    if _find(folder) is None:
        others = sorted(path.name for kind in _UNREADABLE for path in folder.glob(kind))
        return f"no weights that can be read (only {', '.join(others)})" if others else "no weights"
    return ""


def wanted_files(offered: Collection[str]) -> list[str]:
    """Return patterns for the weights to download of a model.

    Args:
        offered: The names of all files of the model.
    """
    for each in _FORMATS:
        if any(mark in offered for mark in each.marks):
            return [*each.marks, each.shards]
    return []


def _chosen(folder: Path) -> _CheckpointFormat:
    """Return the format to read, or raise if the folder has none."""
    chosen = _find(folder)
    if chosen is None:
        marks = " or ".join(mark for each in _FORMATS for mark in each.marks)
        raise WeightsError(f"{folder}: {lack(folder)}.", f"Expected {marks} in the folder.")
    return chosen


def _find(folder: Path) -> _CheckpointFormat | None:
    """Return the first format in the folder; `None` if there is none."""
    for each in _FORMATS:
        if any((folder / mark).is_file() for mark in each.marks):
            return each
    return None
