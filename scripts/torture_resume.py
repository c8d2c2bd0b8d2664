"""Kill a run at random moments until it is done, and compare it with one left in peace.

    python scripts/torture_resume.py RECIPE [--rounds 10] [--kills 4] [--seed 0] [KEY=VALUE ...]

Each round trains the recipe anew. It is stopped --kills times, by SIGKILL or one time in four by
SIGTERM, each time after a random part of the time that an undisturbed run takes; then the same
command runs to its end. The adapter must be equal to the last byte, and metrics.jsonl in all but
tokens_per_second. Exit status 1 if any round differs. Use a short run with save_steps: 1.
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

_COMMAND = [sys.executable, "-c", "from jaxft import cli; cli.main()", "train"]


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
        for _ in range(2):  # the first compiles, the second says how long a run takes
            subprocess.run(["rm", "-rf", straight], check=True)
            began = time.monotonic()
            _train(words, straight).wait()
            seconds = time.monotonic() - began
        expected = _result(straight)
        for number in range(1, arguments.rounds + 1):
            folder = Path(temporary) / f"round{number}"
            ends = [_stop(words, folder, seconds, draw) for _ in range(arguments.kills)]
            status = _train(words, folder).wait()
            is_equal = status == 0 and _result(folder) == expected
            rows.append([number, ", ".join(ends), status, "equal" if is_equal else "DIFFERS"])
            console.note(f"Round {number}: {rows[-1]}")
    title = f"{arguments.rounds} runs of {seconds:.1f} s, each stopped {arguments.kills} times"
    console.table(title, ["round", "stopped (saved steps)", "status", "result"], rows)
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


def _stop(words: list[str], folder: Path, seconds: float, draw: random.Random) -> str:
    """Start a run, stop it somewhere, and say how and with which steps saved."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    process = _train(words, folder)
    # Its first third is reading and loading.
    try:
        process.wait(draw.uniform(seconds / 3, seconds))
        how = "done"
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        how = number.name
    process.wait()
    saved = [path.name for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
    return f"{how} ({max(map(int, saved), default=0)})"


def _result(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the bytes of the adapter, and the lines of the record without their speed."""
    adapter = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return adapter, [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


if __name__ == "__main__":
    main()
