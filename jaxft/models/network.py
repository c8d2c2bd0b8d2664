"""The static description of a network: a model, its trained parts, and its groups of layers.

Layers that are alike are stacked and run by one scan, so compile time does not grow with depth.
A `Group` is `repeats` copies of a `period` of layers; what may differ inside a period (a window,
an adapter) is static. Groups are cut wherever layers differ, also in what is trained, and *before*
weights are loaded, so that a leaf is always wholly trained or wholly frozen.
"""

import dataclasses
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxft.leaves import address
from jaxft.leaves.parts import OF_ADAPTER, Part
from jaxft.models.spec import BlockSpec, ModelSpec

_MAX_PERIOD = 12  # the longest period searched for; every layer in it adds to compile time


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The structure of a LoRA adapter: ``y = x W + scaling * (dropout(x) A^T B + bias)``.

    Its numbers, the scaling and the dropout, are frozen leaves beside A and B (`lora/numbers.py`).
    In stacked layers, one structure describes the adapters of all of them, whose ranks may differ:
    rows of A and B beyond a layer's own rank are zero, and stay zero in training.

    If A and B begin with a part of W (PiSSA, OLoRA), their initial values A0 and B0 are kept frozen
    beside them, and ``scaling * x A0^T B0`` is subtracted from the output. PEFT subtracts the start
    from W instead, which stays unchanged here.

    Attributes:
        ranks: The rank in each layer of the stack; one rank if there is no stack. A layer with
            rank 0 has no adapter.
        bias: Whether B has a bias.
        subtracts_start: Whether there are A0 and B0.
        is_dora: Whether row lengths of W + scaling * A^T B are trained separately (DoRA).
        drops: Whether channels of the adapter's input are zeroed at random in training.
    """

    ranks: tuple[int, ...]
    bias: bool
    subtracts_start: bool
    is_dora: bool
    drops: bool

    @property
    def width(self) -> int:
        """The largest rank, the inner dimension of A [width, in] and of B [width, out]."""
        return max(self.ranks)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The kinds of leaves that the adapter has."""
        return tuple(part for part in OF_ADAPTER if part.needs is None or getattr(self, part.needs))

    def of_ranks(self, ranks: tuple[int, ...]) -> "Adapter":
        """Return the same structure with other ranks."""
        return dataclasses.replace(self, ranks=ranks)


HEAD, EMBED, POSITIONS = "head", "embed", "positions"  # modules outside the layers
OUTSIDE = -1  # their layer index in the hash of dropout

# Modules that are one in the checkpoint and several here; an adapter may be on all of them as one.
FUSED: Mapping[str, tuple[str, ...]] = {
    "attn/qkv": ("attn/q", "attn/k", "attn/v"),
    "mlp/gate_up": ("mlp/gate", "mlp/up"),
    "conv/bcx": ("conv/b", "conv/c", "conv/x"),
}
# For each module that shares its input, the module that stands for all modules with that input.
_SHARED = {
    "attn/k": "attn/q",
    "attn/v": "attn/q",
    "attn/gate": "attn/q",
    "attn/qkv": "attn/q",
    "conv/c": "conv/b",
    "conv/x": "conv/b",
    "conv/bcx": "conv/b",
    "mlp/gate": "mlp/up",
    "mlp/gate_up": "mlp/up",
}

Adapters = tuple[tuple[str, Adapter], ...]  # (module path within its block, adapter), sorted
Rows = tuple[int, ...]  # the ids of tokens whose rows are trained


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a period.

    Attributes:
        block: The features of the layer.
        adapters: The adapters on its modules.
        trained: The model's own leaves in it that are trained, such as "attn/q/bias", sorted.
    """

    block: BlockSpec
    adapters: Adapters
    trained: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """`repeats` x `period` consecutive layers, the first of which is layer `first_layer`."""

    first_layer: int
    repeats: int
    period: tuple[Layer, ...]

    def layer_index(self, repeat: int, position: int) -> int:
        """Return the model's index of the layer at `position` of the `repeat`-th period."""
        return self.first_layer + repeat * len(self.period) + position


