"""EVA: directions are those of exact PCA, however batches are cut; ranks go where they explain."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import tiny
import tiny_specs

from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.leaves.address import Address
from jaxft.lora import eva, init, numbers, targets
from jaxft.models import bind, forward
from jaxft.models.families import gpt2, llama
from jaxft.models.network import base_network, read_by

WIDTH, KEPT = 40, 6
INCLUDE = jax.jit(eva.include)


def sketch_of(*batches, kept=KEPT):
    """Return the sketch of batches of (tokens [b t i], which count [b t])."""
    empty = np.zeros
    sketch = eva.Sketch(
        np.int32(0),
        empty(WIDTH, np.float32),
        np.float32(0),
        empty((kept, WIDTH), np.float32),
        empty(kept, np.float32),
        empty(kept, np.float32),
    )
    for x, is_counted in batches:
        sketch = INCLUDE(sketch, x, is_counted)
    return jax.device_get(sketch)


def draw(rows, length, *, seed=0, decay=0.8):
    """Return tokens whose variances fall, about a mean that is not zero, some of them padding."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    x = rng.standard_normal((rows, length, WIDTH)) * decay ** np.arange(WIDTH) @ turn + 0.7
    return x.astype(np.float32), rng.random((rows, length)) < 0.8


def exact(*batches):
    """Return mean, singular values and right singular vectors of all tokens that count."""
    tokens = np.concatenate([x[is_counted] for x, is_counted in batches]).astype(np.float64)
    mean = tokens.mean(0)
    _, spread, directions = np.linalg.svd(tokens - mean, full_matrices=False)
    return len(tokens), mean, spread, directions


def angles(ours, theirs):
    """Return the sine of the angle between each of our directions and theirs."""
    return np.linalg.norm(ours - np.sum(ours * theirs, 1, keepdims=True) * theirs, axis=1)


@pytest.mark.parametrize("decay", [0.8, 0.3])  # over the second, variances fall by 1e20
def test_one_batch_gives_the_exact_mean_spread_and_directions(decay):
    batch = draw(3, 30, decay=decay)
    sketch = sketch_of(batch)
    num_tokens, mean, spread, directions = exact(batch)
    assert sketch.num_tokens == num_tokens
    np.testing.assert_allclose(sketch.mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sketch.scatter, (spread**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(sketch.spread, spread[:KEPT], rtol=1e-4)
    assert angles(sketch.directions, directions[:KEPT]).max() < 1e-4
    assert not sketch.likeness.any()  # there was nothing before


def test_several_batches_are_as_one():
    batches = [draw(2, 30, seed=seed, decay=0.5) for seed in range(4)]
    # Of other means and directions: one that forgot to move the mean would be found out.
    batches = [(x + np.float32(n), counted) for n, (x, counted) in enumerate(batches)]
    sketch = sketch_of(*batches)
    num_tokens, mean, spread, _ = exact(*batches)
    assert sketch.num_tokens == num_tokens
    np.testing.assert_allclose(sketch.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sketch.scatter, (spread**2).sum(), rtol=1e-4)
    # What was not kept of one batch is not there for the next: the largest lose nearly nothing.
    np.testing.assert_allclose(sketch.spread[:3], spread[:3], rtol=0.02)


def test_directions_are_orthonormal_and_the_largest_entry_is_positive():
    directions = sketch_of(draw(2, 30), draw(3, 20, seed=1)).directions
    np.testing.assert_allclose(directions @ directions.T, np.eye(KEPT), atol=1e-5)
    assert (directions[np.arange(KEPT), np.abs(directions).argmax(1)] > 0).all()


@hypothesis.given(st.integers(0, 1000))
@hypothesis.settings(max_examples=20)
def test_no_other_subspace_explains_more(seed):
    x, is_counted = batch = draw(2, 30)
    tokens = x[is_counted] - x[is_counted].mean(0)
    sketch = sketch_of(batch)
    other, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDTH, KEPT)))
    for rank in range(1, KEPT + 1):
        ours = (tokens @ sketch.directions[:rank].T) ** 2
        assert ours.sum() >= ((tokens @ other[:, :rank]) ** 2).sum()
        np.testing.assert_allclose(ours.sum(), (sketch.spread[:rank] ** 2).sum(), rtol=1e-4)


