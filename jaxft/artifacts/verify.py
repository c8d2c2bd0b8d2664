"""Is what was written the live model? Logits of both on some rows, and the record of it.

The one home of that comparison, for adapters and for whole models. The record lies beside what
was written, as `verification.json`. It holds no date and no path, so that equal runs write equal
folders, and nothing in it was not measured.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from jaxft import tree as trees
from jaxft.data.examples.encode import Examples
from jaxft.data.examples.tokens import Example
from jaxft.models import forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

FILE = "verification.json"
_NUM_ROWS = 4
_ROW_TOKENS = 128

Report = dict[str, Any]  # the content of `verification.json`


class Model(NamedTuple):
    """A network with all its leaves."""

    network: Network
    tree: trees.Tree


class Rows(NamedTuple):
    """What two models are compared on.

    Attributes:
        kind: Which rows they are, in words.
        tokens: Of each row.
    """

    kind: str
    tokens: Sequence[Sequence[int]]


class Difference(NamedTuple):
    """How far the logits of two models are apart.

    Attributes:
        largest_logit: The largest size of a logit of the live model.
        absolute: The largest difference of a logit.
        kl: Mean Kullback-Leibler divergence of the next token's distribution, in nats.
    """

    largest_logit: float
    absolute: float
    kl: float

    @property
    def relative(self) -> float:
        """The largest difference, over the largest logit."""
        if not self.absolute:
            return 0.0
        return self.absolute / self.largest_logit if self.largest_logit else math.inf


def first_rows(kind: str, examples: Examples | Sequence[Example], network: Network) -> Rows:
    """Return the first of some rows, cut.

    Args:
        kind: Which rows they are, in words.
        examples: The rows, at least one.
        network: It says how many positions there are.
    """
    length = _length(network)
    chosen = [examples[index].input_ids for index in range(min(_NUM_ROWS, len(examples)))]
    return Rows(kind, [np.asarray(row).tolist()[:length] for row in chosen])


def spread_row(network: Network) -> Rows:
    """Return one row of tokens from all of the vocabulary, for where there are no others."""
    spread = np.linspace(0, network.spec.vocab_size - 1, _length(network)).astype(np.int32)
    return Rows("tokens spread over the vocabulary", [spread.tolist()])


def _length(network: Network) -> int:
    return min(_ROW_TOKENS, network.spec.max_tokens or _ROW_TOKENS)


def compare(live: Model, written: Model, rows: Rows, *, mesh: Mesh, dtype: str) -> Difference:
    """Return how far the logits of what was written are from those of the live model.

    Args:
        live: The model as it is in memory.
        written: The same, read back.
        rows: What they are compared on.
        mesh: Where the leaves of both lie.
        dtype: Of activations and matrix products.
    """
    length = max(map(len, rows.tokens))
    # As many rows at once as the mesh divides them into, the last ones perhaps empty.
    at_once = meshes.row_shards(mesh)
    ids = np.zeros((-(-len(rows.tokens) // at_once) * at_once, length), np.int32)
    seen = np.zeros_like(ids)
    for index, row in enumerate(rows.tokens):
        ids[index, : len(row)], seen[index, : len(row)] = row, 1
    largest, absolute, divergence = [0.0], [0.0], 0.0
    for start in range(0, len(ids), at_once):
        batch = ids[start : start + at_once], seen[start : start + at_once]
        ours, theirs = (
            _logits(each.tree, *batch, network=each.network, mesh=mesh, dtype=dtype)
            for each in (live, written)
        )
        found = [float(each) for each in _difference(ours, theirs, batch[1] > 0)]
        largest.append(found[0])
        absolute.append(found[1])
        divergence += found[2]
    # Rounding makes a divergence of 0 slightly negative. Python's `max` may pass over NaN, numpy's
    # does not.
    kl = np.maximum(divergence / int(seen.sum()), 0.0)
    return Difference(float(np.max(largest)), float(np.max(absolute)), float(kl))


@functools.partial(jax.jit, static_argnames=("network", "mesh", "dtype"))
def _logits(
    tree: Mapping[str, Any],
    ids: Int32[Array, "b t"],
    seen: Int32[Array, "b t"],
    *,
    network: Network,
    mesh: Mesh,
    dtype: str,
) -> Float[Array, "b t v"]:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    return forward.logits(network, tree, ids, seen, positions, mesh=mesh, dtype=dtype)


@jax.jit
def _difference(
    live: Float[Array, "b t v"], written: Float[Array, "b t v"], seen: Bool[Array, "b t"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the largest logit, the largest difference, and the sum of divergences."""
    log_p, log_q = jax.nn.log_softmax(live), jax.nn.log_softmax(written)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    counts = seen[..., None]
    apart = jnp.where(counts, jnp.abs(live - written), 0)
    return (
        jnp.max(jnp.where(counts, jnp.abs(live), 0)),
        # A maximum on a CPU passes over NaN.
        jnp.where(jnp.any(jnp.isnan(apart)), jnp.nan, jnp.max(apart)),
        jnp.sum(jnp.where(seen, divergence, 0)),
    )


def report(what: str, rows: Rows, found: Difference, *, dtype: str, tolerance: float) -> Report:
    """Return the record of a comparison.

    Args:
        what: Was compared, in words.
        rows: On which rows.
        found: What came of it.
        dtype: In which the logits were computed.
        tolerance: On the relative difference.
    """
    return {
        "compared": what,
        "rows": rows.kind,
        "num_rows": len(rows.tokens),
        "num_tokens": sum(map(len, rows.tokens)),
        "computed_in": dtype,
        "largest_logit": rounded(found.largest_logit),
        "max_difference": rounded(found.absolute),
        "max_relative_difference": rounded(found.relative),
        "mean_kl": rounded(found.kl),
        "tolerance": tolerance,
    }


def rounded(value: float) -> float:
    """Return a figure as the record has it: three digits."""
    return float(f"{value:.3g}") if math.isfinite(value) else value


def write(folder: Path, content: Report) -> None:
    """Write a record into a folder."""
    text = json.dumps(content, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def in_words(content: Report) -> str:
    """Return what a record says of an adapter as a line for people."""
    relative = content["max_relative_difference"]
    same = f"to {relative:.0e} of the largest" if relative else "exactly"
    return f"the live model's logits {same}, on {rows_in_words(content)}"


def rows_in_words(content: Report) -> str:
    """Return on which rows a record is."""
    count = content["num_rows"]
    return f"{count} row{'s' if count > 1 else ''} ({content['rows']})"
