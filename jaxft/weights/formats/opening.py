"""Which weights formats a model folder may hold, and which of them can be read.

Separate so that a further format is one entry, known to the search for a model and to its
loading alike. The invariant: the first readable format present is the one that is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from jaxft.errors import WeightsError
from jaxft.weights.formats import flax_msgpack, safetensors, shards, torch_pickle
from jaxft.weights.formats.checkpoint import Checkpoint


class _CheckpointFormat(NamedTuple):
    """A format: its files, and how to open a folder of them.

    Attributes:
        name: As people call it.
        marks: The file of which one must be there: all the weights, or an index.
        shards: A pattern of the files that the index names.
        open: Opens a folder, reading headers only.
    """

    name: str
    marks: tuple[str, str]
    shards: str
    open: Callable[[Path], Checkpoint]


# In order of preference. Safetensors needs no conversion and no trust; a pickle comes last.
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

# Known, so that a folder of them is told what it has.
_UNREADABLE = ("*.bin", "*.msgpack", "*.h5", "*.pt", "*.pth", "*.safetensors", "*.gguf")


def open_folder(folder: Path) -> Checkpoint:
    """Open the weights of a model folder.

    Raises:
        WeightsError: There are none that can be read, or they are damaged.
    """
    return _chosen(folder).open(folder)


class WeightFiles(NamedTuple):
    """The files that weights are read from.

    Attributes:
        format: Its name, as people call it.
        files: One, or the shards.
    """

    format: str
    files: tuple[Path, ...]


def weight_files(folder: Path) -> WeightFiles:
    """Return the files that `open_folder` reads.

    Raises:
        WeightsError: There are none that can be read, or the index of the shards is damaged.
    """
    chosen = _chosen(folder)
    single, index = (folder / mark for mark in chosen.marks)
    return WeightFiles(chosen.name, (single,) if single.exists() else shards.listed(index))


def lack(folder: Path) -> str:
    """Say what a folder lacks to be a model, or "" if it has it all."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return "an adapter, not a model (no config.json)"
        return "there is no config.json"
    if _find(folder) is None:
        others = sorted(path.name for kind in _UNREADABLE for path in folder.glob(kind))
        return f"no weights that can be read (only {', '.join(others)})" if others else "no weights"
    return ""


def wanted_files(offered: Collection[str]) -> list[str]:
    """Return patterns of the weights to fetch of a model that offers these files."""
    for each in _FORMATS:
        if any(mark in offered for mark in each.marks):
            return [*each.marks, each.shards]
    return []


def _chosen(folder: Path) -> _CheckpointFormat:
    """Return the format that is read, or raise for a folder that has none."""
    chosen = _find(folder)
    if chosen is None:
        marks = " or ".join(mark for each in _FORMATS for mark in each.marks)
        raise WeightsError(f"{folder}: {lack(folder)}.", f"Expected {marks} in the folder.")
    return chosen


def _find(folder: Path) -> _CheckpointFormat | None:
    """Return the first format that the folder holds."""
    for each in _FORMATS:
        if any((folder / mark).is_file() for mark in each.marks):
            return each
    return None
