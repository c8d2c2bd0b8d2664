"""Which modules are adapted, by PEFT's rules of matching names."""

import dataclasses

import pytest
import tiny

from jaxft import tree as trees
from jaxft.config import LoraConfig, TuningConfig
from jaxft.errors import AdapterError
from jaxft.lora import numbers, targets, tuning
from jaxft.models.families import gpt2, llama, opt
from jaxft.weights import names

SPEC = tiny.with_windows([None] * 3)
MODULES = names.linear_modules(llama.LLAMA, SPEC)
ENDINGS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def selected(target):
    return [module.name for module in targets.select(MODULES, target)]


def test_a_list_matches_whole_endings_after_a_dot():
    assert selected(["q_proj"]) == [f"model.layers.{n}.self_attn.q_proj" for n in range(3)]
    assert selected(["self_attn.q_proj"]) == selected(["q_proj"])
    assert selected(["model.layers.1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]
    with pytest.raises(AdapterError):
        selected(["proj"])  # the end of a name, but not after a dot
    with pytest.raises(AdapterError):
        selected(["self_attn"])  # a parent is not matched


def test_a_list_keeps_the_order_of_the_model_and_takes_each_module_once():
    once = selected(["v_proj", "q_proj", "self_attn.q_proj"])
    assert once == [
        f"model.layers.{n}.self_attn.{kind}_proj" for n in range(3) for kind in ("q", "v")
    ]


def test_a_string_is_a_regular_expression_for_the_whole_name():
    assert selected(r".*\.layers\.[02]\.self_attn\.[qv]_proj") == [
        f"model.layers.{n}.self_attn.{kind}_proj" for n in (0, 2) for kind in ("q", "v")
    ]
    with pytest.raises(AdapterError):
        selected("q_proj")  # a part of a name is not the whole
    with pytest.raises(AdapterError):
        selected(r"model\.layers")


def test_all_linear_is_every_linear_module_but_the_head():
    found = selected("all-linear")
    assert len(found) == 3 * 7
    assert {name.rpartition(".")[2] for name in found} == set(ENDINGS)
    assert "lm_head" not in found


def test_the_head_is_adapted_where_it_is_named():
    network = targets.adapted_network(LoraConfig(target_modules=["lm_head"]), llama.LLAMA, SPEC)
    assert [name for name, _ in network.outer_adapters] == ["head"]
    assert selected(["lm_head"]) == selected("lm_head") == ["lm_head"]


def test_null_is_pefts_choice_for_the_family():
    config = LoraConfig()
    assert targets.target_modules(config, llama.LLAMA) == ["q_proj", "v_proj"]
    network = targets.adapted_network(config, llama.LLAMA, SPEC)
    (layer,) = network.groups[0].period
    assert [name for name, _ in layer.adapters] == ["attn/q", "attn/v"]


def test_no_match_lists_the_names_and_the_nearest():
    with pytest.raises(AdapterError) as raised:
        selected(["q_proj", "q_porj"])
    assert "'q_porj', which matches no linear module" in raised.value.found
    assert "Did you mean 'q_proj'?" in raised.value.remedy
    for ending in [*ENDINGS, "lm_head"]:
        assert ending in raised.value.remedy
    assert "model.layers.0.self_attn.q_proj" in raised.value.remedy


def test_a_broken_regular_expression_is_the_users_mistake():
    with pytest.raises(AdapterError, match=r"regular expression"):
        selected("(q_proj")


def test_layers_chosen_by_a_pattern_cut_the_groups():
    config = LoraConfig(target_modules=r".*\.layers\.[12]\..*q_proj", r=4, lora_alpha=8)
    network = targets.adapted_network(config, llama.LLAMA, SPEC)
    assert [(group.first_layer, group.repeats) for group in network.groups] == [(0, 1), (1, 2)]
    ((name, adapter),) = network.groups[1].period[0].adapters
    assert (name, adapter.ranks, adapter.drops) == ("attn/q", (4, 4), False)


ATTENTION = ("attn/q", "attn/k", "attn/v", "attn/o")


def tuned(spec=None, family=llama.LLAMA, **options):
    return targets.adapted_network(LoraConfig(**options), family, spec or SPEC)


def trained_of(network):
    """Return what is trained of each layer's own leaves, and outside."""
    return [set(layer.trained) for _, layer, _ in network.stacked_blocks()], set(
        network.outer_trained
    )


BIASED = dataclasses.replace(tiny.POST, embed_dim=64)
NORMS = {"attn_norm/bias", "mlp_norm/bias"}
LINEAR = {f"{name}/bias" for name in [*ATTENTION, "mlp/up", "mlp/down"]}


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("none", set()),
        ("lora_only", {"attn/q/bias", "attn/v/bias"}),
        ("all", LINEAR | NORMS),
    ],
)
def test_biases_are_trained_as_asked(bias, expected):
    assert trained_of(tuned(BIASED, opt.OPT, bias=bias)) == ([expected], set())
    outside = {"final_norm/bias"} if bias == "all" else set()
    assert trained_of(tuned(tiny.LEARNED, opt.OPT, bias=bias)) == ([expected], outside)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_model_without_biases_has_none_to_train(bias):
    assert trained_of(tuned(bias=bias)) == ([set()], set())


