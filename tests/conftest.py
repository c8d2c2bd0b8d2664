"""Settings that hold for every test: four CPU devices, no network, checked shapes.

They must be in place before jax makes its first device, so they are set while this file is
imported and not in a fixture.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# JAX_PLATFORMS=cuda pytest ... runs the suite on a GPU instead.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time would be LLVM polishing programs that run once. What is compiled, and
# into what memory, is settled before LLVM sees it. An XLA_FLAGS of one's own is left alone.
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Small programs are not worth cutting into parts either.
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    # XLA's older code for fusions compiles in half the time. Later releases do not have it.
    if metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# What one test has compiled, every other finds: in the other worker, in a process that a test
# starts, after a file's end (below). The folder goes with the process that made it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jaxft-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# No test may reach the Hub; a forgotten download fails at once instead of passing by luck.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# A shell that starts the tests in the background may have them ignore Ctrl-C, which some send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Output is compared as text; a colourful terminal must not change it.
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)

import hypothesis
import jax
import jaxtyping
import pytest

# Every shape annotation of ours is checked at run time, in tests only. The check of a call takes
# longer than most functions do, so modules without such annotations are left alone.
PACKAGE = Path(__file__).parents[1] / "jaxft"
SHAPED = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")

# Four devices make every test a sharding test.
jax.config.update("jax_num_cpu_devices", 4)
# An accidental broadcast between ranks is a bug that looks like a result.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples each time, so that a failure is a failure for everyone; no deadline, since
# the first example may compile. `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file() -> Iterator[None]:
    """Let go of what a file compiled: a process has room for the programs of a few hundred tests.

    On Linux each takes some of its 65,530 memory maps. All that are kept slow every further one
    down, and the last one that there is room for aborts the process.
    """
    yield
    jax.clear_caches()
