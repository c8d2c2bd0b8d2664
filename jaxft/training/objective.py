"""Objectives: what training minimises, as named terms that are summed over a batch.

Only the objective defines the loss. The step, the evaluation, the metrics and the log see named
terms, each a sum and a count: ``{"loss": (12.5, 10)}`` is a mean of 1.25. An objective makes its
forward passes through a `View` of the model, as `CAUSAL_LM` does:

    def causal_lm_terms(view, micro):
        return {"loss": view.nll(view.hidden(micro), micro["labels"])}
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int32

from jaxft import tree as trees
from jaxft.models import dropout, forward
from jaxft.models.forward import Hidden
from jaxft.models.network import Network
from jaxft.models.untuned import base_tree
from jaxft.parallel import mesh as meshes
from jaxft.training import losses

Batch = Mapping[str, Any]
Terms = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count)


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective to minimise.

    Attributes:
        arrays: The names of the arrays of a batch, each with the names of its dimensions, as in
            ``{"input_ids": "a b t"}``: `a` micro-batches of `b` sequences of `t` positions. The
            dimension `b` is sharded over the devices, wherever it stands.
        terms: A function of a view of the model and one micro-batch (arrays without `a`) that
            returns the terms. The term "loss" is required and is minimised: its sum divided by its
            count, both added up over all micro-batches and devices. The other terms are logged.
        needs_base: Whether `terms` uses `View.base`. If the model's own leaves are trained, their
            originals are then kept in memory too.
    """

    arrays: Mapping[str, str] = dataclasses.field(hash=False)
    terms: Callable[["View", Batch], Terms]
    needs_base: bool = False


@dataclasses.dataclass(frozen=True)
class View:
    """A model as an objective sees it inside the compiled step.

    Attributes:
        network: The network, including adapters.
        tree: All leaves, trained and frozen.
        mesh: The devices that hold the arrays.
        dtype: The dtype of activations and matrix products, "float32" or "bfloat16".
        capacity: At least the largest number of labels in one data shard of a micro-batch.
        remat: Whether each period of layers is computed again in the backward pass.
        originals: The initial values of the model's own trained leaves, which `base` needs; empty
            if only adapters are trained.
        noise: The seed of the run and the number of the step, which determine dropout; `None`
            outside training, when there is no dropout.
    """

    network: Network
    tree: trees.Tree
    mesh: Mesh
    dtype: str
    capacity: int
    remat: bool
    originals: Mapping[str, Any]
    noise: tuple[Any, Any] | None

    @property
    def base(self) -> "View":
        """The base model without tuning, with which the tuned model can be compared.

        Raises:
            ValueError: If leaves of the model itself are trained and their originals are missing.
        """
        tree = base_tree(self.network, self.tree, self.originals)
        network = self.network.untuned()
        return dataclasses.replace(self, network=network, tree=tree, originals={})

    def hidden(self, texts: Batch) -> Hidden:
        """Return the final hidden states of sequences, to which the head is applied.

        Args:
            texts: The arrays `input_ids`, `segment_ids` and `positions`, int32 [b t], and with
                dropout `row_ids`, int32 [b], the number of each sequence in the batch.
        """
        seeds = None
        if self.noise is not None:
            num_positions = texts["input_ids"].shape[1]
            seeds = dropout.token_seeds(*self.noise, texts["row_ids"], num_positions)
        states = forward.hidden_states(
            self.network,
            self.tree,
            texts["input_ids"],
            texts["segment_ids"],
            texts["positions"],
            mesh=self.mesh,
            dtype=self.dtype,
            dropout_seeds=seeds,
            remat=self.remat,
        )
        return Hidden(states, seeds)

    def logits(self, hidden: Hidden) -> Float[Array, "b t v"]:
        """Return the float32 logits of all positions, which are large and rarely needed."""
        return forward.head_logits(self.network, self.mesh, self._head, *hidden)

    def nll(
        self, hidden: Hidden, labels: Int32[Array, "b t"]
    ) -> tuple[Float[Array, ""], Int32[Array, ""]]:
        """Return the summed negative log-likelihood of the labels in nats, and their number.

        Args:
            hidden: The final hidden states, from the method `hidden`.
            labels: The token to predict at each position; `IGNORED` for none.
        """
        return losses.causal_lm_loss(
            self.network, self.mesh, self._head, hidden, labels, self.capacity
        )

    def log_probs(self, hidden: Hidden, labels: Int32[Array, "b t"]) -> Float[Array, "b t"]:
        """Return the log-probability of each label in nats, and 0 at positions without a label.

        The arguments are those of `nll`.
        """
        return losses.label_log_probs(
            self.network, self.mesh, self._head, hidden, labels, self.capacity
        )

    @property
    def _head(self) -> dict[str, Any]:
        return forward.head_leaves(self.network, self.tree)


def _causal_lm_terms(view: View, micro: Batch) -> Terms:
    return {"loss": view.nll(view.hidden(micro), micro["labels"])}


CAUSAL_LM = Objective(
    arrays={
        "input_ids": "a b t",
        "labels": "a b t",
        "positions": "a b t",
        "row_ids": "a b",
        "segment_ids": "a b t",
    },
    terms=_causal_lm_terms,
)


def batch_shardings(objective: Objective, mesh: Mesh) -> dict[str, NamedSharding]:
    """Return the sharding of each array of a batch; the sequences, dimension `b`, are sharded."""
    return {
        name: meshes.rows(mesh, axis=dimensions.split().index("b"))
        for name, dimensions in objective.arrays.items()
    }
