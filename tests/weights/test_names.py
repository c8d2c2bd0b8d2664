"""The name table, read from our side: slots for weights, modules for adapters."""

import dataclasses

import pytest
import tiny

from jaxft import tree as trees
from jaxft.models import bind
from jaxft.models.families import FAMILIES, llama
from jaxft.models.network import base_network
from jaxft.weights import names

FULL = dataclasses.replace(tiny.SPEC, tied_head=False, qkv_bias=True, out_bias=True, mlp_bias=True)
NETWORKS = {
    "plain": base_network(tiny.SPEC),
    "everything": base_network(FULL),
    "twelve groups": base_network(tiny.with_windows(range(3, 15))),
    "periods": base_network(tiny.with_windows([4, 4, None] * 3 + [4])),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_slice_of_every_leaf_is_filled_by_exactly_one_tensor(family, network):
    slots = [(slot.path, slot.index) for slot in names.slots(family, network).values()]
    assert len(slots) == len(set(slots))
    expected = {
        (path, index)
        for path, leaf in trees.flatten(bind.abstract_tree(network)).items()
        for index in (range(leaf.shape[0]) if path.startswith("groups/") else [None])
    }
    assert set(slots) == expected


def test_a_layers_tensor_goes_to_the_slice_that_the_groups_give_it():
    table = names.slots(llama.LLAMA, NETWORKS["periods"])
    slot = table["model.layers.7.mlp.down_proj.weight"]
    assert slot == names.Slot("groups/0/1/mlp/down/kernel", 2, transposed=True)
    slot = table["model.layers.9.input_layernorm.weight"]
    assert slot == names.Slot("groups/1/0/attn_norm/scale", 0, transposed=False)
    tenth = names.slots(llama.LLAMA, NETWORKS["twelve groups"])
    assert tenth["model.layers.10.self_attn.q_proj.weight"].path == "groups/10/0/attn/q/kernel"


def test_expected_shapes_are_torchs():
    network = NETWORKS["everything"]
    table, shapes = names.slots(llama.LLAMA, network), names.leaf_shapes(network)

    def shape(name):
        return names.expected_shape(table[name], shapes[table[name].path])

    assert shape("model.embed_tokens.weight") == (112, 64)
    assert shape("lm_head.weight") == (112, 64)
    assert shape("model.layers.0.self_attn.k_proj.weight") == (40, 64)
    assert shape("model.layers.2.self_attn.o_proj.weight") == (64, 80)
    assert shape("model.layers.1.self_attn.q_proj.bias") == (80,)
    assert shape("model.norm.weight") == (64,)


def test_adapters_change_no_slot_of_the_base():
    adapted = names.slots(llama.LLAMA, tiny.adapted(head=True))
    assert adapted == names.slots(llama.LLAMA, base_network(tiny.SPEC))


def test_modules_are_listed_layer_by_layer_with_their_sizes_and_the_head_last():
    modules = names.linear_modules(llama.LLAMA, tiny.with_windows([4, None] * 3))
    assert len(modules) == 6 * 7 + 1
    assert [module.layer for module in modules[:-1]] == [n for n in range(6) for _ in range(7)]
    dims = {module.path: module.dims for module in modules}
    assert dims == {
        "attn/q": (64, 80),
        "attn/k": (64, 40),
        "attn/v": (64, 40),
        "attn/o": (80, 64),
        "mlp/gate": (64, 160),
        "mlp/up": (64, 160),
        "mlp/down": (160, 64),
        "head": (64, 112),
    }
    assert modules[8].name == "model.layers.1.self_attn.k_proj"
    assert (modules[-1].name, modules[-1].layer) == ("lm_head", None)
