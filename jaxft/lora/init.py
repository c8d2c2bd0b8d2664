"""How adapters begin: A drawn at random, B zero, so that at step 0 the model is its base."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.models.bind import abstract_tree
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

DTYPE = jnp.float32  # of adapters and their optimizer state, whatever the base's dtype


def init_adapters(network: Network, *, seed: int, mesh: Mesh) -> trees.Tree:
    """Return fresh adapter leaves: A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, float32, replicated.

    A layer's draw depends on the seed, the module and the layer's index alone, not on how the
    layers are grouped.

    Source: `peft/tuners/lora/layer.py: LoraLayer.reset_lora_parameters` (Kaiming-uniform with
    a = sqrt(5), which is this bound).
    """
    shapes = trees.flatten(abstract_tree(network))
    places = {prefix: layers for prefix, _, layers in network.stacked_blocks()}
    sharding = meshes.replicated(mesh)
    leaves: dict[str, Any] = {}
    for path, leaf in shapes.items():
        module, _, name = path.rpartition("/")
        if name == "lora_b":
            leaves[path] = jnp.zeros(leaf.shape, DTYPE, device=sharding)
        elif name == "lora_a":
            block, local = _split(module)
            layers = places.get(block)
            drawn = (
                _draw(seed, local, -1, leaf.shape)
                if layers is None
                else np.stack([_draw(seed, local, layer, leaf.shape[1:]) for layer in layers])
            )
            leaves[path] = jax.device_put(drawn, sharding)
    return trees.unflatten(leaves)


def _split(module: str) -> tuple[str, str]:
    """Split "groups/0/1/attn/q" into "groups/0/1" and "attn/q"; "head" into "" and "head"."""
    if not module.startswith("groups/"):
        return "", module
    parts = module.split("/")
    return "/".join(parts[:3]), "/".join(parts[3:])


def _draw(seed: int, module: str, layer: int, shape: tuple[int, ...]) -> np.ndarray:
    # Philox is counter-based and specified, so the draw is the same on every machine.
    key = np.array([seed, zlib.crc32(module.encode()) * 2**16 + layer + 1], dtype=np.uint64)
    bound = shape[1] ** -0.5
    uniform = np.random.Generator(np.random.Philox(key=key)).random(shape, dtype=np.float32)
    return (2 * uniform - 1) * np.float32(bound)
