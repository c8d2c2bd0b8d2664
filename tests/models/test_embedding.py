"""Trained rows and adapters on tables: the table itself stays out of it; how rows begin."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import programs
import pytest
import tiny

from jaxft import tree as trees
from jaxft.models import embedding
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM, batch_shardings

POSITIONS = 4 * 12
BATCH = tiny.make_batch(4, 12, seed=6)
ROWS = tuple(np.unique(BATCH["input_ids"])[[9, 2, 5]].tolist())  # tokens of the batch
TIED = tiny.adapted(tiny.with_windows([None]), rows={"embed": ROWS}, follows=True)
UNTIED = tiny.adapted(
    tiny.with_windows([None], tied_head=False), rows={"embed": ROWS, "head": ROWS[:2]}
)
ADAPTED = tiny.adapted(tiny.with_windows([None]), outside=["embed"], head=True, follows=True)
NETWORKS = {"tied rows": TIED, "rows": UNTIED, "tied adapter": ADAPTED}
TABLE = (tiny.SPEC.vocab_size, tiny.SPEC.embed_dim)


@functools.cache
def compiled(network: Network, shape: tuple[int, int, int] = (1, 1, 1)):
    """Return the compiled function of gradients on a mesh, and its arguments."""
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    capacity = POSITIONS // meshes.row_shards(mesh)
    program = steps.Program(network, mesh, "float32", capacity, False, CAUSAL_LM)
    leaves = tiny.placed(tiny.random_leaves(network), mesh)
    batch = {
        key: jax.device_put(value, batch_shardings(CAUSAL_LM, mesh)[key])
        for key, value in BATCH.items()
    }
    arguments = (*tiny.split(leaves, network), batch, 0, 0)
    function = jax.jit(functools.partial(steps.gradients, program))
    return function.lower(*arguments).compile(), arguments


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_frozen_table_has_no_gradient_and_no_copy_is_trained(network):
    function, arguments = compiled(network)
    text = function.as_text()
    assert TABLE not in programs.compiled_products(text)
    assert TABLE[::-1] not in programs.compiled_products(text)
    # Looked up, a trained table's gradient would be scattered into one of its size.
    shape = f"f32[{TABLE[0]},{TABLE[1]}]"
    assert not [line for line in text.splitlines() if shape in line and " scatter(" in line]
    trained = trees.flatten(function(*arguments)[1])
    assert all(TABLE not in (leaf.shape, leaf.shape[::-1]) for leaf in trained.values())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 1, 4)])
def test_four_devices_equal_one(network, shape):
    function, arguments = compiled(network, shape)
    terms, found = function(*arguments)
    loss, _ = terms["loss"]
    one, on_one = compiled(network)
    terms, expected = one(*on_one)
    expected_loss, _ = terms["loss"]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, leaf in trees.flatten(expected).items():
        error = np.linalg.norm(np.asarray(trees.flatten(found)[path]) - np.asarray(leaf))
        assert error < 1e-5 * np.linalg.norm(leaf), (path, error)


def test_the_logits_of_a_divided_vocabulary_are_not_collected():
    function, _ = compiled(TIED, (1, 1, 4))
    found = programs.collectives(function.as_text())
    assert any(tiny.MLP.dim // 4 in shape or POSITIONS in shape for _, shape in found)
    assert not {shape for _, shape in found if TABLE[0] in shape and POSITIONS in shape}


def test_a_row_is_used_for_its_token_alone_in_the_order_of_the_tokens():
    base = dataclasses.replace(TIED, rows=(), head_follows=False)
    tree = tiny.random_leaves(TIED)
    micro = {key: value[0] for key, value in BATCH.items()}
    without = {**tree, "embed": {"kernel": tree["embed"]["kernel"].copy()}}
    without["embed"]["kernel"][list(ROWS)] = tree["embed"]["rows"]
    expected = tiny.forward_logits(base, without, micro)
    np.testing.assert_allclose(tiny.forward_logits(TIED, tree, micro), expected, atol=2e-5)


@pytest.mark.parametrize("network", [TIED, UNTIED], ids=["tied", "untied"])
def test_rows_begin_as_the_base_has_them_and_the_model_is_then_its_base(network):
    tree = tiny.random_leaves(network)
    begun = trees.flatten(embedding.original_rows(network, tree))
    assert begun.keys() == {f"{module}/rows" for module, _ in network.rows}
    base = dataclasses.replace(network, rows=(), head_follows=False)
    own = {path: leaf for path, leaf in trees.flatten(tree).items() if not path.endswith("/rows")}
    micro = {key: value[0] for key, value in BATCH.items()}
    expected = tiny.forward_logits(base, trees.unflatten(own), micro)
    found = tiny.forward_logits(network, trees.unflatten(own | begun), micro)
    np.testing.assert_allclose(found, expected, atol=1e-5)
