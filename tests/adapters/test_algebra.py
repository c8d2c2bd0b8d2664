"""Algebra of adapters: what is combined is what the updates' full matrices give."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxft.adapters import algebra, compare, kinds, low_rank, serving
from jaxft.errors import AdapterError

FOLDER = Path("runs/here/adapter")
LAYERS = "base_model.model.model.layers"
SHAPES = {"self_attn.q_proj": (24, 20), "mlp.down_proj": (10, 24)}


def made(*, seed=0, rank=3, alpha=6, modules=tuple(SHAPES), layers=(0, 1), **config):
    """Return an adapter of random numbers; `rank` may be a mapping by ending."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        for module in modules:
            r = config.get("rank_pattern", {}).get(module.rpartition(".")[2], rank)
            num_in, num_out = SHAPES[module]
            stem = f"{LAYERS}.{layer}.{module}.lora_"
            tensors[f"{stem}A.weight"] = rng.standard_normal((r, num_in)).astype(np.float32)
            tensors[f"{stem}B.weight"] = rng.standard_normal((num_out, r)).astype(np.float32)
            if config.get("lora_bias"):
                tensors[f"{stem}B.bias"] = rng.standard_normal(num_out).astype(np.float32)
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": "someone/model",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": [module.rpartition(".")[2] for module in modules],
        **config,
    }
    return algebra.parse(content, tensors, FOLDER)


def saved_with(tensors, **config):
    """Return an adapter that also trains whole tensors."""
    plain = made(**config)
    return algebra.parse(plain.content, {**algebra.tensors_of(plain), **tensors}, FOLDER)


def full(adapter) -> dict[str, np.ndarray]:
    """Return the updates as full matrices, and the biases as vectors."""
    found = {}
    for name, each in adapter.updates.items():
        found[name] = each.scaling * each.b.astype(np.float64) @ each.a
        if each.bias is not None:
            found[f"{name}.bias"] = each.scaling * each.bias.astype(np.float64)
    return found


def assert_sum(result, *terms):
    """Hold a result to the weighted sum of adapters, through its files."""
    again = algebra.parse(result.content, algebra.tensors_of(result), FOLDER)
    expected: dict[str, np.ndarray] = {}
    for adapter, weight in terms:
        for name, matrix in full(adapter).items():
            expected[name] = expected.get(name, 0.0) + weight * matrix
    found = full(again)
    for name in found.keys() | expected.keys():
        zeros = np.zeros_like(found.get(name, expected.get(name)))
        np.testing.assert_allclose(found.get(name, zeros), expected.get(name, zeros), atol=2e-5)


PLAIN = made()
OTHERS = {
    "another": made(seed=1),
    "another rank and alpha": made(seed=1, rank=2, alpha=5),
    "patterns": made(seed=1, rank_pattern={"q_proj": 5}, alpha_pattern={"down_proj": 9}),
    "rank-stabilised": made(seed=1, use_rslora=True, rank=4),
    "other modules": made(seed=1, modules=["mlp.down_proj"]),
    "other layers": made(seed=1, layers=[1], layers_to_transform=[1]),
    "biases": made(seed=1, lora_bias=True),
    "more rank than the module has": made(seed=1, rank=9),
}


def test_how_an_adapter_began_does_not_hinder_a_sum():
    measured = made(init_lora_weights="eva", eva_config={"rho": 1.5})
    total = algebra.combine([(measured, 0.5), (PLAIN, 0.5)])
    assert total.lora.init_lora_weights is True
    assert "eva_config" not in total.content


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.25, -1.5), (0.0, 1.0)])
def test_a_combination_is_that_of_the_full_matrices(other, weights):
    for pair in ((PLAIN, other), (other, PLAIN)):
        terms = list(zip(pair, weights, strict=True))
        result = algebra.combine(terms)
        assert_sum(result, *terms)
        assert all(each.scaling == 1 for each in result.updates.values())


