"""A path and its address say the same; only the path of a leaf has an address."""

import family_configs
import pytest
import small_models
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxft import tree as trees
from jaxft.leaves.address import Address
from jaxft.leaves.parts import PARTS
from jaxft.models import bind, families
from jaxft.models.network import base_network

CONFIGS = [small_models.OPT, small_models.GPT2, *family_configs.CONFIGS]
TUNED = {
    "DoRA with biases": tiny.adapted(bias=True, dora=True, head=True),
    "starts": tiny.adapted(start=True, head=True),
    "many groups": tiny.adapted(tiny.with_windows(range(3, 15))),
    "fused": tiny.adapted(tiny.POST, modules=["attn/qkv"], outside=["embed_in", "embed_out"]),
    "tables": tiny.adapted(tiny.LEARNED, outside=["embed", "positions"], rows={"head": (3,)}),
}
NAMES = st.just("groups") | st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
def test_every_leaf_of_every_family_has_the_address_that_prints_its_path(config):
    network = base_network(families.family_of(config).spec_from_config(config))
    for path in trees.flatten(bind.abstract_tree(network)):
        address = Address.parse(path)
        assert str(address) == path
        assert address.is_own
        assert bool(address.block) == (address.module not in OUTSIDE)


OUTSIDE = ("embed", "head", "positions", "embed_in", "embed_out", "embed_norm", "final_norm")


@pytest.mark.parametrize("network", TUNED.values(), ids=TUNED)
def test_every_leaf_of_a_tuned_model_has_the_address_that_prints_its_path(network):
    shapes = trees.flatten(bind.abstract_tree(network))
    added = shapes.keys() - trees.flatten(bind.abstract_tree(network.untuned())).keys()
    for path in shapes:
        address = Address.parse(path)
        assert str(address) == path
        assert address.is_own == (path not in added)
        kinds = [address.is_own, address.is_adapter, address.is_start, address.is_number]
        assert kinds.count(True) == 1


@given(st.none() | st.tuples(st.integers(0), st.integers(0)), NAMES, st.none() | NAMES, NAMES)
def test_parsing_and_printing_are_inverse(block, first, second, part):
    module = first if second is None else f"{first}/{second}"
    group, position = block or (None, None)
    address = Address(group, position, module, part)
    if first == "groups":  # the name of the branch of all groups is no module's
        with pytest.raises(ValueError, match="not the path of a leaf"):
            Address.parse(str(address))
    else:
        assert Address.parse(str(address)) == address
        assert Address.parse(str(address)).block == (
            "" if block is None else f"groups/{block[0]}/{block[1]}"
        )


@given(st.text(alphabet="abg_/0123. ", max_size=24))
def test_what_is_parsed_is_printed_as_it_was(path):
    try:
        address = Address.parse(path)
    except ValueError:
        return
    assert str(address) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "kernel",
        "groups",
        "groups/0/0",
        "groups/0/0/kernel",
        "groups/0/attn/q/kernel",
        "groups/0/1/2/attn/q/kernel",
        "groups/-1/0/attn/q/kernel",
        "groups/00/1/attn/q/kernel",
        "groups/a/b/attn",
        "groups/0/1/attn/q/kernel/",
        "/groups/0/1/attn/q/kernel",
        "groups/0/1//kernel",
        "groups/0/1/groups/0/1/attn/kernel",
        "groups/attn/kernel",
        "groups/kernel",
        "groups/0/1/attn/q/lora_a/scale",
        "x/groups/0/1/attn/q/kernel",
        "attn.q.kernel",
        "attn/q/kernel\n",
        "groups/\u0661/0/attn/q/kernel",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_nonsense_is_refused_by_name(path):
    with pytest.raises(ValueError, match="is not the path of a leaf, such as") as raised:
        Address.parse(path)
    assert repr(path) in str(raised.value)


def test_an_address_in_the_layers_and_one_outside():
    inside = Address.parse("groups/0/1/attn/q/kernel")
    assert inside == Address(0, 1, "attn/q", "kernel")
    assert (inside.block, inside.beside("lora_a")) == ("groups/0/1", "groups/0/1/attn/q/lora_a")
    outside = Address.parse("head/lora_a")
    assert outside == Address(None, None, "head", "lora_a")
    assert (outside.block, outside.beside("kernel")) == ("", "head/kernel")


def marked(question: str) -> set[str]:
    parts = [*PARTS, "kernel", "bias", "scale", "beta", "my_lora_a", "lora_c"]
    return {part for part in parts if getattr(Address.parse(f"attn/q/{part}"), question)}


def test_adapters_are_trained_and_what_they_began_as_is_not():
    trained = {"lora_a", "lora_b", "lora_bias", "lora_magnitude", "rows"}
    assert marked("is_adapter") == trained
    assert marked("is_start") == {"lora_a0", "lora_b0"}
    assert marked("is_number") == {"lora_scaling", "lora_dropout"}
    assert marked("is_own") == {"kernel", "bias", "scale", "beta", "my_lora_a", "lora_c"}


def test_a_start_names_the_leaf_that_began_as_it():
    assert Address.parse("groups/2/0/mlp/up/lora_b0").start_of == "groups/2/0/mlp/up/lora_b"
    assert Address.parse("head/lora_a0").start_of == "head/lora_a"
    assert Address.parse("head/lora_a").start_of is None


def test_vectors_are_not_decayed():
    not_decayed = {"bias", "scale", "lora_bias", "lora_magnitude"}
    assert not_decayed.isdisjoint(marked("is_decayed"))
    assert marked("is_decayed") >= {"kernel", "beta", "lora_a", "lora_b", "rows"}


def test_lora_plus_trains_all_but_matrices_and_a_faster():
    faster = {"bias", "scale", "lora_b", "lora_bias", "lora_magnitude"}
    assert marked("is_faster") == faster
