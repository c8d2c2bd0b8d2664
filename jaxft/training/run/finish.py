"""Ends a run: writes and verifies the adapter or model, and compares answers to held-out prompts.

A result counts as saved only after it was read back from disk and gave the live model's logits.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from jaxft import console
from jaxft import tree as trees
from jaxft.artifacts import adapter, verify, whole
from jaxft.artifacts.loaded import Tuned
from jaxft.artifacts.verify import Rows
from jaxft.config import SourceConfig
from jaxft.data.chats import exchange
from jaxft.data.examples import tokens
from jaxft.generation import completion
from jaxft.generation.completion import Generator, Prompt
from jaxft.generation.decoding import CachedDecoder
from jaxft.generation.sampling import GREEDY
from jaxft.models.network import Network
from jaxft.models.untuned import base_tree
from jaxft.training.prepare.plan import Plan
from jaxft.training.run.trainer import Outcome

_SHOWN_PROMPTS = 3
_ANSWER_TOKENS = 48


def write_result(plan: Plan, outcome: Outcome) -> Path:
    """Write and verify the result of a run, and return its folder: an adapter or a whole model.

    Raises:
        JaxftError: If the result, read back, does not give the live model's logits.
    """
    if plan.config.tuning.method == "lora":
        return write_adapter(plan, outcome)
    whole.write_model(
        plan.folder / "model",
        plan.source,
        _live(plan, outcome),
        _rows(plan),
        mesh=plan.mesh,
        kind="merged",
        dtype="auto",
        replaces=True,
    )
    return plan.folder / "model"


def write_adapter(plan: Plan, outcome: Outcome) -> Path:
    """Write and verify the adapter of a run, and return its folder.

    Raises:
        AdapterError: If the adapter, read back, does not give the live model's logits.
    """
    folder = plan.folder / "adapter"
    adapter.write_adapter(
        folder,
        plan.source,
        plan.config.lora,
        _live(plan, outcome),
        _rows(plan),
        mesh=plan.mesh,
        dtype=plan.dtype,
        facts=_facts(plan, outcome),
    )
    return folder


def _live(plan: Plan, outcome: Outcome) -> Tuned:
    tree = trees.combine(outcome.trainable, outcome.frozen)
    return Tuned(plan.family, plan.network, tree, plan.data.chat_format)


def _rows(plan: Plan) -> Rows:
    """Return the rows on which the live model and the written one are compared."""
    if plan.data.eval is not None:
        return verify.first_rows("held-out rows", plan.data.eval.examples[0], plan.network)
    if plan.data.train.examples:
        return verify.first_rows("training rows", plan.data.train.examples[0], plan.network)
    return verify.spread_row(plan.network)


def _facts(plan: Plan, outcome: Outcome) -> dict[str, str]:
    """Return the facts about a run for the model card of its adapter, by label."""
    data, train = plan.config.data, plan.config.train
    counted = f"{plan.data.train.num_examples:,}" if plan.data.train.examples else "a stream"
    facts = {
        "Training rows": (
            f"{counted} of {_names(data.train)}, of at most {data.max_length:,} tokens"
        ),
        "Steps": f"{outcome.num_steps:,}, of {plan.train.global_batch} sequences",
        "Learning rate": f"{train.learning_rate:g}, {train.lr_scheduler_type}",
    }
    if plan.config.lora.init_from is not None:
        facts["Went on from"] = f"the adapter in {Path(plan.config.lora.init_from).name}"
    if plan.data.eval is not None and outcome.after is not None:
        before = "" if outcome.before is None else f"{outcome.before.loss:.4f} before, "
        held_out = f"{plan.data.eval.num_examples:,} rows of {_names(data.eval or data.train)}"
        facts["Held-out loss"] = (
            f"{before}{outcome.after.loss:.4f} after, in nats a token, on {held_out}"
        )
    return facts


def _names(sources: Sequence[SourceConfig]) -> str:
    """Return the names of sources, without absolute folders of this machine."""
    paths = [Path(source.path) for source in sources]
    return ", ".join(path.name if path.is_absolute() else str(path) for path in paths)


def answers(plan: Plan, outcome: Outcome) -> list[console.Sample]:
    """Return up to 3 held-out prompts, each answered by the base and by the tuned model."""
    prompts = _held_out_prompts(plan)
    if not prompts:
        return []
    tuned = trees.combine(outcome.frozen, outcome.trainable)

    def texts(network: Network, tree: trees.Tree) -> list[str]:
        decoder = CachedDecoder(
            network, stop_ids=plan.data.all_stop_ids, mesh=plan.mesh, dtype=plan.dtype
        )
        generator = Generator(decoder, plan.tokenizer)
        return completion.complete(
            generator, tree, prompts, max_new_tokens=_ANSWER_TOKENS, how=GREEDY
        )

    with console.loading("Answering held-out prompts", None):
        of_base = texts(plan.network.untuned(), base_tree(plan.network, tuned, outcome.start))
        of_tuned = texts(plan.network, tuned)
    by_model = zip(map(_shown, prompts), of_base, of_tuned, strict=True)
    return [console.Sample(*sample) for sample in by_model]


def _held_out_prompts(plan: Plan) -> list[Prompt]:
    """Return the first 3 held-out prompts that can be answered.

    There are none if rows came as tokens, without a tokenizer.
    """
    if plan.tokenizer is None:
        return []
    limit = plan.network.spec.max_tokens or math.inf

    def is_answerable(prompt: Prompt) -> bool:
        # A row of plain text may have an empty prompt, which cannot be continued.
        return bool(prompt) and len(tokens.encode_prompt(prompt, plan.tokenizer)) < limit

    rows = itertools.chain.from_iterable(plan.data.eval.sources if plan.data.eval else ())
    asked = (exchange.first_exchange(row, plan.tokenizer).prompt for row in rows)
    return list(itertools.islice(filter(is_answerable, asked), _SHOWN_PROMPTS))


def _shown(prompt: Prompt) -> str:
    """Return the text of a prompt: for a chat its last message, which is the question."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
