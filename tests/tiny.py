"""Tiny networks, parameter trees and batches, shared by the tests of the core.

The spec is SmolLM2's with small sizes. All of them differ, from each other and from the numbers
of rows and positions, so that a swapped pair of dimensions shows, and an array found in a
compiled program can be told by its shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft import tree as trees
from jaxft.leaves.address import Address
from jaxft.lora import mask
from jaxft.models import bind, forward
from jaxft.models import dropout as dropouts
from jaxft.models.families import llama
from jaxft.models.network import (
    FROZEN,
    Adapter,
    Group,
    Layer,
    Network,
    Tuning,
    base_network,
    build_network,
)
from jaxft.models.spec import (
    AttentionSpec,
    BlockSpec,
    ConvSpec,
    Learned,
    MLPSpec,
    ModelSpec,
    NormSpec,
    Rope,
)
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules

SMOLLM2_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


def with_mixers(spec: ModelSpec, *mixers: AttentionSpec | ConvSpec) -> ModelSpec:
    """Return a spec with one layer for each mixer, and the MLP that its first layer had."""
    mlp = spec.blocks[0].mlp
    return dataclasses.replace(spec, blocks=tuple(BlockSpec(each, mlp) for each in mixers))


def with_mlp(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """Return a spec whose layers have another MLP."""
    blocks = (
        dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, **changes))
        for block in spec.blocks
    )
    return dataclasses.replace(spec, blocks=tuple(blocks))


ROPE = Rope(100_000.0, rotary_dim=20, interleaved=False, scaling=None)
MLP = MLPSpec("gated", 160, "silu", bias=False)
SPEC: ModelSpec = dataclasses.replace(
    llama.llama_spec(SMOLLM2_CONFIG),
    vocab_size=112,
    embed_dim=64,
    model_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=20,
    attn_scale=20**-0.5,
    blocks=(BlockSpec(AttentionSpec(None, ROPE), MLP),) * 3,
)
BASE = base_network(SPEC)
# What OPT and GPT-2 have and a Llama has not, but for what `POST` adds.
LEARNED: ModelSpec = dataclasses.replace(
    SPEC,
    num_kv_heads=4,
    norm=NormSpec("layer", 0.1, scale="plain", bias=True),
    positions=Learned(rows=46, offset=2),
    blocks=(BlockSpec(AttentionSpec(None, None), MLPSpec("plain", 160, "relu", bias=True)),) * 3,
    qkv_bias=True,
    out_bias=True,
)
# As the 350m OPT: norms after each sublayer and none at the end, a narrower embedding.
POST: ModelSpec = dataclasses.replace(
    LEARNED, embed_dim=48, norm_placement="post", final_norm=False
)
RANK, SCALING, DROPOUT = 6, 2.0, 0.2
MODULES = ("attn/q", "attn/v", "mlp/down")
_STARTS = ("lora_a0", "lora_b0")


def with_windows(windows: Sequence[int | None], *, rope: Rope = ROPE, **changes: Any) -> ModelSpec:
    """Return the tiny spec with one layer for each window, and other fields changed."""
    mixers = (AttentionSpec(window, rope) for window in windows)
    return dataclasses.replace(with_mixers(SPEC, *mixers), **changes)


def adapted(
    spec: ModelSpec = SPEC,
    *,
    modules: Sequence[str] = MODULES,
    layers: Sequence[int] | None = None,
    drops: bool = False,
    ranks: Sequence[int] | None = None,
    bias: bool = False,
    start: bool = False,
    dora: bool = False,
    head: bool = False,
    outside: Sequence[str] = (),
    trained: Sequence[str] = (),
    outer_trained: Sequence[str] = (),
    keeps_tie: bool = False,
    rows: Mapping[str, tuple[int, ...]] | None = None,
    follows: bool = False,
) -> Network:
    """Return the network of `spec` with adapters on `modules` of `layers` (of all, if None).

    Args:
        spec: The model.
        modules: With adapters, in a layer.
        layers: Which have something that is trained.
        drops: Whether the adapters in layers and on the head have dropout.
        ranks: The rank in each layer; `RANK` in all, if `None`.
        bias: Whether adapters have one.
        start: Whether adapters take away what they began as.
        dora: Whether they are DoRA's.
        head: Whether the head has an adapter.
        outside: Other modules outside the layers with adapters.
        trained: A layer's own leaves that are trained.
        outer_trained: The same outside the layers.
        keeps_tie: Whether a tied head stays tied to an embedding that is trained.
        rows: Tokens of which a row is trained, of "embed" and of "head".
        follows: Whether a tied head takes the embedding's adapter and rows.
    """
    adapter = Adapter((RANK,), bias, start, dora, drops)
    chosen = range(len(spec.blocks)) if layers is None else layers
    per_layer = [
        Tuning(dict.fromkeys(modules, adapter.of_ranks((rank,))), trained)
        if layer in chosen
        else FROZEN
        for layer, rank in enumerate(ranks or [RANK] * len(spec.blocks))
    ]
    outer = dict.fromkeys(outside, dataclasses.replace(adapter, drops=False))
    outer |= {"head": adapter} if head else {}
    is_copied = not {"head/kernel", "embed/kernel"}.isdisjoint(outer_trained)
    unties_head = spec.tied_head and is_copied and not keeps_tie
    network = build_network(spec, per_layer, Tuning(outer, outer_trained), unties_head=unties_head)
    return dataclasses.replace(
        network, rows=tuple(sorted((rows or {}).items())), head_follows=follows
    )


def _of_one(layer: Layer, repeat: int) -> Layer:
    """Return one layer of a stack."""
    adapters = [(path, each.of_ranks((each.ranks[repeat],))) for path, each in layer.adapters]
    return dataclasses.replace(layer, adapters=tuple(adapters))


def ungrouped(network: Network) -> Network:
    """Return the same layers, each in a group of its own."""
    layers: list[tuple[int, Layer]] = [
        (index, _of_one(layer, repeat))
        for _, layer, indices in network.stacked_blocks()
        for repeat, index in enumerate(indices)
    ]
    groups = tuple(
        Group(index, 1, (layer,)) for index, layer in sorted(layers, key=lambda item: item[0])
    )
    return dataclasses.replace(network, groups=groups)


def random_leaves(network: Network, seed: int = 0, *, dropout: float = DROPOUT) -> trees.Tree:
    """Return leaves that are all random: B, norms and biases too, kernels of unit gain.

    The numbers of adapters are not: the scaling is `SCALING`, the rate is `dropout`.
    """
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> np.ndarray:
        if Address.parse(path).is_number:
            is_scaling = path.endswith("scaling")
            number = np.float32(SCALING) if is_scaling else dropouts.threshold(dropout)
            return np.full(leaf.shape, number)
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path.rpartition("/")[2]
        if name == "scale":
            norm = network.spec.norm_of(path.split("/")[-2])
            start = 0 if norm.scale == "offset" else 1
            return (start + 0.3 * values).astype(np.float32)
        if name == "lora_magnitude":  # of columns that are about 1 long
            return (1 + 0.3 * values).astype(np.float32)
        if name in ("beta", "eps"):  # which are no weights
            return np.full(leaf.shape, {"beta": 0.5, "eps": -1e-6}[name], np.float32)
        if name in ("alpha_p", "alpha_n"):
            return values
        if name in ("bias", "lora_b", "lora_b0", "lora_bias"):
            return (0.3 * values).astype(np.float32)
        is_table = path in ("embed/kernel", "positions/kernel")
        fan_in_last = name in ("lora_a", "lora_a0", "rows") or is_table
        fan_in = leaf.shape[-1] if fan_in_last else leaf.shape[-2]
        return values * np.float32(fan_in**-0.5)

    leaves = trees.flatten(trees.map_with_path(draw, bind.abstract_tree(network)))
    clear_beyond_ranks(network, leaves)
    return trees.unflatten(leaves)


def clear_beyond_ranks(network: Network, leaves: Mapping[str, np.ndarray]) -> None:
    """Set to zero what stands in A and B of a group beyond the rank of each layer's adapter."""
    for path, leaf in leaves.items():
        for layer, rank in enumerate(ranks_of(network, path)):
            leaf[layer, rank:] = 0


