"""Read a pickle that torch.save wrote, and refuse all other pickles.

`torch_pickle` finds the pickles and the data in a file. A pickle is a program, and Python's
unpickler runs it: it imports and calls everything that the pickle names. This file is a machine for
the few instructions of a dictionary of tensors. Nothing that a file names is looked up, imported,
called or set. The name of a global is only compared with a few known names, and any other name is
refused.

Source: `pickletools`; `torch/_utils.py`: `_rebuild_tensor_v2`, `_rebuild_parameter`;
`torch/serialization.py`: `persistent_id`.
"""

from __future__ import annotations

import pickletools
import sys
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from jaxft.errors import WeightsError

FOREIGN = (
    "Expected a dictionary of tensors and nothing else; no code of the file was run. "
    "Use the model's safetensors weights, or save its state_dict again."
)
_DAMAGED = "Expected a complete file as torch.save writes it; download or copy it again."

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class Storage(NamedTuple):
    """A sequence of numbers in the file, with the key that torch gave it."""

    key: str
    dtype: np.dtype
    num_values: int


class PickledTensor(NamedTuple):
    """A tensor in the pickle: a strided view of a storage. Offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Function(Enum):
    """The names of the globals that a pickle may call. The functions themselves are never used."""

    DICTIONARY = "collections OrderedDict"
    TENSOR = "torch._utils _rebuild_tensor_v2"
    PARAMETER = "torch._utils _rebuild_parameter"


_PUSHED = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME"})


def unpickle(opened: Any, file: Path) -> Any:
    """Read one pickle and return its value.

    Args:
        opened: An object with `read` and `readline`, at the beginning of the pickle; it is left at
            the pickle's end.
        file: The path of the file, for messages.

    Returns:
        A number, text, list, tuple or dictionary; tensors are `PickledTensor`.

    Raises:
        WeightsError: The pickle is damaged, or holds something else.
    """
    machine = _Machine(file)
    try:
        for opcode, argument, _ in pickletools.genops(opened):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise WeightsError(
            f"{file}: the pickle is damaged or cut off{machine.place()} ({error}).", _DAMAGED
        ) from error
    raise WeightsError(f"{file}: the pickle has no end.", _DAMAGED)


class _Machine:
    """A pickle machine for tensors, whose values are plain data."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.frames: list[list[Any]] = [[]]  # a stack of stacks: each mark adds one
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Run one instruction, or refuse it."""
        if name in _PUSHED:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _TUPLES:
            self._push(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name in ("BINGET", "LONG_BINGET"):
            self._push(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.frames[-1][-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.frames[-1][-1]
        elif name == "GLOBAL":
            self._push(self._global(argument))
        elif name in _METHODS:
            _METHODS[name](self)
        elif name not in _IGNORED:
            of = f" of {argument:.200}" if isinstance(argument, str) else ""
            self._refuse(f"the pickle instruction {name}{of}")

    def pop(self) -> Any:
        """Remove the last value and return it; IndexError if there is none since the last mark."""
        return self.frames[-1].pop()

    def place(self) -> str:
        """Return in words which tensor is being read; "" if none is."""
        for frame in self.frames:
            for index in reversed(range(len(frame))):
                is_last = index + 1 == len(frame)
                if isinstance(frame[index], str) and (
                    is_last or isinstance(frame[index + 1], _Function)
                ):
                    return f" within {frame[index]!r:.200}"
        return ""

    def stack_global(self) -> None:
        """Push the known global whose module and name are on the stack."""
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global whose name is no text")
        self._push(self._global(f"{module} {name}"))

    def mark(self) -> None:
        """Begin a new frame."""
        self.frames.append([])

    def make_tuple(self) -> None:
        """Push the values since the mark as a tuple."""
        self._push(tuple(self._frame()))

    def new_dict(self) -> None:
        """Push an empty dictionary."""
        self._push({})

    def new_list(self) -> None:
        """Push an empty list."""
        self._push([])

    def append(self) -> None:
        """Append the last value to the list below it."""
        self._extend([self.pop()])

    def append_all(self) -> None:
        """Append the values since the mark to the list below it."""
        self._extend(self._frame())

    def set_item(self) -> None:
        """Put the last two values into the dictionary below them."""
        value, key = self.pop(), self.pop()
        self._update([(key, value)])

    def set_items(self) -> None:
        """Put the values since the mark into the dictionary below it."""
        values = self._frame()
        self._update(list(zip(values[::2], values[1::2], strict=True)))

    def call(self) -> None:
        """Push the value that one of the known functions would return."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are no tuple")
        if function is _Function.DICTIONARY and not arguments:
            self._push({})
        elif function is _Function.DICTIONARY and len(arguments) == 1:
            self._push({})
            self._update([(key, value) for key, value in arguments[0]])
        elif function is _Function.TENSOR and len(arguments) in (6, 7):
            self._push(self._tensor(*arguments[:4], *arguments[6:]))
        elif (
            function is _Function.PARAMETER
            and len(arguments) == 3
            and isinstance(arguments[0], PickledTensor)
        ):
            self._push(arguments[0])
        else:
            self._refuse("a call of something that is no function")

    def set_state(self) -> None:
        """Drop the attributes of an object, in which a state_dict has version numbers."""
        self.pop()
        if not isinstance(self.frames[-1][-1], dict):
            self._refuse("attributes of something that is no dictionary")

    def load_storage(self) -> None:
        """Push the storage that a persistent id describes."""
        described = self.pop()
        # Legacy files add a view of the storage, which is None in all files since torch 0.4.
        if not (isinstance(described, tuple) and len(described) in (5, 6)):
            raise ValueError("a storage that is not described as torch describes it")
        kind, dtype, key, _, num_values, *view = described
        if not (kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str)):
            self._refuse("a persistent object that is no storage")
        if view not in ([], [None]):
            self._refuse("a storage that is a view of another one, as torch before 0.4 wrote them")
        self._push(Storage(key, dtype, _count(num_values)))

    def _push(self, value: Any) -> None:
        self.frames[-1].append(value)

    def _frame(self) -> list[Any]:
        """End the frame of the last mark and return it."""
        if len(self.frames) == 1:
            raise ValueError("there is no mark")
        return self.frames.pop()

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.frames[-1][-1], list):
            raise ValueError("something is appended to what is no list")
        self.frames[-1][-1].extend(values)

    def _update(self, items: list[tuple[Any, Any]]) -> None:
        """Put items into the dictionary on top of the stack. Keys must be new and text."""
        target = self.frames[-1][-1]
        if not isinstance(target, dict):
            raise ValueError("an item is put into what is no dictionary")
        for key, value in items:
            if not isinstance(key, str):
                raise ValueError(f"a dictionary has a {type(key).__name__} for a key")
            if key in target:
                raise WeightsError(f"{self.file}: {key!r:.200} is there twice.", _DAMAGED)
            target[key] = value

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, metadata: Any = None
    ) -> PickledTensor:
        """Return a tensor, after a check that it lies in its storage."""
        if not isinstance(storage, Storage) or metadata:
            self._refuse("a tensor without a plain storage")
        if not (type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)):
            raise ValueError("a tensor's shape and strides do not fit each other")
        tensor = PickledTensor(
            storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides))
        )
        if tensor.offset + span(tensor) > storage.num_values:
            raise ValueError("a tensor goes beyond its storage")
        try:
            size = np.broadcast_to(np.zeros((), storage.dtype), tensor.shape).size
        except ValueError as error:
            raise ValueError("a tensor's shape is too large") from error
        # With a stride of 0 a few bytes could become a tensor of any size.
        if size > storage.num_values:
            raise ValueError("a tensor has more values than its storage")
        # In a dimension of one value the stride has no effect, and torch may write any number.
        used = [length > 1 and size > 0 for length in tensor.shape]
        steps = zip(tensor.strides, used, strict=True)
        return tensor._replace(strides=tuple(step if moves else 0 for step, moves in steps))

    def _global(self, named: str) -> _Function | np.dtype:
        """Return the known global of a name, or refuse it."""
        module, _, name = named.partition(" ")
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name.endswith("Storage"):
            raise WeightsError(
                f"{self.file}: the tensor{self.place()} has the unknown dtype of torch.{name}.",
                f"Expected one of {', '.join(_STORAGES)}.",
            )
        try:
            return _Function(named)
        except ValueError:
            self._refuse(f"{module}.{name}"[:200])

    def _refuse(self, what: str) -> NoReturn:
        raise WeightsError(f"{self.file}: the file holds {what}{self.place()}.", FOREIGN)


_METHODS = {
    "STACK_GLOBAL": _Machine.stack_global,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "EMPTY_DICT": _Machine.new_dict,
    "EMPTY_LIST": _Machine.new_list,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.load_storage,
}


def span(tensor: PickledTensor) -> int:
    """Return the number of values in a storage from a tensor's first value to its last."""
    if 0 in tensor.shape:
        return 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((length - 1) * stride for length, stride in steps)


def _count(value: Any) -> int:
    """Return a value that is a valid count, or raise ValueError."""
    if type(value) is not int or not 0 <= value <= sys.maxsize:
        raise ValueError("a count that is no natural number")
    return value
