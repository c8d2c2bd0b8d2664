"""The table of parts says which leaves an adapter adds, and of what shape."""

import dataclasses

import pytest
import tiny

from jaxft import tree as trees
from jaxft.leaves.parts import OF_ADAPTER, PARTS
from jaxft.models import bind
from jaxft.models.adapted import Adapted
from jaxft.models.network import Adapter

PLAIN = {"lora_a", "lora_b", "lora_scaling"}
WITH = {
    "bias": {"lora_bias"},
    "is_dora": {"lora_magnitude"},
    "subtracts_start": {"lora_a0", "lora_b0"},
    "drops": {"lora_dropout"},
}
CHOICES = [field.name for field in dataclasses.fields(Adapter) if field.name != "ranks"]


def adapter(*chosen):
    return Adapter(ranks=(2, 6), **{choice: choice in chosen for choice in CHOICES})


def added(network, module):
    leaves = trees.flatten(bind.abstract_tree(network))
    prefix = f"{module}/"
    return {
        path.removeprefix(prefix): (leaf.shape, str(leaf.dtype))
        for path, leaf in leaves.items()
        if path.startswith(f"{prefix}lora_")
    }


def test_each_choice_of_an_adapter_adds_its_own_parts():
    assert {part.name for part in adapter().parts} == PLAIN
    assert set(CHOICES) == WITH.keys()
    for choice, parts in WITH.items():
        assert {part.name for part in adapter(choice).parts} == PLAIN | parts
    assert adapter(*CHOICES).parts == OF_ADAPTER


def test_modules_declare_the_parts_of_the_table():
    assert Adapted.__annotations__.keys() == {part.name for part in OF_ADAPTER}


def test_a_module_in_the_layers_has_stacked_leaves_of_the_shapes_of_the_table():
    network = tiny.adapted(modules=["mlp/down"], bias=True, drops=True, dora=True, start=True)
    rank, num_in, num_out = tiny.RANK, 160, 64
    assert added(network, "groups/0/0/mlp/down") == {
        "lora_a": ((3, rank, num_in), "float32"),
        "lora_b": ((3, rank, num_out), "float32"),
        "lora_bias": ((3, num_out), "float32"),
        "lora_magnitude": ((3, num_out), "float32"),
        "lora_a0": ((3, rank, num_in), "float32"),
        "lora_b0": ((3, rank, num_out), "float32"),
        "lora_scaling": ((3,), "float32"),
        "lora_dropout": ((3,), "uint32"),
    }


@pytest.mark.parametrize(("module", "dims"), [("head", (64, 112)), ("embed", (112, 64))])
def test_head_and_embedding_have_leaves_of_the_shapes_of_the_table(module, dims):
    network = tiny.adapted(modules=[], outside=[module])
    assert added(network, module) == {
        "lora_a": ((tiny.RANK, dims[0]), "float32"),
        "lora_b": ((tiny.RANK, dims[1]), "float32"),
        "lora_scaling": ((), "float32"),
    }


def test_a_head_tied_to_the_adapter_of_the_embedding_has_the_numbers_alone():
    network = tiny.adapted(modules=[], outside=["embed", "head"], follows=True)
    assert network.ties_adapters
    assert added(network, "head") == {"lora_scaling": ((), "float32")}


def test_a_fresh_scaling_and_fresh_magnitudes_are_one_and_all_else_is_zero():
    network = tiny.adapted(bias=True, drops=True, dora=True, start=True, head=True)
    for path, leaf in trees.flatten(bind.random_tree(network, 0)).items():
        name = path.rpartition("/")[2]
        if name in PARTS:
            assert (leaf == (name in ("lora_scaling", "lora_magnitude"))).all(), path


def test_trained_parts_are_filed_and_frozen_ones_are_not():
    for part in PARTS.values():
        assert (part.filed is not None) == (part.role == "trained")
        assert (part.start_of is not None) == (part.role == "start")
