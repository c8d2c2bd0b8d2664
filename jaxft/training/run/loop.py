"""`jaxft train`, from a recipe to a tuned model; read `run` to see the stages of a run.

Python's `Trainer.train` has the same stages: `preparation.prepare`, `train` and
`finish.write_result`.
"""

import shlex
from collections.abc import Sequence

from jaxft import console
from jaxft import tree as trees
from jaxft.config import RunConfig
from jaxft.data.batches.stream import StreamBatches
from jaxft.data.examples import report
from jaxft.lora import mask
from jaxft.models.bind import abstract_tree
from jaxft.training.objective import CAUSAL_LM, Objective
from jaxft.training.prepare import folder, preparation, request
from jaxft.training.prepare.plan import Plan
from jaxft.training.run import finish
from jaxft.training.run.listener import Listener
from jaxft.training.run.programs import make_programs
from jaxft.training.run.trainer import Outcome, Trainer


def run(config: RunConfig) -> None:
    """Train according to a recipe, write the result, and show it.

    Raises:
        JaxftError: If something is wrong that the user can fix.
        Stopped: If a signal ended the run; its state is saved.
    """
    plan, leaves = preparation.prepare(request.of_recipe(config), None)
    _show_plan(plan)
    # All checks are done; from here on files are written.
    outcome = train(plan, leaves.begin(plan), [], CAUSAL_LM)
    written = finish.write_result(plan, outcome)
    _show_outcome(plan, outcome)
    samples = finish.answers(plan, outcome)
    console.samples(samples)
    kind = "adapter" if config.tuning.method == "lora" else "model"
    console.result(f"{kind.capitalize()}: {written}")
    prompt = shlex.quote(min((sample.prompt for sample in samples), key=len, default="Hello."))
    console.result(
        f"Try it:  jaxft generate --{kind} {shlex.quote(str(written))} --prompt {prompt}"
    )


def train(
    plan: Plan, tree: trees.Tree, listeners: Sequence[Listener], objective: Objective
) -> Outcome:
    """Make the steps of a plan, for `jaxft train` and for Python.

    Args:
        plan: The plan of the run.
        tree: All leaves before the first step.
        listeners: Further listeners, called between steps.
        objective: The objective that is minimised.

    Raises:
        JaxftError: If the run's folder cannot be written to, or a loss is not finite.
        Stopped: If a signal ended the run; its state is saved.
    """
    with folder.open_checkpoints(plan) as checkpoints:
        folder.remember_base(plan, tree)
        programs = make_programs(plan, objective)
        return Trainer(plan, tree, programs, listeners).run(checkpoints)


def _show_plan(plan: Plan) -> None:
    frozen = mask.parts(plan.network, abstract_tree(plan.network)).frozen
    batches = plan.train
    console.note(
        f"Training {mask.num_trained(plan.network):,} parameters "
        f"beside {trees.num_parameters(frozen):,} frozen ones in {plan.dtype}."
    )
    size = f"{batches.global_batch} sequences of {batches.sequence_length} tokens"
    epoch = (
        "the rows are read as they are needed"
        if batches.fill is None
        else f"{batches.steps_per_epoch} steps are an epoch, {batches.fill:.0%} of its tokens are"
        " no padding"
    )
    console.note(f"{plan.num_steps} steps of {size}; {epoch}.")
    if plan.tokenizer is not None and plan.data.train.examples:
        first = plan.data.train.examples[0][0]
        marked = report.mark_targets(first, plan.tokenizer, before="[[", after="]]")
        console.note(f"The first row, what is learned in [[ ]]:\n{marked}")


def _show_outcome(plan: Plan, outcome: Outcome) -> None:
    if isinstance(plan.train, StreamBatches):  # the rows of a stream were not checked before
        console.note(f"Read for training: {report.describe(plan.train.report)}")
    rows = [
        (name, found.loss, found.perplexity)
        for name, found in (("before", outcome.before), ("after", outcome.after))
        if found is not None
    ]
    if rows:
        console.table("Held-out rows", ("", "loss (nats)", "perplexity"), rows)
    if outcome.before and outcome.after:
        change = outcome.after.loss / outcome.before.loss - 1
        console.result(f"The held-out loss changed by {change:+.1%} in {plan.num_steps} steps.")
