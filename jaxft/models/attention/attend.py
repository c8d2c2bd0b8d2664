"""The one interface of attention, in training and in decoding, and the choice of what does it.

Every implementation has the signature of `attend`. A kernel for a platform is a file in this
folder and a line of `IMPLEMENTATIONS` above those in plain JAX.
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
    """A way to attend, and where it serves.

    Attributes:
        layout: The kind of layout that it knows.
        platforms: JAX's names of the platforms that it runs on, "gpu" or "tpu"; `None` for all.
        handles: Whether it makes such scores of such queries [b t g m k], of which it may ask the
            shape and the dtype.
        attend: It, with the arguments of `attend`.
    """

    layout: type[Layout]
    platforms: frozenset[str] | None
    handles: Callable[[Scores, Any], bool]
    attend: Callable[..., Any]


def _any(scoring: Scores, q: Any) -> bool:
    return True


# The first that serves is taken. Those in plain JAX, which make all scores everywhere, are last.
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
    """Attend: return the values that each query sees, weighted by the softmax of its scores.

    Args:
        scoring: How queries and keys make scores.
        q: Queries, by the kv head that they share.
        k: Keys.
        v: Values.
        layout: Which keys each query sees, before any window.
        mesh: Where the arrays live.

    Returns:
        In the dtype of `v`.
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
    """Return the first implementation that serves; arguments as of `attend`.

    Raises:
        LookupError: If none does.
    """
    for each in implementations:
        is_here = each.platforms is None or platform in each.platforms
        if is_here and isinstance(layout, each.layout) and each.handles(scoring, q):
            return each
    raise LookupError(f"nothing attends with {scoring} over {type(layout).__name__} on {platform}")
