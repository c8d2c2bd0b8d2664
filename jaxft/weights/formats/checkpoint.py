"""The interface of every weights format, so that loading works with any of them.

Names, shapes and layout are those of the Hugging Face torch model (a linear's weight is [out, in]),
whatever the file has. `read` returns a tensor with the shape and dtype from `infos`, or a region of
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxft.weights.formats.regions import Region


class TensorInfo(NamedTuple):
    """The shape and dtype of a tensor, known without reading its values."""

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
        """Read one tensor, or a region of it, into new memory.

        If the file stores the values in order, only the bytes of the region are read.

        Args:
            name: The tensor.
            region: The slice of each dimension, with start and stop; `None` for the whole tensor.

        Raises:
            WeightsError: The tensor cannot be read; the error names the file and the tensor.
        """
        ...
