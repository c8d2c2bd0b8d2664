"""Join the shards of a checkpoint by their index, for shards of any format.

The index of all formats is the same: a JSON file whose `weight_map` names, for each tensor, the
file beside it that holds the tensor. After joining, each tensor comes from exactly one file, which
is the file in the index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxft.errors import WeightsError

_Entry = TypeVar("_Entry")

_INDEX_REMEDY = "Expected an index with a weight_map of tensor to shard; download or copy it again."
_SHARD_REMEDY = (
    "Expected each tensor once, where the index says; download or copy the shards again."
)


def join(
    index: Path, open_shard: Callable[[Path], Mapping[str, _Entry]]
) -> dict[str, tuple[Path, _Entry]]:
    """Open the shards that an index names and join their tensors.

    Args:
        index: The index, in the folder of the shards.
        open_shard: Returns the entries of a shard's tensors, by the names that the index uses.

    Returns:
        The file of each tensor and its entry, shard by shard.

    Raises:
        WeightsError: The index or a shard is missing or damaged; a shard lacks a tensor that the
            index places in it; a tensor is in two shards, in a wrong one, or not in the index.
    """
    placed = _read_index(index)
    joined: dict[str, tuple[Path, _Entry]] = {}
    for shard in dict.fromkeys(placed.values()):
        file = index.parent / shard
        if not file.is_file():
            raise WeightsError(
                f"{file}: there is no such file, though {index.name} names it.", _SHARD_REMEDY
            )
        for name, entry in open_shard(file).items():
            _check_place(name, file, index, placed, joined)
            joined[name] = (file, entry)
    for name, shard in placed.items():
        if name not in joined:
            raise WeightsError(
                f"{index.parent / shard}: tensor {name} is missing, though {index.name} places "
                "it here.",
                _SHARD_REMEDY,
            )
    return joined


def listed(index: Path) -> tuple[Path, ...]:
    """Return the shards that an index names.

    Raises:
        WeightsError: The index is missing or damaged.
    """
    return tuple(index.parent / shard for shard in dict.fromkeys(_read_index(index).values()))


def _read_index(index: Path) -> dict[str, str]:
    """Return the name of the shard of each tensor."""
    try:
        text = index.read_text(encoding="utf-8")
        placed = json.loads(text, object_pairs_hook=_without_repetition)["weight_map"]
        shards = list(placed.values())
    except FileNotFoundError as error:
        raise WeightsError(f"{index}: there is no such file.", _INDEX_REMEDY) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: not a readable index ({error!r}).", _INDEX_REMEDY) from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(
                f"{index}: {shard!r} is not the name of a file beside it.", _INDEX_REMEDY
            )
    return placed


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its pairs, or raise if it has a key twice."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"{key} is there twice")
        made[key] = value
    return made


def _check_place(
    name: str, file: Path, index: Path, placed: Mapping[str, str], joined: Mapping[str, Any]
) -> None:
    """Raise if a tensor is in another shard too, or the index places it in another shard."""
    if name in joined:
        raise WeightsError(
            f"{file}: tensor {name} is also in {joined[name][0].name}.", _SHARD_REMEDY
        )
    if name not in placed:
        raise WeightsError(f"{file}: tensor {name} is not named in {index.name}.", _SHARD_REMEDY)
    if placed[name] != file.name:
        raise WeightsError(
            f"{file}: tensor {name} belongs in {placed[name]} by {index.name}.", _SHARD_REMEDY
        )