def test_the_biases_of_a_fused_module_are_all_three():
    network = tuned(tiny.LEARNED, gpt2.GPT2, bias="lora_only")
    assert trained_of(network) == ([{"attn/q/bias", "attn/k/bias", "attn/v/bias"}], set())
    assert [name for name, _ in network.groups[0].period[0].adapters] == ["attn/qkv"]


def test_modules_to_save_are_trained_with_weight_and_bias():
    network = tuned(tiny.LEARNED, opt.OPT, modules_to_save=["fc1", "embed_tokens"])
    assert trained_of(network) == ([{"mlp/up/kernel", "mlp/up/bias"}], {"embed/kernel"})
    assert network.has_own_head


def test_a_module_to_save_is_an_ending_wherever_in_a_name_it_begins():
    norms = {"attn_norm/scale", "mlp_norm/scale"}
    trained = trained_of(tuned(modules_to_save=["norm"]))
    assert all(norms <= layer for layer in trained[0])
    assert trained[1] == {"final_norm/scale"}
    assert trained_of(tuned(modules_to_save=["model.norm"]))[1] == {"final_norm/scale"}
    assert not any(trained_of(tuned(modules_to_save=["model.norm"]))[0])


def test_a_module_to_save_of_one_layer_cuts_the_groups():
    network = tuned(tiny.LEARNED, opt.OPT, modules_to_save=["layers.1.fc1"])
    assert [(group.first_layer, group.repeats) for group in network.groups] == [
        (0, 1),
        (1, 1),
        (2, 1),
    ]
    saved = {"mlp/up/kernel", "mlp/up/bias"}
    assert trained_of(network) == ([set(), saved, set()], set())


def test_a_module_to_save_gets_no_adapter():
    network = tuned(target_modules=["q_proj", "v_proj", "lm_head"], modules_to_save=["q_proj"])
    assert [name for name, _ in network.groups[0].period[0].adapters] == ["attn/v"]
    assert trained_of(network) == ([{"attn/q/kernel"}], set())
    network = tuned(target_modules=["v_proj", "lm_head"], modules_to_save=["lm_head"])
    assert (network.outer_adapters, network.outer_trained) == ((), ("head/kernel",))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["q_proj"]},
            r"both name model\.layers\.0\.self_attn\.q_proj and 2 more",
        ),
        (
            {"target_modules": ["v_proj"], "modules_to_save": ["layers.1.self_attn.v_proj"]},
            r"both name model\.layers\.1\.self_attn\.v_proj: ",
        ),
        (
            {"target_modules": ["v_proj", "lm_head"], "modules_to_save": ["lm_head"]},
            "both name lm_head: ",
        ),
    ],
)
def test_a_module_in_both_lists_is_refused(options, found):
    with pytest.raises(AdapterError, match=found):
        targets.refuse_collisions(LoraConfig(**options), llama.LLAMA, SPEC)
    with pytest.raises(AdapterError, match=found):
        tuning.tuned_network(TuningConfig(), LoraConfig(**options), llama.LLAMA, SPEC)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "modules_to_save": ["q_proj"]},
        {"target_modules": r".*\.(q_proj|v_proj)", "modules_to_save": ["q_proj"]},
        {"modules_to_save": ["q_proj"]},
        {
            "target_modules": ["v_proj"],
            "modules_to_save": ["layers.1.self_attn.v_proj"],
            "exclude_modules": ["layers.1.self_attn.v_proj"],
        },
        {
            "target_modules": ["v_proj"],
            "modules_to_save": ["layers.1.self_attn.v_proj"],
            "layers_to_transform": [0, 2],
        },
    ],
)
def test_a_module_that_one_list_alone_names_is_trained_as_a_whole_as_in_peft(options):
    config = LoraConfig(**options)
    targets.refuse_collisions(config, llama.LLAMA, SPEC)
    network = tuning.tuned_network(TuningConfig(), config, llama.LLAMA, SPEC)
    assert network == targets.adapted_network(config, llama.LLAMA, SPEC)


def test_a_module_to_save_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(AdapterError, match=r"modules_to_save has 'embed_tokenz'") as raised:
        tuned(modules_to_save=["lm_head", "embed_tokenz"])
    for name in [*ENDINGS, "embed_tokens", "input_layernorm", "norm", "lm_head"]:
        assert name in raised.value.remedy.rstrip(".").partition("It has ")[2].split(", ")
    assert raised.value.remedy.startswith("Did you mean 'embed_tokens'? ")
    with pytest.raises(AdapterError, match=r"'projector'"):
        tuned(modules_to_save=["projector"])


def test_a_rank_above_the_modules_size_raises_naming_both():
    config = LoraConfig(target_modules=["k_proj"], r=41)
    with pytest.raises(AdapterError, match=r"r=41 is larger than .*k_proj, which is 40 x 64"):
        targets.adapted_network(config, llama.LLAMA, SPEC)
    assert targets.adapted_network(LoraConfig(target_modules=["k_proj"], r=40), llama.LLAMA, SPEC)


