"""Compare loading in jaxft and in transformers: memory and speed, each in a process of its own.

    python scripts/bench/load.py                         # a random OPT of about 500 MB
    python scripts/bench/load.py --width 512 --layers 4 --rounds 5
    python scripts/bench/load.py --only jaxft            # where torch is not installed

The same random model is written as safetensors, msgpack and .bin (the last needs torch), in a
temporary folder. Contestants take turns. The peak is what the process held at most beyond what it
held before it began to load, once its libraries were there, pages of mapped files included:
transformers leaves its weights in them. Files are in the page cache for all.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 50272  # OPT's
FORMATS = ("safetensors", "msgpack", "bin")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=768, help="of the residual stream")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=VOCAB_SIZE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="to load float32 as"
    )
    parser.add_argument("--only", choices=["jaxft", "transformers"])
    parser.add_argument("--worker", choices=["jaxft", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure in turns and print the table, or be one of the processes that are measured."""
    args = parse()
    if args.worker:
        worker = load_with_jaxft if args.worker == "jaxft" else load_with_transformers
        print(json.dumps(worker(args.folder, args.dtype)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = write_models(args, Path(temporary))
        contestants = [("jaxft", kind) for kind in folders]
        # transformers reads no msgpack any more.
        contestants += [("transformers", kind) for kind in folders if kind != "msgpack"]
        contestants = [each for each in contestants if args.only in (None, each[0])]
        rounds = [
            {(name, kind): measure(name, folders[kind], args.dtype) for name, kind in contestants}
            for _ in range(args.rounds)
        ]
        show(args, sum(file.stat().st_size for file in folders["safetensors"].iterdir()), rounds)


def measure(name: str, folder: Path, dtype: str) -> dict[str, float]:
    """Run one process and return what it measured."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    command += ["--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed on {folder.name}:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(
    args: argparse.Namespace,
    size: int,
    rounds: list[dict[tuple[str, str], dict[str, float]]],
) -> None:
    """Print the medians; MB/s are of the file, the model is as large as it is once loaded."""
    from jaxft import console

    model = size // 2 if args.dtype == "bfloat16" else size
    rows = []
    for name, kind in rounds[0]:
        seconds = statistics.median(one[name, kind]["seconds"] for one in rounds)
        peak = statistics.median(one[name, kind]["peak"] for one in rounds)
        rows.append([name, kind, f"{size / 1e6 / seconds:,.0f}", f"{seconds:.2f}"])
        rows[-1] += [f"{peak / 1e6:,.0f}", f"{peak / model:.2f}"]
    title = (
        f"Random OPT, {size / 1e6:,.0f} MB of float32 as {args.dtype}, largest tensor "
        f"{4e-6 * args.vocabulary * args.width:,.0f} MB, {args.rounds} rounds"
    )
    columns = ["", "format", "MB/s", "seconds", "peak, MB", "peak / model"]
    console.table(title, columns, rows)


def write_models(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Write the random model in every format that can be written here; returns their folders."""
    from jaxft.models import families
    from jaxft.models.network import base_network
    from jaxft.weights import names, save
    from jaxft.weights.formats.checkpoint import TensorInfo

    config = {
        "model_type": "opt",
        "vocab_size": args.vocabulary,
        "hidden_size": args.width,
        "word_embed_proj_dim": args.width,
        "ffn_dim": 4 * args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "max_position_embeddings": 2048,
    }
    family = families.family_of(config)
    network = base_network(family.spec_from_config(config))
    shapes = names.leaf_shapes(network)
    infos = {
        name: TensorInfo(names.expected_shape(slots, shapes), np.dtype(np.float32))
        for name, slots in names.slots(family, network).items()
    }

    def read(name: str) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(infos[name].shape, np.float32)

    folders = {"safetensors": folder / "safetensors", "msgpack": folder / "msgpack"}
    kinds: dict[str, save.Format] = {"safetensors": "merged", "msgpack": "flax"}
    for kind, place in folders.items():
        save.save_model(place, config, infos, read, kinds[kind], lambda _: None, replaces=None)
    try:
        import torch
    except ImportError:
        return folders
    folders["bin"] = folder / "bin"
    folders["bin"].mkdir()
    (folders["bin"] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {name: torch.from_numpy(read(name)) for name in infos}
    torch.save(tensors, folders["bin"] / "pytorch_model.bin")
    return folders


def load_with_jaxft(folder: Path, dtype: str) -> dict[str, float]:
    """Load with jaxft, onto the CPU."""
    import jax

    from jaxft.models.network import base_network
    from jaxft.parallel import mesh as meshes
    from jaxft.weights import base
    from jaxft.weights.places import source

    jax.config.update("jax_platforms", "cpu")
    mesh = meshes.single_device_mesh()
    found = source.resolve(str(folder), None, print)
    family, spec = base.read_spec(found)
    network = base_network(spec)

    def load() -> Any:
        return base.Base(found, family, spec, mesh, dtype, None).load(network)

    return measured(load)


def load_with_transformers(folder: Path, dtype: str) -> dict[str, float]:
    """Load with transformers."""
    import torch
    import transformers

    # What it imports on first use is not the loading.
    transformers.AutoModelForCausalLM.from_config(
        transformers.OPTConfig(vocab_size=8, hidden_size=8, ffn_dim=8, num_attention_heads=1)
    )

    def load() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
        # Tensors still lie in the mapped file: have them read, as the first step would.
        return model, [float(parameter.detach().sum()) for parameter in model.parameters()]

    return measured(load)


def measured(load: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that a call takes, and the most memory that it holds in addition."""
    before, stop, peak = resident(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    kept = load()
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    del kept
    return {"seconds": seconds, "peak": max(peak[0], resident()) - before}


def resident() -> int:
    """Return the memory that the process holds, in bytes, pages of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
