"""What every weights format offers, so that loading does not know which one it reads.

Separate from the formats because each of them implements it and the loader takes any of them.
The invariant: names, shapes and layout are those of the Hugging Face torch model (a linear's
weight is [out, in]), whatever the file calls them, and `read` returns what `infos` announced.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class TensorInfo(NamedTuple):
    """A tensor's shape and dtype, known without reading its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


@runtime_checkable
class Checkpoint(Protocol):
    """Named tensors on disk, read one at a time.

    Attributes:
        path: The file, or the folder of shards, for messages.
    """

    @property
    def path(self) -> Path:
        """Return the file, or the folder of shards, for messages."""
        ...

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under their Hugging Face names, in the file's order."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into memory of its own.

        Raises:
            WeightsError: The file cannot give it; file and tensor are named.
        """
        ...
