"""Binds a tree of arrays to the modules that use it; leaves are matched strictly by path.

`nnx.merge` on plain dicts matches leaves by their order, so a renamed key, or a tenth group
under string keys, would merge silently and wrongly. `bind` compares every path and shape first.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxft import tree as trees
from jaxft.errors import WeightsError
from jaxft.models.decoder import Decoder
from jaxft.models.network import Network

_SHOWN = 5  # names listed for each kind of mismatch


def bind(network: Network, tree: Mapping[str, Any]) -> Decoder:
    """Return the module of `network` with the leaves of `tree`.

    Args:
        network: The network to build.
        tree: Nested dicts; a leaf may be an array, a tracer or a ShapeDtypeStruct.

    Raises:
        WeightsError: If paths or shapes differ from those of the network; the message lists them.
    """
    graphdef, template = _template(network)
    leaves = trees.flatten(tree)
    _compare(abstract_tree(network), leaves)
    bound = [
        (path, variable.replace(leaves["/".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(template)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(bound))


def abstract_tree(network: Network) -> trees.Tree:
    """Return the tree of ShapeDtypeStructs (float32) that `network` binds to."""
    _, template = _template(network)
    return trees.unflatten(
        {
            "/".join(map(str, path)): variable.get_value()
            for path, variable in nnx.to_flat_state(template)
        }
    )


def random_tree(network: Network, seed: int) -> trees.Tree:
    """Return randomly initialised float32 leaves, for tests and for training from scratch."""

    @jax.jit
    def init() -> Any:
        return nnx.to_pure_dict(nnx.state(Decoder(network, nnx.Rngs(seed))))

    return _string_keys(init())


@functools.lru_cache(maxsize=64)
def _template(network: Network) -> Any:
    abstract = nnx.eval_shape(lambda: Decoder(network, nnx.Rngs(0)))
    return nnx.split(abstract)


def _string_keys(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {str(key): _string_keys(value) for key, value in node.items()}


def _compare(expected: trees.Tree, leaves: Mapping[str, Any]) -> None:
    wanted = trees.flatten(expected)
    complaints = {
        "missing": sorted(wanted.keys() - leaves.keys()),
        "unexpected": sorted(leaves.keys() - wanted.keys()),
        "misshapen": [
            f"{path} {tuple(leaves[path].shape)} instead of {leaf.shape}"
            for path, leaf in wanted.items()
            if path in leaves and tuple(leaves[path].shape) != leaf.shape
        ],
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in complaints.items()
        if names
    ]
    if found:
        raise WeightsError(
            f"The parameter tree does not fit the network: {'; '.join(found)}.",
            "Build the tree for this very network, adapters and groups of layers included.",
        )
