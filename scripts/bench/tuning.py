"""Compare full fine-tuning with LoRA: memory, time, what is learned and what is forgotten.

    python scripts/bench/tuning.py                      # the quickstart's model and rows
    python scripts/bench/tuning.py --rounds 5 --steps 4
    python scripts/bench/tuning.py --full-rate 2e-4     # another learning rate for the whole model
    python scripts/bench/tuning.py --rounds 0 train.max_steps=200  # longer, and without timing

Table 4.5 of the course chapter that jaxft grew from, in figures. Both ways run the quickstart's
recipe, with a learning rate of their own. Steps are timed in short processes that take turns, and
ratios are taken round by round. One long process each then trains to the end. "Learned" is the
loss on the recipe's held-out rows. "Forgotten" is measured on general questions
(configs/data/general.eval.jsonl), which have nothing to do with what was trained: how much the
loss has grown on what the base itself answered to them, word for word.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from train import forget_host_peak, host_peak, print_note

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("full", "lora")
WARMUP_STEPS = 2
ANSWER_TOKENS = 64  # of the base, to each general question


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=CONFIGS / "quickstart.yaml")
    parser.add_argument("--general", type=Path, default=CONFIGS / "data/general.eval.jsonl")
    parser.add_argument("--full-rate", default="1e-4", help="learning rate of full tuning")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=METHODS)
    parser.add_argument("overrides", nargs="*", help="options of the recipe, key=value")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--to-the-end", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure in turns and print the tables, or be one of the processes that are measured."""
    args = parse()
    if args.worker:
        print(json.dumps(run(args)))
        return
    methods = [args.only] if args.only else list(METHODS)
    rounds = [{method: measure(method) for method in methods} for _ in range(args.rounds)]
    ends = {method: measure(method, "--to-the-end") for method in methods}
    show(args, rounds, ends)