def test_what_does_not_count_is_not_seen():
    x, is_counted = draw(2, 30)
    other = np.where(is_counted[..., None], x, np.float32("nan"))
    for ours, theirs in zip(
        sketch_of((x, is_counted)), sketch_of((other, is_counted)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_batch_of_nothing_changes_nothing_that_counts():
    x, is_counted = batch = draw(2, 30)
    nothing = x, np.zeros_like(is_counted)
    _, _, spread, directions = exact(batch)
    for sketch in (sketch_of(batch, nothing), sketch_of(nothing, batch)):
        np.testing.assert_allclose(sketch.spread, spread[:KEPT], rtol=1e-3)
        assert angles(sketch.directions, directions[:KEPT]).max() < 2e-3


def test_directions_are_found_once_the_same_is_seen_again():
    batch = draw(2, 30)
    assert eva.is_found(sketch_of(batch, batch), KEPT, 0.999)
    other = sketch_of(batch, tuple(np.flip(part, -1) for part in draw(9, 30, seed=5)))
    assert not eva.is_found(other, KEPT, 0.999)
    assert eva.is_found(other, 0, 0.999)


shares = st.lists(
    st.lists(st.floats(0, 1, width=16), min_size=1, max_size=5).map(
        lambda each: np.array(sorted(each, reverse=True))
    ),
    min_size=1,
    max_size=6,
)


@hypothesis.given(shares, st.data())
def test_ranks_sum_to_the_budget_and_no_exchange_explains_more(ratios, data):
    budget = data.draw(st.integers(0, sum(map(len, ratios))))
    ranks = eva.allocate(ratios, budget)
    assert sum(ranks) == budget
    assert all(0 <= rank <= len(each) for rank, each in zip(ranks, ratios, strict=True))
    taken = [each[rank - 1] for each, rank in zip(ratios, ranks, strict=True) if rank]
    left = [each[rank] for each, rank in zip(ratios, ranks, strict=True) if rank < len(each)]
    assert not (taken and left) or min(taken) >= max(left)


def test_of_equal_shares_the_first_module_gets_the_odd_rank():
    same = np.array([0.5, 0.3, 0.1])
    assert eva.allocate([same, same, same], 7) == [3, 2, 2]
    assert eva.allocate([same, same, same], 5) == [2, 2, 1]


def eva_config(**fields):
    return LoraConfig(init_lora_weights="eva", **fields)


def sites_of(config, family=llama.LLAMA, spec=tiny.SPEC):
    asked = targets.adapted_network(config, family, spec)
    return eva.sites(asked, base_network(spec), family, config.eva_config.rho)


def test_modules_that_read_one_input_can_get_what_the_largest_can_but_no_more_than_they_are():
    config = eva_config(
        r=8, target_modules="all-linear", rank_pattern={"v_proj": 30}, eva_config={"rho": 2.0}
    )
    most = {site.module.name: site.most for site in sites_of(config)}
    in_layer = {name.rpartition(".")[2]: each for name, each in most.items() if ".1." in name}
    # k and v have 40 outputs, and v may get 60; q reads what v reads.
    assert in_layer == {
        "q_proj": 60,
        "k_proj": 40,
        "v_proj": 40,
        "o_proj": 16,
        "gate_proj": 16,
        "up_proj": 16,
        "down_proj": 16,
    }


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        (tiny.SPEC, {"attn/q": "attn/q", "attn/v": "attn/q", "mlp/gate": "mlp/up"}),
        (tiny_specs.PARALLEL, {"attn/k": "attn/q", "mlp/gate": "attn/q", "mlp/down": "mlp/down"}),
        (tiny_specs.TWO_NORMS, {"mlp/up": "mlp/up", "attn/qkv": "attn/q", "head": "head"}),
    ],
)
def test_what_reads_whose_input(spec, reads):
    assert {path: read_by(path, spec) for path in reads} == reads


@pytest.mark.parametrize("spec", [tiny.SPEC, tiny_specs.PARALLEL, tiny.POST])
def test_inputs_are_had_from_every_layer_and_are_shared_where_that_is_said(spec):
    network, micro = base_network(spec), tiny.micro_batch(2, 20)
    repeats = {block: len(layers) for block, _, layers in network.stacked_blocks()}
    paths = ["attn/q", "attn/k", "attn/v", "attn/o", "mlp/up", "mlp/down"]
    kept = {
        block: {path: np.zeros(count, np.float32) for path in paths}
        for block, count in repeats.items()
    }
    outside = ["head"] if spec.embed_dim == spec.model_dim else ["head", "embed_in", "embed_out"]
    kept[""] = dict.fromkeys(outside, np.float32(0))

    @jax.jit
    def squares(tree, micro):
        rows = (micro["input_ids"], micro["segment_ids"], micro["positions"])
        where = {"mesh": tiny.one_device(), "dtype": "float32"}
        hidden = forward.hidden_states(network, tree, *rows, **where)
        add = lambda total, x: total + (x**2).sum()  # noqa: E731
        return forward.fold_inputs(network, tree, kept, add, *rows, **where), (hidden**2).sum()

    found, of_hidden = squares(tiny.random_leaves(network), micro)
    assert trees.flatten(found).keys() == trees.flatten(kept).keys()
    assert float(found[""]["head"]) == pytest.approx(float(of_hidden), rel=1e-6)
    for block, count in repeats.items():
        for path in paths:
            assert found[block][path].shape == (count,)
            np.testing.assert_array_equal(found[block][path], found[block][read_by(path, spec)])
        different = {read_by(path, spec) for path in paths}
        assert len({float(found[block][path][0]) for path in different}) == len(different)


