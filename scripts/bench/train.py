"""Compare jaxft's training step with PEFT's: same weights, same adapter, same rows, in turns.

    python scripts/bench/train.py                       # SmolLM2-135M, float32, 4 x 256 tokens
    python scripts/bench/train.py --dtype bfloat16 --rounds 5
    python scripts/bench/train.py --only jaxft          # where torch is not installed

Each measurement is a process of its own: it loads the model, warms up, and times the steps that
follow. The two take turns, and ratios are taken round by round and their median is shown, so that
a machine whose speed drifts does not decide the outcome. Needs the extra `[reference]` for PEFT.
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

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS = Path(__file__).parents[2] / "configs/data/style.train.jsonl"
WARMUP_STEPS = 2


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a row, all of them real")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", action="store_true", help="gradient checkpointing in both")
    parser.add_argument("--only", choices=["jaxft", "peft"])
    parser.add_argument("--worker", choices=["jaxft", "peft"], help=argparse.SUPPRESS)
    parser.add_argument("--adapter", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure in turns and print the table, or be one of the processes that are measured."""
    args = parse()
    if args.worker:
        worker = run_jaxft if args.worker == "jaxft" else run_peft
        print(json.dumps(summary(args, *worker(args, batches(args)))))
        return
    contestants = [args.only] if args.only else ["jaxft", "peft"]
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        write_start(args, adapter)
        rounds = [
            {name: measure(name, adapter) for name in contestants} for _ in range(args.rounds)
        ]
    show(args, rounds)


def measure(name: str, adapter: Path) -> dict[str, Any]:
    """Run one process and return its summary."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--adapter", str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {result['tokens_per_second']:.0f} tokens/s", file=sys.stderr, flush=True)
    return result


def summary(
    args: argparse.Namespace, losses: list[float], seconds: list[float], peak_bytes: int
) -> dict[str, Any]:
    """Return what one process measured, warm-up left out."""
    step = statistics.median(seconds[WARMUP_STEPS:])
    return {
        "tokens_per_second": args.batch * args.length / step,
        "seconds_a_step": step,
        "peak_mb": peak_bytes / 1e6,
        "last_loss": losses[-1],
    }


def show(args: argparse.Namespace, rounds: list[dict[str, Any]]) -> None:
    """Print medians, and the median of the rounds' ratios where there are two."""
    from jaxft import console

    figures = {
        "tokens_per_second": "tokens/s",
        "seconds_a_step": "seconds a step",
        "peak_mb": "peak memory, MB",
        "last_loss": "loss of the last step",
    }
    names = list(rounds[0])
    rows = []
    for key, label in figures.items():
        values = [f"{statistics.median(one[name][key] for one in rounds):,.4g}" for name in names]
        if len(names) == 2:
            ratios = [one["jaxft"][key] / one["peft"][key] for one in rounds]
            spread = f"{statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})"
            values.append(spread)
        rows.append([label, *values])
    title = (
        f"{args.model}, {args.dtype}, LoRA r {args.rank} on {' '.join(args.targets)}, "
        f"{args.batch} x {args.length} tokens, {args.rounds} rounds of {args.steps} steps"
    )
    columns = ["", *names] + (["jaxft / peft"] if len(names) == 2 else [])
    console.table(title, columns, rows)


def forget_host_peak() -> None:
    """Start the process's peak memory anew, so that loading the model does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Return the most memory that the process has held since `forget_host_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def batches(args: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Return dense batches: the rows' tokens end to end, cut into pieces without padding."""
    from jaxft.config import DataConfig
    from jaxft.training.prepare import reading
    from jaxft.weights import base
    from jaxft.weights.places import source

    model = source.resolve(args.model, None, lambda _: None)
    tokenizer = model.tokenizer()
    data = DataConfig(train=ROWS, eval=ROWS, max_length=args.length)
    stop_ids = base.read_stop_ids(model, tokenizer)
    examples = reading.held_out_examples(data, tokenizer, stop_ids)
    assert examples is not None
    ids = np.concatenate([example.input_ids for example in examples])
    mask = np.concatenate([example.loss_mask for example in examples])
    shape = (args.batch, args.length + 1)
    count = WARMUP_STEPS + args.steps
    size = shape[0] * shape[1]
    taken = np.arange(count * size) % len(ids)
    ids, mask = (array[taken].reshape(count, *shape) for array in (ids, mask))
    labels = np.where(mask[:, :, 1:] == 1, ids[:, :, 1:], -100).astype(np.int32)
    return [
        {"input_ids": np.ascontiguousarray(i[:, :-1], np.int32), "labels": label}
        for i, label in zip(ids, labels, strict=True)
    ]


def lora_config(args: argparse.Namespace) -> Any:
    """Return the adapter's configuration."""
    from jaxft.config import LoraConfig

    return LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        lora_dropout=args.dropout,
        target_modules=args.targets,
    )


