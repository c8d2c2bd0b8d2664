"""Read and write the checkpoints of transformers' Flax classes: one file, or shards with an index.

`msgpack_file` and `msgpack_writer` know the container, and `flax_names` the names. Opening reads
only headers and finds every fault in them. A read holds one tensor in memory; a kernel is returned
as a transposed view of the values that were read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxft.errors import WeightsError
from jaxft.weights.formats import flax_names, msgpack_file, msgpack_writer, shards
from jaxft.weights.formats.checkpoint import TensorInfo
from jaxft.weights.formats.regions import Region

SINGLE = "flax_model.msgpack"
INDEX = "flax_model.msgpack.index.json"


@dataclass(frozen=True)
class FlaxCheckpoint:
    """A `Checkpoint` in msgpack files.

    Attributes:
        path: The single file, or the folder of the shards.
        paths: The Flax path of each tensor, such as "a/b/kernel".
        arrays: The file of each tensor, and the array's position in it.
    """

    path: Path
    paths: dict[str, str]
    arrays: dict[str, tuple[Path, msgpack_file.StoredArray]]

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under their torch names, in the files' order."""
        return {
            name: _turned(self.paths[name], TensorInfo(stored.shape, stored.dtype))
            for name, (_, stored) in self.arrays.items()
        }

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or the bytes of a region of it, into new memory.

        Raises:
            WeightsError: There is no such tensor, or its file changed or vanished after opening.
        """
        if name not in self.arrays:
            raise WeightsError(
                f"{self.path}: there is no tensor {name}.",
                "Expected the weights that config.json describes; check that both belong together.",
            )
        file, stored = self.arrays[name]
        is_transposed = flax_names.is_transposed(self.paths[name])
        if region is not None and is_transposed:
            region = region[::-1]
        try:
            values = stored.read(file, region)
        except (OSError, EOFError) as error:
            raise WeightsError(
                f"{file}: cannot read {name} ({error}).", msgpack_file.REFETCH
            ) from error
        return values.T if is_transposed else values


def open_flax(folder: Path) -> FlaxCheckpoint:
    """Open the Flax weights of a model folder, reading headers only.

    Raises:
        WeightsError: A file is missing, truncated or damaged; the index contradicts the shards; an
            array's dtype or size is wrong; two arrays have the same torch name.
    """
    single = folder / SINGLE
    if single.exists():
        path = single
        stored = {key: (single, array) for key, array in msgpack_file.read_arrays(single).items()}
    else:
        path = folder
        stored = shards.join(folder / INDEX, msgpack_file.read_arrays)
    paths: dict[str, str] = {}
    for key, (file, array) in stored.items():
        name = flax_names.torch_name(key)
        if name in paths:
            raise WeightsError(
                f"{file}: {key} and {paths[name]} are both the tensor {name}.",
                "Expected each tensor once, as transformers saves it.",
            )
        if flax_names.is_transposed(key) and len(array.shape) != 2:
            raise WeightsError(
                f"{file}: the kernel {key} has the shape {list(array.shape)}.",
                "Expected linears, whose kernels have two dimensions.",
            )
        paths[name] = key
    return FlaxCheckpoint(path, paths, {name: stored[key] for name, key in paths.items()})


def save_msgpack(
    path: Path,
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    model_type: str,
) -> None:
    """Write a file that the Flax class of a family loads, with one tensor in memory at a time.

    Args:
        path: The file. transformers looks for the name `SINGLE`.
        infos: The tensors under their torch names, as a checkpoint lists them.
        read: Returns the tensor of a name, in torch's layout.
        model_type: The family, as in config.json.

    Raises:
        UnsupportedModelError: The family had no Flax class.
        WeightsError: A tensor has a dtype that the format does not have.
    """
    names = flax_names.flax_paths(infos, model_type)
    for name, info in infos.items():
        if info.dtype.name not in msgpack_file.DTYPES:
            raise WeightsError(
                f"{path}: tensor {name} has dtype {info.dtype.name}.",
                f"Expected one of {', '.join(msgpack_file.DTYPES)}.",
            )

    def read_path(key: str) -> np.ndarray:
        values = read(names[key])
        return values.T if flax_names.is_transposed(key) else values

    with path.open("wb") as opened:
        flax_infos = {key: _turned(key, infos[name]) for key, name in names.items()}
        msgpack_writer.write_arrays(opened, flax_infos, read_path)


def _turned(path: str, info: TensorInfo) -> TensorInfo:
    """Return the info with the shape converted from Flax's to torch's, or back."""
    if flax_names.is_transposed(path):
        return TensorInfo(info.shape[::-1], info.dtype)
    return info
