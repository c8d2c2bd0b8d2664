"""The end of a run: the adapter or model written, read back and compared; answers side by side.

Nothing is called saved before it has been read again from the disk and gives the live model's
logits.
"""

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft import console
from jaxft import tree as trees
from jaxft.data import templates, tokens
from jaxft.errors import AdapterError
from jaxft.generation import completion
from jaxft.generation.completion import Generator, Prompt
from jaxft.generation.decoding import Decoder
from jaxft.generation.sampling import Sampling
from jaxft.lora import conversion, magnitude, peft_format, starts, targets, whole
from jaxft.lora.tuned import Tuned
from jaxft.models import forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.training.setup import Plan
from jaxft.training.trainer import Outcome
from jaxft.weights import base

_SHOWN_PROMPTS = 3
_ANSWER_TOKENS = 48
_COMPARED_TOKENS = 64
_TOLERANCE = 1e-5  # of the largest logit; the arrays are the same, so this is the program's noise


def write_result(plan: Plan, outcome: Outcome) -> Path:
    """Write what a run is for, once it is made sure of: the adapter, or else the whole model.

    Raises:
        JaxftError: If what is on disk does not give the live model's logits.
    """
    if plan.config.tuning.method == "lora":
        return write_adapter(plan, outcome)
    folder = plan.folder / "model"
    whole.write_model(
        folder,
        plan.source,
        Tuned(plan.family, plan.network, trees.combine(outcome.trainable, outcome.frozen)),
        mesh=plan.mesh,
        kind="merged",
        dtype=whole.stored_dtype(plan.source),
        replaces=True,
    )
    return folder


def write_adapter(plan: Plan, outcome: Outcome) -> Path:
    """Write the adapter folder of a run, once it is made sure of.

    Raises:
        AdapterError: If what is on disk does not give the live model's logits.
    """
    folder = plan.folder / "adapter"
    content, tensors = conversion.to_peft(
        plan.lora,
        plan.family,
        plan.network,
        trees.combine(outcome.trainable, outcome.frozen),
        base_model=plan.source.name,
        revision=plan.source.revision,
    )

    def verify(written: Path) -> None:
        try:
            difference = _difference(plan, written, outcome)
        except AdapterError as error:
            raise _not_as_written(folder, error.found) from error
        if not difference <= _TOLERANCE:
            found = f"its logits differ from the live model's by {difference:.1e} of the largest"
            raise _not_as_written(folder, found)
        same = f"to {difference:.0e} of the largest" if difference else "exactly"
        console.note(f"The adapter, read back, gives the live model's logits {same}.")

    peft_format.save_adapter(folder, tensors, content, verify, _facts(plan, outcome))
    return folder


def _facts(plan: Plan, outcome: Outcome) -> dict[str, str]:
    """Return what a run knows of its adapter, for the model card."""
    data, train = plan.config.data, plan.config.train
    rows = f"{len(plan.train.examples):,} of {data.train.name}"
    facts = {
        "Training rows": f"{rows}, cut at {data.max_length:,} tokens",
        "Steps": f"{outcome.num_steps:,}, of {plan.train.global_batch} sequences",
        "Learning rate": f"{train.learning_rate:g}, {train.lr_scheduler_type}",
    }
    if plan.eval is not None and outcome.after is not None:
        before = "" if outcome.before is None else f"{outcome.before.loss:.4f} before, "
        held_out = f"{len(plan.eval.examples):,} rows"
        held_out += f" of {data.eval.name}" if data.eval is not None else ""
        facts["Held-out loss"] = (
            f"{before}{outcome.after.loss:.4f} after, in nats a token, on {held_out}"
        )
    return facts


def _not_as_written(folder: Path, found: str) -> AdapterError:
    return AdapterError(
        f"The adapter was written to the disk of {folder.parent}, but read back it is not the live "
        f"model's: {found}",
        "It is not kept. Look to the disk and run the same command again: what was trained is in "
        "the checkpoints.",
    )