@pytest.mark.parametrize("adapter", OTHERS.values(), ids=OTHERS)
def test_scaling_changes_the_update_and_nothing_else(adapter):
    assert_sum(algebra.scale(adapter, -0.3), (adapter, -0.3))
    assert algebra.scale(adapter, -0.3).content == adapter.content
    one, same = algebra.tensors_of(algebra.scale(adapter, 1.0)), algebra.tensors_of(adapter)
    assert {name: tensor.tobytes() for name, tensor in one.items()} == {
        name: tensor.tobytes() for name, tensor in same.items()
    }


@pytest.mark.parametrize("adapter", OTHERS.values(), ids=OTHERS)
def test_an_adapter_less_itself_is_nothing(adapter):
    nothing = algebra.combine([(adapter, 1.0), (algebra.scale(adapter, -1.0), 1.0)])
    for matrix in full(nothing).values():
        np.testing.assert_allclose(matrix, 0, atol=1e-5)


@pytest.mark.parametrize("adapter", OTHERS.values(), ids=OTHERS)
def test_a_folded_adapter_is_the_same_at_one_rank_with_a_scaling_of_one(adapter):
    folded = algebra.fold(adapter)
    assert_sum(folded, (adapter, 1.0))
    ranks = {each.rank for each in folded.updates.values()}
    assert ranks == {folded.lora.r} == {max(each.rank for each in adapter.updates.values())}
    assert (folded.lora.rank_pattern, folded.lora.alpha_pattern) == ({}, {})
    assert (folded.lora.lora_alpha, folded.lora.use_rslora) == (folded.lora.r, False)


def test_ranks_add_up_until_the_module_has_no_more():
    small, large = OTHERS["another"], OTHERS["more rank than the module has"]
    ranks = [
        {name.rpartition(".")[2]: each.rank for name, each in result.updates.items()}
        for result in (algebra.combine([(PLAIN, 1.0), (each, 1.0)]) for each in (small, large))
    ]
    assert ranks == [{"q_proj": 6, "down_proj": 6}, {"q_proj": 12, "down_proj": 10}]


def test_a_sum_over_the_same_targets_keeps_them_and_one_over_others_names_its_modules():
    same = algebra.combine([(PLAIN, 1.0), (OTHERS["another"], 1.0)])
    assert same.lora.target_modules == ["q_proj", "down_proj"]
    fewer = algebra.combine([(PLAIN, 1.0), (OTHERS["other layers"], 1.0)])
    assert fewer.lora.target_modules == list(PLAIN.updates)
    assert fewer.lora.layers_to_transform is None
    upper = {name: 3 for name in PLAIN.updates if ".0." in name}
    assert (fewer.lora.r, fewer.lora.rank_pattern) == (6, upper)


def test_what_was_trained_whole_is_interpolated_and_never_scaled():
    name = "base_model.model.lm_head.weight"
    saved = {"modules_to_save": ["lm_head"]}
    one, two = (saved_with({name: np.full((4, 2), v)}, seed=int(v), **saved) for v in (1.0, 2.0))
    between = algebra.combine([(one, 0.75), (two, 0.25)])
    np.testing.assert_array_equal(between.whole[name], np.full((4, 2), 1.25, np.float32))
    for wrong in (
        lambda: algebra.combine([(one, 1.0), (two, 1.0)]),
        lambda: algebra.combine([(one, 0.5), (PLAIN, 0.5)]),
        lambda: algebra.scale(one, 0.5),
    ):
        with pytest.raises(
            AdapterError, match=r"has lm_head\.weight, which was trained as a whole"
        ):
            wrong()
    other = saved_with({name: np.ones((4, 3))}, **saved)
    with pytest.raises(AdapterError, match="has other shapes"):
        algebra.combine([(one, 0.5), (other, 0.5)])


