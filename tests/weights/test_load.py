"""Every tensor is read once into its own place, or the load says what does not fit."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.errors import WeightsError
from jaxft.models import bind
from jaxft.models.families import llama
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.weights import load, names
from jaxft.weights.checkpoint import Checkpoint, TensorInfo

FULL = dataclasses.replace(
    tiny.with_windows([4, 4, None] * 2 + [4]), tied_head=False, qkv_bias=True
)
UNTIED, TIED = base_network(FULL), base_network(tiny.SPEC)


class Memory:
    """A checkpoint whose tensors are in memory, and which counts what is read."""

    def __init__(self, tensors):
        self.path, self.tensors, self.reads = Path("some/model"), tensors, []

    def infos(self):
        return {name: TensorInfo(t.shape, t.dtype) for name, t in self.tensors.items()}

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name].copy()


def checkpoint(network, dtype="float32", **changes):
    rng = np.random.default_rng(0)
    shapes = names.leaf_shapes(network)
    tensors = {
        name: rng.standard_normal(names.expected_shape(slot, shapes[slot.path])).astype(dtype)
        for name, slot in names.slots(llama.LLAMA, network).items()
    }
    tensors.update(changes)
    return Memory({name: tensor for name, tensor in tensors.items() if tensor is not None})


def loaded(source, network, dtype="float32", mesh=None, progress=lambda size: None):
    return load.load_base(
        source,
        llama.LLAMA,
        network,
        dtype=dtype,
        mesh=mesh or tiny.one_device(),
        progress=progress,
    )


def assert_holds(tree, source, network, dtype="float32"):
    """Every leaf's slices are the (transposed) tensors, bit for bit."""
    leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}
    for name, slot in names.slots(llama.LLAMA, network).items():
        part = leaves[slot.path] if slot.index is None else leaves[slot.path][slot.index]
        tensor = source.tensors[name].astype(dtype)
        assert part.tobytes() == (tensor.T if slot.transposed else tensor).tobytes(), name


def test_the_fake_is_a_checkpoint():
    assert isinstance(Memory({}), Checkpoint)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 2, 2), (1, 4, 1)])
def test_every_leaf_holds_its_tensors_and_lies_where_the_table_says(shape):
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    source = checkpoint(UNTIED)
    tree = loaded(source, UNTIED, mesh=mesh)
    assert trees.flatten(tree).keys() == trees.flatten(bind.abstract_tree(UNTIED)).keys()
    assert_holds(tree, source, UNTIED)
    assert sorted(source.reads) == sorted(source.tensors)
    placed = trees.flatten(rules.shardings(tree, mesh))
    for path, leaf in trees.flatten(tree).items():
        assert leaf.sharding.is_equivalent_to(placed[path], leaf.ndim), path


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (ml_dtypes.bfloat16, "float32"),
        (ml_dtypes.bfloat16, "bfloat16"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
    ],
)
def test_leaves_have_the_dtype_asked_for(stored, wanted):
    source = checkpoint(TIED, stored)
    tree = loaded(source, TIED, wanted)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {wanted}
    assert_holds(tree, source, TIED, jnp.dtype(wanted))


def test_adapters_are_no_part_of_the_base():
    network = tiny.adapted(head=True)
    tree = loaded(checkpoint(TIED), network)
    assert trees.flatten(tree).keys() == trees.flatten(bind.abstract_tree(TIED)).keys()


def test_groups_cut_by_adapters_get_the_layers_they_stand_for():
    network = tiny.adapted(tiny.with_windows([None] * 5), layers=[3, 4])
    source = checkpoint(base_network(tiny.with_windows([None] * 5)))
    assert_holds(loaded(source, network), source, network)


def test_progress_adds_up_to_the_bytes_read():
    source, sizes = checkpoint(TIED), []
    loaded(source, TIED, progress=sizes.append)
    assert len(sizes) == len(source.tensors)
    assert sum(sizes) == sum(tensor.nbytes for tensor in source.tensors.values())


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q: None}, rf"1 missing \({Q}\)"),
        ({"model.layers.3.mlp.up_proj.weight": np.zeros((160, 64))}, r"1 unexpected \(model.*3"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(80)}, r"1 unexpected \(.*q_proj.bias"),
        (
            {Q: np.zeros((64, 80), np.float32)},
            rf"1 misshapen \({Q} \(64, 80\) instead of \(80, 64\)\)",
        ),
        ({"extra": np.zeros(1), "model.norm.weight": None}, r"1 missing .*; 1 unexpected \(extra"),
    ],
    ids=["missing", "a layer too many", "a bias too many", "misshapen", "several"],
)
def test_tensors_that_do_not_fit_raise_before_anything_is_read(changes, message):
    source = checkpoint(TIED, **changes)
    with pytest.raises(WeightsError, match=message) as raised:
        loaded(source, TIED)
    assert "some/model" in raised.value.found
    assert source.reads == []


def test_many_missing_tensors_are_counted_and_a_few_are_named():
    with pytest.raises(WeightsError, match=r"29 missing \(.*, \.\.\.\)") as raised:
        loaded(Memory({}), TIED)
    assert len(raised.value.found) < 600


def test_tensors_that_carry_no_weights_are_ignored_by_name():
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(10, np.float32)}
    source = checkpoint(TIED, **inverse)
    loaded(source, TIED)
    assert not set(inverse) & set(source.reads)


def test_a_stored_copy_of_a_tied_head_is_dropped():
    embedding = checkpoint(TIED).tensors["model.embed_tokens.weight"]
    source = checkpoint(TIED, **{"lm_head.weight": embedding})
    tree = loaded(source, TIED)
    assert "head" not in tree
    assert_holds(tree, source, TIED)


@pytest.mark.parametrize("other", [np.zeros((112, 64), np.float32), np.zeros(3, np.float32)])
def test_a_tied_head_that_differs_from_the_embedding_raises(other):
    source = checkpoint(TIED, **{"lm_head.weight": other})
    with pytest.raises(WeightsError, match=r"lm_head.weight differs from model.embed_tokens"):
        loaded(source, TIED)


def test_an_untied_head_is_read_even_where_it_equals_the_embedding():
    embedding = checkpoint(UNTIED).tensors["model.embed_tokens.weight"]
    source = checkpoint(UNTIED, **{"lm_head.weight": embedding})
    tree = loaded(source, UNTIED)
    np.testing.assert_array_equal(tree["head"]["kernel"], embedding.T)


def test_no_leaf_is_ever_whole_on_one_device(monkeypatch):
    mesh, write, shares = meshes.make_mesh(1, 4, 1), load._write, []

    def watched(leaf, part, index, **options):
        if part.ndim == 2:  # norms are small, and whole everywhere
            for array in (leaf, part):
                shares.append(array.addressable_shards[0].data.size / array.size)
        return write(leaf, part, index, **options)

    monkeypatch.setattr(load, "_write", watched)
    network = base_network(tiny.with_windows([None]))
    loaded(checkpoint(network), network, mesh=mesh)
    assert shares == [0.25] * (2 * 8)  # the embedding and seven kernels
