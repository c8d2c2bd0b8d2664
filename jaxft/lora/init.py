"""Random initial values of adapters, by the methods of PEFT.

A draw depends only on the seed, the module and the layer's index, not on how layers are grouped.
Philox is counter-based and fully specified, so draws are the same on every machine.

Source: `peft/tuners/lora/layer.py: LoraLayer.reset_lora_parameters` and `orthogonal_init`. torch's
Kaiming-uniform with a = sqrt(5), its default for linear layers, is U(-1/sqrt(in), 1/sqrt(in)).
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.errors import AdapterError
from jaxft.leaves.address import Address
from jaxft.models.bind import abstract_tree
from jaxft.models.network import EMBED, POSITIONS, Adapters, Network
from jaxft.parallel import mesh as meshes


class Start(NamedTuple):
    """The initial values of one adapter: A [rank, in], B [rank, out], the bias [out]; float32."""

    lora_a: np.ndarray
    lora_b: np.ndarray
    lora_bias: np.ndarray


Draw = Callable[[np.random.Generator, int, int, int], Start]  # (generator, rank, in, out) -> Start


def init_adapters(network: Network, *, kind: bool | str, seed: int, mesh: Mesh) -> trees.Tree:
    """Return fresh adapter leaves, float32, replicated.

    Args:
        network: The network, which says which adapters there are.
        kind: The value of `LoraConfig.init_lora_weights`.
        seed: The seed of the draws.
        mesh: The devices to hold the leaves.

    Raises:
        AdapterError: If the kind does not allow a rank: "orthogonal" needs even ranks.
    """
    shapes = trees.flatten(abstract_tree(network))
    stacks: dict[str, tuple[Adapters, list[int]]] = {"": (network.outer_adapters, [-1])}
    for prefix, described, indices in network.stacked_blocks():
        stacks[prefix] = (described.adapters, indices)
    sharding = meshes.replicated(mesh)
    leaves: dict[str, Any] = {}
    for path, leaf in shapes.items():
        address = Address.parse(path)
        block, module = address.block, address.module
        # `starts` computes A and B of adapters that have a start.
        if address.part != "lora_a" or address.beside("lora_a0") in shapes:
            continue
        width, num_in = leaf.shape[-2:]
        num_out = shapes[address.beside("lora_b")].shape[-1]
        if module in (EMBED, POSITIONS):
            draw = _of_table(kind, is_tied=module == EMBED and network.ties_adapters)
        else:
            draw = _STARTS[kind]
        adapters, layers = stacks[block]
        starts = [
            _widened(draw(generator(seed, module, layer), rank, num_in, num_out), width)
            for rank, layer in zip(dict(adapters)[module].ranks, layers, strict=True)
        ]
        for part in Start._fields:
            if address.beside(part) in shapes:
                drawn = [getattr(start, part) for start in starts]
                value = np.stack(drawn) if block else drawn[0]
                leaves[address.beside(part)] = jax.device_put(value, sharding)
    return trees.unflatten(leaves)


def _widened(start: Start, width: int) -> Start:
    return start._replace(lora_a=padded(start.lora_a, width), lora_b=padded(start.lora_b, width))


def padded(side: np.ndarray, width: int) -> np.ndarray:
    """Return A or B [... rank size], padded with rows of zeros to [... width size]."""
    missing = [(0, 0)] * side.ndim
    missing[-2] = (0, width - side.shape[-2])
    return np.pad(side, missing)


def generator(seed: int, module: str, layer: int) -> np.random.Generator:
    """Return the random generator of a module: "attn/q" of a layer, or "head" with layer -1."""
    key = np.array([seed, zlib.crc32(module.encode()) * 2**16 + layer + 1], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _uniform(rng: np.random.Generator, fan_in: int, shape: tuple[int, ...]) -> np.ndarray:
    return (2 * rng.random(shape, dtype=np.float32) - 1) * np.float32(fan_in**-0.5)


def _uniform_and_zero(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
    a = _uniform(rng, num_in, (rank, num_in))
    return Start(a, np.zeros((rank, num_out), np.float32), np.zeros(num_out, np.float32))


def _both_uniform(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
    a, b = _uniform(rng, num_in, (rank, num_in)), _uniform(rng, rank, (rank, num_out))
    return Start(a, b, _uniform(rng, rank, (num_out,)))


def _normal_and_zero(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
    a = rng.standard_normal((rank, num_in), np.float32) / np.float32(rank)
    return Start(a, np.zeros((rank, num_out), np.float32), np.zeros(num_out, np.float32))


def _of_table(kind: bool | str, *, is_tied: bool) -> Draw:
    """Return the draw for an adapter on a table, which is the same for every kind but `False`.

    If it is tied to the head's adapter, it is drawn like that one, with A and B exchanged.
    """
    if kind is False:
        return _both_normal
    return _mirrored(_STARTS[kind]) if is_tied else _zero_and_normal


def _zero_and_normal(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
    b = rng.standard_normal((rank, num_out), np.float32)
    return Start(np.zeros((rank, num_in), np.float32), b, np.zeros(num_out, np.float32))


def _both_normal(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
    a, b = (rng.standard_normal((rank, size), np.float32) for size in (num_in, num_out))
    return Start(a, b, np.zeros(num_out, np.float32))


def _mirrored(draw: Draw) -> Draw:
    def mirrored(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
        a, b, _ = draw(rng, rank, num_out, num_in)
        return Start(b, a, np.zeros(num_out, np.float32))

    return mirrored


def _orthogonal(rng: np.random.Generator, rank: int, num_in: int, num_out: int) -> Start:
    """Draw A and B from the two halves of one orthogonal basis, so that their product is small."""
    if rank % 2:
        raise AdapterError(
            f"lora.init_lora_weights is orthogonal, with a rank of {rank}.",
            "Orthogonal starts need even ranks: choose an even lora.r.",
        )
    basis, _ = np.linalg.qr(rng.standard_normal((rank, rank)))
    a = basis[0::2].T @ rng.standard_normal((rank // 2, num_in)) / 10
    b = basis[1::2].T @ rng.standard_normal((rank // 2, num_out)) / 10
    return Start(a.astype(np.float32), b.astype(np.float32), np.zeros(num_out, np.float32))


_STARTS: dict[Any, Draw] = {
    True: _uniform_and_zero,
    False: _both_uniform,
    "eva": _uniform_and_zero,  # until inputs are measured; `eva.begun` then replaces A
    "gaussian": _normal_and_zero,
    "orthogonal": _orthogonal,
}
