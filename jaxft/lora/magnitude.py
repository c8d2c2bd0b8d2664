"""Initial magnitudes of DoRA: the norms of the rows that they rescale, so they change nothing.

Separate from `init`, which draws A and B without the base: a magnitude is not drawn, but computed
from the base's kernels, A and B.

Source: `peft/tuners/lora/dora.py: DoraLinearLayer.update_layer`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxft import tree as trees
from jaxft.leaves.address import Address, within
from jaxft.models import dora, forward, quantized
from jaxft.models.bind import abstract_tree
from jaxft.models.linear import Materialise
from jaxft.models.network import FUSED, HEAD, Network
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules


def with_magnitudes(network: Network, tree: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
    """Return the tree with every magnitude set to the column norms of ``W + scaling * A^T B``.

    Each adapter then changes its module as it would without DoRA, and not at all if B is zero.

    Args:
        network: The network, which says which adapters have magnitudes.
        tree: All other leaves: the base's (in any dtype, quantized or sharded) and the adapters'.
        mesh: The devices of the leaves. Magnitudes are float32 and replicated.
    """
    leaves, everywhere = trees.flatten(tree), meshes.replicated(mesh)
    for path in trees.flatten(abstract_tree(network)):
        address = Address.parse(path)
        if address.part == "lora_magnitude":
            kernels, materialise = _weights(network, address, mesh)
            stored = [leaves[kernel] for kernel in kernels]
            a, b = (leaves[address.beside(side)] for side in ("lora_a", "lora_b"))
            norms = _norms(materialise, stored, a, b, leaves[address.beside("lora_scaling")])
            leaves[path] = jax.device_put(norms, everywhere)
    return trees.unflatten(leaves)


def _weights(network: Network, address: Address, mesh: Mesh) -> tuple[list[str], Materialise]:
    """Return the paths of a leaf's kernels, and the function that makes each a matrix [in, out]."""
    if address.module == HEAD:
        path, materialise = forward.head_weight(network, mesh)
        return [path], materialise
    modules = FUSED.get(address.module, (address.module,))
    # All parts of a fused module have the same sharding.
    to_matrix = quantized.ToMatrix(rules.gather(mesh, modules[0]))
    return [within(address.block, f"{module}/kernel") for module in modules], to_matrix


@functools.partial(jax.jit, static_argnums=0)
def _norms(
    materialise: Materialise, kernels: Any, a: Any, b: Any, scaling: Any
) -> Float[Array, "..."]:
    """Return the norms for one module, [out], or for a module in n stacked layers, [n out]."""

    def of_one(leaves: Any) -> jax.Array:
        kernels, a, b, scaling = leaves
        return dora.norms([materialise(each, jnp.float32) for each in kernels], a, b, scaling)

    one = (kernels, a, b, scaling)
    return of_one(one) if a.ndim == 2 else jax.lax.map(of_one, one)  # one layer at a time
