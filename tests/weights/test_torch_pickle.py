from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tempfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch_files
from hypothesis import given
from hypothesis import strategies as st
from torch_files import Code, call, code, named, storage, tensor

from jaxft.errors import WeightsError
from jaxft.weights.formats import torch_pickle
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo

DTYPES = [np.dtype(ml_dtypes.bfloat16), *map(np.dtype, ("f8", "f4", "f2", "i8", "i4", "u1", "?"))]
FLOATS = np.arange(24, dtype=np.float32)
FORMATS = pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])


def write(folder: Path, value: Any, storages: dict[str, np.ndarray], *, is_legacy: bool) -> Path:
    path = folder / torch_pickle.SINGLE
    (torch_files.write_legacy if is_legacy else torch_files.write_zip)(path, value, storages)
    return path


def refused(folder: Path, match: str) -> str:
    with pytest.raises(WeightsError, match=match) as caught:
        torch_pickle.open_torch(folder)
    assert str(folder) in caught.value.found
    return caught.value.found


@FORMATS
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))),
    st.integers(0, 99),
)
def test_any_dtype_and_shape_comes_back_bit_for_bit(
    is_legacy: bool, described: list[tuple[np.dtype, list[int]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensors = {
        f"t.{place}": np.asarray(rng.standard_normal(shape) * 8).astype(dtype)
        for place, (dtype, shape) in enumerate(described)
    }
    with tempfile.TemporaryDirectory() as folder:
        torch_files.write_model(Path(folder, torch_pickle.SINGLE), tensors, is_legacy=is_legacy)
        checkpoint = torch_pickle.open_torch(Path(folder))
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.infos() == {n: TensorInfo(t.shape, t.dtype) for n, t in tensors.items()}
        for name, values in tensors.items():
            read = checkpoint.read(name)
            assert (read.dtype, read.shape) == (values.dtype, values.shape)
            assert read.tobytes() == values.tobytes()


@FORMATS
def test_views_of_one_storage_are_read_by_their_strides(tmp_path: Path, is_legacy: bool) -> None:
    held = storage("FloatStorage", "7", 24, *([None] if is_legacy else []))
    views = {
        "whole": tensor(held, 0, (4, 6), (6, 1)),
        "turned": tensor(held, 0, (6, 4), (1, 6)),
        "part": tensor(held, 7, (2, 3), (6, 2)),
        "single": tensor(held, 23, (1, 1), (2**62, 2**62)),
        "scalar": tensor(held, 5, (), ()),
        "empty": tensor(held, 24, (0, 3), (3, 1)),
    }
    write(tmp_path, views, {"7": FLOATS}, is_legacy=is_legacy)
    checkpoint = torch_pickle.open_torch(tmp_path)
    grid = FLOATS.reshape(4, 6)
    expected = {
        "whole": grid,
        "turned": grid.T,
        "part": grid[1:3, 1::2],
        "single": grid[3:, 5:],
        "scalar": grid[0, 5],
        "empty": grid[:0, :3],
    }
    for name, values in expected.items():
        assert checkpoint.infos()[name].shape == values.shape
        np.testing.assert_array_equal(checkpoint.read(name), values, strict=True)
    checkpoint.read("whole")[:] = 0
    assert checkpoint.read("whole")[3, 5] == 23


def test_parameters_python_2_dictionaries_and_protocol_4_are_read(tmp_path: Path) -> None:
    held = tensor(storage("FloatStorage", "0", 24), 0, (24,), (1,))
    hooks = call(named("collections", "OrderedDict"), [])
    parameter = call(named("torch._utils", "_rebuild_parameter"), held, True, hooks)
    # SHORT_BINSTRING for the key; STACK_GLOBAL and MEMOIZE as protocol 4 has them.
    key = Code(b"U\x01p")
    stacked = Code(code("collections") + b"\x94" + code("OrderedDict") + b"\x94\x93\x94")
    write(tmp_path, call(stacked, [[key, parameter]]), {"0": FLOATS}, is_legacy=False)
    np.testing.assert_array_equal(torch_pickle.open_torch(tmp_path).read("p"), FLOATS)


def test_shards_read_as_one_checkpoint(tmp_path: Path) -> None:
    torch_files.write_model(tmp_path / "one.bin", {"a": FLOATS}, is_legacy=True)
    torch_files.write_model(tmp_path / "two.bin", {"b": -FLOATS}, is_legacy=False)
    placed = {"a": "one.bin", "b": "two.bin"}
    (tmp_path / torch_pickle.INDEX).write_text(json.dumps({"weight_map": placed}))
    checkpoint = torch_pickle.open_torch(tmp_path)
    assert checkpoint.path == tmp_path
    np.testing.assert_array_equal(checkpoint.read("b"), -FLOATS)
    (tmp_path / "two.bin").unlink()
    with pytest.raises(WeightsError, match=r"two\.bin: cannot read b"):
        checkpoint.read("b")
    assert "two.bin" in refused(tmp_path, "there is no such file, though pytorch_model.bin.index")


@FORMATS
def test_opening_reads_no_values_and_reading_holds_one_tensor(
    tmp_path: Path, is_legacy: bool
) -> None:
    tensors = {name: np.zeros((256, 1024), np.float32) for name in "abcd"}
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_model(path, tensors, is_legacy=is_legacy)
    tracemalloc.start()
    try:
        checkpoint = torch_pickle.open_torch(tmp_path)
        assert len(checkpoint.infos()) == 4
        assert tracemalloc.get_traced_memory()[1] < 400_000
        for name in tensors:
            checkpoint.read(name)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * tensors["a"].nbytes
    finally:
        tracemalloc.stop()


MKDIR = named("posix", "mkdir")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
ORDERED = named("collections", "OrderedDict")
HELD = storage("FloatStorage", "0", 24)
GOOD = tensor(HELD, 0, (24,), (1,))


def planted(marker: str) -> dict[str, Any]:
    """Return pickles, each of which makes a folder when Python's own unpickler reads it."""
    argument, payload = code(marker), call(MKDIR, marker)
    state = Code(b"cjson.decoder\nJSONDecoder\n)R" + code({"x": payload}) + b"b")
    return {
        "call": {"a": GOOD, "w": payload},
        "alone": payload,
        "instruction-inst": {"w": Code(b"(" + argument + b"iposix\nmkdir\n")},
        "instruction-obj": {"w": Code(b"(" + MKDIR + argument + b"o")},
        "stack-global": {
            "w": Code(code("posix") + code("mkdir") + b"\x93" + code((marker,)) + b"R")
        },
        "key": Code(b"}(" + payload + GOOD + b"u"),
        "list": {"w": [GOOD, payload]},
        "state": {"w": state},
        "dictionary-state": Code(call(ORDERED) + code({"_metadata": payload}) + b"b"),
        "dictionary-items": call(ORDERED, [["w", payload]]),
        "hooks": {"w": call(REBUILD, payload, 0, (24,), (1,), False, payload)},
        "stride": {"w": call(REBUILD, HELD, 0, (24,), (payload,), False, call(ORDERED))},
        "dropped": Code(payload + b"0" + code({"w": GOOD})),
        "persistent": {"w": Code(code(("storage", payload, "0", "cpu", 24)) + b"Q")},
    }


class Bomb:
    """Pickles as a call that makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def tuple_of(*values: Any) -> tuple[Any, ...]:
    return values


class LenientUnpickler(pickle.Unpickler):
    """Python's unpickler, with enough of torch for a file's own code to get its turn."""

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def find_class(self, module: str, name: str) -> Any:
        return tuple_of if module.startswith("torch") else super().find_class(module, name)


@pytest.mark.parametrize("kind", planted(""))
def test_planted_code_runs_in_python_and_never_here(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    value = planted(str(marker))[kind]
    write(tmp_path, value, {"0": FLOATS}, is_legacy=False)
    found = refused(tmp_path, "the file holds posix.mkdir|the pickle instruction|json.decoder")
    assert ("posix" in found) or ("instruction" in found) or ("JSONDecoder" in found)
    write(tmp_path, value, {"0": FLOATS}, is_legacy=True)
    refused(tmp_path, "the file holds")
    assert not marker.exists()
    # The same bytes are live: without this, a test of bytes that do nothing would pass as well.
    with contextlib.suppress(Exception):
        LenientUnpickler(io.BytesIO(torch_files.finished(value))).load()
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_object_that_reduces_to_a_call_is_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    live = pickle.dumps({"weight": Bomb(marker)}, protocol)
    with zipfile.ZipFile(tmp_path / torch_pickle.SINGLE, "w") as archive:
        archive.writestr("model/data.pkl", live)
    refused(tmp_path, "posix.mkdir" if protocol else "the pickle instruction")
    (tmp_path / torch_pickle.SINGLE).write_bytes(live)
    refused(tmp_path, "posix.mkdir" if protocol else "the pickle instruction")
    assert not marker.exists()
    pickle.loads(live)
    assert marker.exists()


@pytest.mark.parametrize("part", ["system", "keys"])
def test_code_beside_the_tensors_of_a_legacy_file_is_refused(tmp_path: Path, part: str) -> None:
    payload = {part: [call(MKDIR, str(tmp_path / "ran"))]}
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_legacy(path, {"a": GOOD}, {"0": FLOATS}, **payload)
    refused(tmp_path, r"posix\.mkdir")
    assert not (tmp_path / "ran").exists()


def test_a_foreign_global_is_named_with_the_tensor_it_stands_in(tmp_path: Path) -> None:
    value = {"a": GOOD, "model.b": call(named("builtins", "eval"), "1")}
    write(tmp_path, value, {"0": FLOATS}, is_legacy=False)
    found = refused(tmp_path, "the file holds builtins.eval within 'model.b'")
    assert torch_pickle.SINGLE in found


@FORMATS
@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([GOOD], "a list, not a dictionary"),
        (GOOD, "a PickledTensor, not a dictionary"),
        ({"a": GOOD, "epoch": 3}, "epoch is a int, not a tensor"),
        ({"a": GOOD, "state_dict": {"b": GOOD}}, "state_dict is a dict, not a tensor"),
        ({"a": HELD}, "a is a Storage, not a tensor"),
        (Code(b"}" + torch_files.items({"a": GOOD}) + torch_files.items({"a": GOOD})), "'a' is th"),
        ({"q": storage("QInt8Storage", "0", 24)}, "within 'q' has the unknown dtype .*QInt8"),
        ({"a": tensor(HELD, 1, (24,), (1,))}, "within 'a' .*beyond its storage"),
        ({"a": tensor(HELD, 0, (5, 6), (6, 1))}, "within 'a' .*beyond its storage"),
        ({"a": tensor(HELD, 0, (2**62, 2**62), (0, 0))}, "shape is too large"),
        ({"a": tensor(HELD, 0, (10**6,), (0,))}, "more values than its storage"),
        ({"a": tensor(HELD, 23, (2,), (-1,))}, "no natural number"),
        ({"a": tensor(HELD, 0, (2.0,), (1,))}, "no natural number"),
        ({"a": tensor(HELD, 0, (24,), (1, 1))}, "do not fit each other"),
        ({"a": tensor(code(3), 0, (24,), (1,))}, "without a plain storage within 'a'"),
        ({"a": tensor(HELD, 0, (24,), (1,), {"conj": True})}, "without a plain storage"),
        ({"a": storage("FloatStorage", "0", 24, ("1", 0, 3))}, "view of another one"),
        ({"a": storage("FloatStorage", "0", 2**80)}, "no natural number"),
        ({1: GOOD}, "a int for a key"),
        (Code(b"N."), "damaged|a NoneType"),
        (Code(b"h\x05"), "damaged or cut off"),
        (Code(b"u"), "there is no mark"),
        (Code(b"\x8a\xff"), "damaged or cut off"),
        (Code(b"X\xff\xff\xff\x7f"), "damaged or cut off"),
    ],
)
def test_what_is_not_a_dictionary_of_whole_tensors_is_refused(
    tmp_path: Path, is_legacy: bool, value: Any, match: str
) -> None:
    write(tmp_path, value, {"0": FLOATS}, is_legacy=is_legacy)
    refused(tmp_path, match)


def test_nested_values_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    # Each level holds the one before twice: printed, hashed or compared, 2 ** 60 values.
    doubled = b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    for value in (Code(doubled), {"a": Code(doubled)}, Code(b"}(" + doubled + b"Nu")):
        write(tmp_path, value, {"0": FLOATS}, is_legacy=False)
        refused(tmp_path, "not a tensor|not a dictionary|for a key")
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_legacy(path, {"a": GOOD}, {"0": FLOATS}, keys=[Code(doubled)])
    refused(tmp_path, "list of storages")


@FORMATS
def test_a_file_cut_anywhere_is_a_weights_error(tmp_path: Path, is_legacy: bool) -> None:
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_model(path, {"a": FLOATS[:3], "b": FLOATS[:2]}, is_legacy=is_legacy)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 3):
        path.write_bytes(whole[:cut])
        refused(tmp_path, r"pytorch_model\.bin: ")


def test_truncated_data_is_named(tmp_path: Path) -> None:
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_model(path, {"a": FLOATS, "b.weight": FLOATS}, is_legacy=True)
    path.write_bytes(path.read_bytes()[:-1])
    refused(tmp_path, r"truncated: the data of b\.weight ends at byte \d+ of \d+")
    torch_files.write_model(path, {"a": FLOATS}, is_legacy=False)
    path.write_bytes(path.read_bytes()[:-1])
    refused(tmp_path, "cut off or its directory damaged")


@given(st.binary(max_size=200))
def test_garbage_is_a_weights_error(garbage: bytes) -> None:
    magic = torch_files.finished(torch_files.LEGACY_MAGIC)
    with tempfile.TemporaryDirectory() as folder:
        for beginning in (b"", b"PK\x03\x04", magic, magic + torch_files.finished(1001)):
            Path(folder, torch_pickle.SINGLE).write_bytes(beginning + garbage)
            refused(Path(folder), r"pytorch_model\.bin")


@given(st.data())
def test_a_damaged_byte_is_a_weights_error_or_another_value(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, torch_pickle.SINGLE)
        is_legacy = data.draw(st.booleans())
        torch_files.write_model(path, {"a": FLOATS, "b": FLOATS[:2]}, is_legacy=is_legacy)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            checkpoint = torch_pickle.open_torch(Path(folder))
            for name, info in checkpoint.infos().items():
                assert checkpoint.read(name).shape == info.shape
        except WeightsError as error:
            assert folder in error.found  # noqa: PT017 - an error is one of two good ends


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_zip(path, {"a": GOOD}, {"0": FLOATS}, byteorder=b"big")
    refused(tmp_path, "not little-endian")
    torch_files.write_legacy(path, {"a": GOOD}, {"0": FLOATS}, system={"little_endian": False})
    refused(tmp_path, "not little-endian")


def test_a_storage_of_another_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_zip(path, {"a": GOOD}, {"0": FLOATS[:23]})
    refused(tmp_path, "the data of a should have 96 bytes and has 92")
    torch_files.write_zip(path, {"a": GOOD}, {"1": FLOATS})
    refused(tmp_path, "the data of a should have 96 bytes and has none")
    torch_files.write_legacy(path, {"a": GOOD}, {"0": FLOATS[:23]})
    path.write_bytes(path.read_bytes() + bytes(4))
    refused(tmp_path, "the data of a should have 24 values and has 23")
    torch_files.write_legacy(path, {"a": GOOD}, {"0": FLOATS}, keys=["1"])
    refused(tmp_path, "list of storages")
    short = tensor(storage("FloatStorage", "0", 3), 0, (3,), (1,))
    torch_files.write_legacy(path, {"a": GOOD, "b": short}, {"0": FLOATS})
    refused(tmp_path, "a and b contradict each other")


def test_an_archive_that_is_packed_or_holds_two_models_is_refused(tmp_path: Path) -> None:
    path = tmp_path / torch_pickle.SINGLE
    content = torch_files.finished({"a": GOOD})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", content)
    refused(tmp_path, r"the member model/data\.pkl of the archive is damaged")
    # Packed by the directory's word, though no shorter.
    torch_files.write_zip(path, {"a": GOOD}, {"0": FLOATS})
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 10] = zipfile.ZIP_DEFLATED
    path.write_bytes(whole)
    refused(tmp_path, r"the member model/data\.pkl of the archive is damaged")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one/data.pkl", content)
        archive.writestr("two/data.pkl", content)
    refused(tmp_path, "2 data.pkl")
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("model/data.pkl", content)
        archive.writestr("model/data.pkl", content)
    refused(tmp_path, "1 repeated")


def test_reading_names_an_unknown_tensor_and_a_file_that_shrank(tmp_path: Path) -> None:
    path = tmp_path / torch_pickle.SINGLE
    torch_files.write_model(path, {"a": FLOATS}, is_legacy=True)
    checkpoint = torch_pickle.open_torch(tmp_path)
    with pytest.raises(WeightsError, match="there is no tensor b"):
        checkpoint.read("b")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: the file ends within a"):
        checkpoint.read("a")
