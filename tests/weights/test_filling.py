"""A leaf ends up on its devices slice by slice, and the host holds little beside it."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
import torch_files
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from jaxft import tree as trees
from jaxft.models.families import llama
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.weights import filling, load, names
from jaxft.weights.formats import flax_msgpack, gguf_file, opening
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo

KINDS = [filling.OnHost, filling.OnDevices]
BF16 = np.dtype(ml_dtypes.bfloat16)
LAYERS, ROWS, COLUMNS = 3, 40, 72  # no multiple of a cache line's values


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    return meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


def struct(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("spec", [P(), P(None, "fsdp"), P(None, "tensor", "fsdp")])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("float32", "float32"), ("float32", "bfloat16"), (BF16, "float32"), ("float64", "float32")],
)
def test_a_stack_holds_its_slices_and_each_device_its_part(kind, transposed, spec, stored, wanted):
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((ROWS, COLUMNS)).astype(stored) for _ in range(LAYERS)]
    sharding = NamedSharding(mesh_of(1, 2, 2), spec)
    leaf = kind(struct((LAYERS, ROWS, COLUMNS), wanted), sharding)
    for index in (2, 0, 1):
        part = parts[index]
        leaf.write(np.asfortranarray(part) if transposed else part, (index,))
    array = leaf.finish()
    expected = np.stack([part.astype(array.dtype) for part in parts])
    assert array.sharding == sharding
    assert array.dtype == wanted
    for shard in array.addressable_shards:
        assert np.asarray(shard.data).tobytes() == expected[shard.index].tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [slice(5, 30), slice(3, None, 3)], ids=["block", "strided"])
@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P("fsdp"), P()])
def test_a_leaf_that_is_no_stack_may_be_a_part_of_a_tensor(kind, part, spec):
    tensor = np.random.default_rng(0).standard_normal((30, ROWS)).astype(np.float32)
    for values in (tensor[part][1:].T, tensor.T[:, part][:, 1:], tensor[part, 0][1:]):
        axes = spec if values.ndim == 2 else P(*spec[:1])
        leaf = kind(struct(values.shape, "float32"), NamedSharding(mesh_of(2, 2, 1), axes))
        leaf.write(values, ())
        np.testing.assert_array_equal(leaf.finish(), values)


def test_on_the_host_jax_takes_the_memory_over_and_devices_with_the_same_part_share_it():
    mesh = mesh_of(2, 2, 1)
    leaf = filling.OnHost(struct((LAYERS, ROWS), "float32"), NamedSharding(mesh, P(None, "fsdp")))
    memories = [memory for _, memory in leaf._parts.values()]
    assert [memory.shape for memory in memories] == [(LAYERS, ROWS // 2)] * 2
    array = leaf.finish()
    found = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    assert found == {memory.ctypes.data for memory in memories}


def test_on_devices_no_device_gets_more_than_its_part(monkeypatch):
    shares, write = [], filling._write

    def watched(stack, part, index):
        for array in (stack, part):
            shares.append(array.addressable_shards[0].data.size / array.size)
        return write(stack, part, index)

    monkeypatch.setattr(filling, "_write", watched)
    sharding = NamedSharding(mesh_of(1, 4, 1), P(None, None, "fsdp"))
    leaf = filling.OnDevices(struct((LAYERS, ROWS, COLUMNS), "float32"), sharding)
    for index in range(LAYERS):
        leaf.write(np.ones((ROWS, COLUMNS), np.float32), (index,))
    assert shares == [0.25] * (2 * LAYERS)


class Lent:
    """A checkpoint that gives its own tensors away and not copies."""

    path = Path("some/model")

    def __init__(self, tensors):
        self.tensors = tensors

    def infos(self):
        return {name: TensorInfo(t.shape, t.dtype) for name, t in self.tensors.items()}

    def read(self, name, region=None):
        return self.tensors[name][region or ...]


def tensors_of(network, dtype="float32"):
    rng, shapes = np.random.default_rng(0), names.leaf_shapes(network)
    return {
        name: rng.standard_normal(names.expected_shape(slots, shapes)).astype(dtype)
        for name, slots in names.slots(llama.LLAMA, network).items()
    }


def loaded(checkpoint: Checkpoint, network, dtype="float32", mesh=None):
    return load.load_base(
        checkpoint,
        llama.LLAMA,
        network,
        dtype=dtype,
        mesh=mesh or tiny.one_device(),
        progress=lambda size: None,
        quantization=None,
        rounding=None,
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 2, 2)])
def test_donating_the_tree_corrupts_nothing_and_neither_does_reusing_what_was_read(shape):
    network = base_network(tiny.SPEC)
    lent = Lent(tensors_of(network))
    before = {name: tensor.copy() for name, tensor in lent.tensors.items()}
    tree = loaded(lent, network, mesh=mesh_of(*shape))
    expected = jax.tree.map(lambda leaf: 2 * np.array(leaf), tree)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)(
        tree
    )
    for name, tensor in lent.tensors.items():
        np.testing.assert_array_equal(tensor, before[name])
        tensor[...] = 0
    for leaf, twice in zip(jax.tree.leaves(doubled), jax.tree.leaves(expected), strict=True):
        # Devices that shared memory wrote no result into it twice.
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, twice[shard.index])


def test_on_the_host_nothing_is_compiled(caplog, monkeypatch):
    network = base_network(tiny.with_mlp(tiny.SPEC, dim=144))
    lent = Lent(tensors_of(network))
    with jax.log_compiles():
        loaded(lent, network)
        assert "Compiling" not in caplog.text
        monkeypatch.setattr(filling, "_is_host", lambda sharding: False)
        loaded(lent, network)
        assert "Compiling" in caplog.text


# A quarter of its largest tensor is more than what Python takes for itself, some 0.5 MB.
LARGE = base_network(
    dataclasses.replace(tiny.with_mlp(tiny.SPEC, dim=6400), vocab_size=16000, tied_head=False)
)


def write(folder: Path, kind: str, tensors: dict[str, np.ndarray]) -> None:
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif kind == "msgpack":
        infos = {name: TensorInfo(t.shape, t.dtype) for name, t in tensors.items()}
        flax_msgpack.save_msgpack(folder / flax_msgpack.SINGLE, infos, tensors.get, "llama")
    else:
        torch_files.write_model(
            folder / "pytorch_model.bin", tensors, is_legacy=kind == "bin before zip"
        )


def peak_of(call):
    """Return what a call gives, and the most memory of numpy's and Python's that it took."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "msgpack", "bin", "bin before zip"])
def test_the_host_holds_the_leaves_and_one_tensor(tmp_path, kind, dtype):
    tensors = tensors_of(LARGE)
    write(tmp_path, kind, tensors)
    checkpoint = opening.open_folder(tmp_path)
    tree, peak = peak_of(lambda: loaded(checkpoint, LARGE, dtype))
    leaves = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert leaves <= peak < leaves + largest + largest // 4
    up = trees.flatten(tree)["groups/0/0/mlp/up/kernel"]
    np.testing.assert_array_equal(
        up[1], tensors["model.layers.1.mlp.up_proj.weight"].T.astype(up.dtype)
    )


@pytest.mark.parametrize("name", ["F32", "BF16", "Q8_0"])
def test_a_gguf_tensor_is_read_in_little_more_than_its_float32_values(write_llama, name):
    values = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
    stored = {"token_embd.weight": values}
    kinds = {"token_embd.weight": gguf.GGMLQuantizationType[name]}
    file = gguf_file.read_gguf(write_llama(tensors=stored, kinds=kinds))
    found, peak = peak_of(lambda: file.read("token_embd.weight"))
    assert found.nbytes <= peak < 1.25 * found.nbytes
