"""Measures one adapter, or compares two, from their files alone.

`algebra` makes adapters; nothing here does. Updates are measured for each kind of module, such as
"q_proj": the updates of all layers count as one long vector, so that the norm of a kind is the
square root of the sum of their squared norms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.adapters import algebra, kinds, low_rank
from jaxft.adapters.algebra import LoraAdapter
from jaxft.adapters.low_rank import Update

_NAMES = ("base_model_name_or_path", "revision")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The updates of one kind of module.

    Attributes:
        name: The name of the kind, such as "q_proj".
        count: The number of modules of this kind.
        dims: The different sizes (in, out) of these modules.
        ranks: The different ranks of their updates, in ascending order.
        norm: The Frobenius norm of all updates together.
        largest: The largest singular value of any update.
        effective_rank: The number of directions that an update uses, averaged over the modules.
    """

    name: str
    count: int
    dims: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...]
    norm: float
    largest: float
    effective_rank: float


@dataclasses.dataclass(frozen=True)
class UpdateDifference:
    """How far two adapters' updates of one kind of module are apart.

    Attributes:
        name: The name of the kind, such as "q_proj".
        norms: The norm of the first adapter's updates, and that of the second's.
        distance: The norm of the difference of the updates.
        cosine: The cosine of the angle between the updates; NaN if one of them is zero.
    """

    name: str
    norms: tuple[float, float]
    distance: float
    cosine: float

    @property
    def relative(self) -> float:
        """The distance divided by the norm of the first adapter's updates."""
        return self.distance / self.norms[0] if self.norms[0] else math.inf


def summary(adapter: LoraAdapter) -> list[Kind]:
    """Describe an adapter's updates by kind; for DoRA this covers ``scaling * B A`` alone."""
    return [
        _kind(name, [adapter.updates[module] for module in modules])
        for name, modules in kinds.grouped(adapter.updates).items()
    ]


def _kind(name: str, updates: Sequence[Update]) -> Kind:
    values = [low_rank.singular_values(each) for each in updates]
    return Kind(
        name=name,
        count=len(updates),
        dims=tuple(dict.fromkeys(each.dims for each in updates)),
        ranks=tuple(sorted({each.rank for each in updates})),
        norm=float(np.linalg.norm(np.concatenate(values))),
        largest=max(float(each[0]) for each in values),
        effective_rank=float(np.mean([low_rank.effective_rank(each) for each in values])),
    )


def differences(first: LoraAdapter, second: LoraAdapter) -> list[UpdateDifference]:
    """Compare the updates of two adapters by kind; a module without an adapter has an update of 0.

    Raises:
        AdapterError: If a module has different shapes in them, or one uses DoRA.
    """
    for adapter in (first, second):
        algebra.check_plain(adapter)
    found = []
    names = dict.fromkeys((*first.updates, *second.updates))
    for name, modules in kinds.grouped(names).items():
        pairs = []
        for module in modules:
            owners = [each for each in (first, second) if module in each.updates]
            algebra.check_dims(module, owners)
            nothing = low_rank.times(owners[0].updates[module], 0.0)
            pairs.append(tuple(each.updates.get(module, nothing) for each in (first, second)))
        norms = tuple(math.hypot(*(low_rank.norm(pair[side]) for pair in pairs)) for side in (0, 1))
        product = math.fsum(low_rank.inner(*pair) for pair in pairs)
        found.append(
            UpdateDifference(
                name=name,
                norms=(norms[0], norms[1]),
                distance=math.hypot(*(low_rank.distance(*pair) for pair in pairs)),
                cosine=product / (norms[0] * norms[1]) if all(norms) else math.nan,
            )
        )
    return found


def config_differences(first: LoraAdapter, second: LoraAdapter) -> list[tuple[str, Any, Any]]:
    """Return the fields of adapter_config.json that differ, each with both values."""
    fields: list[tuple[str, Any, Any]] = [
        (name, first.content.get(name), second.content.get(name)) for name in _NAMES
    ]
    ours, theirs = (each.lora.model_dump() for each in (first, second))
    fields += [(name, ours[name], theirs[name]) for name in ours]
    return [(name, one, other) for name, one, other in fields if _said(one) != _said(other)]


def _said(value: Any) -> Any:
    """Return a value for comparison: a list is sorted, so that the order does not matter."""
    return sorted(value, key=str) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Shared:
    """The names of the tensors of two adapters.

    Attributes:
        equal: The tensors that both have, with equal shapes and values.
        different: The tensors that both have, with different values or shapes.
        only_first: The tensors that only the first adapter has.
        only_second: The tensors that only the second adapter has.
    """

    equal: tuple[str, ...]
    different: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def shared_tensors(first: LoraAdapter, second: LoraAdapter) -> Shared:
    """Sort the tensors of two adapters by whether both have them, and whether they are equal."""
    ours, theirs = algebra.tensors_of(first), algebra.tensors_of(second)
    both = [name for name in ours if name in theirs]
    equal = {name for name in both if np.array_equal(ours[name], theirs[name])}
    return Shared(
        equal=tuple(name for name in both if name in equal),
        different=tuple(name for name in both if name not in equal),
        only_first=tuple(name for name in ours if name not in theirs),
        only_second=tuple(name for name in theirs if name not in ours),
    )
