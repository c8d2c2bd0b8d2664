"""The static description of one network to build: a model, its adapters, its groups of layers.

Layers that are alike are stacked and run by one scan, so compile time does not grow with depth.
A `Group` is `repeats` copies of a `period` of layers; what may differ inside a period (a window,
an adapter) is static. Groups are cut wherever layers differ, adapters included, *before* weights
are loaded: a leaf is then always wholly trained or wholly frozen.
"""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence

from jaxft.models.spec import BlockSpec, ModelSpec

_MAX_PERIOD = 12  # the longest alternation looked for; every extra layer adds to compile time


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One LoRA adapter's static part: ``y = x W + scaling * dropout(x) A^T B``.

    Attributes:
        rank: Inner dimension of A [rank, in] and B [rank, out].
        scaling: Factor on the adapter's output, alpha / rank.
        dropout: Probability with which a channel of the adapter's input is zeroed in training.
    """

    rank: int
    scaling: float
    dropout: float


Adapters = tuple[tuple[str, Adapter], ...]  # (module path within its block, adapter), sorted


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a period: its features and the adapters on its modules."""

    block: BlockSpec
    adapters: Adapters


@dataclasses.dataclass(frozen=True)
class Group:
    """`repeats` x `period` consecutive layers, the first of which is layer `first_layer`."""

    first_layer: int
    repeats: int
    period: tuple[Layer, ...]

    def layer_index(self, repeat: int, position: int) -> int:
        """Return the model's index of the layer at `position` of the `repeat`-th period."""
        return self.first_layer + repeat * len(self.period) + position


@dataclasses.dataclass(frozen=True)
class Network:
    """A model with its adapters, cut into groups; hashable, so it can be a static argument."""

    spec: ModelSpec
    groups: tuple[Group, ...]
    outer_adapters: Adapters  # on modules outside the layers: "head"

    def stacked_blocks(self) -> Iterator[tuple[str, Layer, list[int]]]:
        """Yield (path "groups/g/p", layer description, indices of the layers stacked there)."""
        for g, group in enumerate(self.groups):
            for p, layer in enumerate(group.period):
                layers = [group.layer_index(n, p) for n in range(group.repeats)]
                yield f"groups/{g}/{p}", layer, layers


def build_network(
    spec: ModelSpec, layer_adapters: Sequence[Mapping[str, Adapter]], outer: Mapping[str, Adapter]
) -> Network:
    """Describe `spec` with adapters, its layers cut into groups.

    Args:
        spec: The model.
        layer_adapters: For each layer, the adapters by module path, such as "attn/q".
        outer: Adapters by module path outside the layers, such as "head".
    """
    layers = [
        Layer(block, tuple(sorted(adapters.items())))
        for block, adapters in zip(spec.blocks, layer_adapters, strict=True)
    ]
    groups = []
    for start, repeats, length in find_periods(layers):
        groups.append(Group(start, repeats, tuple(layers[start : start + length])))
    return Network(spec, tuple(groups), tuple(sorted(outer.items())))


def base_network(spec: ModelSpec) -> Network:
    """Describe `spec` without adapters."""
    return build_network(spec, [{}] * len(spec.blocks), {})


def find_periods(items: Sequence[Hashable]) -> list[tuple[int, int, int]]:
    """Cut a sequence into runs of repeated periods: (start, repeats, period length).

    From the left, the period that covers the most items by repeating is taken, the shortest
    such; an item that starts no repetition is a run of its own. For Gemma 3's pattern of five
    local layers and a global one this gives one group of periods of six, and the tail.
    """
    runs, start = [], 0
    while start < len(items):
        best = (1, 1)  # repeats, length
        for length in range(1, min(_MAX_PERIOD, len(items) - start) + 1):
            repeats = 1
            period = items[start : start + length]
            while items[start + repeats * length : start + (repeats + 1) * length] == period:
                repeats += 1
            if (repeats > 1 or length == 1) and repeats * length > best[0] * best[1]:
                best = (repeats, length)
        runs.append((start, *best))
        start += best[0] * best[1]
    return runs
