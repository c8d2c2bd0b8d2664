"""Every tensor is read once into its own place, or the load says what does not fit."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxft import tree as trees
from jaxft.errors import WeightsError
from jaxft.models import bind
from jaxft.models.families import FAMILIES, gpt2, llama, opt
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.weights import filling, layout, load, names
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo

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

    def read(self, name, region=None):
        self.reads.append(name)
        return self.tensors[name][region or ...].copy()


def checkpoint(network, dtype="float32", family=llama.LLAMA, **changes):
    rng = np.random.default_rng(0)
    shapes = names.leaf_shapes(network)
    tensors = {
        name: rng.standard_normal(names.expected_shape(parts, shapes)).astype(dtype)
        for name, parts in names.slots(family, network).items()
    }
    tensors.update(changes)
    return Memory({name: tensor for name, tensor in tensors.items() if tensor is not None})


def loaded(
    source,
    network,
    dtype="float32",
    mesh=None,
    progress=lambda size: None,
    family=llama.LLAMA,
):
    return load.load_base(
        source,
        family,
        network,
        dtype=dtype,
        mesh=mesh or tiny.one_device(),
        progress=progress,
        quantization=None,
        rounding=None,
    )


def assert_holds(tree, source, network, dtype="float32", family=llama.LLAMA):
    """Every leaf's slices are the (transposed) parts of the tensors, bit for bit."""
    leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}
    for name, parts in names.slots(family, network).items():
        for slot in parts:
            found = leaves[slot.path][slot.index]
            tensor = source.tensors[name].T if slot.transposed else source.tensors[name]
            part = tensor if slot.outputs is None else tensor[..., slice(*slot.outputs[:2])]
            assert found.tobytes() == part.astype(dtype).tobytes(), (name, slot)


def assert_lies_where_the_table_says(tree, mesh):
    """Each device holds its slice of each leaf, and no more."""
    placed = trees.flatten(rules.shardings(tree, mesh))
    for path, leaf in trees.flatten(tree).items():
        assert leaf.sharding.is_equivalent_to(placed[path], leaf.ndim), path
        whole = np.asarray(leaf)
        for shard in leaf.addressable_shards:
            assert shard.data.shape == placed[path].shard_shape(leaf.shape)
            np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index], path)


@pytest.fixture(params=["memory of the host", "memory of their own"])
def devices(request, monkeypatch):
    """Take the CPU's devices for what they are, or for accelerators."""
    is_host = request.param == "memory of the host"
    monkeypatch.setattr(filling, "_is_host", lambda sharding: is_host)


def test_the_fake_is_a_checkpoint():
    assert isinstance(Memory({}), Checkpoint)


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 2, 2), (1, 4, 1)])
def test_every_leaf_holds_its_tensors_and_lies_where_the_table_says(shape):
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    source = checkpoint(UNTIED)
    tree = loaded(source, UNTIED, mesh=mesh)
    assert trees.flatten(tree).keys() == trees.flatten(bind.abstract_tree(UNTIED)).keys()
    assert_holds(tree, source, UNTIED)
    assert sorted(source.reads) == sorted(source.tensors)
    assert_lies_where_the_table_says(tree, mesh)


@pytest.mark.usefixtures("devices")
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


GPT2 = base_network(dataclasses.replace(tiny.LEARNED, num_kv_heads=2))


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize(
    ("family", "network"),
    [(opt.OPT, base_network(tiny.POST)), (opt.OPT, base_network(tiny.LEARNED)), (gpt2.GPT2, GPT2)],
    ids=["post", "opt", "fused"],
)
def test_other_families_leaves_hold_their_tensors(family, network, shape):
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    source = checkpoint(network, family=family)
    tree = loaded(source, network, mesh=mesh, family=family)
    assert trees.flatten(tree).keys() == trees.flatten(bind.abstract_tree(network)).keys()
    assert_holds(tree, source, network, family=family)
    assert sorted(source.reads) == sorted(source.tensors)
    assert_lies_where_the_table_says(tree, mesh)


SLOTS = st.sampled_from(
    [
        parts
        for family, network in [
            (llama.LLAMA, UNTIED),
            (opt.OPT, base_network(tiny.POST)),
            (gpt2.GPT2, GPT2),
        ]
        for parts in names.slots(family, network).values()
    ]
    # None is this yet: fused, and [out, in].
    + [
        tuple(
            names.Slot(f"{name}/kernel", (1,), transposed, outputs, None)
            for name, outputs in zip("ab", names.side_by_side([6, 10], groups), strict=True)
        )
        for transposed in (True, False)
        for groups in (1, 2)
    ]
)


