"""Reads the tensors of an adapter folder, from either of the two files that PEFT may have written.

What the tensors mean is known to `peft_format`. A safetensors file is preferred, as in PEFT, which
wrote torch's pickle until 0.7 and still does on request. The invariant: all values that are
returned are finite floating-point numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxft.errors import AdapterError, WeightsError
from jaxft.weights import finite
from jaxft.weights.formats import safetensors, torch_pickle

FILE = "adapter_model.safetensors"
_TORCH_FILE = "adapter_model.bin"
_NAMED = re.compile(
    r"(?<=\.)(?P<before>lora_\w+|modules_to_save|trainable_tokens_delta)\.default(?=\.|$)"
)


def read(folder: Path) -> dict[str, np.ndarray]:
    """Read all tensors as they are stored, and remove the adapter's name from their names.

    PEFT names a loaded adapter "default". A state dict saved directly has that in its names, such
    as "lora_A.default.weight", which becomes "lora_A.weight".

    Raises:
        AdapterError: If there is no tensor file, it is damaged, or a value is not a finite number.
    """
    opened = [
        (folder / name, opener)
        for name, opener in (
            (FILE, safetensors.open_file),
            (_TORCH_FILE, torch_pickle.open_file),
        )
        if (folder / name).is_file()
    ]
    if not opened:
        raise AdapterError(
            f"{folder / FILE} does not exist.",
            f"Give the folder of an adapter, with adapter_config.json and {FILE}.",
        )
    path, opener = opened[0]
    try:
        checkpoint = opener(path)
        tensors = {
            _NAMED.sub(r"\g<before>", name): checkpoint.read(name) for name in checkpoint.infos()
        }
    except WeightsError as error:
        raise AdapterError(
            f"{path} cannot be read: {error.found.removeprefix(f'{path}: ')}",
            "It is damaged or cut short: copy it anew.",
        ) from error
    for name, tensor in tensors.items():
        _check(path, name, tensor)
    return tensors


def _check(path: Path, name: str, tensor: np.ndarray) -> None:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise AdapterError(
            f"{path}: {name} has dtype {tensor.dtype}.",
            "Expected float32, bfloat16 or float16: this is no adapter, or one that was quantized.",
        )
    if not finite.is_finite(tensor):
        raise AdapterError(
            f"{path}: {name} holds values that are no numbers.",
            "The training that made it went wrong: train again, at a lower learning rate.",
        )
