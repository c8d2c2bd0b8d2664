"""How adapters begin: PEFT's bounds, the same draw whatever the groups, B zero."""

import zlib

import jax
import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.errors import AdapterError
from jaxft.leaves.address import Address
from jaxft.lora import init
from jaxft.models import bind
from jaxft.models.network import FROZEN, Adapter, Tuning, build_network
from jaxft.parallel import mesh as meshes

NETWORK = tiny.adapted(tiny.with_windows([None] * 4), head=True)


def begun(network=NETWORK, seed=0, mesh=None, kind=True):
    return trees.flatten(
        init.init_adapters(network, kind=kind, seed=seed, mesh=mesh or tiny.one_device())
    )


def test_leaves_are_the_adapters_and_no_other():
    wanted = trees.flatten(bind.abstract_tree(NETWORK))
    found = begun()
    assert found.keys() == {path for path in wanted if Address.parse(path).is_adapter}
    for path, leaf in found.items():
        assert (leaf.shape, leaf.dtype) == (wanted[path].shape, np.float32)


def test_a_fills_the_range_of_pefts_uniform_draw_and_b_is_zero():
    for path, leaf in begun().items():
        if path.endswith("lora_b"):
            assert not leaf.any()
            continue
        bound = leaf.shape[-1] ** -0.5
        assert 0.97 * bound < np.abs(leaf).max() <= bound
        # The variance of U(-bound, bound) is bound^2 / 3; of its estimate, 4/45 bound^4 / size.
        spread = 5 * bound**2 * (4 / 45 / leaf.size) ** 0.5
        assert abs(np.mean(leaf**2) - bound**2 / 3) < spread
        assert abs(leaf.mean()) < 5 * bound * (1 / 3 / leaf.size) ** 0.5


def test_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = begun(), begun(), begun(seed=1)
    for path, leaf in first.items():
        assert np.array_equal(leaf, again[path])
        assert np.array_equal(leaf, other[path]) == path.endswith("lora_b")


def test_recorded_draw_stays():
    # A change of these numbers changes every run.
    found = begun(seed=42)["groups/0/0/attn/q/lora_a"][1, 0, :3]
    recorded = np.array([0.08573185, -0.030638665, -0.069106415], np.float32)
    np.testing.assert_array_equal(np.asarray(found), recorded)


def test_modules_and_layers_have_draws_of_their_own():
    drawn = [
        tuple(np.asarray(leaf)[..., :6, :5].reshape(-1, 30)[layer].tolist())
        for path, leaf in begun().items()
        if path.endswith("lora_a")
        for layer in range(leaf.shape[0] if leaf.ndim == 3 else 1)
    ]
    assert len(drawn) == 4 * 3 + 1
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(
    "other",
    [tiny.adapted(tiny.with_windows([8, None] * 2), head=True), tiny.ungrouped(NETWORK)],
    ids=["periods", "single layers"],
)
def test_a_layers_draw_does_not_depend_on_the_groups(other):
    assert other.groups != NETWORK.groups
    ours = tiny.layers_of(NETWORK, trees.unflatten(begun()))
    theirs = tiny.layers_of(other, trees.unflatten(begun(other)))
    assert len(ours) == len(theirs) == 4
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.keys() == yours.keys()
        for path in mine:
            assert np.array_equal(mine[path], yours[path]), path


def test_a_layers_draw_does_not_depend_on_which_others_are_adapted():
    part = tiny.adapted(tiny.with_windows([None] * 4), layers=[2], modules=["attn/q"])
    ours = tiny.layers_of(NETWORK, trees.unflatten(begun()))[2]
    theirs = tiny.layers_of(part, trees.unflatten(begun(part)))[2]
    assert np.array_equal(ours["attn/q/lora_a"], theirs["attn/q/lora_a"])


def test_adapters_are_born_on_every_device_of_the_mesh():
    mesh = meshes.make_mesh(1, 2, 2)
    for leaf in begun(mesh=mesh).values():
        assert leaf.sharding.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.devices())


def test_false_draws_a_and_b_as_torch_draws_linear_layers():
    network = tiny.adapted(bias=True)
    for path, leaf in begun(network, kind=False).items():
        fan_in = leaf.shape[-1] if path.endswith("lora_a") else tiny.RANK
        assert 0.9 * fan_in**-0.5 < np.abs(leaf).max() <= fan_in**-0.5


