"""The sharding table: which dimensions of which leaf are divided over which mesh axes.

One line per kind of leaf, matched against the leaf's whole path. There is no catch-all: a leaf
without a rule is an error, and so is a rule without a leaf (a test holds every family to it).
Layers are stacked on dimension 0, which is never divided.

`Gather` undoes the `fsdp` part of a rule where a weight is used. It is explicit because GSPMD,
left free, keeps the weight divided and moves the activations: tensor parallelism by accident.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft import tree as trees
from jaxft.errors import DeviceError

_BLOCK = r"groups/\d+/\d+/"
_ADAPTED = r"(" + _BLOCK + r"(attn|conv|mlp)/\w+|head|embed|embed_in|embed_out|positions)"

RULES: tuple[tuple[str, P], ...] = (
    (r"embed/kernel", P("tensor", "fsdp")),
    (r"head/kernel", P("fsdp", "tensor")),
    (r"positions/kernel", P(None, "fsdp")),
    (r"embed_in/kernel", P(None, "fsdp")),
    (r"embed_out/kernel", P("fsdp", None)),
    (r"head/bias", P("tensor")),
    (r"(embed|final)_norm/(scale|bias)", P()),
    (_BLOCK + r"(attn|mlp)(_out)?_norm/(scale|bias)", P()),
    (_BLOCK + r"attn/[qk]_norm/(scale|bias)", P()),
    (_BLOCK + r"attn/([qkv]|gate)/kernel", P(None, "fsdp", "tensor")),
    (_BLOCK + r"attn/([qkv]|gate)/bias", P(None, "tensor")),
    (_BLOCK + r"attn/o/kernel", P(None, "tensor", "fsdp")),
    (_BLOCK + r"attn/o/bias", P()),
    (_BLOCK + r"conv/[bcx]/kernel", P(None, "fsdp", "tensor")),
    (_BLOCK + r"conv/[bcx]/bias", P(None, "tensor")),
    (_BLOCK + r"conv/o/kernel", P(None, "tensor", "fsdp")),
    (_BLOCK + r"conv/o/bias", P()),
    (_BLOCK + r"conv/taps/(kernel|bias)", P(None, "tensor")),
    (_BLOCK + r"mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (_BLOCK + r"mlp/(gate|up)/bias", P(None, "tensor")),
    (_BLOCK + r"mlp/down/kernel", P(None, "tensor", "fsdp")),
    (_BLOCK + r"mlp/down/bias", P()),
    (_BLOCK + r"mlp/act/(alpha_p|alpha_n|beta|eps)", P()),
    (_ADAPTED + r"/lora_(a|b|bias|a0|b0|magnitude)", P()),
    (r"(embed|head)/rows", P()),
)


@functools.cache
def spec_of(path: str) -> P:
    """Return the PartitionSpec of the leaf at `path`.

    Raises:
        KeyError: If no rule, or more than one, matches the path.
    """
    matches = [spec for pattern, spec in RULES if re.fullmatch(pattern, path)]
    if len(matches) != 1:
        raise KeyError(f"{len(matches)} sharding rules match the leaf {path!r}, expected one")
    return matches[0]


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
    """Bring one layer's slice of a stored leaf to the form in which it is used.

    A static (hashable) function: the primitives that use a weight call it in the forward and
    again in the backward pass, so that only the stored, divided weight is ever kept.
    """

    mesh: Mesh
    spec: P  # of the slice, with `fsdp` taken out

    def __call__(self, leaf: jax.Array, dtype: Any) -> jax.Array:
        """Return `leaf` gathered over `fsdp` and cast to `dtype`."""
        whole = jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, self.spec))
        return whole.astype(dtype)


def gather(mesh: Mesh, path: str) -> Gather:
    """Return the `Gather` for the leaf at `path`; of a stacked leaf, for one layer's slice."""
    axes = [None if axis == "fsdp" else axis for axis in spec_of(path)]
    return Gather(mesh, P(*(axes[1:] if path.startswith("groups/") else axes)))


def gather_module(mesh: Mesh, module: str) -> Gather:
    """Return the `Gather` of a linear module's kernel: "attn/q" in any block, or "embed_in"."""
    return gather(mesh, f"groups/0/0/{module}/kernel" if "/" in module else f"{module}/kernel")