@pytest.mark.parametrize("name", ["lm_head.base_layer.weight", "model.embed_tokens.weight"])
def test_what_is_of_the_base_is_kept_beside_an_adapter_and_must_be_one(name):
    name = f"base_model.model.{name}"
    one, same = (saved_with({name: np.ones((4, 2))}, seed=seed) for seed in (1, 2))
    for result in (
        algebra.scale(one, 0.5),
        algebra.fold(one),
        algebra.combine([(one, 1.0), (same, 0.5)]),
        algebra.combine([(PLAIN, 1.0), (one, 1.0)]),
    ):
        np.testing.assert_array_equal(algebra.tensors_of(result)[name], np.ones((4, 2)))
        assert (result.whole, result.num_parameters % 2) == ({}, 0)
    rounded = saved_with({name: np.ones((4, 2), ml_dtypes.bfloat16)})
    assert algebra.tensors_of(algebra.combine([(one, 1.0), (rounded, 0.5)]))[name].all()
    other = saved_with({name: np.zeros((4, 2))})
    with pytest.raises(AdapterError, match="trained on other embeddings"):
        algebra.combine([(one, 1.0), (other, 1.0)])


def test_what_peft_saves_twice_of_a_trained_module_is_read_once():
    again = {
        f"base_model.model.lm_head.{each}weight": np.ones((4, 2))
        for each in ("", "modules_to_save.", "original_module.")
    }
    adapter = saved_with(again, modules_to_save=["lm_head"])
    assert list(adapter.whole) == ["base_model.model.lm_head.weight"]
    assert list(adapter.beside) == ["base_model.model.lm_head.original_module.weight"]


def test_adapters_of_other_bases_are_refused():
    other = made(base_model_name_or_path="someone/else")
    with pytest.raises(AdapterError, match=r"is for someone/model, and .* for someone/else"):
        algebra.check_base(PLAIN, other)
    algebra.check_base(PLAIN, algebra.with_base(other, "someone/model"))
    tensors = algebra.tensors_of(PLAIN)
    name = next(name for name in tensors if "lora_A" in name)
    wide = algebra.parse(PLAIN.content, {**tensors, name: np.zeros((3, 30))}, FOLDER)
    for compared in (lambda: algebra.combine([(PLAIN, 1.0), (wide, 1.0)]),
                     lambda: compare.differences(PLAIN, wide)):  # fmt: skip
        with pytest.raises(AdapterError, match=r"24 x 10 in .*, and 24 x 30"):
            compared()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, name: t.pop(name), "has lora_B.weight alone"),
        (lambda t, name: t.update({name: np.zeros((4, 24))}), r"tensors of \(4, 24\) and"),
        (
            lambda t, _: t.update({"base_model.model.x.lora_E": np.ones(2)}),
            "is of a kind",
        ),
    ],
)
def test_tensors_that_make_no_adapter_are_refused(change, message):
    tensors = algebra.tensors_of(PLAIN)
    change(tensors, f"{LAYERS}.0.self_attn.q_proj.lora_A.weight")
    with pytest.raises(AdapterError, match=message) as raised:
        algebra.parse(PLAIN.content, tensors, FOLDER)
    assert str(FOLDER) in raised.value.found


def test_singular_values_and_products_are_those_of_the_full_matrices():
    one, two = (next(iter(full(each).values())) for each in (PLAIN, OTHERS["biases"]))
    first, second = (next(iter(each.updates.values())) for each in (PLAIN, OTHERS["biases"]))
    values = np.linalg.svd(one, compute_uv=False)[: first.rank]
    np.testing.assert_allclose(low_rank.singular_values(first), values, rtol=1e-5)
    assert low_rank.norm(first) == pytest.approx(np.linalg.norm(one), rel=1e-5)
    assert low_rank.inner(first, second) == pytest.approx(np.sum(one * two), rel=1e-4)
    assert low_rank.distance(first, second) == pytest.approx(np.linalg.norm(one - two), rel=1e-5)