def test_gaussian_draws_a_with_a_standard_deviation_of_one_over_the_rank():
    for path, leaf in begun(kind="gaussian").items():
        if path.endswith("lora_b"):
            assert not leaf.any()
        else:
            assert np.std(leaf) == pytest.approx(1 / tiny.RANK, rel=0.15)
            assert np.abs(leaf).max() > 2 / tiny.RANK


def test_orthogonal_starts_lie_in_two_halves_of_one_basis():
    found = begun(kind="orthogonal")
    for path in (path for path in found if path.endswith("lora_a")):
        a, b = (np.asarray(found[path.removesuffix("a") + side], np.float64) for side in "ab")
        # A and B have half the rank, and what one spans the other does not: A A^T B B^T = 0.
        assert np.linalg.matrix_rank(a, tol=1e-4).max() == tiny.RANK // 2
        product = a @ a.swapaxes(-1, -2) @ b @ b.swapaxes(-1, -2)
        assert np.abs(product).max() < 1e-4 * np.abs(a @ a.swapaxes(-1, -2)).max()
        assert np.abs(b).max() > 0.05


def test_orthogonal_starts_need_an_even_rank():
    spec = tiny.with_windows([None])
    odd = build_network(
        spec,
        [Tuning({"attn/q": Adapter((3,), False, False, False, False)}, ())],
        FROZEN,
        unties_head=False,
    )
    with pytest.raises(AdapterError, match="rank of 3"):
        begun(odd, kind="orthogonal")


@pytest.mark.parametrize("kind", [True, False, "gaussian", "orthogonal"])
def test_a_smaller_rank_is_drawn_as_it_is_and_filled_up_with_zeros(kind):
    found = begun(tiny.adapted(ranks=[2, 6, 4]), kind=kind)
    for layer, rank in enumerate([2, 6, 4]):
        for path, leaf in begun(tiny.adapted(ranks=[rank] * 3), kind=kind).items():
            np.testing.assert_array_equal(found[path][layer, :rank], leaf[layer])
            assert not found[path][layer, rank:].any()


def test_draws_have_their_recorded_bits():
    # Another draw is another run: one that goes on, or is made again, would not be the same.
    found = begun(tiny.adapted(), seed=7)
    drawn = {path: a for path, a in found.items() if path.endswith("lora_a")}
    assert {path: zlib.crc32(np.asarray(a).tobytes()) for path, a in drawn.items()} == {
        "groups/0/0/attn/q/lora_a": 187291394,
        "groups/0/0/attn/v/lora_a": 2706246371,
        "groups/0/0/mlp/down/lora_a": 1140141640,
    }


def test_an_adapter_on_a_table_begins_in_one_way_with_its_a_at_zero():
    network = tiny.adapted(tiny.LEARNED, modules=[], outside=["embed", "positions"])
    first, *others = (begun(network, kind=kind) for kind in (True, "gaussian", "orthogonal"))
    for found in others:
        assert all(np.array_equal(leaf, found[path]) for path, leaf in first.items())
    for module in ("embed", "positions"):
        assert not first[f"{module}/lora_a"].any()
        assert np.std(first[f"{module}/lora_b"]) == pytest.approx(1, rel=0.15)
    assert not np.array_equal(first["embed/lora_b"], first["positions/lora_b"])


def test_false_draws_both_sides_of_an_adapter_on_a_table_from_a_normal():
    found = begun(tiny.adapted(modules=[], outside=["embed"]), kind=False)
    for leaf in found.values():
        assert np.std(leaf) == pytest.approx(1, rel=0.15)


def test_one_that_is_tied_begins_as_the_heads_the_other_way_about():
    network = tiny.adapted(modules=[], outside=["embed"], head=True, follows=True)
    found = begun(network)
    assert found.keys() == {"embed/lora_a", "embed/lora_b"}
    assert not found["embed/lora_a"].any()
    bound = tiny.SPEC.embed_dim**-0.5
    assert 0.97 * bound < np.abs(found["embed/lora_b"]).max() <= bound
