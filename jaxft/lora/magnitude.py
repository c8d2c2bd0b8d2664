"""DoRA's magnitudes where they change nothing: the norms of the rows that they will rescale.

Separate from `init`, which draws A and B without knowing the base: a magnitude is not drawn, but
follows from the base's kernels, from A and from B.

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
from jaxft.models import dora, forward, quantized
from jaxft.models.bind import abstract_tree
from jaxft.models.linear import Materialise
from jaxft.models.network import FUSED, Network
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules

_LEAF = "/lora_magnitude"


def with_magnitudes(network: Network, tree: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
    """Return the tree with every magnitude at the norms of ``W + scaling * A^T B``.

    Each adapter then changes its module as it would without DoRA, and not at all where B is zero.

    Args:
        network: It says which adapters have magnitudes.
        tree: All other leaves, the base's (in any dtype, quantized or divided) and the adapters'.
        mesh: Where they are. Magnitudes are float32 and on every device.
    """
    adapters = dict(network.outer_adapters)
    for prefix, layer, _ in network.stacked_blocks():
        adapters |= {f"{prefix}/{path}": adapter for path, adapter in layer.adapters}
    leaves, everywhere = trees.flatten(tree), meshes.replicated(mesh)
    for path in trees.flatten(abstract_tree(network)):
        if path.endswith(_LEAF):
            module = path.removesuffix(_LEAF)
            kernels, materialise = _weights(network, module, mesh)
            stored = [leaves[kernel] for kernel in kernels]
            a, b = leaves[f"{module}/lora_a"], leaves[f"{module}/lora_b"]
            norms = _norms(materialise, adapters[module].scaling, stored, a, b)
            leaves[path] = jax.device_put(norms, everywhere)
    return trees.unflatten(leaves)


def _weights(network: Network, module: str, mesh: Mesh) -> tuple[list[str], Materialise]:
    """Return the paths of a module's kernels, and how each becomes a matrix [in, out]."""
    if module == "head":
        path, materialise = forward.head_weight(network, mesh)
        return [path], materialise
    paths = [module]
    for fused, parts in FUSED.items():
        if module.endswith(f"/{fused}"):
            paths = [module.removesuffix(fused) + part for part in parts]
    # Parts of one module are divided alike.
    gather = rules.gather(mesh, f"{paths[0]}/kernel")
    return [f"{path}/kernel" for path in paths], quantized.Stored(gather)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _norms(
    materialise: Materialise, scaling: float, kernels: Any, a: Any, b: Any
) -> Float[Array, "..."]:
    """Return the norms of one module, [out], or of one in every layer, [n out]."""

    def of_one(leaves: Any) -> jax.Array:
        kernels, a, b = leaves
        return dora.norms([materialise(each, jnp.float32) for each in kernels], a, b, scaling)

    one = (kernels, a, b)
    return of_one(one) if a.ndim == 2 else jax.lax.map(of_one, one)  # a layer at a time
