"""Checks that a written model gives the logits of the live model, and records the result.

Adapters and whole models are compared by the same code here. The record is written to the model's
folder as `verification.json`. It has no date and no path, so that equal runs write equal folders,
and everything in it was measured.
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
    """The rows on which two models are compared.

    Attributes:
        kind: What the rows are, such as "held-out rows".
        tokens: The tokens of each row.
    """

    kind: str
    tokens: Sequence[Sequence[int]]


class Difference(NamedTuple):
    """The difference between the logits of two models.

    Attributes:
        largest_logit: The largest absolute value of a logit of the live model.
        absolute: The largest absolute difference between two logits.
        kl: The mean Kullback-Leibler divergence of the next token's distribution, in nats.
    """

    largest_logit: float
    absolute: float
    kl: float

    @property
    def relative(self) -> float:
        """The largest difference divided by the largest logit."""
        if not self.absolute:
            return 0.0
        return self.absolute / self.largest_logit if self.largest_logit else math.inf


def first_rows(kind: str, examples: Examples | Sequence[Example], network: Network) -> Rows:
    """Return the first 4 rows, each cut to 128 tokens or the number of positions of the model.

    Args:
        kind: What the rows are, such as "held-out rows".
        examples: The rows, at least one.
        network: The network of the model.
    """
    length = _length(network)
    chosen = [examples[index].input_ids for index in range(min(_NUM_ROWS, len(examples)))]
    return Rows(kind, [np.asarray(row).tolist()[:length] for row in chosen])


def spread_row(network: Network) -> Rows:
    """Return one row of tokens spread over the vocabulary, for use when there are no rows."""
    spread = np.linspace(0, network.spec.vocab_size - 1, _length(network)).astype(np.int32)
    return Rows("tokens spread over the vocabulary", [spread.tolist()])


def _length(network: Network) -> int:
    return min(_ROW_TOKENS, network.spec.max_tokens or _ROW_TOKENS)


def compare(live: Model, written: Model, rows: Rows, *, mesh: Mesh, dtype: str) -> Difference:
    """Return the difference between the logits of a written model and those of the live one.

    Args:
        live: The model in memory.
        written: The written model, read back.
        rows: The rows on which they are compared.
        mesh: The devices that hold the leaves of both.
        dtype: The dtype of activations and matrix products.
    """
    length = max(map(len, rows.tokens))
    # One row for each shard of the mesh at once; the last ones may be empty.
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
    # Rounding can make a divergence of 0 slightly negative. Python's `max` may ignore NaN, numpy's
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
    """Return the largest logit, the largest difference, and the sum of the KL divergences."""
    log_p, log_q = jax.nn.log_softmax(live), jax.nn.log_softmax(written)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    counts = seen[..., None]
    apart = jnp.where(counts, jnp.abs(live - written), 0)
    return (
        jnp.max(jnp.where(counts, jnp.abs(live), 0)),
        # A maximum on a CPU ignores NaN.
        jnp.where(jnp.any(jnp.isnan(apart)), jnp.nan, jnp.max(apart)),
        jnp.sum(jnp.where(seen, divergence, 0)),
    )


def report(what: str, rows: Rows, found: Difference, *, dtype: str, tolerance: float) -> Report:
    """Return the record of a comparison, the content of `verification.json`.

    Args:
        what: What was compared, in words.
        rows: The rows of the comparison.
        found: The result of the comparison.
        dtype: The dtype in which the logits were computed.
        tolerance: The largest relative difference that is accepted.
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
    """Return a value rounded to three significant digits, as the record has it."""
    return float(f"{value:.3g}") if math.isfinite(value) else value


def write(folder: Path, content: Report) -> None:
    """Write a record to `verification.json` in a folder."""
    text = json.dumps(content, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def in_words(content: Report) -> str:
    """Return the record of an adapter's comparison as a phrase for messages."""
    relative = content["max_relative_difference"]
    same = f"to {relative:.0e} of the largest" if relative else "exactly"
    return f"the live model's logits {same}, on {rows_in_words(content)}"


def rows_in_words(content: Report) -> str:
    """Return the number and kind of a record's rows, such as "4 rows (held-out rows)"."""
    count = content["num_rows"]
    return f"{count} row{'s' if count > 1 else ''} ({content['rows']})"
