"""The sharding table fits every network: one rule a leaf, a leaf for every rule."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import tiny
import tiny_specs
from jax.sharding import PartitionSpec as P

from jaxft import tree as trees
from jaxft.errors import DeviceError
from jaxft.leaves.address import Address
from jaxft.models import bind
from jaxft.models.families import FAMILIES
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules

PROJECTIONS = ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
FULL = dataclasses.replace(
    tiny.with_mlp(tiny.SPEC, bias=True), tied_head=False, qkv_bias=True, out_bias=True
)
NETWORKS = {
    "tied": tiny.adapted(),
    "everything": tiny.adapted(FULL, modules=PROJECTIONS, head=True),
    "windows": tiny.adapted(tiny.with_windows([4, 4, None] * 3 + [4])),
    "learned": tiny.adapted(tiny.LEARNED, modules=["attn/qkv", "mlp/up"]),
    "post": tiny.adapted(tiny.POST, outside=["embed_in", "embed_out"], head=True),
    "gate on attention": tiny.adapted(dataclasses.replace(FULL, attn_gate=True)),
    "rows": tiny.adapted(FULL, rows={"embed": (3, 1), "head": (2,)}),
    **{name: tiny.adapted(spec) for name, spec in tiny_specs.SPECS.items()},
    "many groups": tiny.adapted(tiny.with_windows(range(3, 15))),
}


RULES = rules.OUTSIDE + rules.IN_LAYERS


def leaves_of(network):
    return trees.flatten(bind.abstract_tree(network))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_leaf_has_a_rule_no_longer_than_its_shape(network):
    for path, leaf in leaves_of(network).items():
        assert len(rules.spec_of(path)) <= len(leaf.shape)


# Biases that go with a line of the table, and that no network here has.
WITHOUT_BIAS = ("attn/gate", "attn/q_norm", "attn/k_norm", "attn_out_norm", "mlp_out_norm")


def test_every_rule_has_a_leaf():
    there = {
        (address.module, address.part)
        for network in NETWORKS.values()
        for address in map(Address.parse, leaves_of(network))
        if address.is_own
    }
    ruled = [(module, part) for rule in RULES for module in rule.modules for part in rule.parts]
    assert set(ruled) - there == {(module, "bias") for module in WITHOUT_BIAS}
    assert len(ruled) == len(set(ruled))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_leaf_that_a_family_names_has_a_rule(family):
    for line in family.tensors:
        modules = [f"{line.module}/lora_a"] if line.module else []
        for leaf in [*line.ours, *modules]:
            path = f"groups/10/3/{leaf}" if line.is_per_layer else leaf
            # Lines of the tables that no model is seen to have.
            if path not in ("embed_in/bias", "embed_out/bias"):
                rules.spec_of(path)


@pytest.mark.parametrize(
    "path",
    ["embed/scale", "groups/0/0/attn/q/weight", "attn/q/kernel", "groups/0/0/embed/kernel"],
)
def test_a_leaf_without_a_rule_raises_naming_it(path):
    with pytest.raises(KeyError, match=f"0 sharding rules match the leaf {path!r}"):
        rules.spec_of(path)


@pytest.mark.parametrize("path", ["embed", "x/groups/0/0/attn/q/kernel"])
def test_what_is_not_the_path_of_a_leaf_raises_naming_it(path):
    with pytest.raises(ValueError, match=f"{path!r} is not the path of a leaf"):
        rules.spec_of(path)


def test_two_rules_for_one_leaf_raise(monkeypatch):
    again = rules.Rule(("final_norm",), ("scale",), P())
    monkeypatch.setattr(rules, "OUTSIDE", (*rules.OUTSIDE, again))
    with pytest.raises(KeyError, match="2 sharding rules"):
        rules.spec_of.__wrapped__("final_norm/scale")


@pytest.mark.parametrize(
    ("path", "axes"),
    [
        ("embed/kernel", ("tensor", "fsdp")),
        ("head/kernel", ("fsdp", "tensor")),
        ("positions/kernel", (None, "fsdp")),
        ("groups/2/1/attn/q/kernel", (None, "fsdp", "tensor")),
        ("groups/2/1/attn/q/bias", (None, "tensor")),
        ("groups/2/1/mlp/down/kernel", (None, "tensor", "fsdp")),
        ("groups/2/1/mlp/down/bias", ()),
        ("groups/2/1/conv/taps/kernel", (None, "tensor")),
        ("groups/2/1/attn_norm/scale", ()),
    ],
)
def test_outputs_are_divided_over_tensor_where_they_are_read_apart_and_inputs_after(path, axes):
    assert rules.spec_of(path) == P(*axes)


def test_no_rule_divides_the_layers_and_adapters_are_replicated():
    for path in trees.flatten(bind.abstract_tree(NETWORKS["everything"])):
        spec = rules.spec_of(path)
        if path.startswith("groups/"):
            assert not spec or spec[0] is None
        if "lora_" in path:
            assert spec == P()


@pytest.mark.parametrize(("mesh", "axis"), [((1, 4, 1), "fsdp"), ((1, 1, 4), "tensor")])
def test_a_dimension_that_does_not_divide_raises_naming_leaf_size_and_axis(mesh, axis):
    spec = dataclasses.replace(
        tiny.SPEC, embed_dim=66, model_dim=66, head_dim=21, num_kv_heads=1, num_heads=1
    )
    tree = bind.abstract_tree(tiny.adapted(spec))
    with pytest.raises(DeviceError, match=rf"of (66|21), which mesh\.{axis}=4") as raised:
        rules.shardings(tree, meshes.make_mesh(*mesh))
    assert re.match(r"(embed|groups/\S+)/kernel has a dimension", raised.value.found)


def test_every_matrix_is_divided_over_fsdp_and_over_tensor():
    tree = bind.abstract_tree(NETWORKS["everything"])
    for shape in [(1, 4, 1), (1, 1, 4)]:
        placed = trees.flatten(rules.shardings(tree, meshes.make_mesh(*shape)))
        for path, leaf in trees.flatten(tree).items():
            if path.endswith("kernel"):
                part = placed[path].shard_shape(leaf.shape)
                assert np.prod(part) * 4 == np.prod(leaf.shape), path


@pytest.mark.parametrize(
    "path",
    [
        *("embed/kernel", "head/kernel", "embed_in/kernel", "embed_out/kernel"),
        *(f"groups/3/1/{module}/kernel" for module in PROJECTIONS),
    ],
)
def test_gathering_undoes_fsdp_and_leaves_tensor_divided(path):
    mesh = meshes.make_mesh(1, 2, 2)
    axes = list(rules.spec_of(path))[-2:]
    stored = jax.sharding.NamedSharding(mesh, P(*axes))
    leaf = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), stored)
    gather = rules.gather(mesh, Address.parse(path).module)
    found = jax.jit(lambda leaf: gather(leaf, "bfloat16"))(leaf)
    assert found.dtype == jax.numpy.bfloat16
    divided = tuple(4 if axis == "tensor" else 8 for axis in axes)
    assert found.sharding.shard_shape((8, 8)) == divided
    assert leaf.sharding.shard_shape((8, 8)) == tuple(4 if axis else 8 for axis in axes)
    np.testing.assert_array_equal(found.astype(np.float32), leaf)


def test_gathers_of_one_place_are_equal_so_that_nothing_compiles_twice():
    mesh = meshes.make_mesh(1, 2, 2)
    again = rules.gather(meshes.make_mesh(1, 2, 2), "embed")
    assert rules.gather(mesh, "embed") == again
    assert hash(rules.gather(mesh, "embed")) == hash(again)
