"""Accumulates statistics of the inputs that the base's modules read in training batches.

Two modules use it before the first step: `measure`, where adapters begin along the main directions
of the inputs, and `calibrate`, where the base is rounded to suit the inputs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.data.rows.tokenized import IGNORED
from jaxft.models import forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes
from jaxft.training import objective
from jaxft.training.objective import CAUSAL_LM


def make_include(
    network: Network,
    include: Callable[[Any, jax.Array, jax.Array], Any],
    use_label_mask: bool,
    *,
    mesh: Mesh,
    dtype: str,
) -> Callable[..., Any]:
    """Return the compiled function ``(kept, tree, batch) -> kept``; `kept` is donated.

    `kept` holds the statistics of each module, and `batch` arrays [a b t] as for a training step.
    Padding does not count. With `use_label_mask` only supervised tokens count: each token that is
    itself a label, as in PEFT, whose labels are not shifted.

    Args:
        network: The network that `tree` belongs to.
        include: Maps the statistics of a module, the inputs that it reads [b t i], and a mask of
            the tokens that count [b t] to the new statistics.
        use_label_mask: Whether only supervised tokens count.
        mesh: The devices that hold the arrays.
        dtype: The dtype of the computation.
    """

    def of_micro(kept: Any, tree: Any, micro: Mapping[str, jax.Array]) -> Any:
        is_counted = micro["segment_ids"] > 0
        if use_label_mask:
            is_next_learned = micro["labels"] != IGNORED
            is_counted &= jnp.pad(is_next_learned[:, :-1], ((0, 0), (1, 0)))
        return forward.fold_inputs(
            network,
            tree,
            kept,
            lambda kept, x: include(kept, x, is_counted),
            micro["input_ids"],
            micro["segment_ids"],
            micro["positions"],
            mesh=mesh,
            dtype=dtype,
        )

    def of_batch(kept: Any, tree: Any, batch: Mapping[str, jax.Array]) -> Any:
        return jax.lax.scan(
            lambda kept, micro: (of_micro(kept, tree, micro), None), kept, dict(batch)
        )[0]

    everywhere = meshes.replicated(mesh)
    shardings = (everywhere, None, objective.batch_shardings(CAUSAL_LM, mesh))
    return jax.jit(of_batch, in_shardings=shardings, out_shardings=everywhere, donate_argnums=0)
