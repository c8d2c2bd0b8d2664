"""What LoRA trains: the adapters' leaves, and no other."""

import tiny
import tiny_specs

from jaxft import tree as trees
from jaxft.lora import mask
from jaxft.models import bind


def test_mask_marks_every_adapter_leaf_and_nothing_else():
    network = tiny.adapted(head=True)
    marks = trees.flatten(mask.trainable_mask(network, bind.abstract_tree(network)))
    marked = {path for path, trained in marks.items() if trained}
    assert marked == {
        f"{module}/lora_{side}"
        for module in [*(f"groups/0/0/{name}" for name in tiny.MODULES), "head"]
        for side in "ab"
    }


def test_what_adapters_began_as_and_their_numbers_are_frozen():
    leaves = bind.abstract_tree(tiny.adapted(head=True, start=True))
    trained, frozen = tiny.split(leaves, tiny.adapted(head=True, start=True))
    assert trained == tiny.split(bind.abstract_tree(tiny.adapted(head=True)))[0]
    added = {path for path in trees.flatten(frozen) if "lora_" in path}
    began = {f"{path}0" for path in trees.flatten(trained)}
    modules = [*(f"groups/0/0/{name}" for name in tiny.MODULES), "head"]
    assert added == began | {f"{module}/lora_scaling" for module in modules}


def test_mask_marks_the_leaves_that_the_network_names():
    network = tiny.adapted(
        modules=["attn/q"], layers=[0], trained=["mlp_norm/scale"], outer_trained=["embed/kernel"]
    )
    marks = trees.flatten(mask.trainable_mask(network, bind.abstract_tree(network)))
    assert {path for path, trained in marks.items() if trained} == {
        "embed/kernel",
        "groups/0/0/mlp_norm/scale",
        "groups/0/0/attn/q/lora_a",
        "groups/0/0/attn/q/lora_b",
    }


def test_mask_marks_trained_rows_and_adapters_on_tables():
    network = tiny.adapted(tiny_specs.PARALLEL, modules=[], rows={"head": (3,)}, outside=["embed"])
    marks = trees.flatten(mask.trainable_mask(network, bind.abstract_tree(network)))
    trained = {path for path, trained in marks.items() if trained}
    assert trained == {"embed/lora_a", "embed/lora_b", "head/rows"}


def test_adapter_of_rank_r_has_r_times_in_plus_out_parameters_a_layer():
    trainable, _ = tiny.split(bind.abstract_tree(tiny.adapted()))
    widths = (64 + 80) + (64 + 40) + (160 + 64)  # q, v, down
    assert trees.num_parameters(trainable) == 3 * tiny.RANK * widths


def test_zeros_beyond_the_rank_of_a_layer_are_no_trained_parameters():
    network = tiny.adapted(ranks=[1, 4, 0], start=True)
    widths = (64 + 80) + (64 + 40) + (160 + 64)  # q, v, down
    assert mask.num_trained(network) == (1 + 4 + 0) * widths
