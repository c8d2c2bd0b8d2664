"""The numbers of an adapter: its rank and scaling, by the name of its module, and its dropout.

The rank and the scaling are computed from a `LoraConfig` and the name of the module. The scaling
and the dropout are not part of a network's structure but frozen leaves of the tree, beside A and B
and stacked like them, so that the same compiled program runs with other values.

Source: `peft/tuners/lora/model.py: LoraModel._create_and_replace`, `LoraLayer.update_layer`.
"""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.leaves.address import Address
from jaxft.models import dropout
from jaxft.models.bind import abstract_tree
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.weights import names

Number = TypeVar("Number", int, float)


class Numbers(NamedTuple):
    """The numbers of one adapter.

    Attributes:
        rank: The number of rows of A and of B.
        scaling: Factor on the adapter's output.
    """

    rank: int
    scaling: float


def of(config: LoraConfig, name: str) -> Numbers:
    """Return the numbers of the adapter on a module, by the patterns that match its name."""
    rank = by_pattern(config.rank_pattern, name, config.r)
    alpha = by_pattern(config.alpha_pattern, name, config.lora_alpha)
    return Numbers(rank, alpha / (rank**0.5 if config.use_rslora else rank))


def by_pattern(patterns: Mapping[str, Number], name: str, default: Number) -> Number:
    """Return the value of the first pattern that matches `name`. Source: peft `get_pattern_key`."""
    found = (value for key, value in patterns.items() if fits_pattern(key, name))
    return next(found, default)


def fits_pattern(key: str, name: str) -> bool:
    """Return whether the key of a pattern matches the name of a module."""
    return _pattern(key).match(name) is not None


@functools.cache  # `re` caches only 512 patterns; EVA may write one for each module
def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def leaves(config: LoraConfig, family: Family, network: Network) -> trees.Tree:
    """Return the leaves that hold the scaling and the dropout of every adapter, on the host.

    A scaling is float32; a dropout is uint32, the `dropout.threshold` of its rate. Both have shape
    [n] for an adapter in n stacked layers, and [] for an adapter outside the layers.

    Args:
        config: The config of the adapters.
        family: The family, which names the modules.
        network: The network, which says which adapters there are.
    """
    shapes = trees.flatten(abstract_tree(network))
    found = {
        path: np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in shapes.items()
        if Address.parse(path).is_number
    }
    places = network.places()
    for module in names.adaptable_modules(family, network.spec):
        place = places[module.layer]
        if module.path in place.adapters:
            stem, at = f"{place.prefix}{module.path}/lora_", place.slice_index
            found[f"{stem}scaling"][at] = of(config, module.name).scaling
            if f"{stem}dropout" in found:
                found[f"{stem}dropout"][...] = dropout.threshold(config.lora_dropout)
    return trees.unflatten(found)
