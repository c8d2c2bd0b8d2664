"""Many modules in few words: what tables about adapters have a line for, and room in a line.

A kind of module is the same place in every layer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_SHOWN = 8
_NUMBER = re.compile(r"\.\d+(?=\.)")


def grouped(modules: Iterable[str]) -> dict[str, list[str]]:
    """Group names of modules that differ by the number of their layer alone.

    Returns:
        The names by kind, in their order. A kind is called by the shortest ending that no other
        kind has, such as "q_proj" or "attn.c_proj".
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
    """Write the first of many values, and how many more there are: "a, b and 12 more"."""
    several = [str(value) for value in values]
    rest = f" and {len(several) - _SHOWN:,} more" if len(several) > _SHOWN else ""
    return ", ".join(several[:_SHOWN]) + rest
