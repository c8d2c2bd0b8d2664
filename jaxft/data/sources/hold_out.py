"""The division of training rows into two sides: rows to train on, and held-out rows.

With `{fraction: 0.1, by: book}` all rows of one book are on one side, the same in every run and on
every machine. No random numbers are drawn: in each source, groups are held out in the order of
their hashes until their rows are as near to the fraction as whole groups allow. A group that is
held out in one source is held out in all. Only hashes and counts are kept in memory.
"""

from __future__ import annotations

import array
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt64

from jaxft.config import HoldOutConfig
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import origin
from jaxft.data.sources.origin import Origin
from jaxft.errors import DataError, nearest

SideName = Literal["train", "eval"]


class HoldOut:
    """The rows of several sources, divided into two sides."""

    def __init__(self, config: HoldOutConfig, origins: Sequence[Origin]) -> None:
        """Keep the origins that are to be divided; nothing is read yet."""
        self._config = config
        self._origins = tuple(origins)

    def values(self, source: Origin, side: SideName) -> Iterator[tuple[RowPlace, object]]:
        """Yield the values of one source that are on one side.

        Raises:
            DataError: A row has no such field, or a side of a source would be empty.
        """
        held_out = self._held_out
        for place, value in source.values():
            if (group_of(value, self._config.by, place) in held_out) == (side == "eval"):
                yield place, value

    def key(self, side: SideName) -> list[object]:
        """Return everything besides the source that decides a side, as JSON values."""
        contents = [source.content() for source in self._origins]
        return [self._config.fraction, self._config.by, side, contents]

    @functools.cached_property
    def _held_out(self) -> frozenset[int]:
        """The hashes of the held-out groups. Finding them means reading all sources once."""
        groups = [self._groups(source) for source in self._origins]
        chosen = [choose(ids, counts, self._config.fraction) for ids, counts in groups]
        held_out = np.unique(np.concatenate(chosen))
        for source, (ids, counts) in zip(self._origins, groups, strict=True):
            share = np.isin(ids, held_out).sum()
            if share in (0, len(ids)):
                self._refuse(source, "held-out" if share == 0 else "training", ids, counts)
        return frozenset(held_out.tolist())

    def _groups(self, source: Origin) -> tuple[UInt64[np.ndarray, " g"], Int64[np.ndarray, " g"]]:
        """Return the groups of a source as sorted hashes, and the number of rows in each."""
        ids = array.array("Q")
        for place, value in source.values():
            ids.append(group_of(value, self._config.by, place))
        return np.unique(np.frombuffer(ids, np.uint64), return_counts=True)

    def _refuse(
        self,
        source: Origin,
        side: str,
        ids: UInt64[np.ndarray, " g"],
        counts: Int64[np.ndarray, " g"],
    ) -> None:
        """Raise the error for a source that would have an empty side."""
        by = "of equal rows" if self._config.by is None else f'by "{self._config.by}"'
        groups = f"{len(ids):,} group{'' if len(ids) == 1 else 's'} {by}"
        raise DataError(
            f"data.hold_out leaves no {side} rows in {source.name}: its {counts.sum():,} rows are"
            f" {groups}.",
            "Hold out by another field, change the fraction, or name held-out rows in data.eval.",
        )


def group_of(value: object, by: str | None, place: RowPlace) -> int:
    """Return the hash of the group that a value belongs to.

    Args:
        value: A row, as it was read.
        by: The field whose value decides the group; None for the whole content.
        place: Where it stands.

    Raises:
        DataError: The row has no such field.
    """
    named = value if by is None else _field(value, by, place)
    # 7 in JSON and "7" in CSV are the same group.
    is_plain = isinstance(named, str | int) and not isinstance(named, bool)
    content = str(named).encode("utf-8", "backslashreplace") if is_plain else None
    if content is None:
        content = origin.canonical(named, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def choose(
    ids: UInt64[np.ndarray, " g"], counts: Int64[np.ndarray, " g"], fraction: float
) -> UInt64[np.ndarray, " h"]:
    """Return the groups to hold out.

    The groups are looked at in order, and a group is held out if that brings the number of held-out
    rows nearer to the fraction. With two groups or more, at least one remains for training. If all
    groups are too large to bring the number nearer, the first of the smallest groups is held out.

    Args:
        ids: The hashes of the groups, in order.
        counts: The number of rows in each.
        fraction: The wanted share of held-out rows.
    """
    missing = fraction * counts.sum()
    chosen: list[int] = []
    for index, count in enumerate(counts.tolist()):
        if missing <= 0.5 or len(chosen) == len(ids) - 1:  # no whole row is nearer, or the last
            break
        if abs(missing - count) < missing:
            chosen.append(index)
            missing -= count
    return ids[chosen or [int(counts.argmin())]]


def _field(value: object, name: str, place: RowPlace) -> object:
    fields = value if isinstance(value, Mapping) else {}
    if fields.get(name) is None:
        names = ", ".join(json.dumps(field, ensure_ascii=False) for field in fields) or "none"
        guess = nearest(name, [str(field) for field in fields if fields[field] is not None])
        raise DataError(
            f'{place}: the row has no "{name}", by which rows are held out; its fields: {names}.',
            f'Did you mean "{guess}"?'
            if guess
            else "Give every row one, or hold out without `by`.",
        )
    return fields[name]
