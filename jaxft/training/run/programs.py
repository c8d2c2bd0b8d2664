"""The compiled programs of a run, which are passed to it, so that equal runs can share them."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxft import tree as trees
from jaxft.lora import mask
from jaxft.models.bind import abstract_tree
from jaxft.training import optimizer
from jaxft.training import step as steps
from jaxft.training.objective import Objective, Terms
from jaxft.training.optimizer import make_optimizer
from jaxft.training.prepare.plan import Plan
from jaxft.training.state import TrainState
from jaxft.training.step import Program, StepMetrics


class Programs(NamedTuple):
    """The compiled programs of a run.

    Attributes:
        static: The static properties of a step, such as the network and the dtype.
        train_step: The training step, ``(state, frozen, batch, seed) -> (state, metrics)``.
        eval_step: The evaluation, ``(trainable, frozen, batch) -> terms``; `None` without held-out
            rows.
    """

    static: Program
    train_step: Callable[..., tuple[TrainState, StepMetrics]]
    eval_step: Callable[..., Terms] | None


def make_programs(plan: Plan, objective: Objective) -> Programs:
    """Return the programs of a plan; each is compiled when it is first called.

    Args:
        plan: The plan of the run.
        objective: The objective that is minimised.
    """
    train = plan.config.train
    static = Program(
        network=plan.network,
        mesh=plan.mesh,
        dtype=plan.dtype,
        capacity=plan.train.target_capacity,
        remat=train.gradient_checkpointing,
        objective=objective,
    )
    shapes = abstract_tree(plan.network)
    trained, _ = trees.partition(shapes, mask.trainable_mask(plan.network, shapes))
    hyper = optimizer.hyper_of(train, plan.num_steps)
    eval_step = None
    if plan.eval is not None:
        held_out = dataclasses.replace(static, capacity=plan.eval.target_capacity)
        eval_step = steps.make_eval_step(held_out)
    return Programs(
        static, steps.make_train_step(static, make_optimizer, hyper, trained), eval_step
    )
