"""The slots of the tree that each tensor of a checkpoint fills, from the family's name table.

Import, export and the module names of PEFT all come from the same table. A layer's tensor fills a
slice of a stacked leaf: the groups of the network's layers decide which one. An expert's tensor
fills the slice ``[layer, expert]`` of a leaf [layers, experts, in, out].
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

Index = tuple[int, ...]  # the index of a slice in the first dimensions of a leaf


class Outputs(NamedTuple):
    """A part of the outputs of a fused tensor: the same range in each group of outputs.

    In a tensor that holds q, k and v of the first kv head, then of the second, a group is a kv
    head, and the part of k is a range of each group.

    Attributes:
        start: The first output of the range, counted in a group.
        stop: The end of the range (exclusive), counted in a group.
        groups: The number of groups, all of one size: 1 if the parts lie side by side, the number
            of kv heads if they are laid out by head.
    """

    start: int
    stop: int
    groups: int


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in the tree that a tensor of a checkpoint, or a part of it, fills.

    Attributes:
        path: The path of the leaf.
        index: The slice of the stacked leaf, (layer,) or (layer, expert), with the layer counted
            in the stack; () is the whole leaf.
        transposed: Whether the tensor is the transpose of the leaf.
        outputs: The outputs of the tensor that fill the slot; `None` for all.
        columns: The columns of the leaf that they fill, (start, stop); `None` for all.
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
        path: Our path within the block, "attn/q"; outside the layers, "head" or "embed".
        layer: The layer's index; `None` outside the layers.
        dims: (in, out); for a table, the number of its rows and their width.
        parts: For each part of a fused module, its outputs in Hugging Face's order and its columns
            (start, stop) in ours. A module that is not fused has one part, (None, None).
    """

    name: str
    path: str
    layer: int | None
    dims: tuple[int, int]
    parts: tuple[tuple[Outputs | None, tuple[int, int] | None], ...]

    def slots(self, path: str, index: Index, *, transposed: bool) -> tuple[Slot, ...]:
        """Return the slots of a tensor with the module's outputs; all of them are in one leaf."""
        return tuple(
            Slot(path, index, transposed, outputs, columns) for outputs, columns in self.parts
        )

    @property
    def is_table(self) -> bool:
        """Whether the module is a table of embeddings, which is looked up."""
        return self.path in (EMBED, POSITIONS)


def slots(family: Family, network: Network) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of every tensor that a checkpoint of `network`'s base must have."""
    table = own_tensors(family, network)
    head = f"{family.head_name}.weight"
    if network.spec.tied_head and head in table:
        # A head with a leaf of its own starts as a copy of the embedding that it is tied to.
        table[embedding_name(family)] += table.pop(head)
    return table


def own_tensors(family: Family, network: Network) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of every tensor of the model, with a head that training has untied."""
    return table_of(family.lines(network.spec), network, leaf_shapes(network))


def table_of(
    lines: Iterable[Tensor], network: Network, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of every tensor that lines of a name table describe.

    Args:
        lines: The lines.
        network: The network; the groups of its layers decide how leaves are stacked.
        shapes: The shapes of the leaves by path; a line whose leaf is missing has no tensors.
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
    """One of the tensors that a line of a name table describes.

    Attributes:
        block: The path of the block with the line's leaves, "groups/0/1"; "" outside the layers.
        layer: The layer's index in the model; `None` outside the layers.
        expert: The expert's index; `None` if there is one tensor for the layer.
        index: The slice of the stacked leaf; `Slot` explains it.
    """

    block: str
    layer: int | None
    expert: int | None
    index: Index

    def name(self, template: str) -> str:
        """Return the tensor's name, from a template with {layer} and {expert}."""
        return template.format(layer=self.layer, expert=self.expert)


def _occurrences(
    line: Tensor, network: Network, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[_Occurrence]:
    """Yield the tensors that a line describes; `table_of` explains the arguments."""
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
    """A checkpoint whose tensors have other names.

    Attributes:
        original: The checkpoint with its own names.
        theirs: The original name of each tensor by its new name.
    """

    original: Checkpoint
    theirs: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Return the path of the original."""
        return self.original.path

    def infos(self) -> dict[str, TensorInfo]:
        """Return shape and dtype of every tensor by its new name."""
        infos = self.original.infos()
        return {name: infos[theirs] for name, theirs in self.theirs.items()}

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or a region of it.

        Raises:
            WeightsError: The file is damaged; the message names the file and the tensor.
        """
        return self.original.read(self.theirs.get(name, name), region)


def under_full_names(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """Return a checkpoint under the names of the family's table.

    It renames tensors of older versions, and those of files that were saved from the model without
    its head, such as openai-community/gpt2 ("h.0.attn.c_attn.weight") and old files of OPT
    ("decoder.layers..."). If the file lacks the embedding, its head stands for both.

    Source: transformers `modeling_utils.py`, `base_model_prefix`.
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
        # Some files of a model with a tied head store the head only.
        names = {original: embed if name == head else name for original, name in names.items()}
    if all(original == name for original, name in names.items()):
        return checkpoint
    return Renamed(checkpoint, {name: original for original, name in names.items()})


def file_name(name: str, family: Family) -> str:
    """Return the name under which a file holds a tensor of the family's table."""
    return renamed(name, family.file_names)


def renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """Return a name after pairs of a regular expression and its replacement, in order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def embedding_name(family: Family) -> str:
    """Return Hugging Face's name of the table of token embeddings."""
    return next(line.theirs for line in family.tensors if line.ours == ("embed/kernel",))


def side_by_side(widths: Sequence[int], groups: int) -> list[Outputs]:
    """Return the outputs of each part of a fused tensor, from the widths of the parts.

    Widths 4, 2 and 2 in 2 groups are the outputs 0 to 2, 2 to 3 and 3 to 4 of each group.
    """
    ends = list(itertools.accumulate(width // groups for width in widths))
    return [Outputs(*span, groups) for span in zip([0, *ends[:-1]], ends, strict=True)]


def expected_shape(
    parts: tuple[Slot, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Return the shape of the tensor that fills the slots `parts` of leaves of these shapes."""
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
    # transformers has a class of its own for learned positions that do not begin at row 0, which
    # PEFT cannot call.
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
    """The leaves of one parameter (weight or bias) of a Hugging Face module.

    Attributes:
        module: The module's full name.
        layer: The layer's index; `None` outside the layers.
        leaves: The paths of the leaves, within the block for a layer.
    """

    module: str
    layer: int | None
    leaves: tuple[str, ...]


def owned_leaves(family: Family, spec: ModelSpec) -> list[Owned]:
    """Return the leaves of every module that can be trained, linear or not.

    A tied head counts as a module with its own leaf.
    """
    network = base_network(spec)
    shapes = leaf_shapes(network)
    owned = []
    for line in family.lines(spec):
        if line.is_buffer:
            continue
        # Experts share a leaf and are trained together: name the module that holds them all.
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
