"""Read safetensors checkpoints: one file, or shards with an index.

Opening a checkpoint finds every fault of headers, index and shards before a tensor is read. After
that a read holds one tensor in memory. The safetensors library checks the headers. Values are read
without it, because it maps the file, and then memory would hold the pages of a tensor and its copy.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from jaxft.errors import WeightsError
from jaxft.weights.formats import regions, shards
from jaxft.weights.formats.checkpoint import TensorInfo
from jaxft.weights.formats.regions import Region

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The numpy dtypes for the format's element types. Its other types (8 bits and fewer) store
# quantized models, whose values mean nothing without their scales.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

_REFETCH = "Expected a complete safetensors file; download or copy it again."


class StoredTensor(NamedTuple):
    """A tensor, and the byte of the file where it begins."""

    info: TensorInfo
    begin: int


@dataclass(frozen=True)
class SafetensorsCheckpoint:
    """A `Checkpoint` in safetensors files.

    Attributes:
        path: The single file, or the folder of the shards.
        tensors: The file of each tensor, and the tensor's position in it.
    """

    path: Path
    tensors: dict[str, tuple[Path, StoredTensor]]

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under their names, in the files' order."""
        return {name: tensor.info for name, (_, tensor) in self.tensors.items()}

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or the bytes of a region of it, into new memory.

        Raises:
            WeightsError: There is no such tensor, or its file changed or vanished after opening.
        """
        if name not in self.tensors:
            raise WeightsError(
                f"{self.path}: there is no tensor {name}.",
                "Expected the weights that config.json describes; check that both belong together.",
            )
        file, (info, begin) = self.tensors[name]
        num_bytes = math.prod(info.shape) * info.dtype.itemsize
        try:
            return regions.read(file, ((begin, num_bytes),), info.shape, info.dtype, region)
        except OSError as error:
            raise WeightsError(f"{file}: cannot read {name} ({error}).", _REFETCH) from error
        except EOFError as error:
            raise WeightsError(f"{file}: the file ends within {name}.", _REFETCH) from error


def open_safetensors(folder: Path) -> SafetensorsCheckpoint:
    """Open the safetensors weights of a model folder, reading headers only.

    If both a single file and an index exist, the file is read, as in transformers.

    Raises:
        WeightsError: A file is missing, truncated or damaged; a shard lacks a tensor that the
            index places in it; a tensor is in two shards or in none; a dtype is not supported.
    """
    single = folder / SINGLE
    if single.exists():
        return open_file(single)
    return SafetensorsCheckpoint(folder, shards.join(folder / INDEX, read_header))


def open_file(file: Path) -> SafetensorsCheckpoint:
    """Open one safetensors file, of any name, reading its header only.

    Raises:
        WeightsError: See `open_safetensors`.
    """
    return SafetensorsCheckpoint(
        file, {name: (file, tensor) for name, tensor in read_header(file).items()}
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the names, shapes, dtypes and positions of the tensors in a file's header.

    Raises:
        WeightsError: The file is missing, truncated or damaged, or has an unsupported dtype.
    """
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            layout = (opened.metadata() or {}).get("format", "pt")
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            described = {
                name: (view.get_shape(), view.get_dtype()) for name, view in slices.items()
            }
        begins = _begins(file)
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: there is no such file.", _REFETCH) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{file}: {_diagnose(file) or error}.", _REFETCH) from error
    if layout in ("flax", "tf"):
        raise WeightsError(
            f"{file}: the weights are laid out for {layout}.",
            "Expected torch's layout; save the model again with torch's or numpy's writer.",
        )
    for name, (_, dtype) in described.items():
        if dtype not in _DTYPES:
            raise WeightsError(
                f"{file}: tensor {name} has dtype {dtype}.",
                f"Expected one of {', '.join(_DTYPES)}; use a checkpoint that is not quantized.",
            )
    return {
        name: StoredTensor(TensorInfo(tuple(shape), _DTYPES[dtype]), begins[name])
        for name, (shape, dtype) in described.items()
    }


def _begins(file: Path) -> dict[str, int]:
    """Return the byte where each tensor begins, from a header that the library has accepted."""
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_bytes))
    return {
        name: 8 + header_bytes + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _diagnose(file: Path) -> str:
    """Return in words which tensor reaches beyond the end of a refused file; "" if none does."""
    try:
        with file.open("rb") as opened:
            header_bytes = int.from_bytes(opened.read(8), "little")
            if header_bytes + 8 > file.stat().st_size:
                return f"its header should have {header_bytes} bytes and the file has fewer"
            header = json.loads(opened.read(header_bytes))
        data_bytes = file.stat().st_size - 8 - header_bytes
        ends = {n: e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"}
        late = [name for name in ends if ends[name] > data_bytes]
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return ""  # not a header: the library's own message is used
    if not late:
        return ""
    first = min(late, key=lambda name: ends[name])
    return (
        f"the file is truncated: {len(late)} tensors end beyond it, the first is {first} "
        f"(at byte {ends[first]} of {data_bytes})"
    )
