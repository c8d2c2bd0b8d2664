"""Where each tensor of a checkpoint belongs in the tree, from the family's name table.

The table is read both ways: import and export, and the module names that PEFT knows, derive from
the same lines. A layer's tensor goes to a slice of a stacked leaf; which one follows from how
the network's layers are cut into groups. An expert's goes to a slice of that slice: of a leaf
[layers, experts, in, out] to ``[layer, expert]``.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxft import tree as trees
from jaxft.leaves.address import within
from jaxft.models.bind import abstract_tree
from jaxft.models.families.family import Family, Tensor
from jaxft.models.network import EMBED, POSITIONS, Network, base_network
from jaxft.models.spec import Learned, ModelSpec
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo
from jaxft.weights.formats.regions import Region

Index = tuple[int, ...]  # of a slice of a leaf, by its first dimensions


class Outputs(NamedTuple):
    """Which of a fused tensor's outputs: these of each of its groups.

    Attributes:
        start: The first, within a group.
        stop: After the last, within a group.
        groups: How many groups of equal size the outputs are in: 1 where the parts stand side by
            side, the number of kv heads where each head has its own of every part.
    """

    start: int
    stop: int
    groups: int


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in the tree that a tensor of a checkpoint, or a part of one, fills.

    Attributes:
        path: The leaf.
        index: Which slice of the stacked leaf, (layer,) or (layer, expert), as they are counted in
            the stack; () for the whole leaf.
        transposed: Whether theirs is the transpose of ours.
        outputs: Which of the tensor's outputs belong here; `None` for all.
        columns: Which of the leaf's columns they are, from the first to before the second; `None`
            for all.
    """

    path: str
    index: Index
    transposed: bool
    outputs: Outputs | None
    columns: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Module:
    """A module that an adapter can be put on: a linear one, or a table of embeddings.

    Attributes:
        name: Hugging Face's full name, "model.layers.0.self_attn.q_proj".
        path: Ours within the block, "attn/q", or outside of the layers, "head" or "embed".
        layer: The layer's index; `None` outside the layers.
        dims: (in, out); of a table, its rows and its width.
        parts: For each of ours that it is made of, which of its outputs that is in Hugging Face's
            order, and which of them in ours; `None` twice where it is one.
    """

    name: str
    path: str
    layer: int | None
    dims: tuple[int, int]
    parts: tuple[tuple[Outputs | None, tuple[int, int] | None], ...]

    def slots(self, path: str, index: Index, *, transposed: bool) -> tuple[Slot, ...]:
        """Return the slots, all in one leaf, of a tensor with the module's outputs."""
        return tuple(
            Slot(path, index, transposed, outputs, columns) for outputs, columns in self.parts
        )

    @property
    def is_table(self) -> bool:
        """Whether it is looked up, and not multiplied with."""
        return self.path in (EMBED, POSITIONS)


def slots(family: Family, network: Network) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of every tensor that a checkpoint of `network`'s base must have."""
    table = own_tensors(family, network)
    head = f"{family.head_name}.weight"
    if network.spec.tied_head and head in table:
        # Its start is a copy of the embedding that it is tied to in the checkpoint.
        table[embedding_name(family)] += table.pop(head)
    return table


def own_tensors(family: Family, network: Network) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of every tensor that the model has now, a head that was tied included."""
    return table_of(family.lines(network.spec), network, leaf_shapes(network))


def table_of(
    lines: Iterable[Tensor], network: Network, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of every tensor that lines of a name table are of.

    Args:
        lines: The lines.
        network: Whose groups of layers the leaves are stacked in.
        shapes: Of its leaves, by path; a line whose leaf is not there has no tensors.
    """
    table = {}
    for line in lines:
        groups = network.spec.num_kv_heads if line.by_head else 1
        for each in _occurrences(line, network, shapes):
            widths = [shapes[within(each.block, path)][-1] for path in line.ours]
            parts = side_by_side(widths, groups) if len(widths) > 1 else [None]
            table[each.name(line.theirs)] = tuple(
                Slot(within(each.block, path), each.index, line.transposed, outputs, None)
                for path, outputs in zip(line.ours, parts, strict=True)
            )
    return table


@dataclasses.dataclass(frozen=True)
class _Occurrence:
    """One of the tensors that a line of a name table is of.

    Attributes:
        block: Where the line's leaves are, "groups/0/1"; "" outside the layers.
        layer: The model's index of the layer; `None` outside the layers.
        expert: The index of the expert; `None` where there is one tensor for the layer.
        index: As in `Slot`.
    """

    block: str
    layer: int | None
    expert: int | None
    index: Index

    def name(self, template: str) -> str:
        """Return the name that a template with {layer} and {expert} is for."""
        return template.format(layer=self.layer, expert=self.expert)


