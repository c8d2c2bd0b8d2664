"""Tensors of single experts are slices [layer, expert] of stacked leaves.

The model is made up: no decoder has experts yet. Its table, its leaves and its file are enough to
read them, whole and by region.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.models.families.family import Family, Tensor, linear
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.weights import filling, layout, load, names
from jaxft.weights.formats import opening, regions

EXPERTS, WIDTH, HIDDEN = 4, 24, 16
_MLP = "model.layers.{layer}.mlp"
_FUSED = ("experts/gate", "experts/up")
LINES: tuple[Tensor, ...] = (
    *linear("", f"{_MLP}.experts.{{expert}}.gate_up_proj", parts=_FUSED),
    *linear("", f"{_MLP}.experts.{{expert}}.down_proj", parts=("experts/down",)),
    *linear("", f"{_MLP}.router", parts=("mlp/router",)),
)
# Two groups: three periods of two layers, and a layer.
NETWORK = base_network(tiny.with_windows([4, None] * 3 + [4]))
SHAPES = {
    f"{prefix}/{module}/kernel": (len(layers), *shape)
    for prefix, _, layers in NETWORK.stacked_blocks()
    for module, shape in {
        "experts/gate": (EXPERTS, WIDTH, HIDDEN),
        "experts/up": (EXPERTS, WIDTH, HIDDEN),
        "experts/down": (EXPERTS, HIDDEN, WIDTH),
        "mlp/router": (WIDTH, EXPERTS),
    }.items()
}
TABLE = names.table_of(LINES, NETWORK, SHAPES)
TENSORS = {
    name: np.random.default_rng(number)
    .standard_normal(names.expected_shape(slots, SHAPES))
    .astype(np.float32)
    for number, (name, slots) in enumerate(TABLE.items())
}
DOWN = "groups/0/1/experts/down/kernel"
# Experts divided over four devices; the outputs of every expert; nothing.
SPECS = {
    "experts": PartitionSpec(None, "fsdp"),
    "outputs": PartitionSpec(None, None, None, "fsdp"),
    "nothing": PartitionSpec(),
}


def leaf_of(path: str) -> np.ndarray:
    """Return a leaf as it is to be: every layer's and expert's tensor at its index."""
    leaf = np.zeros(SHAPES[path], np.float32)
    for prefix, _, layers in NETWORK.stacked_blocks():
        for repeat, layer in enumerate(layers):
            mlp = f"model.layers.{layer}.mlp"
            if path == f"{prefix}/mlp/router/kernel":
                leaf[repeat] = TENSORS[f"{mlp}.router.weight"].T
            for expert in range(EXPERTS):
                fused = TENSORS[f"{mlp}.experts.{expert}.gate_up_proj.weight"]
                parts = {
                    "gate": fused[:HIDDEN],
                    "up": fused[HIDDEN:],
                    "down": TENSORS[f"{mlp}.experts.{expert}.down_proj.weight"],
                }
                for part, tensor in parts.items():
                    if path == f"{prefix}/experts/{part}/kernel":
                        leaf[repeat, expert] = tensor.T
    return leaf


def held(path: str, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    """Return what a leaf is on four devices; the router is on all of them."""
    spec = spec if "experts" in path else PartitionSpec()
    sharding = NamedSharding(meshes.make_mesh(1, 4, 1), spec)
    return jax.ShapeDtypeStruct(SHAPES[path], "float32", sharding=sharding)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("experts")
    safetensors.numpy.save_file(TENSORS, folder / "model.safetensors")
    return opening.open_folder(folder)


@pytest.fixture
def read_bytes(monkeypatch) -> list[int]:
    """The number of bytes of each read of the file's values."""
    sizes, read_into = [], regions._read_into

    def watched(opened, memory):
        sizes.append(len(memory))
        read_into(opened, memory)

    monkeypatch.setattr(regions, "_read_into", watched)
    return sizes


def test_an_experts_tensor_goes_to_the_slice_of_its_layer_and_its_number():
    (slot,) = TABLE["model.layers.5.mlp.experts.3.down_proj.weight"]
    assert slot == names.Slot(DOWN, (2, 3), transposed=True, outputs=None, columns=None)
    gate, up = TABLE["model.layers.6.mlp.experts.0.gate_up_proj.weight"]
    assert (gate.path, gate.index) == ("groups/1/0/experts/gate/kernel", (0, 0))
    assert up.outputs == names.Outputs(HIDDEN, 2 * HIDDEN, groups=1)
    assert len(TABLE) == 7 * (2 * EXPERTS + 1)