def ranks_of(network: Network, path: str) -> tuple[int, ...]:
    """Return the rank in each layer of a leaf, of A or B of a stack; none of other leaves."""
    module, _, name = path.rpartition("/")
    for prefix, layer, _ in network.stacked_blocks():
        for adapted, adapter in layer.adapters:
            if module == f"{prefix}/{adapted}" and name in ("lora_a", "lora_b", *_STARTS):
                return adapter.ranks
    return ()


def layers_of(network: Network, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each layer's leaves by path within the block, in the order of the layers."""
    flat = trees.flatten(tree)
    layers: list[dict[str, Any]] = [{} for _ in network.spec.blocks]
    for prefix, _, indices in network.stacked_blocks():
        for path, leaf in flat.items():
            if path.startswith(f"{prefix}/"):
                for position, index in enumerate(indices):
                    layers[index][path.removeprefix(f"{prefix}/")] = leaf[position]
    return layers


def restacked(tree: Mapping[str, Any], source: Network, target: Network) -> trees.Tree:
    """Return the leaves of `source`, stacked as `target`, which has the same layers, wants them."""
    layers = layers_of(source, tree)
    flat = {path: leaf for path, leaf in trees.flatten(tree).items() if "groups/" not in path}
    for prefix, _, indices in target.stacked_blocks():
        for name in layers[indices[0]]:
            flat[f"{prefix}/{name}"] = np.stack([layers[index][name] for index in indices])
    return trees.unflatten(flat)


def split(tree: trees.Tree, network: Network = BASE) -> tuple[trees.Tree, trees.Tree]:
    """Return what is trained, and what is frozen: adapters, unless `network` trains leaves too."""
    return trees.partition(tree, mask.trainable_mask(network, tree))


def placed(tree: trees.Tree, mesh: jax.sharding.Mesh) -> trees.Tree:
    """Return fresh copies of the leaves, laid out by the sharding table."""
    return jax.tree.map(
        lambda leaf, sharding: jax.device_put(np.array(leaf), sharding),
        tree,
        rules.shardings(tree, mesh),
    )


def one_device() -> jax.sharding.Mesh:
    """Return the mesh over the first device."""
    return meshes.single_device_mesh()


def make_batch(rows: int, length: int, *, seed: int = 0, accumulation: int = 1) -> dict[str, Any]:
    """Return a global batch of packed rows: two texts each, padding, ragged targets."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, SPEC.vocab_size, (rows, length)).astype(np.int32)
    first = rng.integers(2, length // 2, rows)
    second = rng.integers(2, length - length // 2, rows)
    where = np.arange(length)[None, :]
    segments = np.where(where < first[:, None], 1, 2)
    segments = np.where(where < (first + second)[:, None], segments, 0).astype(np.int32)
    positions = np.where(segments == 2, where - first[:, None], where) * (segments > 0)
    follows = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
    # Rows differ much in their share of targets, so that a mean of means would show.
    supervised = follows & (rng.random(follows.shape) < np.linspace(0.05, 0.95, rows)[:, None])
    labels = np.full((rows, length), -100, np.int32)
    labels[:, :-1] = np.where(supervised, ids[:, 1:], -100)
    batch = {
        "input_ids": np.where(segments > 0, ids, 0),
        "segment_ids": segments,
        "positions": positions.astype(np.int32),
        "labels": labels,
        "row_ids": np.arange(rows, dtype=np.int32),
    }
    return {key: value.reshape(accumulation, -1, *value.shape[1:]) for key, value in batch.items()}


def micro_batch(rows: int, length: int, *, seed: int = 0) -> dict[str, Any]:
    """Return the one micro-batch of a global batch, arrays [b t]."""
    return {key: value[0] for key, value in make_batch(rows, length, seed=seed).items()}


def forward_logits(
    network: Network, tree: Mapping[str, Any], micro: Mapping[str, Any], dtype: str = "float32"
) -> np.ndarray:
    """Return the logits [b t v] of a micro-batch, compiled once for each network and dtype."""
    return np.asarray(_logits_function(network, dtype)(tree, micro))


@functools.cache
def _logits_function(network: Network, dtype: str) -> Callable[..., jax.Array]:
    mesh = one_device()

    @jax.jit
    def logits(tree: Any, micro: Any) -> jax.Array:
        hidden = forward.hidden_states(
            network,
            tree,
            micro["input_ids"],
            micro["segment_ids"],
            micro["positions"],
            mesh=mesh,
            dtype=dtype,
        )
        return forward.head_logits(network, mesh, forward.head_leaves(network, tree), hidden, None)

    return logits
