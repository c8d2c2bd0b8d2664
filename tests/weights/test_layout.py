"""A part of a leaf comes from regions of tensors, and those are all that loading reads of them."""

from __future__ import annotations

import family_configs
import jax
import numpy as np
import pytest
import small_models
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxft import tree as trees
from jaxft.models import families
from jaxft.models.families import gpt2, llama
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.weights import filling, layout, load, names
from jaxft.weights.formats import regions
from jaxft.weights.formats.checkpoint import TensorInfo

CONFIGS = [small_models.OPT, small_models.GPT2, *family_configs.CONFIGS]


def some_region(rng: np.random.Generator, shape: tuple[int, ...]) -> regions.Region:
    starts = [int(rng.integers(size)) for size in shape]
    stops = [int(rng.integers(a + 1, size + 1)) for a, size in zip(starts, shape, strict=True)]
    return tuple(map(slice, starts, stops))


def slots_of(config):
    """Return the slots of a model's first layers, and the shapes of its leaves."""
    family = families.family_of(config)
    network = base_network(family.spec_from_config(config))
    shapes = names.leaf_shapes(network)
    table = names.slots(family, network).values()
    return shapes, [parts for parts in table if parts[0].index in ((), (0,))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
def test_a_region_of_every_leaf_is_that_slice_of_it(config):
    shapes, table = slots_of(config)
    rng = np.random.default_rng(0)
    for parts in table:
        shape = names.expected_shape(parts, shapes)
        tensor = rng.standard_normal(shape)
        for slot in parts:
            whole = layout.oriented(layout.cut(tensor, slot), slot)
            for _ in range(4):
                region, read = some_region(rng, whole.shape), []

                def cut(each, tensor=tensor, read=read):
                    read.append(regions.num_values(each))
                    return regions.cut(tensor, each)

                found = layout.read(cut, slot, shape, region)
                np.testing.assert_array_equal(found, whole[region], strict=True)
                assert sum(read) == found.size


@given(
    transposed=st.booleans(),
    groups=st.sampled_from([1, 2, 3]),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_the_columns_of_a_leaf_that_holds_a_fused_tensor_are_found_in_it(
    transposed, groups, widths, seed
):
    rng = np.random.default_rng(seed)
    totals = [groups * width for width in widths]
    ends = np.cumsum([0, *totals]).tolist()
    slots = tuple(
        names.Slot("a", (), transposed, outputs, (start, stop))
        for outputs, start, stop in zip(
            names.side_by_side(totals, groups), ends[:-1], ends[1:], strict=True
        )
    )
    tensor = rng.standard_normal((ends[-1], 4) if transposed else (4, ends[-1]))
    leaf = np.zeros((4, ends[-1]))
    layout.fill({"a": leaf}, slots, tensor)
    for slot in slots:
        first, last = slot.columns
        rows, (columns,) = some_region(rng, (4,)), some_region(rng, (last - first,))
        region = (*rows, slice(columns.start + first, columns.stop + first))
        found = layout.read(tensor.__getitem__, slot, tensor.shape, region)
        np.testing.assert_array_equal(found, leaf[region])


class Counting:
    """A checkpoint in memory that counts the values it gives, tensor by tensor."""

    path = "some/model"

    def __init__(self, family, network):
        rng, shapes = np.random.default_rng(0), names.leaf_shapes(network)
        self.tensors = {
            name: rng.standard_normal(names.expected_shape(slots, shapes)).astype(np.float32)
            for name, slots in names.slots(family, network).items()
        }
        self.read_values: dict[str, list[int]] = {name: [] for name in self.tensors}

    def infos(self):
        return {name: TensorInfo(each.shape, each.dtype) for name, each in self.tensors.items()}

    def read(self, name, region=None):
        found = self.tensors[name][region or ...].copy()
        self.read_values[name].append(found.size)
        return found


NETWORKS = {
    "llama": (llama.LLAMA, base_network(tiny.SPEC)),
    "fused": (gpt2.GPT2, base_network(tiny.LEARNED)),
}


@pytest.mark.parametrize("device", range(4))
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 2, 2)])
def test_loading_reads_what_the_devices_of_the_process_need(monkeypatch, kind, shape, device):
    """Each of four devices in turn is taken for the only one of this process."""
    family, network = NETWORKS[kind]
    mesh = meshes.make_mesh(*shape)
    checkpoint, kept = Counting(family, network), {}
    only = mesh.devices.flat[device]
    places = jax.sharding.NamedSharding.addressable_devices_indices_map
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {only: places(self, shape)[only]},
    )
    monkeypatch.setattr(
        filling.OnHost, "finish", lambda self: [memory for _, memory in self._parts.values()]
    )
    tree = load.load_base(
        checkpoint, family, network, dtype="float32", mesh=mesh, progress=lambda _: None,
        quantization=None, rounding=None,
    )  # fmt: skip
    abstract = trees.flatten(load.abstract(network, dtype="float32", mesh=mesh, quantization=None))
    monkeypatch.undo()
    num_read = sum(map(sum, checkpoint.read_values.values()))
    assert num_read == sum(memory.size for (memory,) in trees.flatten(tree).values())
    for path, (memory,) in trees.flatten(tree).items():
        leaf = abstract[path]
        at = regions.explicit(places(leaf.sharding, leaf.shape)[only], leaf.shape)
        assert memory.shape == regions.shape_of(at)
        kept[path] = load.read_leaf(checkpoint, family, network, path, at)
        np.testing.assert_array_equal(memory, kept[path])


def test_loading_on_all_devices_reads_each_tensor_once():
    family, network = NETWORKS["fused"]
    checkpoint = Counting(family, network)
    load.load_base(
        checkpoint, family, network, dtype="float32", mesh=meshes.make_mesh(1, 2, 2),
        progress=lambda _: None, quantization=None, rounding=None,
    )  # fmt: skip
    assert checkpoint.read_values == {name: [t.size] for name, t in checkpoint.tensors.items()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_of_four_devices_parts_reads_a_quarter_of_a_divided_leaf(kind):
    family, network = NETWORKS[kind]
    checkpoint = Counting(family, network)
    held = load.abstract(
        network, dtype="float32", mesh=meshes.make_mesh(1, 4, 1), quantization=None
    )
    for path, leaf in trees.flatten(held).items():
        places = leaf.sharding.devices_indices_map(leaf.shape)
        for at in places.values():
            before = sum(map(sum, checkpoint.read_values.values()))
            region = regions.explicit(at, leaf.shape)
            part = load.read_leaf(checkpoint, family, network, path, region)
            num_read = sum(map(sum, checkpoint.read_values.values())) - before
            share = 4 if "fsdp" in leaf.sharding.spec else 1
            assert num_read == part.size == leaf.size // share, path