def test_every_slice_is_filled_by_one_tensor():
    slots = [(slot.path, slot.index) for parts in TABLE.values() for slot in parts]
    depth = {path: 2 if "experts" in path else 1 for path in SHAPES}
    slices = {(p, at) for p, shape in SHAPES.items() for at in np.ndindex(*shape[: depth[p]])}
    assert len(slots) == len(slices)
    assert set(slots) == slices


@pytest.mark.parametrize("kind", [filling.OnHost, filling.OnDevices])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_leaves_hold_every_experts_tensor(checkpoint, kind, spec):
    leaves = {path: held(path, spec) for path in SHAPES}
    filled = {path: kind(leaf, leaf.sharding) for path, leaf in leaves.items()}
    load.fill(filled, checkpoint, TABLE, lambda _: None)
    made = {path: leaf.finish() for path, leaf in filled.items()}
    for path, array in made.items():
        np.testing.assert_array_equal(array, leaf_of(path), path)
        assert array.sharding.is_equivalent_to(leaves[path].sharding, array.ndim)
    for name, slots in TABLE.items():
        np.testing.assert_array_equal(layout.join(made, slots), TENSORS[name])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_each_of_four_devices_parts_reads_its_own_bytes(checkpoint, read_bytes, spec):
    share = 1 if spec == PartitionSpec() else 4
    for path in (DOWN, DOWN.replace("down", "up")):
        leaf = held(path, spec)
        for at in leaf.sharding.devices_indices_map(leaf.shape).values():
            read_bytes.clear()
            region = regions.explicit(at, leaf.shape)
            part = load.read_region(checkpoint, TABLE, path, region)
            np.testing.assert_array_equal(part, leaf_of(path)[at])
            assert sum(read_bytes) == part.nbytes == 4 * leaf.size // share


def test_a_region_may_begin_in_the_middle_of_layers_and_experts(checkpoint, read_bytes):
    region = (slice(1, 3), slice(1, 3), slice(2, 9), slice(5, 6))
    part = load.read_region(checkpoint, TABLE, DOWN, region)
    np.testing.assert_array_equal(part, leaf_of(DOWN)[region])
    assert sum(read_bytes) == 4 * 2 * 2 * 7


@pytest.mark.parametrize("device", range(4))
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_loading_reads_the_experts_that_the_devices_of_the_process_need(
    monkeypatch, checkpoint, read_bytes, spec, device
):
    """One of four devices is taken for the only one of this process."""
    leaves = {path: held(path, spec) for path in SHAPES}
    places = NamedSharding.addressable_devices_indices_map
    only = meshes.make_mesh(1, 4, 1).devices.flat[device]
    monkeypatch.setattr(
        NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {only: places(self, shape)[only]},
    )
    filled = {path: filling.OnHost(leaf, leaf.sharding) for path, leaf in leaves.items()}
    load.fill(filled, checkpoint, TABLE, lambda _: None)
    for path, leaf in filled.items():
        ((at, memory),) = leaf._parts.values()
        np.testing.assert_array_equal(memory, leaf_of(path)[at])
    held_bytes = [each.nbytes for leaf in filled.values() for _, each in leaf._parts.values()]
    assert sum(read_bytes) == sum(held_bytes)


def test_experts_are_no_modules_for_adapters_and_are_trained_together(monkeypatch):
    family = Family("made_up", lambda config: NETWORK.spec, lambda spec: {}, LINES)
    monkeypatch.setattr(names, "leaf_shapes", lambda network: SHAPES)
    owned = [one for one in names.owned_leaves(family, NETWORK.spec) if one.layer == 5]
    gate, up, down, router = (
        f"{module}/kernel"
        for module in ("experts/gate", "experts/up", "experts/down", "mlp/router")
    )
    assert owned == [
        names.Owned("model.layers.5.mlp.experts", 5, (gate, up)),
        names.Owned("model.layers.5.mlp.experts", 5, (down,)),
        names.Owned("model.layers.5.mlp.router", 5, (router,)),
    ]
    assert [each.path for each in names.linear_modules(family, NETWORK.spec)] == ["head"]
