"""Reports the devices that JAX found, and refuses to train on the wrong ones.

When JAX cannot use a GPU, it only logs a line and falls back to the CPU. Here, a visible NVIDIA GPU
with JAX on the CPU stops the run, unless `JAX_PLATFORMS=cpu` is set.
"""

import os
import shutil
import subprocess

import jax

from jaxft.errors import DeviceError


def describe() -> str:
    """Return one line such as ``"1 x NVIDIA H100 (gpu), jax 0.10.2"``."""
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    platform = devices[0].platform
    return f"{len(devices)} x {', '.join(kinds)} ({platform}), jax {jax.__version__}{processes}"


def check() -> None:
    """Refuse to run on the CPU while an NVIDIA GPU is visible.

    Raises:
        DeviceError: Names the GPU and the command that installs the JAX that uses it.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    gpu = _visible_gpu()
    if gpu:
        raise DeviceError(
            f"This machine has a GPU ({gpu}), but JAX runs on the CPU.",
            "Install JAX for it with: pip install -e '.[cuda13]'   "
            "(or set JAX_PLATFORMS=cpu to train on the CPU).",
        )


def _visible_gpu() -> str:
    """Return the name of the first NVIDIA GPU that the driver lists, or ""."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
        return ""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = listed.stdout.strip().splitlines()
    # If nvidia-smi finds no driver, stdout has an error message and not the name of a GPU.
    return names[0] if names and listed.returncode == 0 else ""
