"""Tables of embeddings, which may have an adapter or a few trained token rows.

Separate from `layers`, because a table is looked up and not multiplied with: only those columns of
an adapter's A are read that belong to the given tokens. `with_columns`, which uses trained token
rows in the head, is here too, because a tied head shares them with the embedding. In both cases the
table itself is frozen and gets no gradient; n trained token rows are a leaf [n, d].
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
    """A table of embeddings [rows, width], of tokens or of positions."""

    def __init__(self, path: str, dims: tuple[int, int], network: Network, rngs: nnx.Rngs):
        """Create the leaves.

        Args:
            path: The path of the module, "embed" or "positions".
            dims: (rows, width) of the table.
            network: The network, which says what is trained of the table.
            rngs: The random numbers for the table.
        """
        self.path, self.network = path, network
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), dims))
        adapter = dict(network.outer_adapters).get(path)
        if adapter is not None:
            self.make_parts(adapter.parts, adapter.width, dims)
        if path in dict(network.rows):
            self.rows = nnx.Param(jnp.zeros((len(dict(network.rows)[path]), dims[1])))

    def __call__(self, ids: Int32[Array, "b t"], mesh: Mesh, dtype: Any) -> Float[Array, "b t d"]:
        """Look up the rows of `ids`.

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
    """Return the embeddings `x` of `ids`, replaced by trained rows for the tokens `rows`."""
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
    """Return the logits of a head with trained token rows: the logits of these tokens are replaced.

    Args:
        logits: The logits of the stored head, float32.
        hidden: The input of the head.
        rows: The tokens whose rows are trained.
        trained: The trained token rows, which are the transpose of columns of the head.
    """
    columns = linear.product(hidden, trained, _transposed, jnp.float32)
    # Overwritten, not added to, so that the gradients of the replaced logits are 0.
    return logits.at[..., np.asarray(rows)].set(columns, unique_indices=True)


def _transposed(leaf: jax.Array, dtype: Any) -> jax.Array:
    return leaf.T.astype(dtype)


def original_rows(network: Network, tree: Mapping[str, Any]) -> trees.Tree:
    """Return the token rows that `network` trains, as they are in the base `tree`; float32."""
    leaves = {}
    for path, rows in network.rows:
        chosen = np.asarray(rows)
        if path == HEAD and network.has_own_head:
            found = tree[HEAD]["kernel"][:, chosen].T
        else:
            found = tree["embed"]["kernel"][chosen]
        leaves[f"{path}/rows"] = found.astype(jnp.float32)
    return trees.unflatten(leaves)
