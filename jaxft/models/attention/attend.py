"""The interface of attention, for training and decoding, and the choice of an implementation.

Every implementation has the signature of `attend`. To add a kernel for a platform, add a file to
this folder and a line to `IMPLEMENTATIONS`, above the lines of those in plain JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxft.models.attention import chunked, slots
from jaxft.models.attention.layout import Layout, Slots, WholeRows
from jaxft.models.attention.scores import Scores
from jaxft.parallel import mesh as meshes


class Implementation(NamedTuple):
    """An implementation of attention, and the cases that it supports.

    Attributes:
        layout: The type of layout that it supports.
        platforms: JAX's names of the platforms that it runs on, such as "gpu"; `None` for all.
        handles: Returns whether it supports the given scoring and queries [b t g m k]; it may read
            only the shape and the dtype of the queries.
        attend: The function, with the arguments of `attend` below.
    """

    layout: type[Layout]
    platforms: frozenset[str] | None
    handles: Callable[[Scores, Any], bool]
    attend: Callable[..., Any]


def _any(scoring: Scores, q: Any) -> bool:
    return True


# The first one that supports a case is used. Those in plain JAX support all scorings and platforms
# and are last.
IMPLEMENTATIONS = (
    Implementation(WholeRows, None, _any, chunked.attend),
    Implementation(Slots, None, _any, slots.attend),
)


def attend(
    scoring: Scores,
    q: Float[Array, "b t g m k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    layout: Layout,
    mesh: Mesh,
) -> Float[Array, "b t g m k"]:
    """Return for each query the sum of the values it sees, weighted by the softmax of its scores.

    Args:
        scoring: How scores are computed from queries and keys.
        q: Queries, grouped by the kv head that they share.
        k: Keys.
        v: Values.
        layout: Which keys each query sees, before any window.
        mesh: The devices of the arrays.

    Returns:
        The weighted values, in the dtype of `v`.
    """
    chosen = choose(IMPLEMENTATIONS, scoring, q, layout, meshes.platform(mesh))
    return chosen.attend(scoring, q, k, v, layout, mesh)


def choose(
    implementations: Sequence[Implementation],
    scoring: Scores,
    q: Any,
    layout: Layout,
    platform: str,
) -> Implementation:
    """Return the first implementation that supports the given arguments of `attend`.

    Raises:
        LookupError: If no implementation does.
    """
    for each in implementations:
        is_here = each.platforms is None or platform in each.platforms
        if is_here and isinstance(layout, each.layout) and each.handles(scoring, q):
            return each
    raise LookupError(f"nothing attends with {scoring} over {type(layout).__name__} on {platform}")