@given(SLOTS, st.integers(0, 2**16))
def test_joining_what_was_cut_gives_the_tensor_back(parts, seed):
    shapes = {
        **names.leaf_shapes(UNTIED),
        **names.leaf_shapes(base_network(tiny.POST)),
        **names.leaf_shapes(GPT2),
        "a/kernel": (2, 7, 6),
        "b/kernel": (2, 7, 10),
    }
    if all(part.outputs is None for part in parts):
        shape = (5,) if parts[0].path.endswith(("scale", "bias")) else (5, 6)
    else:
        shape = names.expected_shape(parts, shapes)
    tensor = np.random.default_rng(seed).standard_normal(shape)
    leaves = {}
    for slot in parts:
        part = layout.oriented(layout.cut(tensor, slot), slot)
        leaves[slot.path] = np.zeros([at + 1 for at in slot.index] + list(part.shape))
        leaves[slot.path][*slot.index, ...] = part
    np.testing.assert_array_equal(layout.join(leaves, parts), tensor)


def test_trained_leaves_are_float32_over_a_bfloat16_base():
    network = tiny.adapted(
        layers=[1], trained=["attn_norm/scale"], outer_trained=["final_norm/scale", "head/kernel"]
    )
    source = checkpoint(TIED, ml_dtypes.bfloat16)
    flat = trees.flatten(loaded(source, network, "bfloat16"))
    wide = {path for path, leaf in flat.items() if leaf.dtype == np.float32}
    assert wide == {"groups/1/0/attn_norm/scale", "final_norm/scale", "head/kernel"}
    assert wide == network.trained_leaves()
    assert {leaf.dtype for path, leaf in flat.items() if path not in wide} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_a_trained_leaf_is_not_rounded_to_the_bases_dtype():
    network = tiny.adapted(outer_trained=["final_norm/scale"])
    source = checkpoint(TIED)
    tree = loaded(source, network, "bfloat16")
    np.testing.assert_array_equal(tree["final_norm"]["scale"], source.tensors["model.norm.weight"])


@pytest.mark.parametrize("leaf", ["head/kernel", "embed/kernel"])
def test_a_head_that_was_tied_begins_as_the_embedding(leaf):
    source = checkpoint(TIED)
    tree = loaded(source, tiny.adapted(outer_trained=[leaf]))
    embedding = source.tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(tree["head"]["kernel"], embedding.T)
    np.testing.assert_array_equal(tree["embed"]["kernel"], embedding)


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


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.0.self_attn.rotary_emb.sin_cached",
        "model.layers.0.self_attn.masked_bias",
        "model.decoder.version",
        "model.embed_positions._float_tensor",
    ],
)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_what_is_computed_anew_is_passed_over_by_its_ending(family, name):
    assert any(re.fullmatch(each, name) for each in family.ignored)
    source = checkpoint(TIED, **{name: np.zeros(10, np.float32)})
    loaded(source, TIED)
    assert name not in source.reads


def test_what_is_like_a_buffer_and_is_none_is_unexpected():
    for name in ("model.rotary_emb.inv_freq.weight", "model.layers.0.self_attn.bias"):
        source = checkpoint(TIED, **{name: np.zeros(10, np.float32)})
        with pytest.raises(WeightsError, match="1 unexpected"):
            loaded(source, TIED)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_no_number_is_said_by_its_name(value, dtype):
    source = checkpoint(TIED, dtype=dtype)
    source.tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.up_proj\.weight.* at \[3, 4\], 1 in"):
        loaded(source, TIED)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_largest_numbers_are_numbers(dtype):
    source = checkpoint(TIED, dtype=dtype)
    largest = ml_dtypes.finfo(dtype).max
    source.tensors["model.norm.weight"][:] = [largest, -largest] * 32
    loaded(source, TIED)


def test_of_a_tied_pair_the_heads_name_serves():
    source = checkpoint(TIED)
    source.tensors["lm_head.weight"] = source.tensors.pop("model.embed_tokens.weight")
    tree = loaded(source, TIED)
    np.testing.assert_array_equal(tree["embed"]["kernel"], source.tensors["lm_head.weight"])


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


def test_a_leaf_that_the_familys_table_has_no_tensor_for_is_an_error():
    spec = dataclasses.replace(tiny.SPEC, embed_norm=True)
    with pytest.raises(WeightsError, match=r"embed_norm/scale, and no tensor of a llama is that"):
        loaded(checkpoint(TIED), base_network(spec))
