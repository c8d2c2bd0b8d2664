"""Files of torch.save made without torch: pickles put together opcode by opcode.

`Code` is a piece of a pickle; a Python value becomes the code that pushes it. So a test can write
what torch writes, and what torch would never write.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Code(bytes):
    """Opcodes that push one value."""


def code(value: Any) -> Code:
    """Return the opcodes that push a plain value, a `Code`, or a tuple, list or dict of them."""
    if isinstance(value, Code):
        return value
    if isinstance(value, tuple):
        return Code(b"(" + b"".join(map(code, value)) + b"t")
    if isinstance(value, list):
        return Code(b"](" + b"".join(map(code, value)) + b"e")
    if isinstance(value, dict):
        return Code(b"}" + items(value))
    return Code(pickle.dumps(value, 2)[2:-1])  # without PROTO and STOP


def items(pairs: Mapping[str, Any]) -> bytes:
    """Return the opcodes that put items into the dictionary on top."""
    return b"(" + b"".join(code(key) + code(value) for key, value in pairs.items()) + b"u"


def named(module: str, name: str) -> Code:
    return Code(f"c{module}\n{name}\n".encode())


def call(function: Code, *arguments: Any) -> Code:
    return Code(function + code(arguments) + b"R")


def ordered(pairs: Mapping[str, Any]) -> Code:
    """Return an OrderedDict with attributes, as a state_dict is one."""
    empty = call(named("collections", "OrderedDict"))
    return Code(empty + items(pairs) + code({"_metadata": {"": {"version": 1}}}) + b"b")


def storage(kind: str, key: str, count: int, *view: Any) -> Code:
    return Code(code(("storage", named("torch", kind), key, "cpu", count, *view)) + b"Q")


def tensor(
    held: Code, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *metadata: Any
) -> Code:
    hooks = call(named("collections", "OrderedDict"))
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, held, offset, shape, strides, False, hooks, *metadata)


def plain(values: np.ndarray, key: str, *, is_legacy: bool) -> Code:
    """Return an array as the only tensor of its storage."""
    steps = tuple(step // values.itemsize for step in np.ascontiguousarray(values).strides)
    view = (None,) if is_legacy else ()
    held = storage(STORAGES[values.dtype.name], key, values.size, *view)
    return tensor(held, 0, values.shape, steps[: values.ndim])


def finished(value: Any) -> bytes:
    return b"\x80\x02" + code(value) + b"."


def write_zip(
    path: Path, value: Any, storages: Mapping[str, np.ndarray], byteorder: bytes = b"little"
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", finished(value))
        archive.writestr("model/byteorder", byteorder)
        for key, values in storages.items():
            archive.writestr(f"model/data/{key}", values.tobytes())
        archive.writestr("model/version", b"3\n")


def write_legacy(
    path: Path,
    value: Any,
    storages: Mapping[str, np.ndarray],
    system: Any = None,
    keys: Any = None,
) -> None:
    """Write the format before zip; `system` and `keys` stand for what torch would write."""
    if system is None:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [finished(each) for each in (LEGACY_MAGIC, 1001, system, value)]
    parts.append(finished(list(storages) if keys is None else keys))
    for values in storages.values():
        parts += [struct.pack("<q", values.size), values.tobytes()]
    path.write_bytes(b"".join(parts))


def write_model(path: Path, tensors: Mapping[str, np.ndarray], *, is_legacy: bool) -> None:
    """Write arrays as torch.save writes a state_dict."""
    storages = {str(place): values for place, values in enumerate(tensors.values())}
    described = {
        name: plain(values, str(place), is_legacy=is_legacy)
        for place, (name, values) in enumerate(tensors.items())
    }
    (write_legacy if is_legacy else write_zip)(path, ordered(described), storages)
