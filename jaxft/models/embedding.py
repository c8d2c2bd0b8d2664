"""Tables of embeddings, and what may be trained of one: an adapter, or a few of its rows.

Separate from `layers`, because a table is looked up and not multiplied with: of an adapter's A, the
columns of the tokens at hand are read. The same rows stand in the head where that is tied, which is
why `with_columns` is here too. The table itself is frozen in both and gets no gradient: what is
trained of rows is [n, d], n the number of rows.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from jaxft import tree as trees
from jaxft.models import linear
from jaxft.models.adapted import Adapted
from jaxft.models.network import HEAD, Network, Rows
from jaxft.parallel import rules


class EmbeddingTable(Adapted):
    """A table of embeddings, of tokens or of positions, [rows, width]."""

    def __init__(self, path: str, dims: tuple[int, int], network: Network, rngs: nnx.Rngs):
        """Make the leaves.

        Args:
            path: Of the module, "embed" or "positions".
            dims: (rows, width).
            network: It says what is trained of the table.
            rngs: For the table.
        """
        self.path, self.network = path, network
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), dims))
        adapter = dict(network.outer_adapters).get(path)
        if adapter is not None:
            self.make_parts(adapter.parts, adapter.width, dims)
        if path in dict(network.rows):
            self.rows = nnx.Param(jnp.zeros((len(dict(network.rows)[path]), dims[1])))

    def __call__(self, ids: Int32[Array, "b t"], mesh: Mesh, dtype: Any) -> Float[Array, "b t d"]:
        """Look rows up.

        Source: `peft/tuners/lora/layer.py: Embedding.forward`, which has no dropout, and
        `peft/tuners/trainable_tokens/layer.py: TrainableTokensLayer.forward_adapters`.
        """
        table = self.kernel[...]
        x = rules.gather(mesh, self.path)(table, table.dtype)[ids].astype(dtype)
        adapter = dict(self.network.outer_adapters).get(self.path)
        if adapter is not None:
            inner = self.lora_a[...].T[ids]  # [b t r]
            x = x + (self.lora_scaling[...] * (inner @ self.lora_b[...])).astype(dtype)
        if self.path in dict(self.network.rows):
            x = _with_rows(x, ids, dict(self.network.rows)[self.path], self.rows[...])
        return x


def _with_rows(
    x: Float[Array, "b t d"], ids: Int32[Array, "b t"], rows: Rows, trained: Float[Array, "n d"]
) -> Float[Array, "b t d"]:
    """Return what was looked up, trained rows in the place of the table's."""
    order = np.argsort(rows)
    ascending = jnp.asarray(np.asarray(rows, np.int32)[order])
    place = jnp.minimum(jnp.searchsorted(ascending, ids), len(rows) - 1)
    looked_up = trained[jnp.asarray(order, jnp.int32)[place]].astype(x.dtype)
    return jnp.where((ascending[place] == ids)[..., None], looked_up, x)


def with_columns(
    logits: Float[Array, "*b v"],
    hidden: Float[Array, "*b d"],
    rows: Rows,
    trained: Float[Array, "n d"],
) -> Float[Array, "*b v"]:
    """Return the logits of a head of which these rows are trained: their columns are replaced.

    Args:
        logits: Of the head as it is stored, float32.
        hidden: What the head is applied to.
        rows: The tokens.
        trained: Their rows, the transpose of the head's columns.
    """
    columns = linear.product(hidden, trained, _transposed, jnp.float32)
    # Written over, not added to: gradients of the stored columns' logits are then 0.
    return logits.at[..., np.asarray(rows)].set(columns, unique_indices=True)


def _transposed(leaf: jax.Array, dtype: Any) -> jax.Array:
    return leaf.T.astype(dtype)


def original_rows(network: Network, tree: Mapping[str, Any]) -> trees.Tree:
    """Return the rows that `network` trains as the base model `tree` has them, float32."""
    leaves = {}
    for path, rows in network.rows:
        chosen = np.asarray(rows)
        if path == HEAD and network.has_own_head:
            found = tree[HEAD]["kernel"][:, chosen].T
        else:
            found = tree["embed"]["kernel"][chosen]
        leaves[f"{path}/rows"] = found.astype(jnp.float32)
    return trees.unflatten(leaves)
