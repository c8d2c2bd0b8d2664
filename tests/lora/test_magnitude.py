"""DoRA's magnitudes at the start: the model is its base where B is zero, however the base lies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.leaves.address import Address
from jaxft.lora import init, magnitude, mask
from jaxft.models import quantized
from jaxft.models.network import Network, base_network
from jaxft.parallel import mesh as meshes

MICRO = tiny.micro_batch(2, 19)
EVERY = ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
NETWORKS = {
    "every module, tied head": tiny.adapted(modules=EVERY, dora=True, head=True),
    "fused, outside the layers": tiny.adapted(
        tiny.POST, modules=["attn/qkv", "mlp/up"], outside=["embed_in", "embed_out"], dora=True
    ),
    "fused MLP, own head, periods": tiny.adapted(
        tiny.with_windows([None, 4] * 2, tied_head=False), modules=["mlp/gate_up"], dora=True
    ),
}
WIDE = NETWORKS["every module, tied head"]


def numbers_of(network: Network):
    return mask.parts(network, tiny.random_leaves(network)).numbers


def begun(network: Network, *, kind=True, mesh=None):
    """Return random leaves of the base, and adapters as they begin, with their magnitudes."""
    mesh = mesh or tiny.one_device()
    flat = trees.flatten(tiny.random_leaves(network))
    own = trees.unflatten({path: x for path, x in flat.items() if Address.parse(path).is_own})
    drawn = init.init_adapters(network, kind=kind, seed=0, mesh=mesh)
    tree = trees.combine(tiny.placed(own, mesh), drawn, numbers_of(network))
    return own, magnitude.with_magnitudes(network, tree, mesh)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_model_starts_as_its_base(network):
    own, tree = begun(network)
    expected = tiny.forward_logits(base_network(network.spec), own, MICRO)
    close(tiny.forward_logits(network, tree, MICRO), expected)


def test_where_b_is_not_zero_it_starts_as_it_would_without_dora():
    plain = tiny.adapted(modules=EVERY, head=True)
    own, tree = begun(WIDE, kind=False)
    adapters = init.init_adapters(plain, kind=False, seed=0, mesh=tiny.one_device())
    expected = tiny.forward_logits(plain, trees.combine(own, adapters, numbers_of(plain)), MICRO)
    close(tiny.forward_logits(WIDE, tree, MICRO), expected)
    base = tiny.forward_logits(base_network(WIDE.spec), own, MICRO)
    assert np.abs(expected - base).max() > 1e-3 * np.abs(base).max()


def test_a_quantized_base_is_itself_at_the_start():
    network = NETWORKS["fused, outside the layers"]
    own, _ = begun(network)

    def stored(path, leaf):
        if not path.startswith("groups/") or not path.endswith("kernel"):
            return leaf
        return jax.vmap(lambda weight: quantized.quantize(weight, "nf4"))(jnp.asarray(leaf))

    base = trees.map_with_path(stored, own)
    drawn = init.init_adapters(network, kind=True, seed=0, mesh=tiny.one_device())
    tree = magnitude.with_magnitudes(
        network, trees.combine(base, drawn, numbers_of(network)), tiny.one_device()
    )
    close(
        tiny.forward_logits(network, tree, MICRO),
        tiny.forward_logits(base_network(network.spec), base, MICRO),
    )


def test_magnitudes_of_a_narrow_base_are_float32():
    own, _ = begun(WIDE)
    drawn = init.init_adapters(WIDE, kind=True, seed=0, mesh=tiny.one_device())
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), own)
    tree = magnitude.with_magnitudes(
        WIDE, trees.combine(narrow, drawn, numbers_of(WIDE)), tiny.one_device()
    )
    found = tree["groups"]["0"]["0"]["attn"]["o"]["lora_magnitude"]
    assert found.dtype == np.float32
    kernel = np.asarray(narrow["groups"]["0"]["0"]["attn"]["o"]["kernel"], np.float32)
    np.testing.assert_allclose(found, np.linalg.norm(kernel, axis=1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 2, 2)])
def test_a_divided_base_has_the_same_magnitudes_on_every_device(shape):
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[:4])
    ours, theirs = (
        {path: x for path, x in trees.flatten(tree).items() if path.endswith("magnitude")}
        for tree in (begun(WIDE, mesh=mesh)[1], begun(WIDE)[1])
    )
    assert len(ours) == len(EVERY) + 1
    for path, leaf in ours.items():
        assert leaf.sharding.is_fully_replicated
        np.testing.assert_allclose(leaf, theirs[path], rtol=1e-6)


def test_without_dora_nothing_is_added():
    network = tiny.adapted()
    tree = tiny.random_leaves(network)
    found = magnitude.with_magnitudes(network, tree, tiny.one_device())
    assert trees.flatten(found).keys() == trees.flatten(tree).keys()
