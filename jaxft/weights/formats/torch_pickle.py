"""Read `pytorch_model.bin`, in both formats of torch.save, without torch.

`torch_unpickler` reads the pickles inside. Opening finds the position of each storage, and checks
that it lies completely in the file. A read holds one tensor, and the part of its storage that the
tensor covers.

Source: `torch/serialization.py`: `_save` (a zip archive), `_legacy_save` (five pickles, then the
storages in the order of the last one).
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import WeightsError
from jaxft.weights.formats import regions, shards, torch_unpickler
from jaxft.weights.formats.checkpoint import TensorInfo
from jaxft.weights.formats.regions import Region
from jaxft.weights.formats.torch_unpickler import PickledTensor, Storage

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # the header of a zip member, before name and extra

_MAX_LINE_BYTES = 1 << 16  # the longest name of a global; without a limit it could be all the data

_REFETCH = "Expected a complete file as torch.save writes it; download or copy it again."


@dataclass(frozen=True)
class _Placed:
    """A tensor, and the byte of the file where its storage begins."""

    tensor: PickledTensor
    begin: int


@dataclass(frozen=True)
class TorchCheckpoint:
    """A `Checkpoint` in files of torch.save.

    Attributes:
        path: The single file, or the folder of the shards.
        tensors: The file of each tensor, and the tensor's position in it.
    """

    path: Path
    tensors: dict[str, tuple[Path, _Placed]]

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under their names, in the files' order."""
        return {
            name: TensorInfo(placed.tensor.shape, placed.tensor.storage.dtype)
            for name, (_, placed) in self.tensors.items()
        }

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or a region of it, into new memory.

        For a region the whole tensor is read, and the rest is dropped.

        Raises:
            WeightsError: There is no such tensor, or its file changed or vanished after opening.
        """
        if name not in self.tensors:
            raise WeightsError(
                f"{self.path}: there is no tensor {name}.",
                "Expected the weights that config.json describes; check that both belong together.",
            )
        file, placed = self.tensors[name]
        tensor, dtype = placed.tensor, placed.tensor.storage.dtype
        num_values = torch_unpickler.span(tensor)
        begin = placed.begin + tensor.offset * dtype.itemsize
        try:
            raw = np.fromfile(file, np.uint8, num_values * dtype.itemsize, offset=begin)
        except OSError as error:
            raise WeightsError(f"{file}: cannot read {name} ({error}).", _REFETCH) from error
        if raw.size != num_values * dtype.itemsize:
            raise WeightsError(f"{file}: the file ends within {name}.", _REFETCH)
        # The unpickler has checked that shape and strides stay within these values.
        view = np.lib.stride_tricks.as_strided(
            raw.view(dtype), tensor.shape, [step * dtype.itemsize for step in tensor.strides]
        )
        # A contiguous region is copied, because its view would keep the whole tensor in memory.
        kept = view if region is None else regions.cut(view, region).copy()
        return np.ascontiguousarray(kept).reshape(kept.shape)


def open_torch(folder: Path) -> TorchCheckpoint:
    """Open the torch.save weights of a model folder, reading no values.

    Raises:
        WeightsError: A file is missing, truncated or damaged, or holds something other than
            tensors; the index contradicts the shards; a dtype or byte order is not supported.
    """
    single = folder / SINGLE
    if single.exists():
        return open_file(single)
    return TorchCheckpoint(folder, shards.join(folder / INDEX, _open_file))


def open_file(file: Path) -> TorchCheckpoint:
    """Open one file of torch.save, of any name, reading no values.

    Raises:
        WeightsError: See `open_torch`.
    """
    return TorchCheckpoint(
        file, {name: (file, placed) for name, placed in _open_file(file).items()}
    )


def _open_file(file: Path) -> dict[str, _Placed]:
    """Return the tensors of one file."""
    try:
        with file.open("rb") as opened:
            is_zip = opened.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        return _open_zip(file) if is_zip else _open_legacy(file)
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror or error}.", _REFETCH) from error


def _open_zip(file: Path) -> dict[str, _Placed]:
    """Return the tensors of a zip archive, which has a data.pkl and a member for each storage."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise WeightsError(
            f"{file}: the archive is cut off or its directory damaged ({error}).", _REFETCH
        ) from error
    members = {info.filename: info for info in listed}
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(members) != len(listed) or len(roots) != 1:
        raise WeightsError(
            f"{file}: not an archive of one model ({len(roots)} data.pkl, "
            f"{len(listed) - len(members)} repeated members).",
            _REFETCH,
        )
    with file.open("rb") as opened:

        def member(name: str) -> bytes:
            begin = _member_begin(file, opened, members[roots[0] + name])
            opened.seek(begin)
            return opened.read(members[roots[0] + name].file_size)

        order = member("byteorder") if f"{roots[0]}byteorder" in members else b"little"
        if order != b"little":
            raise _other_byte_order(file)
        tensors = _tensors(file, torch_unpickler.unpickle(io.BytesIO(member("data.pkl")), file))
        begins: dict[Storage, int] = {}
        for name, tensor in tensors.items():
            storage = tensor.storage
            info = members.get(f"{roots[0]}data/{storage.key}")
            num_bytes = storage.num_values * storage.dtype.itemsize
            if info is None or info.file_size != num_bytes:
                found = "none" if info is None else f"{info.file_size}"
                raise WeightsError(
                    f"{file}: the data of {name} should have {num_bytes} bytes and has {found}.",
                    _REFETCH,
                )
            if storage not in begins:
                begins[storage] = _member_begin(file, opened, info)
    return {name: _Placed(tensor, begins[tensor.storage]) for name, tensor in tensors.items()}