def _difference(plan: Plan, folder: Path, outcome: Outcome) -> float:
    """Return the largest difference of logits on a row, over the largest logit."""
    content, tensors = peft_format.read_adapter(folder)
    lora = peft_format.read_lora_config(content, folder)
    described = targets.adapted_network(lora, plan.family, plan.network.spec)
    # In the groups of the live network, whose frozen leaves it shares.
    written = described.grouped_as(plan.network)
    adapters = peft_format.from_tensors(tensors, plan.family, written, folder)
    adapters = jax.device_put(adapters, rules.shardings(adapters, plan.mesh))
    started = bool(starts.of(outcome.frozen))
    row = (plan.eval or plan.train).examples[0].input_ids[:_COMPARED_TOKENS]
    # As many copies of the row as the mesh divides rows into.
    ids = jnp.tile(jnp.asarray(row, jnp.int32)[None], (meshes.row_shards(plan.mesh), 1))

    # A difference of products in another order: only in float32 it is the same to be told.
    where: Any = {"mesh": plan.mesh, "dtype": "float32" if started else plan.dtype}

    @functools.partial(jax.jit, static_argnums=0)
    def logits(network: Network, trainable: Any, frozen: Any) -> jax.Array:
        tree = trees.combine(trainable, frozen)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        return forward.logits(network, tree, ids, jnp.ones_like(ids), positions, **where)

    with jax.default_matmul_precision("highest" if started else None):
        live = logits(plan.network, outcome.trainable, outcome.frozen)
        reread = logits(written, adapters, starts.without(outcome.frozen))
    return float(jnp.max(jnp.abs(live - reread)) / jnp.max(jnp.abs(live)))


def answers(plan: Plan, outcome: Outcome) -> list[console.Sample]:
    """Return held-out prompts, each answered by the base and by the tuned model.

    Both run the same programs: the base is the network with its own trained leaves as they began,
    and adapters that add nothing.
    """
    prompts = _held_out_prompts(plan)
    if not prompts:
        return []
    stop_ids = base.read_stop_ids(plan.source, plan.tokenizer)
    decoder = Decoder(plan.network, stop_ids=stop_ids, mesh=plan.mesh, dtype=plan.dtype)
    generator = Generator(decoder, plan.tokenizer)

    def texts(tree: trees.Tree) -> list[str]:
        return completion.complete(
            generator,
            tree,
            prompts,
            max_new_tokens=_ANSWER_TOKENS,
            how=Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0),
        )

    with console.loading("Answering held-out prompts", None):
        tuned = trees.combine(outcome.frozen, outcome.trainable)
        by_model = zip(map(_shown, prompts), texts(_base(plan, outcome)), texts(tuned), strict=True)
        return [console.Sample(*sample) for sample in by_model]


def _base(plan: Plan, outcome: Outcome) -> trees.Tree:
    """Return leaves with which the model is its base: not every start of B is zero.

    Where the start is taken away again, it is that start.
    """
    tree = trees.combine(outcome.frozen, outcome.start)
    if starts.of(tree):
        return starts.as_begun(tree)

    def without(path: str, leaf: Any) -> Any:
        return leaf * 0 if path.endswith(("/lora_b", "/lora_bias")) else leaf

    return magnitude.with_magnitudes(plan.network, trees.map_with_path(without, tree), plan.mesh)


def _held_out_prompts(plan: Plan) -> list[Prompt]:
    """Return the first held-out prompts that can be answered.

    There is none where rows came as tokens, without a tokenizer.
    """
    if plan.tokenizer is None:
        return []
    limit = plan.network.spec.max_tokens or math.inf

    def is_answerable(prompt: Prompt) -> bool:
        # A row of plain text may have an empty prompt: there is nothing to go on from.
        return bool(prompt) and len(tokens.encode_prompt(prompt, plan.tokenizer)) < limit

    asked = (templates.first_exchange(row, plan.tokenizer).prompt for row in plan.eval_rows)
    return list(itertools.islice(filter(is_answerable, asked), _SHOWN_PROMPTS))


def _shown(prompt: Prompt) -> str:
    """Return the last thing said, which is the question."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