def train_config() -> Any:
    """Return the optimizer's configuration: a constant rate, so that steps are alike."""
    from jaxft.config import TrainConfig

    return TrainConfig(output_dir="unused", learning_rate=1e-3, lr_scheduler_type="constant")


def write_start(args: argparse.Namespace, folder: Path) -> None:
    """Write the adapter that both start from, in PEFT's format."""
    from jaxft.adapters import peft_format
    from jaxft.lora import init, targets
    from jaxft.parallel import mesh as meshes
    from jaxft.weights import base
    from jaxft.weights.places import source

    family, spec = base.read_spec(source.resolve(args.model, None, print_note))
    config = lora_config(args)
    network = targets.adapted_network(config, family, spec)
    leaves = init.init_adapters(network, kind=True, seed=0, mesh=meshes.single_device_mesh())
    tensors = peft_format.to_tensors(leaves, family, network)
    content = peft_format.adapter_config(config, family, spec, args.model, None)
    peft_format.save_adapter(folder, tensors, content)


def print_note(text: str) -> None:
    """Say something on standard error."""
    print(text, file=sys.stderr)


def run_jaxft(
    args: argparse.Namespace, rows: list[dict[str, np.ndarray]]
) -> tuple[list[float], list[float], int]:
    """Train with jaxft; returns each step's loss and seconds, and the peak memory in bytes."""
    import jax

    from jaxft import tree as trees
    from jaxft.adapters import peft_format
    from jaxft.lora import numbers, targets
    from jaxft.parallel import mesh as meshes
    from jaxft.training import optimizer as optimizers
    from jaxft.training import state as states
    from jaxft.training import step as steps
    from jaxft.training.objective import CAUSAL_LM
    from jaxft.weights import base
    from jaxft.weights.places import source

    found = source.resolve(args.model, None, print_note)
    family, spec = base.read_spec(found)
    network = targets.adapted_network(lora_config(args), family, spec)
    mesh = meshes.single_device_mesh()
    frozen = base.Base(found, family, spec, mesh, args.dtype, None).load(network)
    fixed = numbers.leaves(lora_config(args), family, network)
    frozen = trees.combine(frozen, jax.device_put(fixed, meshes.replicated(mesh)))
    _, tensors = peft_format.read_adapter(args.adapter)
    leaves = peft_format.from_tensors(tensors, family, network, args.adapter)
    leaves = jax.device_put(leaves, meshes.replicated(mesh))
    hyper, make = optimizers.hyper_of(train_config(), len(rows)), optimizers.make_optimizer
    capacity = max(int((row["labels"] != -100).sum()) for row in rows)
    program = steps.Program(network, mesh, args.dtype, capacity, args.remat, CAUSAL_LM)
    step = steps.make_train_step(program, make, hyper, leaves)
    state = states.init_state(leaves, {}, hyper, make, mesh)
    losses, seconds = [], []
    forget_host_peak()
    for row in rows:
        batch = {name: array[None] for name, array in row.items()}
        shape = batch["input_ids"].shape
        batch["segment_ids"] = np.ones(shape, np.int32)
        batch["positions"] = np.tile(np.arange(shape[2], dtype=np.int32), (*shape[:2], 1))
        batch["row_ids"] = np.arange(shape[1], dtype=np.int32)[None]
        began = time.perf_counter()
        state, metrics = step(state, frozen, batch, np.uint32(0))
        losses.append(float(metrics.loss))
        seconds.append(time.perf_counter() - began)
    on_device = jax.devices()[0].memory_stats()  # `None` on the CPU
    return losses, seconds, on_device["peak_bytes_in_use"] if on_device else host_peak()


def run_peft(
    args: argparse.Namespace, rows: list[dict[str, np.ndarray]]
) -> tuple[list[float], list[float], int]:
    """Train with PEFT on torch, as a plain loop; returns what `run_jaxft` returns."""
    import peft
    import torch
    import transformers

    from jaxft.weights.places import source

    found = source.resolve(args.model, None, print_note)
    config = transformers.AutoConfig.for_model(**found.config())
    dtype, has_gpu = getattr(torch, args.dtype), torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model = model.to_empty(device="cpu").to(dtype)
    checkpoint = found.checkpoint()
    state = {name: torch.from_numpy(checkpoint.read(name)).to(dtype) for name in checkpoint.infos()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    # Buffers are not in the file, and were never filled on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model = peft.PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    if args.remat:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    losses, seconds = [], []
    del state
    forget_host_peak()
    for row in rows:
        began = time.perf_counter()
        ids = torch.from_numpy(row["input_ids"]).long().to(device)
        labels = torch.from_numpy(row["labels"]).long().to(device)
        # Labels already shifted: as jaxft has them, and the last position keeps its own.
        loss = model(input_ids=ids, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if has_gpu else host_peak()
    return losses, seconds, peak


if __name__ == "__main__":
    main()
