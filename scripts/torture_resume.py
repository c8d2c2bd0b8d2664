"""Kill a run at random moments until it is done, and compare it with one left in peace.

    python scripts/torture_resume.py RECIPE [--rounds 10] [--kills 4] [--seed 0] [KEY=VALUE ...]

Each round trains the recipe anew. It is stopped --kills times, by SIGKILL or one time in four by
SIGTERM, each time a moment after the record has come to a random step; then the same command runs
to its end. The adapter must be equal to the last byte, and metrics.jsonl in all but
tokens_per_second. Exit status 1 if any round differs. Use a short run with save_steps: 1 and
logging_steps: 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxft import console

_COMMAND = [sys.executable, "-c", "from jaxft.cli.main import main; main()", "train"]


def main() -> None:
    """Run all rounds and print what became of them."""
    arguments = _parse()
    words = [str(arguments.recipe), *arguments.overrides]
    draw = random.Random(arguments.seed)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{temporary}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        straight = Path(temporary) / "straight"
        _train(words, straight).wait()
        expected = _result(straight)
        num_steps = expected[1][-1]["step"]
        for number in range(1, arguments.rounds + 1):
            folder = Path(temporary) / f"round{number}"
            targets = sorted(draw.randrange(num_steps) for _ in range(arguments.kills))
            ends = [_stop(words, folder, target, draw) for target in targets]
            status = _train(words, folder).wait()
            is_equal = status == 0 and _result(folder) == expected
            rows.append([number, ", ".join(ends), status, "equal" if is_equal else "DIFFERS"])
            console.note(f"Round {number}: {rows[-1]}")
    title = f"{arguments.rounds} runs of {num_steps} steps, each stopped {arguments.kills} times"
    console.table(title, ["round", "stopped after (saved)", "status", "result"], rows)
    sys.exit(any(row[-1] != "equal" for row in rows))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_intermixed_args()


def _train(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a run in `folder`; what it says goes to a file beside it."""
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*_COMMAND, *words, f"train.output_dir={folder}"], stdout=log, stderr=log
        )


def _stop(words: list[str], folder: Path, target: int, draw: random.Random) -> str:
    """Start a run, stop it soon after a step, and say how, after which, and what was saved."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    before = _last_step(folder)
    process = _train(words, folder)
    # The record of a resumed run begins where the last one ended: wait for more of it.
    while process.poll() is None and _last_step(folder) <= max(target, before):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    process.send_signal(number)
    process.wait()
    saved = [path.name for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
    return f"{number.name} {_last_step(folder)} ({max(map(int, saved), default=0)})"


def _last_step(folder: Path) -> int:
    """Return the last step in the record; -1 for none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = [line for line in lines if line.endswith("}")]
    return json.loads(whole[-1])["step"] if whole else -1


def _result(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the bytes of the adapter, and the lines of the record without their speed."""
    adapter = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return adapter, [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


if __name__ == "__main__":
    main()
