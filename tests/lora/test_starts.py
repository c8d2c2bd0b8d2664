"""Adapters that begin with a part of the weights: the right part, the base as it was."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import small_models
import tiny

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.config import LoraConfig
from jaxft.lora import mask, starts, targets
from jaxft.models import families, quantized
from jaxft.models.families.family import Family
from jaxft.models.network import Network, base_network
from jaxft.parallel import mesh as meshes
from jaxft.weights import layout, names

KINDS = ["pissa", "pissa_niter_2", "olora"]
MICRO = tiny.micro_batch(2, 16)
# Each head has its own queries, keys and values, one after the other.
NEOX: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": 112,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rotary_pct": 0.5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": (small_models.LLAMA, ["k_proj", "down_proj", "lm_head"]),
    "conv1d": (small_models.GPT2 | {"vocab_size": 112}, ["c_attn", "c_proj", "c_fc"]),
    "by head": (NEOX, ["query_key_value", "dense_4h_to_h"]),
}


class Begun(NamedTuple):
    """A model with fresh adapters.

    Attributes:
        family: Its family.
        network: It, with adapters.
        lora: What they are.
        own: The base's leaves.
        tree: All leaves.
    """

    family: Family
    network: Network
    lora: LoraConfig
    own: trees.Tree
    tree: trees.Tree


@functools.cache
def begun(model: str, kind: str, seed: int = 0) -> Begun:
    config, modules = MODELS[model]
    family = families.family_of(config)
    spec = family.spec_from_config(config)
    lora = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=modules,
        rank_pattern={f"layers.1.*.{modules[1]}": 3} if model == "llama" else {},
        init_lora_weights=kind,
    )
    network = targets.adapted_network(lora, family, spec)
    own = tiny.random_leaves(base_network(spec))
    own = tiny.restacked(own, base_network(spec), network)
    made = starts.with_adapters(own, family, network, lora, seed=seed, mesh=tiny.one_device())
    return Begun(family, network, lora, own, made)


def weights(found: Begun) -> dict[str, np.ndarray]:
    """Return the weight [out, in] of every module, by name."""
    table = names.own_tensors(found.family, found.network)
    leaves = trees.flatten(found.own)
    embedding = names.embedding_name(found.family)
    made = {}
    for module in names.linear_modules(found.family, found.network.spec):
        slots = table.get(f"{module.name}.weight", table[embedding])
        tensor = layout.join(leaves, slots)
        is_transposed = found.family.is_conv1d and module.layer is not None
        made[module.name] = tensor.T if is_transposed else tensor
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_begins_with_its_part_of_the_weight_that_hugging_face_has(model, kind):
    found = begun(model, kind)
    tensors = peft_format.to_tensors(found.tree, found.family, found.network)
    ranks = set()
    for name, w in weights(found).items():
        stem = f"base_model.model.{name}.lora_"
        if f"{stem}A.weight" not in tensors:
            continue
        a, b = (tensors[f"{stem}{side}.weight"].astype(np.float64) for side in "AB")
        ranks.add(rank := len(a))
        if kind == "olora":
            q, r = np.linalg.qr(w)
            expected = q[:, :rank].astype(np.float64) @ r[:rank]
            np.testing.assert_allclose(a, r[:rank], atol=1e-5)
        elif kind == "pissa":
            u, s, vh = np.linalg.svd(w.astype(np.float64), full_matrices=False)
            expected = u[:, :rank] * s[:rank] @ vh[:rank] / (6 / rank)
        else:  # all that the weight has in the space that was found, on its longer side
            q = np.linalg.qr(b if len(w) >= len(w.T) else a.T).Q
            expected = (q @ q.T @ w if len(w) >= len(w.T) else w @ q @ q.T) / (6 / rank)
        gap = np.linalg.norm(b @ a - expected) / np.linalg.norm(expected)
        assert gap < 1e-5, name
    assert ranks == ({3, 4} if model == "llama" else {4})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_the_model_begins_as_its_base_whose_leaves_stay(model, kind):
    found = begun(model, kind)
    leaves = trees.flatten(found.tree)
    for path, leaf in trees.flatten(found.own).items():
        assert leaves[path] is leaf
    for path, leaf in trees.flatten(starts.of(found.tree)).items():
        assert leaf.dtype == np.float32
        assert np.array_equal(leaf, leaves[path.removesuffix("0")])
        assert leaf.any()
    base = base_network(found.network.spec)
    own = tiny.restacked(found.own, found.network, base)
    micro = {**MICRO, "input_ids": MICRO["input_ids"] % found.network.spec.vocab_size}
    logits = tiny.forward_logits(found.network, found.tree, micro)
    expected = tiny.forward_logits(base, own, micro)
    # The two terms are the same operations on the same numbers: nothing is left of them.
    np.testing.assert_array_equal(logits, expected)


def test_what_is_random_depends_on_the_seed_and_the_rest_does_not():
    def bytes_of(kind, seed):
        made = begun.__wrapped__("llama", kind, seed).tree
        return {k: np.asarray(v).tobytes() for k, v in trees.flatten(starts.of(made)).items()}

    assert bytes_of("pissa_niter_1", 3) == bytes_of("pissa_niter_1", 3)
    assert all(a != b for a, b in zip(*_values(bytes_of, "pissa_niter_1"), strict=True))
    assert bytes_of("pissa", 3) == bytes_of("pissa", 4)


def _values(bytes_of, kind):
    return [list(bytes_of(kind, seed).values()) for seed in (3, 4)]


def test_a_divided_base_begins_with_the_same_part():
    found = begun("llama", "olora")
    mesh = meshes.make_mesh(1, 2, 2)
    own = tiny.placed(found.own, mesh)
    tree = starts.with_adapters(own, found.family, found.network, found.lora, seed=0, mesh=mesh)
    expected = trees.flatten(found.tree)
    for path, leaf in trees.flatten(tree).items():
        assert np.array_equal(leaf, expected[path])
        assert leaf.sharding.device_set == set(jax.devices())
        assert "/lora_" not in path or leaf.sharding.is_fully_replicated


def test_a_quantized_base_begins_with_a_part_of_what_it_gives():
    found = begun("llama", "pissa")
    spec = found.network.spec

    def quantize(path: str, leaf: Any) -> Any:
        if not path.endswith("mlp/down/kernel"):
            return leaf
        made = [quantized.quantize(each, "nf4") for each in leaf]
        return jax.tree.map(lambda *slices: jax.numpy.stack(slices), *made)

    own = trees.map_with_path(quantize, found.own)
    mesh = tiny.one_device()
    tree = starts.with_adapters(own, found.family, found.network, found.lora, seed=0, mesh=mesh)
    path = "groups/0/0/mlp/down"
    a, b = (trees.flatten(tree)[f"{path}/lora_{side}0"][0] for side in "ab")
    first = jax.tree.map(lambda stack: stack[0], trees.flatten(own)[f"{path}/kernel"])
    u, s, vh = np.linalg.svd(quantized.dequantize(first))
    rank = a.shape[0]
    expected = u[:, :rank] * s[:rank] @ vh[:rank] / (6 / rank)
    np.testing.assert_allclose(np.asarray(a).T @ b, expected, atol=1e-5)
    original = trees.flatten(found.tree)[f"{path}/lora_a0"][0]
    assert not np.allclose(np.asarray(a).T @ b, np.asarray(original).T @ b, atol=1e-3)
    # On the same programs: with the start's A and B, and with adapters of nothing.
    micro = {**MICRO, "input_ids": MICRO["input_ids"] % spec.vocab_size}
    nothing = trees.map_with_path(lambda k, v: v * 0 if "/lora_" in k else v, tree)
    np.testing.assert_array_equal(
        tiny.forward_logits(found.network, tree, micro),
        tiny.forward_logits(found.network, nothing, micro),
    )


def test_a_start_is_found_again_in_the_tree():
    network = tiny.adapted(start=True, head=True)
    tree = tiny.random_leaves(network)
    assert trees.flatten(starts.of(tree)).keys() == {
        path for path in trees.flatten(tree) if path.endswith(("lora_a0", "lora_b0"))
    }
    same = trees.combine(*mask.parts(network, tree))
    assert jax.tree.all(jax.tree.map(np.array_equal, same, tree))
    again = trees.flatten(starts.as_begun(tree))
    for path, leaf in trees.flatten(tree).items():
        began = f"{path}0" if path.endswith(("lora_a", "lora_b")) else path
        assert np.array_equal(again[path], trees.flatten(tree)[began]), leaf.shape
    assert starts.of(tiny.random_leaves(tiny.adapted())) == {}
