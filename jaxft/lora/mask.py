"""The tuning method is a mask over the parameter tree: which leaves are trained, which frozen.

For LoRA the trained leaves are the A and the B of every adapter. Gradients, optimizer state,
clipping norm and checkpoints exist for the marked leaves alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxft import tree as trees

_ADAPTER_LEAF = re.compile(r"(?:.*/)?lora_[ab]")


def is_adapter_leaf(path: str) -> bool:
    """Return whether the leaf at `path` belongs to a LoRA adapter."""
    return _ADAPTER_LEAF.fullmatch(path) is not None


def lora_mask(tree: Mapping[str, Any]) -> trees.Tree:
    """Return a tree of the same paths, true at adapter leaves."""
    return trees.map_with_path(lambda path, _: is_adapter_leaf(path), tree)
