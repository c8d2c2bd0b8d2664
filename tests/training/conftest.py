"""A tiny run, trained straight through once, that others are compared with."""

from __future__ import annotations

import jax
import pytest
import runs

from jaxft import tree as trees
from jaxft.lora import mask
from jaxft.training.objective import CAUSAL_LM
from jaxft.training.prepare import folder, preparation, request
from jaxft.training.run.programs import make_programs
from jaxft.training.run.trainer import Trainer


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with a recipe, and caches that belong to these tests alone."""
    base = tmp_path_factory.mktemp("runs")
    with runs.own_caches(base / "datasets"):
        runs.write_recipe(base)
        yield base


@pytest.fixture(scope="session")
def recipe(workshop):
    return workshop / "recipe.yaml"


@pytest.fixture(scope="session")
def prepared_of(recipe):
    """Return a function that prepares the recipe's run, with overrides, in a folder of its own."""
    place = f"train.output_dir={recipe.parent / 'prepared'}"
    return lambda *overrides: preparation.prepare(
        request.of_recipe(runs.load(recipe, place, *overrides)), None
    )


@pytest.fixture(scope="session")
def plan_of(prepared_of):
    """Return a function that plans the recipe's run, with overrides."""
    return lambda *overrides: prepared_of(*overrides).plan


@pytest.fixture(scope="session")
def tree_of(prepared_of):
    """Return a function that gives all leaves as the run begins, with overrides."""

    def tree_of(*overrides):
        plan, begun = prepared_of(*overrides)
        return begun.begin(plan)

    return tree_of


@pytest.fixture(scope="session")
def leaves(tree_of):
    """All leaves as the recipe's run begins, on the mesh of all devices."""
    return tree_of()


@pytest.fixture(scope="session")
def frozen(plan_of, leaves):
    """Those of them that are not trained."""
    return trees.partition(leaves, mask.trainable_mask(plan_of().network, leaves))[1]


@pytest.fixture(scope="session")
def programs_of():
    """Return a function that gives the programs of a plan: equal plans share what is compiled."""
    kept = {}

    def programs_of(plan):
        made = make_programs(plan, CAUSAL_LM)
        numbers = {
            name: value
            for name, value in plan.config.train.model_dump().items()
            if name not in folder._NOT_NUMERIC
        }
        of_train = (made.static, plan.num_steps, tuple(numbers.items()))
        of_eval = (made.static, plan.eval and plan.eval.target_capacity)
        return made._replace(
            train_step=kept.setdefault(("train", of_train), made.train_step),
            eval_step=kept.setdefault(("eval", of_eval), made.eval_step),
        )

    return programs_of


@pytest.fixture(scope="session")
def make_trainer(programs_of):
    """Return a function that makes a trainer, whose steps are compiled once for all equal ones."""

    def make(plan, leaves, listeners=(), wrap=lambda programs: programs):
        return Trainer(plan, leaves, wrap(programs_of(plan)), listeners)

    return make


@pytest.fixture
def train(plan_of, leaves, make_trainer, tmp_path):
    """Return a function that trains in this test's folder and returns trainer and outcome."""

    def run(*overrides, leaves=leaves, **options):
        plan = plan_of(f"train.output_dir={tmp_path / 'run'}", *overrides)
        with folder.open_checkpoints(plan) as checkpoints:
            started = make_trainer(plan, leaves, **options)
            return started, started.run(checkpoints)

    return run


@pytest.fixture(scope="session")
def straight(plan_of, leaves, make_trainer, tmp_path_factory):
    """The folder of the recipe's run, trained without a stop, and its trained leaves."""
    path = tmp_path_factory.mktemp("straight") / "run"
    plan = plan_of(f"train.output_dir={path}")
    with folder.open_checkpoints(plan) as checkpoints:
        outcome = make_trainer(plan, leaves).run(checkpoints)
    return path, jax.device_get(outcome.trainable)
