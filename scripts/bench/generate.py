"""Generation compared with transformers, in new tokens a second, on a CPU.

    python scripts/bench/generate.py
    python scripts/bench/generate.py --model models/mine --prompts 1 8 --new-tokens 64 --rounds 7

Both continue the same prompts greedily, the whole of it timed: reading the prompts, and every new
token. Each has a process of its own, which compiles and warms up before it is timed, and waits
while the other one works: a round is one call of each, in turns, and what is shown is the median
of each one's speed and the median of the rounds' ratios. The first rows of both are compared too.
Without `--model` it is the model of configs/quickstart.yaml. Needs the extra [reference].
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent.parent
CONTESTANTS = ("jaxft", "transformers")

Continue = Callable[[list[list[int]], int], list[list[int]]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8], help="rows of a batch")
    parser.add_argument("--prompt-tokens", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores for each")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print the table, or be one of the processes that are measured."""
    args = parse()
    if args.worker:
        work(args)
        return
    workers = {name: start(name) for name in CONTESTANTS}
    print("prompts  jaxft tokens/s  transformers tokens/s  ratio  same rows", flush=True)
    for num_prompts in args.prompts:
        prompts = draw(num_prompts, args.prompt_tokens)
        for worker in workers.values():
            ask(worker, prompts, args.new_tokens)  # compiles, warms up
        speeds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(args.rounds):
            rows = {}
            for name, worker in workers.items():
                seconds, rows[name] = ask(worker, prompts, args.new_tokens)
                speeds[name].append(num_prompts * args.new_tokens / seconds)
        ours, theirs = (speeds[name] for name in CONTESTANTS)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        same = sum(a == b for a, b in zip(*(rows[name] for name in CONTESTANTS), strict=True))
        print(
            f"{num_prompts:7}  {statistics.median(ours):14.1f}  {statistics.median(theirs):21.1f}  "
            f"{ratio:5.2f}  {same} of {num_prompts}",
            flush=True,
        )
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


def draw(num_prompts: int, length: int) -> list[list[int]]:
    """Return prompts of ordinary tokens: runs of the words' own numbers, no special ones."""
    return [
        [100 + 37 * (row + 1) * (place + 1) % 9000 for place in range(length)]
        for row in range(num_prompts)
    ]


def start(name: str) -> Any:
    """Start the process of a contestant, on as many cores as it is given."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: Any, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[int]]]:
    """Have a process continue prompts; return its seconds and the new tokens."""
    worker.stdin.write(json.dumps([prompts, new_tokens]) + "\n")
    worker.stdin.flush()
    answered = json.loads(worker.stdout.readline())
    return answered["seconds"], answered["rows"]


def work(args: argparse.Namespace) -> None:
    """Continue what comes on standard input, and say how long it took."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    continue_rows = {"jaxft": with_jaxft, "transformers": with_transformers}[args.worker](args)
    for line in sys.stdin:
        prompts, new_tokens = json.loads(line)
        began = time.perf_counter()
        rows = continue_rows(prompts, new_tokens)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "rows": rows}), flush=True)


def with_jaxft(args: argparse.Namespace) -> Continue:
    """Return what continues rows with jaxft."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxft.artifacts import loaded
    from jaxft.generation.decoding import CachedDecoder
    from jaxft.generation.sampling import GREEDY
    from jaxft.parallel import mesh as meshes

    mesh = meshes.single_device_mesh()
    found, lora, tensors, origin = loaded.find(None, args.model)
    loaded = loaded.load(found, lora, tensors, origin=origin, mesh=mesh, dtype=args.dtype)
    decoder = CachedDecoder(loaded.network, stop_ids=(), mesh=mesh, dtype=args.dtype)
    return lambda prompts, new_tokens: decoder.rows(
        loaded.tree, prompts, max_new_tokens=new_tokens, how=GREEDY
    )


def with_transformers(args: argparse.Namespace) -> Continue:
    """Return what continues rows with transformers."""
    import torch
    import transformers

    from jaxft.weights.places import source

    torch.set_num_threads(args.threads)
    found = source.resolve(args.model, None, lambda _: None)
    file = {} if found.gguf is None else {"gguf_file": found.gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        found.folder, dtype=getattr(torch, args.dtype), **file
    ).eval()

    def continue_rows(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return found[:, ids.shape[1] :].tolist()

    return continue_rows


if __name__ == "__main__":
    main()