def _member_begin(file: Path, opened: io.BufferedReader, info: zipfile.ZipInfo) -> int:
    """Return the byte where a zip member begins, after a check that it is complete and plain."""
    num_bytes = file.stat().st_size
    opened.seek(min(max(0, info.header_offset), num_bytes))
    header = opened.read(_LOCAL_HEADER.size)
    if len(header) == _LOCAL_HEADER.size and header[:4] == _ZIP_MAGIC:
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        begin = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        is_plain = info.compress_size == info.file_size and not info.flag_bits & 1
        if (
            is_plain
            and info.compress_type == zipfile.ZIP_STORED
            and (begin + info.file_size <= num_bytes)
        ):
            return begin
    raise WeightsError(f"{file}: the member {info.filename} of the archive is damaged.", _REFETCH)


class _Stream:
    """A file whose reads are limited to its size, for pickles that claim wrong lengths."""

    def __init__(self, opened: io.BufferedReader, num_bytes: int) -> None:
        self.opened = opened
        self.num_bytes = num_bytes

    def read(self, count: int) -> bytes:
        return self.opened.read(min(count, self.num_bytes - self.opened.tell()))

    def readline(self) -> bytes:
        return self.opened.readline(_MAX_LINE_BYTES)


def _open_legacy(file: Path) -> dict[str, _Placed]:
    """Return the tensors of a file in the format before zip."""
    num_bytes = file.stat().st_size
    if num_bytes == 0:
        raise WeightsError(f"{file}: the file is empty.", _REFETCH)
    with file.open("rb") as opened:
        stream = _Stream(opened, num_bytes)
        if torch_unpickler.unpickle(stream, file) != _LEGACY_MAGIC:
            raise WeightsError(f"{file}: not a file of torch.save.", torch_unpickler.FOREIGN)
        protocol, system = (torch_unpickler.unpickle(stream, file) for _ in range(2))
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise WeightsError(f"{file}: another version of torch's format.", _REFETCH)
        if system.get("little_endian") is not True:
            raise _other_byte_order(file)
        tensors = _tensors(file, torch_unpickler.unpickle(stream, file))
        keys = torch_unpickler.unpickle(stream, file)
        begins = _legacy_begins(file, opened, tensors, keys)
    return {name: _Placed(tensor, begins[tensor.storage]) for name, tensor in tensors.items()}


def _legacy_begins(
    file: Path, opened: io.BufferedReader, tensors: Mapping[str, PickledTensor], keys: Any
) -> dict[Storage, int]:
    """Return the byte where each storage begins.

    The storages stand one after the other, and each begins with its number of values.
    """
    named: dict[str, tuple[str, Storage]] = {}
    for name, tensor in tensors.items():
        known = named.setdefault(tensor.storage.key, (name, tensor.storage))
        if known[1] != tensor.storage:
            raise WeightsError(f"{file}: {known[0]} and {name} contradict each other.", _REFETCH)
    are_texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not are_texts or sorted(keys) != sorted(named):
        raise WeightsError(f"{file}: its list of storages is not that of its tensors.", _REFETCH)
    begins: dict[Storage, int] = {}
    place, num_bytes = opened.tell(), file.stat().st_size
    for key in keys:
        name, storage = named[key]
        begin = place + 8
        place = begin + storage.num_values * storage.dtype.itemsize
        if place > num_bytes:
            raise WeightsError(
                f"{file}: the file is truncated: the data of {name} ends at byte {place} of "
                f"{num_bytes}.",
                _REFETCH,
            )
        opened.seek(begin - 8)
        stored = int.from_bytes(opened.read(8), "little", signed=True)
        if stored != storage.num_values:
            raise WeightsError(
                f"{file}: the data of {name} should have {storage.num_values} values and has "
                f"{stored}.",
                _REFETCH,
            )
        begins[storage] = begin
    return begins


def _tensors(file: Path, described: Any) -> dict[str, PickledTensor]:
    """Return the tensors of a pickle, after a check that it is a dictionary of tensors."""
    if not isinstance(described, dict):
        raise WeightsError(
            f"{file}: a {type(described).__name__}, not a dictionary of tensors.",
            torch_unpickler.FOREIGN,
        )
    for name, value in described.items():
        if not isinstance(value, PickledTensor):
            raise WeightsError(
                f"{file}: {name} is a {type(value).__name__}, not a tensor.",
                torch_unpickler.FOREIGN,
            )
    return described


def _other_byte_order(file: Path) -> WeightsError:
    return WeightsError(
        f"{file}: the numbers are not little-endian.",
        "Expected a file written on a little-endian machine; save the model again on one.",
    )
