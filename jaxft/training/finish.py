"""The end of a run: the adapter written, read back and compared; answers side by side.

Nothing is called saved before it has been read again from the disk and gives the live model's
logits.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft import console
from jaxft import tree as trees
from jaxft.data import templates
from jaxft.errors import AdapterError
from jaxft.generation import completion
from jaxft.generation.completion import Generator
from jaxft.generation.decoding import Decoder
from jaxft.generation.sampling import Sampling
from jaxft.lora import peft_format
from jaxft.models import forward
from jaxft.parallel import mesh as meshes
from jaxft.training.setup import Plan
from jaxft.weights import base

_SHOWN_PROMPTS = 3
_ANSWER_TOKENS = 48
_COMPARED_TOKENS = 64
_TOLERANCE = 1e-5  # of the largest logit; the arrays are the same, so this is the program's noise


def write_adapter(plan: Plan, trainable: trees.Tree, frozen: trees.Tree) -> Path:
    """Write the adapter folder of a run, once it is made sure of.

    Raises:
        AdapterError: If what is on disk does not give the live model's logits.
    """
    folder = plan.folder / "adapter"
    source, spec = plan.source, plan.network.spec
    content = peft_format.adapter_config(
        plan.config.lora, plan.family, spec, source.name, source.revision
    )
    tensors = peft_format.to_tensors(trainable, plan.family, plan.network)

    def verify(written: Path) -> None:
        try:
            difference = _difference(plan, written, trainable, frozen)
        except AdapterError as error:
            raise _not_as_written(folder, error.found) from error
        if not difference <= _TOLERANCE:
            found = f"its logits differ from the live model's by {difference:.1e} of the largest"
            raise _not_as_written(folder, found)
        same = f"to {difference:.0e} of the largest" if difference else "exactly"
        console.note(f"The adapter, read back, gives the live model's logits {same}.")

    peft_format.save_adapter(folder, tensors, content, verify)
    return folder


def _not_as_written(folder: Path, found: str) -> AdapterError:
    return AdapterError(
        f"The adapter was written to the disk of {folder.parent}, but read back it is not the live "
        f"model's: {found}",
        "It is not kept. Look to the disk and run the same command again: what was trained is in "
        "the checkpoints.",
    )


def _difference(plan: Plan, folder: Path, trainable: trees.Tree, frozen: trees.Tree) -> float:
    """Return the largest difference of logits on a row, over the largest logit."""
    _, tensors = peft_format.read_adapter(folder)
    adapters = peft_format.from_tensors(tensors, plan.family, plan.network, folder)
    adapters = jax.device_put(adapters, meshes.replicated(plan.mesh))
    row = (plan.eval or plan.train).examples[0].input_ids[:_COMPARED_TOKENS]
    # As many copies of the row as the mesh divides rows into.
    ids = jnp.tile(jnp.asarray(row, jnp.int32)[None], (meshes.row_shards(plan.mesh), 1))

    @jax.jit
    def logits(adapters: Any, frozen: Any) -> jax.Array:
        tree = trees.combine(adapters, frozen)
        hidden = forward.hidden_states(
            plan.network,
            tree,
            ids,
            jnp.ones_like(ids),
            jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape),
            mesh=plan.mesh,
            dtype=plan.dtype,
        )
        leaves = forward.head_leaves(plan.network, tree)
        return forward.head_logits(plan.network, plan.mesh, leaves, hidden)

    live, reread = logits(trainable, frozen), logits(adapters, frozen)
    return float(jnp.max(jnp.abs(live - reread)) / jnp.max(jnp.abs(live)))


def answers(plan: Plan, trainable: trees.Tree, frozen: trees.Tree) -> list[console.Sample]:
    """Return held-out prompts, each answered by the base and by the tuned model.

    Both run the same programs: the base is the network with B = 0.
    """
    asked = (templates.first_exchange(row).prompt for row in plan.eval_rows)
    # A row of plain text may have an empty prompt: there is nothing to go on from.
    prompts = list(itertools.islice((prompt for prompt in asked if prompt), _SHOWN_PROMPTS))
    if not prompts:
        return []
    stop_ids = base.read_stop_ids(plan.source, plan.tokenizer)
    decoder = Decoder(plan.network, stop_ids=stop_ids, mesh=plan.mesh, dtype=plan.dtype)
    generator = Generator(decoder, plan.tokenizer)
    untrained = jax.tree.map(jnp.zeros_like, trainable)

    def texts(adapters: trees.Tree) -> list[str]:
        return completion.complete(
            generator,
            trees.combine(frozen, adapters),
            prompts,
            max_new_tokens=_ANSWER_TOKENS,
            how=Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0),
        )

    with console.loading("Answering held-out prompts", None):
        by_model = zip(map(_shown, prompts), texts(untrained), texts(trainable), strict=True)
        return [console.Sample(*sample) for sample in by_model]


def _shown(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the last thing said, which is the question."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