def test_the_effective_rank_counts_directions():
    for values, expected in (([2, 2, 2, 0], 3), ([5, 0, 0, 0], 1.0), ([0, 0], 0)):
        assert low_rank.effective_rank(np.array(values, float)) == pytest.approx(expected)


def test_a_summary_has_a_line_for_each_kind():
    other = OTHERS["patterns"]
    q, down = compare.summary(other)
    assert (q.name, q.count, q.dims, q.ranks) == ("q_proj", 2, ((24, 20),), (5,))
    assert (down.name, down.dims, down.ranks) == ("down_proj", ((10, 24),), (3,))
    assert other.num_parameters == 2 * (5 * (24 + 20) + 3 * (10 + 24))
    matrix = full(other)["model.layers.0.self_attn.q_proj"]
    assert q.largest >= np.linalg.norm(matrix, 2) * 0.99999
    norms = [np.linalg.norm(m) for name, m in full(other).items() if "q_proj" in name]
    assert q.norm == pytest.approx(np.linalg.norm(norms), rel=1e-5)
    assert 1 <= q.effective_rank <= 5


def test_differences_are_those_of_all_layers_together():
    other = OTHERS["other layers"]
    q = compare.differences(PLAIN, other)[0]
    ours, theirs = ({n: m for n, m in full(each).items() if "q_proj" in n}
                    for each in (PLAIN, other))  # fmt: skip
    one = np.stack([ours[name] for name in ours])
    two = np.stack([theirs.get(name, np.zeros((20, 24))) for name in ours])
    assert q.distance == pytest.approx(np.linalg.norm(one - two), rel=1e-5)
    cosine = np.sum(one * two) / np.linalg.norm(one) / np.linalg.norm(two)
    assert q.cosine == pytest.approx(cosine, rel=1e-4)
    same = compare.differences(PLAIN, PLAIN)[0]
    assert (same.relative, same.cosine) == (pytest.approx(0, abs=1e-7), pytest.approx(1))
    nothing = compare.differences(algebra.scale(PLAIN, 0.0), PLAIN)[0]
    assert np.isnan(nothing.cosine)
    assert np.isinf(nothing.relative)


def test_configurations_that_say_the_same_do_not_differ():
    other = made(seed=1, modules=[*reversed(SHAPES)], lora_dropout=0.0)
    assert compare.config_differences(PLAIN, other) == []
    assert compare.config_differences(PLAIN, OTHERS["another rank and alpha"]) == [
        ("r", 3, 2),
        ("lora_alpha", 6, 5),
    ]
    shared = compare.shared_tensors(PLAIN, OTHERS["other layers"])
    assert [len(each) for each in (shared.equal, shared.different)] == [0, 4]
    assert [len(each) for each in (shared.only_first, shared.only_second)] == [4, 0]


def test_kinds_have_the_shortest_names_that_tell_them_apart():
    names = [f"transformer.h.{n}.{m}" for n in range(2) for m in ("attn.c_proj", "mlp.c_proj")]
    assert kinds.grouped([*names, "lm_head"]) == {
        "attn.c_proj": names[0::2],
        "mlp.c_proj": names[1::2],
        "lm_head": ["lm_head"],
    }


@pytest.mark.parametrize(
    ("config", "objection"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias is all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alpha_pattern": {"q_proj": 3}}, "patterns"),
    ],
)
def test_what_vllm_does_not_serve_is_told(config, objection):
    adapter = made(**config)
    found = serving.vllm_objections(adapter.content, algebra.tensors_of(adapter))
    assert len(found) == 1
    assert objection in found[0]


def test_a_plain_and_a_folded_adapter_can_be_served():
    for adapter in (PLAIN, algebra.fold(OTHERS["patterns"]), OTHERS["rank-stabilised"]):
        assert serving.vllm_objections(adapter.content, algebra.tensors_of(adapter)) == []
    assert serving.vllm_objections({"r": 3}, []) == [
        "lora_alpha is missing",
        "target_modules is missing",
    ]