def test_decided_ranks_become_patterns_that_keep_the_scaling():
    config = eva_config(
        r=4, lora_alpha=6, target_modules=["q_proj", "o_proj"], alpha_pattern={"o_proj": 5}
    )
    sites = sites_of(config)
    ranks = {site.module.name: rank for site, rank in zip(sites, [4, 4, 7, 0, 6, 3], strict=True)}
    decided = eva.decided(config, sites, ranks, [])
    layer = "model.layers.{}.self_attn.{}_proj".format
    assert decided.rank_pattern == {layer(1, "q"): 7, layer(2, "q"): 6, layer(2, "o"): 3}
    assert decided.alpha_pattern == {
        layer(0, "o"): 5,
        layer(1, "q"): 10.5,
        layer(2, "q"): 9.0,
        layer(2, "o"): 3.75,
    }
    assert decided.target_modules == [name for name, rank in ranks.items() if rank]
    network = targets.adapted_network(decided, llama.LLAMA, tiny.SPEC)
    # One group all the same: zeros fill up the smaller ranks, and stand where there is none.
    (group,) = network.groups
    assert {path: adapter.ranks for path, adapter in group.period[0].adapters} == {
        "attn/q": (4, 7, 6),
        "attn/o": (4, 0, 3),
    }
    assert network.places()[1].adapters.keys() == {"attn/q"}
    scalings = [numbers.of(decided, name).scaling for name in decided.target_modules]
    assert scalings == [1.5 if "q_proj" in name else 1.25 for name in decided.target_modules]


def test_modules_without_a_rank_cut_no_group_where_nothing_else_of_an_adapter_is_trained():
    layer = "model.layers.{}.self_attn.{}_proj".format
    names = [layer(0, "q"), layer(1, "q"), layer(1, "v"), layer(2, "v")]

    def groups(spec=tiny.SPEC, **options):
        network = targets.adapted_network(
            eva_config(target_modules=names, **options), llama.LLAMA, spec
        )
        return [(group.first_layer, group.repeats) for group in network.groups]

    assert groups() == [(0, 3)]
    assert groups(use_dora=True) == [(0, 1), (1, 1), (2, 1)]
    # Below the first adapter, and above the last, there is the base.
    five = dataclasses.replace(tiny.SPEC, blocks=tiny.SPEC.blocks[:1] * 5)
    names = [layer(1, "q"), layer(3, "v")]
    assert groups(five) == [(0, 1), (1, 3), (4, 1)]
    # Where a recipe names layers itself, the others stay the base's.
    plain = LoraConfig(target_modules=names)
    assert len(targets.adapted_network(plain, llama.LLAMA, five).groups) == 5


def test_without_adjusting_alphas_are_as_the_recipe_has_them():
    fields = {"adjust_scaling_factors": False}
    config = eva_config(target_modules=["q_proj"], alpha_pattern={"q_proj": 3}, eva_config=fields)
    sites = sites_of(config)
    decided = eva.decided(config, sites, {site.module.name: 5 for site in sites}, [])
    assert set(decided.alpha_pattern.values()) == {3}
    assert decided.target_modules == ["q_proj"]


def test_every_a_goes_to_its_module():
    config = eva_config(r=2, target_modules=["c_attn", "lm_head"])
    network = targets.adapted_network(config, gpt2.GPT2, tiny.LEARNED)
    sites = sites_of(config, gpt2.GPT2, tiny.LEARNED)
    wanted = {
        site.module.name: np.full((2, site.module.dims[0]), n, np.float32)
        for n, site in enumerate(sites, start=1)
    }
    drawn = init.init_adapters(network, kind="eva", seed=0, mesh=tiny.one_device())
    begun = trees.flatten(eva.begun(drawn, wanted, gpt2.GPT2, network))
    shapes = trees.flatten(bind.abstract_tree(network))
    assert {path: leaf.shape for path, leaf in begun.items()} == {
        path: leaf.shape for path, leaf in shapes.items() if Address.parse(path).is_adapter
    }
    np.testing.assert_array_equal(begun["groups/0/0/attn/qkv/lora_a"][:, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(begun["head/lora_a"], wanted["lm_head"])
    assert not begun["head/lora_b"].any()


def test_an_a_of_smaller_rank_is_filled_up_with_zeros():
    name = "model.layers.{}.self_attn.q_proj".format
    config = eva_config(r=2, target_modules=[name(0), name(2)], rank_pattern={name(2): 3})
    network = targets.adapted_network(config, llama.LLAMA, tiny.SPEC)
    drawn = init.init_adapters(network, kind="eva", seed=0, mesh=tiny.one_device())
    wanted = {name(n): np.full((rank, 64), n + 1, np.float32) for n, rank in ((0, 2), (2, 3))}
    begun = trees.flatten(eva.begun(drawn, wanted, llama.LLAMA, network))
    a = begun["groups/0/0/attn/q/lora_a"]
    np.testing.assert_array_equal(a[:, :, 0], [[1, 1, 0], [0, 0, 0], [3, 3, 3]])


def test_options_of_eva_belong_to_it():
    with pytest.raises(ValueError, match="init_lora_weights=True"):
        LoraConfig(eva_config={"rho": 1.0})
    assert eva_config().eva_config.rho == 2.0
    for wrong in ({"rho": 0.5}, {"tau": 1.5}, {"label_mask_value": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            eva_config(eva_config=wrong)