def measure(method: str, *options: str) -> dict[str, Any]:
    """Run one process and return what it measured."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", method, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print_note(f"{method}: {result}")
    return result


def run(args: argparse.Namespace) -> dict[str, float]:
    """Train one way, a few steps or to the end, and return what was seen of it."""
    import jax

    from jaxft import tree as trees
    from jaxft.config import load_config
    from jaxft.lora import mask
    from jaxft.training import optimizer as optimizers
    from jaxft.training import state as states
    from jaxft.training import step as steps
    from jaxft.training.objective import CAUSAL_LM, batch_shardings
    from jaxft.training.prepare import preparation, request

    options = ["train.output_dir=unused", *args.overrides]
    if args.worker == "full":
        options += ["lora=null", "tuning=full", f"train.learning_rate={args.full_rate}"]
    asked = request.of_recipe(load_config(args.recipe, options))
    plan, leaves = preparation.prepare(asked, None)
    tree = leaves.begin(plan)
    config = plan.config.train
    hyper, make = optimizers.hyper_of(config, plan.num_steps), optimizers.make_optimizer
    trainable, frozen = trees.partition(tree, mask.trainable_mask(plan.network, tree))
    del tree
    program = steps.Program(
        plan.network,
        plan.mesh,
        plan.dtype,
        plan.train.target_capacity,
        config.gradient_checkpointing,
        CAUSAL_LM,
    )
    seed = np.uint32(config.seed)
    step = steps.make_train_step(program, make, hyper, trainable)
    state = states.init_state(trainable, {}, hyper, make, plan.mesh)
    shardings = batch_shardings(CAUSAL_LM, plan.mesh)
    num_steps = plan.num_steps if args.to_the_end else WARMUP_STEPS + args.steps
    found: dict[str, float] = {"trained": trees.num_parameters(trainable)}
    held_out = {}
    if args.to_the_end:
        held_out = rows_to_measure(args, plan, trees.combine(state.trainable, frozen))
        found |= losses(plan, program, held_out, state.trainable, frozen, "before")
    del trainable
    seconds = []
    forget_host_peak()
    for _, batch in plan.train.iterate(0, num_steps):
        placed = jax.device_put(batch, shardings)
        if not seconds:
            memory = step.lower(state, frozen, placed, seed).compile().memory_analysis()
            found["step_mb"] = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6
        began = time.perf_counter()
        state, metrics = step(state, frozen, placed, seed)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    on_device = jax.devices()[0].memory_stats()  # `None` on the CPU
    found["peak_mb"] = (on_device["peak_bytes_in_use"] if on_device else host_peak()) / 1e6
    found["seconds_a_step"] = statistics.median(seconds[WARMUP_STEPS:])
    found["kept_mb"] = trees.num_bytes(state.trainable) / 1e6
    if args.to_the_end:
        found |= losses(plan, program, held_out, state.trainable, frozen, "after")
    return found


def rows_to_measure(args: argparse.Namespace, plan: Any, tree: Any) -> dict[str, Any]:
    """Return the batches on which losses are measured, by name; `tree` is still the base."""
    from jaxft.config import load_config
    from jaxft.generation import completion
    from jaxft.generation.decoding import CachedDecoder
    from jaxft.generation.sampling import GREEDY
    from jaxft.training.prepare import preparation, request
    from jaxft.weights import base

    questions = [json.loads(line)["messages"][0] for line in args.general.open()]
    stop_ids = base.read_stop_ids(plan.source, plan.tokenizer)
    decoder = CachedDecoder(plan.network, stop_ids=stop_ids, mesh=plan.mesh, dtype=plan.dtype)
    answers = completion.complete(
        completion.Generator(decoder, plan.tokenizer),
        tree,
        [[question] for question in questions],
        max_new_tokens=ANSWER_TOKENS,
        how=GREEDY,
    )
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "own.jsonl")
        own.write_text(
            "".join(
                json.dumps({"messages": [question, {"role": "assistant", "content": answer}]})
                + "\n"
                for question, answer in zip(questions, answers, strict=True)
            )
        )

        def batches(path: Path) -> Any:
            options = ["train.output_dir=unused", *args.overrides, f"data.eval={path.absolute()}"]
            asked = request.of_recipe(load_config(args.recipe, options))
            return preparation.prepare(asked, None).plan.eval

        return {"held_out": plan.eval, "own": batches(own), "general": batches(args.general)}


def losses(
    plan: Any, program: Any, rows: dict[str, Any], trainable: Any, frozen: Any, when: str
) -> dict[str, float]:
    """Return the loss on each kind of rows."""
    import dataclasses

    from jaxft.training import evaluate
    from jaxft.training import step as steps

    found = {}
    for name, batches in rows.items():
        step = steps.make_eval_step(dataclasses.replace(program, capacity=batches.target_capacity))
        seen = evaluate.evaluate(step, batches, trainable, frozen, lambda _: None, lambda: False)
        found[f"{name}_{when}"] = seen.loss
    return found


def show(
    args: argparse.Namespace, rounds: list[dict[str, Any]], ends: dict[str, dict[str, Any]]
) -> None:
    """Print medians, with the medians of the rounds' ratios, and the losses of the long runs."""
    if rounds:
        show_costs(args, rounds)
    show_losses(ends)


def show_costs(args: argparse.Namespace, rounds: list[dict[str, Any]]) -> None:
    """Print what a step takes."""
    from jaxft import console

    figures = {
        "trained": "parameters trained",
        "step_mb": "weights, optimizer and activations of a step, MB",
        "peak_mb": "peak memory, MB",
        "seconds_a_step": "seconds a step",
        "kept_mb": "what the run leaves (float32), MB",
    }
    names = list(rounds[0])
    rows = []
    for key, label in figures.items():
        values = [f"{statistics.median(one[name][key] for one in rounds):,.4g}" for name in names]
        if len(names) == 2:
            ratios = [one["full"][key] / one["lora"][key] for one in rounds]
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            values.append(f"{middle:,.4g}  ({low:,.4g} to {high:,.4g})")
        rows.append([label, *values])
    title = f"{args.recipe.stem}, {args.rounds} rounds of {args.steps} steps"
    columns = ["", *names] + (["full / lora"] if len(names) == 2 else [])
    console.table(title, columns, rows)


def show_losses(ends: dict[str, dict[str, Any]]) -> None:
    """Print what was learned, and what was forgotten."""
    from jaxft import console

    measured = {
        "held_out": "held-out rows",
        "own": "the base's own answers to general questions",
        "general": "written answers to them",
    }
    rows = []
    for key, label in measured.items():
        values = []
        for end in ends.values():
            before, after = (end[f"{key}_{when}"] for when in ("before", "after"))
            values.append(f"{before:.4f} to {after:.4f}  ({after / before - 1:+.1%})")
        rows.append([label, *values])
    console.table("Loss before and after, nats a token", ["", *ends], rows)


if __name__ == "__main__":
    main()