def test_dropout_stands_before_an_adapter_on_the_head_too():
    config = LoraConfig(target_modules=["lm_head"], lora_dropout=0.1)
    spec = dataclasses.replace(SPEC, tied_head=False)
    network = targets.adapted_network(config, llama.LLAMA, spec)
    assert dict(network.outer_adapters)["head"].drops


def names_adapted(**fields):
    network = targets.adapted_network(LoraConfig(**fields), llama.LLAMA, SPEC)
    return {
        (layer, path): adapter
        for _, described, layers in network.stacked_blocks()
        for layer in layers
        for path, adapter in described.adapters
    }


def test_what_is_excluded_gets_no_adapter():
    found = names_adapted(
        target_modules="all-linear",
        exclude_modules=["mlp.up_proj", "model.layers.1.self_attn.q_proj"],
    )
    everything = names_adapted(target_modules="all-linear")
    left_out = {(0, "mlp/up"), (1, "mlp/up"), (2, "mlp/up"), (1, "attn/q")}
    assert everything.keys() - found.keys() == left_out
    by_regex = names_adapted(target_modules="all-linear", exclude_modules=r".*\.mlp\..*")
    assert {path for _, path in by_regex} == {"attn/q", "attn/k", "attn/v", "attn/o"}


def test_layers_are_counted_from_0_and_cut_the_groups():
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2])
    network = targets.adapted_network(config, llama.LLAMA, SPEC)
    assert [(group.first_layer, group.repeats) for group in network.groups] == [(0, 1), (1, 2)]
    assert names_adapted(target_modules=["q_proj"], layers_to_transform=1).keys() == {(1, "attn/q")}
    counted = {"layers_to_transform": [0], "layers_pattern": "layers"}
    assert names_adapted(target_modules=["q_proj"], **counted).keys() == {(0, "attn/q")}


def test_rank_and_alpha_follow_the_first_pattern_that_fits_and_scale_together():
    config = LoraConfig(
        target_modules=["q_proj", "v_proj"],
        r=8,
        lora_alpha=16,
        rank_pattern={r"layers\.0\.self_attn\.q_proj": 2, "q_proj": 4},
        alpha_pattern={"v_proj": 32},
    )
    q, v = ([f"model.layers.{n}.self_attn.{kind}_proj" for n in range(3)] for kind in "qv")
    assert [numbers.of(config, name) for name in q] == [(2, 8.0), (4, 4.0), (4, 4.0)]
    assert {numbers.of(config, name) for name in v} == {(8, 4.0)}
    stabilised = LoraConfig(target_modules=["q_proj"], r=4, lora_alpha=16, use_rslora=True)
    assert numbers.of(stabilised, q[0]).scaling == 8.0


def test_scaling_and_dropout_are_leaves_stacked_as_the_adapters_are():
    config = LoraConfig(
        target_modules=["q_proj", "embed_tokens"],
        r=4,
        lora_alpha=6,
        alpha_pattern={r"layers\.1\..*": 3},
        lora_dropout=0.25,
    )
    network = targets.adapted_network(config, llama.LLAMA, SPEC)
    assert len(network.groups) == 1
    found = trees.flatten(numbers.leaves(config, llama.LLAMA, network))
    assert {path: (leaf.dtype.name, leaf.tolist()) for path, leaf in found.items()} == {
        "embed/lora_scaling": ("float32", 1.5),
        "groups/0/0/attn/q/lora_scaling": ("float32", [1.5, 0.75, 1.5]),
        "groups/0/0/attn/q/lora_dropout": ("uint32", [2**30] * 3),
    }


def test_more_patterns_than_re_keeps_are_compiled_once_each():
    patterns = {f"only{number}": number for number in range(600)}
    compiled = numbers._pattern.cache_info().misses
    for number in (599, 0, 599):
        assert numbers.by_pattern(patterns, f"model.only{number}", -1) == number
    assert numbers._pattern.cache_info().misses - compiled == 600


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"exclude_modules": ["q_porj"]}, "exclude_modules has 'q_porj'"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "leaves no module"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern has 'o_proj'"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern has '\\('"),
        ({"rank_pattern": {"q_proj": 99}}, "r=99 is larger"),
        ({"layers_to_transform": [1, 7]}, "layers_to_transform has 7"),
        ({"layers_to_transform": 1, "layers_pattern": "h"}, "layers_pattern='h'"),
    ],
)
def test_a_choice_that_matches_nothing_is_an_error(fields, match):
    with pytest.raises(AdapterError, match=match):
        names_adapted(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers_pattern": "layers"},
        {"layers_to_transform": [0], "target_modules": "all-linear"},
        {"lora_bias": True, "init_lora_weights": "gaussian"},
        {"lora_bias": True, "use_dora": True},
    ],
)
def test_choices_that_contradict_each_other_are_refused(fields):
    with pytest.raises(ValueError, match="is set"):
        LoraConfig(**fields)
