"""What every weights format offers, so that loading does not know which one it reads.

Separate from the formats because each of them implements it and the loader takes any of them.
The invariant: names, shapes and layout are those of the Hugging Face torch model (a linear's
weight is [out, in]), whatever the file calls them, and `read` returns what `infos` announced, or a
region of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxft.weights.formats.regions import Region


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

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or a region of it, into memory of its own.

        A format whose bytes lie in the order of the values reads those of the region alone.

        Args:
            name: The tensor.
            region: Starts and stops, a slice for each dimension; `None` for the whole.

        Raises:
            WeightsError: The file cannot give it; file and tensor are named.
        """
        ...
