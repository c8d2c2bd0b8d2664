"""What the base's modules read in training batches, taken in batch by batch.

Shared by those who look at inputs before the first step: `measure`, where adapters begin along
their directions, and `calibrate`, where the base is rounded so as to suit them.
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
    """Return the compiled ``(kept, tree, batch) -> kept``; `kept` is donated.

    `batch` holds [a b t] as for a step. A token counts where it is one, not padding, and with
    `use_label_mask` where it is itself learned, as in PEFT, whose labels stand at their tokens.

    Args:
        network: What `tree` is bound to.
        include: From what is kept of a module, what it reads [b t i], and which tokens count [b t],
            to what is then kept.
        use_label_mask: See above.
        mesh: Where the arrays live.
        dtype: The dtype computed in.
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
