"""The sharding table: which dimensions of which leaf are divided over which mesh axes.

One line per kind of leaf, by its module and its part. There is no catch-all: a leaf of the model
without a rule is an error, and so is a rule without a leaf (a test checks this for every family).
Layers are stacked on dimension 0, which is never divided; leaves that tuning adds are replicated.

`Gather` undoes the `fsdp` part of a rule where a weight is used. It is explicit because GSPMD,
left free, keeps the weight divided and moves the activations: tensor parallelism by accident.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft import tree as trees
from jaxft.errors import DeviceError
from jaxft.leaves.address import Address


class Rule(NamedTuple):
    """How leaves of one kind are divided.

    Attributes:
        modules: The paths of their modules, such as "attn/q".
        parts: The names of their parts, such as "kernel".
        axes: The mesh axis of each dimension; for a leaf in the layers, the dimensions are those
            of one layer's slice.
    """

    modules: tuple[str, ...]
    parts: tuple[str, ...]
    axes: P


OUTSIDE: tuple[Rule, ...] = (
    Rule(("embed",), ("kernel",), P("tensor", "fsdp")),
    Rule(("head",), ("kernel",), P("fsdp", "tensor")),
    Rule(("head",), ("bias",), P("tensor")),
    Rule(("positions", "embed_in"), ("kernel",), P(None, "fsdp")),
    Rule(("embed_out",), ("kernel",), P("fsdp", None)),
    Rule(("embed_norm", "final_norm"), ("scale", "bias"), P()),
)
_DIVIDED_OUTPUTS = (
    *("attn/q", "attn/k", "attn/v", "attn/gate"),
    *("conv/b", "conv/c", "conv/x"),
    *("mlp/gate", "mlp/up"),
)
_DIVIDED_INPUTS = ("attn/o", "conv/o", "mlp/down")
_NORMS = ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm", "attn/q_norm", "attn/k_norm")
IN_LAYERS: tuple[Rule, ...] = (
    Rule(_DIVIDED_OUTPUTS, ("kernel",), P("fsdp", "tensor")),
    Rule(_DIVIDED_OUTPUTS, ("bias",), P("tensor")),
    Rule(_DIVIDED_INPUTS, ("kernel",), P("tensor", "fsdp")),
    Rule(_DIVIDED_INPUTS, ("bias",), P()),
    Rule(("conv/taps",), ("kernel", "bias"), P("tensor")),
    Rule(("mlp/act",), ("alpha_p", "alpha_n", "beta", "eps"), P()),
    Rule(_NORMS, ("scale", "bias"), P()),
)


@functools.cache
def spec_of(path: str) -> P:
    """Return the PartitionSpec of the leaf at `path`.

    Raises:
        KeyError: If no rule, or more than one, matches the leaf.
        ValueError: If `path` is not the path of a leaf.
    """
    address = Address.parse(path)
    if not address.is_own:
        return P()
    axes = _axes(IN_LAYERS if address.block else OUTSIDE, address)
    return P(None, *axes) if address.block and axes else axes


def _axes(rules: tuple[Rule, ...], leaf: Address) -> P:
    found = [rule.axes for rule in rules if leaf.module in rule.modules and leaf.part in rule.parts]
    if len(found) != 1:
        raise KeyError(f"{len(found)} sharding rules match the leaf {str(leaf)!r}, expected one")
    return found[0]


def shardings(tree: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> trees.Tree:
    """Return the NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs).

    Raises:
        DeviceError: If a dimension does not divide by the mesh axis that its rule names.
        KeyError: If a leaf has no rule.
    """

    def sharding(path: str, leaf: Any) -> NamedSharding:
        spec = spec_of(path)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise DeviceError(
                    f"{path} has a dimension of {size}, which mesh.{axis}={mesh.shape[axis]} "
                    "does not divide.",
                    f"Choose a mesh.{axis} that divides {size}.",
                )
        return NamedSharding(mesh, spec)

    return trees.map_with_path(sharding, tree)


@dataclasses.dataclass(frozen=True)
class Gather:
    """Converts one layer's slice of a stored leaf to the form in which it is used.

    A static (hashable) function: the primitives that use a weight call it in the forward and
    again in the backward pass, so that only the stored, divided weight is ever kept.
    """

    mesh: Mesh
    spec: P  # of the slice, with `fsdp` taken out

    def __call__(self, leaf: jax.Array, dtype: Any) -> jax.Array:
        """Return `leaf` gathered over `fsdp` and cast to `dtype`."""
        whole = jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, self.spec))
        return whole.astype(dtype)


def gather(mesh: Mesh, module: str) -> Gather:
    """Return the `Gather` for the kernel of "attn/q" (one layer's slice of it), "embed", ...

    Raises:
        KeyError: If there is no rule for the kernel.
    """
    axes = _axes(OUTSIDE + IN_LAYERS, Address(None, None, module, "kernel"))
    return Gather(mesh, P(*(None if axis == "fsdp" else axis for axis in axes)))