def _occurrences(
    line: Tensor, network: Network, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[_Occurrence]:
    """Yield the tensors that a line is of; arguments as of `table_of`."""
    if not line.is_per_layer:
        if line.ours[0] in shapes:
            yield _Occurrence("", None, None, ())
        return
    for block, _, layers in network.stacked_blocks():
        path = within(block, line.ours[0])
        if path not in shapes:
            continue
        for repeat, layer in enumerate(layers):
            if not line.is_per_expert:
                yield _Occurrence(block, layer, None, (repeat,))
                continue
            for expert in range(shapes[path][1]):
                yield _Occurrence(block, layer, expert, (repeat, expert))


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A checkpoint under other names.

    Attributes:
        original: The checkpoint.
        theirs: Its own name of each tensor.
    """

    original: Checkpoint
    theirs: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Return the path of the original."""
        return self.original.path

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under the other names."""
        infos = self.original.infos()
        return {name: infos[theirs] for name, theirs in self.theirs.items()}

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or a region of it.

        Raises:
            WeightsError: The file cannot give it; file and tensor are named.
        """
        return self.original.read(self.theirs.get(name, name), region)


def under_full_names(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """Return a checkpoint under the names of the family's table.

    Names of older versions are put right, and those of files that were saved from the model
    without its head. Of a tied pair, the name of either serves.

    Source: transformers `modeling_utils.py`, `base_model_prefix`; such are the files of
    openai-community/gpt2 ("h.0.attn.c_attn.weight") and old ones of OPT ("decoder.layers...").
    """
    names = {name: renamed(name, family.renames) for name in checkpoint.infos()}
    if not any(name.startswith(family.base_prefix) for name in names.values()):
        head = f"{family.head_name}."
        names = {
            original: name if name.startswith(head) else family.base_prefix + name
            for original, name in names.items()
        }
    head, embed = f"{family.head_name}.weight", embedding_name(family)
    if embed not in names.values():
        # Some files of a model that ties them have the head alone.
        names = {original: embed if name == head else name for original, name in names.items()}
    if all(original == name for original, name in names.items()):
        return checkpoint
    return Renamed(checkpoint, {name: original for original, name in names.items()})


def file_name(name: str, family: Family) -> str:
    """Return the name under which a file holds a tensor of the family's table."""
    return renamed(name, family.file_names)


def renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """Return a name after regular expressions, and what to put for them, were applied to it."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def embedding_name(family: Family) -> str:
    """Return Hugging Face's name of the table of token embeddings."""
    return next(line.theirs for line in family.tensors if line.ours == ("embed/kernel",))


def side_by_side(widths: Sequence[int], groups: int) -> list[Outputs]:
    """Return the outputs of parts of these widths in a tensor that they make up."""
    ends = list(itertools.accumulate(width // groups for width in widths))
    return [Outputs(*span, groups) for span in zip([0, *ends[:-1]], ends, strict=True)]


def expected_shape(
    parts: tuple[Slot, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Return the shape of the tensor that fills these slots of leaves of these shapes."""
    first = parts[0]
    shape = shapes[first.path][len(first.index) :]
    if first.outputs is not None:
        last = parts[-1].outputs
        assert last is not None
        shape = (*shape[:-1], last.stop * last.groups)
    return tuple(reversed(shape)) if first.transposed else tuple(shape)


def adaptable_modules(family: Family, spec: ModelSpec) -> list[Module]:
    """Return every module that PEFT puts LoRA on: tables of embeddings, then all linear modules."""
    tables = {EMBED: (spec.vocab_size, spec.embed_dim)}
    # Learned positions that are not counted from 0 are of a class that PEFT cannot call.
    if isinstance(spec.positions, Learned) and spec.positions.offset == 0:
        tables[POSITIONS] = (spec.positions.rows, spec.model_dim)
    names = {line.ours: line.theirs.removesuffix(".weight") for line in family.lines(spec)}
    found = [
        Module(names[(f"{path}/kernel",)], path, None, dims, _WHOLE)
        for path, dims in tables.items()
    ]
    return [*found, *linear_modules(family, spec)]


def linear_modules(family: Family, spec: ModelSpec) -> list[Module]:
    """Return every linear module of the model, layer by layer, the head last."""
    network = base_network(spec)
    shapes = leaf_shapes(network)
    modules = []
    for line in family.lines(spec):
        if not line.module or line.module == "head":
            continue
        name = line.theirs.removesuffix(".weight")
        for each in _occurrences(line, network, shapes):
            paths = [within(each.block, path) for path in line.ours]
            widths = [shapes[path][-1] for path in paths]
            dims = (shapes[paths[0]][-2], sum(widths))
            parts = _parts(widths, spec.num_kv_heads if line.by_head else 1)
            modules.append(Module(each.name(name), line.module, each.layer, dims, parts))
    modules.sort(key=lambda module: -1 if module.layer is None else module.layer)  # stable
    dims = (spec.embed_dim, spec.vocab_size)
    return [*modules, Module(family.head_name, "head", None, dims, _WHOLE)]


_WHOLE = ((None, None),)


def _parts(
    widths: Sequence[int], groups: int
) -> tuple[tuple[Outputs | None, tuple[int, int] | None], ...]:
    if len(widths) == 1:
        return _WHOLE
    ends = list(itertools.accumulate(widths))
    columns = zip([0, *ends[:-1]], ends, strict=True)
    return tuple(zip(side_by_side(widths, groups), columns, strict=True))


class Owned(NamedTuple):
    """The leaves of a Hugging Face module, of one kind (weight or bias).

    Attributes:
        module: Its full name.
        layer: The layer's index; `None` outside the layers.
        leaves: Paths, within the block for a layer.
    """

    module: str
    layer: int | None
    leaves: tuple[str, ...]


def owned_leaves(family: Family, spec: ModelSpec) -> list[Owned]:
    """Return the leaves of every module that can be trained, linear or not.

    A tied head counts as having its own.
    """
    network = base_network(spec)
    shapes = leaf_shapes(network)
    owned = []
    for line in family.lines(spec):
        if line.is_buffer:
            continue
        # Experts, which share a leaf, are trained together: it is the module that holds them all.
        end = ".{expert}" if line.is_per_expert else "."
        module = line.theirs.rpartition(end)[0]
        found = [each for each in _occurrences(line, network, shapes) if not each.expert]
        if line.ours == ("head/kernel",) and not found:
            found = [_Occurrence("", None, None, ())]
        owned += [Owned(each.name(module), each.layer, line.ours) for each in found]
    return owned


def leaf_shapes(network: Network) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every leaf of `network` by path."""
    return {path: leaf.shape for path, leaf in trees.flatten(abstract_tree(network)).items()}
