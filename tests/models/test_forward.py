"""The whole forward pass against the plain oracle, and against itself built otherwise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
import tiny
import tiny_specs

from jaxft import tree as trees
from jaxft.models import convolution, forward
from jaxft.models.network import base_network
from jaxft.models.spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
)
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM

MICRO = tiny.micro_batch(3, 37)
REAL = MICRO["segment_ids"] > 0
# Two windows that alternate, biases everywhere, a head of its own with an adapter.
FULL = tiny.adapted(
    tiny.with_mlp(
        tiny.with_windows(
            [None, 8] * 2,
            tied_head=False,
            qkv_bias=True,
            out_bias=True,
            norm=dataclasses.replace(tiny.SPEC.norm, eps=0.1),
            rope=dataclasses.replace(tiny.ROPE, theta=300.0),
        ),
        bias=True,
    ),
    modules=("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down"),
    head=True,
)


@functools.cache
def full_logits():
    return tiny.forward_logits(FULL, tiny.random_leaves(FULL), MICRO)


def relative(found, expected):
    return np.abs(found - expected)[REAL].max() / np.abs(expected)[REAL].max()


def test_logits_are_those_of_the_plain_decoder():
    expected = naive.logits(FULL, tiny.random_leaves(FULL), MICRO)
    assert relative(full_logits(), expected) < 5e-6


def test_scanned_layers_give_the_logits_of_unrolled_ones():
    network = tiny.ungrouped(FULL)
    assert (len(FULL.groups), len(network.groups)) == (1, 4)
    tree = tiny.restacked(tiny.random_leaves(FULL), FULL, network)
    assert relative(tiny.forward_logits(network, tree, MICRO), full_logits()) < 2e-6


def test_groups_cut_by_adapters_give_the_logits_of_the_plain_decoder():
    network = tiny.adapted(layers=[1])
    assert len(network.groups) == 3
    tree = tiny.random_leaves(network)
    logits = tiny.forward_logits(network, tree, MICRO)
    assert relative(logits, naive.logits(network, tree, MICRO)) < 5e-6


OTHERS = {
    "learned": tiny.adapted(tiny.LEARNED, modules=(*tiny.MODULES, "mlp/up")),
    "post": tiny.adapted(tiny.POST, outside=["embed_in", "embed_out"], head=True),
    "fused": tiny.adapted(
        dataclasses.replace(tiny.LEARNED, num_kv_heads=2), modules=["attn/qkv", "attn/o"]
    ),
    "own head": tiny.adapted(outer_trained=["head/kernel"]),
    "biased adapters": tiny.adapted(bias=True, head=True),
    "minus a start": tiny.adapted(start=True, head=True),
    "fused MLP": tiny.adapted(modules=["mlp/gate_up"]),
    "dora": tiny.adapted(modules=[*tiny.MODULES, "mlp/gate_up"], dora=True, head=True),
    "dora, fused": tiny.adapted(
        dataclasses.replace(tiny.POST, num_kv_heads=2),
        modules=["attn/qkv", "attn/o", "mlp/up"],
        outside=["embed_in", "embed_out"],
        dora=True,
    ),
    **{name: tiny.adapted(spec, head=True) for name, spec in tiny_specs.SPECS.items()},
    "tables": tiny.adapted(tiny.LEARNED, outside=["embed", "positions"], head=True),
    "tied adapter": tiny.adapted(tiny_specs.SANDWICH, outside=["embed"], head=True, follows=True),
    "rows": tiny.adapted(tiny_specs.PARALLEL, rows={"embed": (5, 111, 0, 40), "head": (7, 5)}),
    "tied rows": tiny.adapted(
        tiny_specs.SANDWICH, rows={"embed": (40, 5, 3)}, head=True, follows=True
    ),
    "rows of a tied head": tiny.adapted(tiny.POST, rows={"head": (40, 5, 3)}),
}


@pytest.mark.parametrize("network", OTHERS.values(), ids=OTHERS)
def test_other_features_give_the_logits_of_the_plain_decoder(network):
    tree = tiny.random_leaves(network)
    logits = tiny.forward_logits(network, tree, MICRO)
    assert relative(logits, naive.logits(network, tree, MICRO)) < 5e-6


@pytest.mark.parametrize(
    "change",
    [
        {"positions": dataclasses.replace(tiny.LEARNED.positions, offset=1)},
        {"norm_placement": "pre"},
        {"norm": dataclasses.replace(tiny.POST.norm, eps=0.2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_of_these_features_moves_the_logits(change):
    tree = tiny.random_leaves(base_network(tiny.POST))
    logits = tiny.forward_logits(base_network(tiny.POST), tree, MICRO)
    network = base_network(dataclasses.replace(tiny.POST, **change))
    assert relative(tiny.forward_logits(network, tree, MICRO), logits) > 1e-2


def test_the_row_of_a_position_is_that_many_after_the_offset():
    network = base_network(tiny.LEARNED)
    tree, table = tiny.random_leaves(network), "positions"
    kernel = tree[table]["kernel"].copy()
    kernel[:2] = kernel[2 + MICRO["positions"].max() + 1 :] = np.nan  # rows of no position here
    poisoned = {**tree, table: {"kernel": kernel}}
    logits = tiny.forward_logits(network, poisoned, MICRO)
    np.testing.assert_array_equal(logits, tiny.forward_logits(network, tree, MICRO))


def test_a_table_of_positions_bounds_the_tokens_of_a_row_and_rotations_do_not():
    assert (tiny.LEARNED.max_tokens, tiny.SPEC.max_tokens) == (44, None)


# A fused adapter is three whose A is one and the same, whose B are its own cut in three.
FUSED = OTHERS["fused"]
THREE = tiny.adapted(FUSED.spec, modules=["attn/q", "attn/k", "attn/v", "attn/o"])
WIDTHS = {"q": slice(0, 80), "k": slice(80, 120), "v": slice(120, 160)}


def as_three(tree):
    """Return the leaves of `FUSED` as those of `THREE`; linear, so gradients pull back."""
    flat = trees.flatten(tree)
    a, b = (flat.pop(f"groups/0/0/attn/qkv/lora_{side}") for side in "ab")
    for name, part in WIDTHS.items():
        flat[f"groups/0/0/attn/{name}/lora_a"] = a
        flat[f"groups/0/0/attn/{name}/lora_b"] = b[..., part]
    return trees.unflatten(flat)


def numbers_as_three(tree):
    """Return frozen leaves of `FUSED` as those of `THREE`: each of the three has its scaling."""
    flat = trees.flatten(tree)
    scaling = flat.pop("groups/0/0/attn/qkv/lora_scaling")
    return trees.unflatten(
        flat | {f"groups/0/0/attn/{name}/lora_scaling": scaling for name in WIDTHS}
    )


def test_a_fused_adapter_is_three_that_share_their_a_and_so_are_its_gradients():
    trainable, frozen = tiny.split(tiny.random_leaves(FUSED))
    batch = tiny.make_batch(2, 16)
    programs = {
        network: steps.Program(network, tiny.one_device(), "float32", 32, False, CAUSAL_LM)
        for network in (FUSED, THREE)
    }
    terms, grads = jax.jit(functools.partial(steps.gradients, programs[FUSED]))(
        trainable, frozen, batch, 0, 0
    )
    loss, _ = terms["loss"]
    three, pull_back = jax.vjp(as_three, jax.tree.map(jax.numpy.asarray, trainable))
    terms, d_three = jax.jit(functools.partial(steps.gradients, programs[THREE]))(
        three, numbers_as_three(frozen), batch, 0, 0
    )
    expected_loss, _ = terms["loss"]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    (expected,) = pull_back(d_three)
    for path, leaf in trees.flatten(grads).items():
        wanted = trees.flatten(expected)[path]
        assert np.linalg.norm(leaf - wanted) < 1e-5 * np.linalg.norm(wanted), path


def test_bfloat16_stays_near_float32():
    network, micro = tiny.adapted(), tiny.micro_batch(2, 16)
    tree = tiny.random_leaves(network)
    logits = tiny.forward_logits(network, tree, micro, "bfloat16")
    exact = naive.logits(network, tree, micro)
    assert logits.dtype == np.float32
    assert 1e-3 < np.sqrt(np.mean((logits - exact) ** 2)) / np.std(exact) < 3e-2


def test_padding_gives_finite_logits():
    empty = {**MICRO, "segment_ids": np.zeros_like(MICRO["segment_ids"])}
    assert np.isfinite(tiny.forward_logits(FULL, tiny.random_leaves(FULL), empty)).all()


def scaled(scaling):
    return tiny.with_windows([None], rope=dataclasses.replace(tiny.ROPE, scaling=scaling))


UNKNOWN = {
    "activation": tiny.with_mlp(tiny.with_windows([None]), activation="gelu"),
    "linear rope": scaled(LinearScaling(2.0)),
    "llama3 rope": scaled(Llama3Scaling(8.0, 1.0, 4.0, 64)),
    "dynamic rope": scaled(DynamicScaling(3.0, 3)),
    "yarn rope": scaled(YarnScaling(8.0, 32.0, 1.0, 64, is_truncated=True, magnitude=1.0)),
}


@pytest.mark.parametrize("spec", UNKNOWN.values(), ids=UNKNOWN)
def test_choices_that_the_oracle_does_not_know_move_the_logits(spec):
    network = base_network(spec)
    tree, micro = tiny.random_leaves(network), tiny.micro_batch(2, 16)
    moved = tiny.forward_logits(network, tree, micro) - naive.logits(network, tree, micro)
    assert np.abs(moved).max() > 1e-2  # the bound of agreement is 5e-6


LONG = tiny.with_windows(
    [None],
    rope=dataclasses.replace(
        tiny.ROPE, scaling=LongScaling((1.0,) * 10, (3.0,) * 10, 6, magnitude=1.1)
    ),
)

DYNAMIC = tiny.with_windows(
    [None], rope=dataclasses.replace(tiny.ROPE, scaling=DynamicScaling(3.0, 6))
)


@pytest.mark.parametrize(
    "spec",
    [tiny.with_windows([None, 3]), tiny.LEARNED, *tiny_specs.SPECS.values(), LONG, DYNAMIC],
    ids=["windows", "learned", *tiny_specs.SPECS, "long rope", "dynamic rope"],
)
def test_packed_equals_unpacked(spec):
    network = base_network(spec)
    tree = tiny.random_leaves(network)
    packed = tiny.micro_batch(1, 22, seed=5)
    together = tiny.forward_logits(network, tree, packed)[0]
    segments = packed["segment_ids"][0]
    lengths = [int((segments == number).sum()) for number in (1, 2)]
    assert min(lengths) >= 4
    for number in (1, 2):
        (where,) = np.nonzero(segments == number)
        alone = {
            "input_ids": np.zeros((1, 22), np.int32),
            "segment_ids": np.zeros((1, 22), np.int32),
            "positions": np.zeros((1, 22), np.int32),
        }
        for name in alone:
            alone[name][0, : len(where)] = packed[name][0, where]
        alone["segment_ids"] = np.minimum(alone["segment_ids"], 1)
        apart = tiny.forward_logits(network, tree, alone)[0]
        difference = np.abs(together[where] - apart[: len(where)]).max()
        assert difference < 2e-6 * np.abs(apart[: len(where)]).max()


def extend_in_pieces(network, tree, ids, valid, pieces):
    mesh = tiny.one_device()

    @jax.jit
    def extend(tree, cache, ids, valid, lengths):
        return forward.extend(network, tree, cache, ids, valid, lengths, mesh=mesh, dtype="float32")

    cache = forward.empty_cache(network, ids.shape[0], ids.shape[1] + 3, "float32")
    hidden, start = [], 0
    lengths = valid.sum(axis=1, dtype=np.int32)
    for size in pieces:
        part = slice(start, start + size)
        new, cache = extend(tree, cache, ids[:, part], valid[:, part], lengths)
        hidden.append(new)
        start += size
    return np.concatenate(hidden, axis=1)


def test_a_cache_begins_with_what_each_layers_class_begins_with(monkeypatch):
    network = base_network(tiny_specs.CONVOLUTIONS)

    def ones(spec, conv, batch, slots, dtype):
        return convolution.LastInputs(jnp.ones((batch, conv.width - 1, spec.model_dim), dtype))

    monkeypatch.setattr(convolution.ShortConv, "empty_state", staticmethod(ones))
    ((first,), (attention,), (last,)) = forward.empty_cache(network, 2, 16, "bfloat16").layers
    for state in (first, last):
        np.testing.assert_array_equal(state.inputs, np.ones((1, 2, 3, 64)))
    for stack in attention:
        assert (stack.shape, stack.dtype) == ((1, 2, 2, 16, 20), jnp.bfloat16)
        assert not stack.any()


IN_PIECES = {
    "windows": tiny.adapted(tiny.with_windows([None, 5])),
    "pre": tiny.adapted(tiny.LEARNED),
    "post": tiny.adapted(tiny.POST),
    **{name: tiny.adapted(spec) for name, spec in tiny_specs.SPECS.items()},
    **{name: OTHERS[name] for name in ("tables", "tied rows")},
}


@pytest.mark.parametrize("network", IN_PIECES.values(), ids=IN_PIECES)
def test_tokens_given_piece_by_piece_get_the_logits_of_whole_rows(network):
    tree, length, padding = tiny.random_leaves(network), 14, np.array([0, 4])
    ids = np.random.default_rng(1).integers(0, 112, (2, length)).astype(np.int32)
    valid = np.arange(length)[None, :] >= padding[:, None]
    positions = np.maximum(np.arange(length)[None, :] - padding[:, None], 0).astype(np.int32)
    pieces = extend_in_pieces(network, tree, ids, valid, [8, 2, 2, 2])
    leaves = jax.tree.map(jnp.asarray, forward.head_leaves(network, tree))
    hidden = jnp.asarray(pieces)
    found = np.asarray(forward.head_logits(network, tiny.one_device(), leaves, hidden, None))
    micro = {"input_ids": ids, "segment_ids": valid.astype(np.int32), "positions": positions}
    whole = naive.logits(network, tree, micro)
    np.testing.assert_allclose(found[valid], whole[valid], atol=2e-5)
