"""Groups the modules of all layers into kinds such as "q_proj", and shortens long lists.

Modules are of the same kind if their names differ only in the number of the layer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_SHOWN = 8
_NUMBER = re.compile(r"\.\d+(?=\.)")


def grouped(modules: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of modules that differ only in the number of their layer.

    Returns:
        The names of each kind, in the given order. A kind is called by the shortest ending that no
        other kind has, such as "q_proj" or "attn.c_proj".
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        groups[_NUMBER.sub(".*", module)].append(module)
    return {_short(stem, groups): found for stem, found in groups.items()}


def _short(stem: str, stems: Iterable[str]) -> str:
    others = [f".{each}" for each in stems if each != stem]
    parts = stem.split(".")
    endings = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next(
        (ending for ending in endings if not any(other.endswith(f".{ending}") for other in others)),
        stem,
    )


def shortened(values: Iterable[Any]) -> str:
    """List the first 8 values, and say how many more there are: "a, b, ... and 12 more"."""
    several = [str(value) for value in values]
    rest = f" and {len(several) - _SHOWN:,} more" if len(several) > _SHOWN else ""
    return ", ".join(several[:_SHOWN]) + rest