class Place(NamedTuple):
    """Where the leaves of a layer are, or the leaves outside the layers.

    Attributes:
        prefix: The prefix of their paths, such as "groups/0/1/"; "" outside the layers.
        repeat: The index of the layer in the stacked leaves; `None` outside the layers.
        adapters: The adapters, by the path of their module after the prefix; the width of each is
            its rank.
    """

    prefix: str
    repeat: int | None
    adapters: Mapping[str, Adapter]

    @property
    def slice_index(self) -> tuple[int, ...]:
        """The index of the layer's slice of a leaf: (repeat,), or () outside the layers."""
        return () if self.repeat is None else (self.repeat,)


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and what is trained of it; hashable, so it can be a static argument.

    Attributes:
        spec: The model.
        groups: The layers of the model, in groups.
        outer_adapters: Adapters on modules outside the layers, such as "head".
        outer_trained: The model's own leaves outside the layers that are trained, such as
            "final_norm/bias", sorted.
        unties_head: Whether a tied head becomes a leaf of its own, trained separately from the
            embedding.
        rows: The tokens with a trained row that replaces the row of the table, by module: "embed"
            or "head".
        head_follows: Whether a tied head uses the adapter and the trained rows of the embedding;
            otherwise it uses the frozen table.
    """

    spec: ModelSpec
    groups: tuple[Group, ...]
    outer_adapters: Adapters
    outer_trained: tuple[str, ...]
    unties_head: bool
    rows: tuple[tuple[str, Rows], ...]
    head_follows: bool

    @property
    def has_own_head(self) -> bool:
        """Whether the head is a leaf of its own."""
        return not self.spec.tied_head or self.unties_head

    @property
    def ties_adapters(self) -> bool:
        """Whether the head's adapter is the embedding's, with A and B exchanged."""
        return self.head_follows and EMBED in dict(self.outer_adapters)

    @property
    def head_rows(self) -> tuple[str, Rows] | None:
        """The module with the head's trained rows, "head" or "embed", and their tokens, if any."""
        rows = dict(self.rows)
        owner = EMBED if self.head_follows else HEAD
        return (owner, rows[owner]) if owner in rows else None

    def trained_leaves(self) -> frozenset[str]:
        """Return the paths of the model's own leaves that are trained, without adapters."""
        stacked = [
            f"{prefix}/{leaf}"
            for prefix, layer, _ in self.stacked_blocks()
            for leaf in layer.trained
        ]
        return frozenset([*self.outer_trained, *stacked])

    def untuned(self) -> "Network":
        """Return the base: the same layers in the same groups, with nothing trained."""
        groups = tuple(
            dataclasses.replace(
                group,
                period=tuple(
                    dataclasses.replace(layer, adapters=(), trained=()) for layer in group.period
                ),
            )
            for group in self.groups
        )
        return Network(self.spec, groups, (), (), unties_head=False, rows=(), head_follows=False)

    def places(self) -> dict[int | None, Place]:
        """Return the place of each layer, by its index, and of the outside, by `None`."""
        places: dict[int | None, Place] = {None: Place("", None, dict(self.outer_adapters))}
        for prefix, described, layers in self.stacked_blocks():
            for repeat, layer in enumerate(layers):
                adapters = {
                    path: adapter.of_ranks(adapter.ranks[repeat : repeat + 1])
                    for path, adapter in described.adapters
                    if adapter.ranks[repeat]
                }
                places[layer] = Place(f"{prefix}/", repeat, adapters)
        return places

    def stacked_blocks(self) -> Iterator[tuple[str, Layer, list[int]]]:
        """Yield (path "groups/g/p", layer description, indices of the stacked layers)."""
        for g, group in enumerate(self.groups):
            for p, layer in enumerate(group.period):
                layers = [group.layer_index(n, p) for n in range(group.repeats)]
                yield address.block_path(g, p), layer, layers


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is trained in one layer, or outside the layers.

    Attributes:
        adapters: The adapters, by module path, such as "attn/q".
        leaves: The paths of the model's own leaves that are trained.
    """

    adapters: Mapping[str, Adapter]
    leaves: Collection[str]


FROZEN = Tuning({}, ())


def build_network(
    spec: ModelSpec, layers: Sequence[Tuning], outside: Tuning, *, unties_head: bool
) -> Network:
    """Describe `spec` with its trained parts, and divide its layers into groups.

    Layers that differ only in ranks are stacked; their leaves have the width of the largest rank.

    Args:
        spec: The model.
        layers: What is trained in each layer; each adapter has one rank.
        outside: What is trained outside the layers.
        unties_head: As in `Network`.
    """
    described = [
        Layer(block, tuple(sorted(tuning.adapters.items())), tuple(sorted(tuning.leaves)))
        for block, tuning in zip(spec.blocks, layers, strict=True)
    ]
    groups = tuple(
        Group(
            start,
            repeats,
            tuple(
                _stacked(described[start + position : start + repeats * length : length])
                for position in range(length)
            ),
        )
        for start, repeats, length in find_periods([_without_ranks(each) for each in described])
    )
    adapters = tuple(sorted(outside.adapters.items()))
    leaves = tuple(sorted(outside.leaves))
    return Network(spec, groups, adapters, leaves, unties_head, rows=(), head_follows=False)


def _without_ranks(layer: Layer) -> Layer:
    adapters = tuple((path, adapter.of_ranks(())) for path, adapter in layer.adapters)
    return dataclasses.replace(layer, adapters=adapters)


def _stacked(layers: Sequence[Layer]) -> Layer:
    """Return one description of layers that differ only in ranks; drop adapters that are all 0."""
    by_module = zip(*(layer.adapters for layer in layers), strict=True)
    adapters = tuple(
        (same[0][0], same[0][1].of_ranks(tuple(adapter.width for _, adapter in same)))
        for same in by_module
        if any(adapter.width for _, adapter in same)
    )
    return dataclasses.replace(layers[0], adapters=adapters)


def read_by(path: str, spec: ModelSpec) -> str:
    """Return the module that stands for all modules with the same input as the one at `path`."""
    path = _SHARED.get(path, path)
    return "attn/q" if path == "mlp/up" and spec.parallel == "one_norm" else path


def base_network(spec: ModelSpec) -> Network:
    """Describe `spec` with nothing trained."""
    return build_network(spec, [FROZEN] * len(spec.blocks), FROZEN, unties_head=False)


def find_periods(items: Sequence[Hashable]) -> list[tuple[int, int, int]]:
    """Divide a sequence into runs of repeated periods: (start, repeats, period length).

    From left to right, each run takes the period whose repeats cover the most items, and the
    shortest one of several; an item that starts no repetition is a run of its own. For Gemma 3's
    pattern of five local layers and a global one, this gives one group with a period of six layers,
    and groups for the layers left over.
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
