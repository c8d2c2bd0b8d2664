"""The name table, read from our side: slots for weights, modules for adapters."""

import dataclasses

import pytest
import tiny
from family_configs import CONFIGS

from jaxft import tree as trees
from jaxft.models import bind
from jaxft.models.families import FAMILIES, family_of, gpt2, gpt_neox, llama, opt
from jaxft.models.network import base_network
from jaxft.models.spec import Learned
from jaxft.weights import names

FULL = dataclasses.replace(
    tiny.with_mlp(tiny.SPEC, bias=True), tied_head=False, qkv_bias=True, out_bias=True
)
NETWORKS = {
    "plain": base_network(tiny.SPEC),
    "everything": base_network(FULL),
    "twelve groups": base_network(tiny.with_windows(range(3, 15))),
    "periods": base_network(tiny.with_windows([4, 4, None] * 3 + [4])),
}
GPT2 = dataclasses.replace(tiny.LEARNED, positions=Learned(rows=40, offset=0))
CASES = [
    *(
        (family_of(config), base_network(family_of(config).spec_from_config(config)))
        for config in CONFIGS
    ),
    *(
        (family, network)
        for family in (llama.LLAMA, llama.MISTRAL)
        for network in NETWORKS.values()
    ),
    (opt.OPT, base_network(tiny.LEARNED)),
    (opt.OPT, base_network(tiny.POST)),
    (opt.OPT, base_network(dataclasses.replace(tiny.POST, tied_head=False))),
    (gpt2.GPT2, base_network(GPT2)),
    (gpt2.GPT2, tiny.adapted(GPT2, modules=["attn/qkv"], layers=[1])),
    (llama.LLAMA, tiny.adapted(outer_trained=["head/kernel"])),
]


def test_every_family_is_tried():
    assert {family for family, _ in CASES} == set(FAMILIES)


def parts_of(family, network):
    return [part for parts in names.slots(family, network).values() for part in parts]


@pytest.mark.parametrize(("family", "network"), CASES)
def test_every_slice_of_every_leaf_is_filled_by_exactly_one_tensor(family, network):
    slots = [(part.path, part.index) for part in parts_of(family, network)]
    assert len(slots) == len(set(slots))
    expected = {
        (path, index)
        for path, leaf in trees.flatten(bind.abstract_tree(network)).items()
        for index in ([(n,) for n in range(leaf.shape[0])] if path.startswith("groups/") else [()])
        if "lora_" not in path
    }
    assert set(slots) == expected


def test_a_layers_tensor_goes_to_the_slice_that_the_groups_give_it():
    table = names.slots(llama.LLAMA, NETWORKS["periods"])
    (slot,) = table["model.layers.7.mlp.down_proj.weight"]
    assert slot == names.Slot(
        "groups/0/1/mlp/down/kernel", (2,), transposed=True, outputs=None, columns=None
    )
    (slot,) = table["model.layers.9.input_layernorm.weight"]
    assert slot == names.Slot(
        "groups/1/0/attn_norm/scale", (0,), transposed=False, outputs=None, columns=None
    )
    tenth = names.slots(llama.LLAMA, NETWORKS["twelve groups"])
    (slot,) = tenth["model.layers.10.self_attn.q_proj.weight"]
    assert slot.path == "groups/10/0/attn/q/kernel"


def test_a_fused_tensor_is_cut_by_its_outputs():
    table = names.slots(gpt2.GPT2, base_network(dataclasses.replace(GPT2, num_kv_heads=2)))
    for leaf, name in (("kernel", "weight"), ("bias", "bias")):
        assert table[f"transformer.h.2.attn.c_attn.{name}"] == tuple(
            names.Slot(
                f"groups/0/0/attn/{part}/{leaf}", (2,), transposed=False, outputs=cut, columns=None
            )
            for part, cut in zip("qkv", names.side_by_side([80, 40, 40], 1), strict=True)
        )


@pytest.mark.parametrize("leaf", ["head/kernel", "embed/kernel"])
def test_a_head_that_was_tied_begins_as_a_copy_of_the_embedding_and_then_is_its_own(leaf):
    network = tiny.adapted(outer_trained=[leaf])
    embedding = names.Slot("embed/kernel", (), transposed=False, outputs=None, columns=None)
    head = names.Slot("head/kernel", (), transposed=True, outputs=None, columns=None)
    table = names.slots(llama.LLAMA, network)
    assert table["model.embed_tokens.weight"] == (embedding, head)
    assert "lm_head.weight" not in table
    own = names.own_tensors(llama.LLAMA, network)
    assert own["model.embed_tokens.weight"] == (embedding,)
    assert own["lm_head.weight"] == (head,)


@pytest.mark.parametrize(("family", "network"), CASES)
def test_owned_leaves_are_all_leaves_but_buffers_and_the_head(family, network):
    owned = names.owned_leaves(family, network.spec)
    plain = base_network(network.spec)
    prefixes = {layer: prefix for prefix, _, layers in plain.stacked_blocks() for layer in layers}
    found = [
        (path if one.layer is None else f"{prefixes[one.layer]}/{path}", one.layer)
        for one in owned
        for path in one.leaves
    ]
    assert len(found) == len(set(found))
    buffers = {leaf for line in family.tensors if line.is_buffer for leaf in line.ours}
    leaves = {
        path
        for path in trees.flatten(bind.abstract_tree(plain))
        if not any(path.endswith(f"/{buffer}") for buffer in buffers)
    }
    assert {path for path, _ in found} == leaves | {"head/kernel"}


def test_a_tensor_that_files_call_otherwise_is_written_as_they_do():
    assert names.file_name("lm_head.weight", gpt_neox.GPT_NEOX) == "embed_out.weight"
    assert names.file_name("gpt_neox.embed_in.weight", gpt_neox.GPT_NEOX) == (
        "gpt_neox.embed_in.weight"
    )


def test_expected_shapes_are_torchs():
    network = NETWORKS["everything"]
    table, shapes = names.slots(llama.LLAMA, network), names.leaf_shapes(network)

    def shape(name):
        return names.expected_shape(table[name], shapes)

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


def test_a_fused_module_is_one_of_all_its_outputs():
    modules = {
        module.name: module
        for module in names.linear_modules(gpt2.GPT2, dataclasses.replace(GPT2, num_kv_heads=2))
    }
    fused = modules["transformer.h.1.attn.c_attn"]
    assert (fused.path, fused.layer, fused.dims) == ("attn/qkv", 1, (64, 160))
    assert len(modules) == 3 * 4 + 1
    narrow = {module.name: module for module in names.linear_modules(opt.OPT, tiny.POST)}
    assert narrow["model.decoder.project_in"].dims == (48, 64)
    assert narrow["model.decoder.project_out"].dims == (64, 48)
    assert narrow["lm_head"].dims == (48, 112)
