from __future__ import annotations

import json
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxft.errors import WeightsError
from jaxft.weights.formats import safetensors
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo

BF16 = np.dtype(ml_dtypes.bfloat16)


def write_raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_shards(folder: Path, shards: dict[str, dict[str, Any]], placed: dict[str, str]) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": placed}))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


dtypes = st.sampled_from(
    [BF16, *map(np.dtype, ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"))]
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(dtypes, shapes)), st.integers(0, 99))
def test_any_dtype_and_shape_comes_back_bit_for_bit(
    described: dict[str, tuple[np.dtype, tuple[int, ...]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensors = {
        name: np.asarray(rng.standard_normal(shape) * 8).astype(dtype)
        for name, (dtype, shape) in described.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder, safetensors.SINGLE))
        checkpoint = safetensors.open_safetensors(Path(folder))
        assert isinstance(checkpoint, Checkpoint)
        infos = checkpoint.infos()
        assert infos == {n: TensorInfo(t.shape, t.dtype) for n, t in tensors.items()}
        for name, values in tensors.items():
            read = checkpoint.read(name)
            assert read.dtype == values.dtype
            assert read.shape == values.shape
            assert read.tobytes() == values.tobytes()


def test_a_read_tensor_outlives_its_file(tmp_path: Path) -> None:
    save_file({"a": ones(3)}, tmp_path / safetensors.SINGLE)
    values = safetensors.open_safetensors(tmp_path).read("a")
    (tmp_path / safetensors.SINGLE).unlink()
    values += 1
    assert values.tolist() == [2, 2, 2]


def test_shards_read_as_one_checkpoint(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"one.safetensors": {"a": ones(2)}, "two.safetensors": {"b": ones(3) * 2, "c": ones(1)}},
        {"b": "two.safetensors", "a": "one.safetensors", "c": "two.safetensors"},
    )
    checkpoint = safetensors.open_safetensors(tmp_path)
    assert set(checkpoint.infos()) == {"a", "b", "c"}
    assert checkpoint.read("b").tolist() == [2, 2, 2]
    assert checkpoint.read("a").tolist() == [1, 1]


def test_a_single_file_wins_over_an_index(tmp_path: Path) -> None:
    save_file({"whole": ones(1)}, tmp_path / safetensors.SINGLE)
    write_shards(tmp_path, {"one.safetensors": {"a": ones(1)}}, {"a": "one.safetensors"})
    assert list(safetensors.open_safetensors(tmp_path).infos()) == ["whole"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"one.safetensors": {"a": ones(1)}},
        {"a": "one.safetensors", "b": "two.safetensors"},
    )
    with pytest.raises(WeightsError, match=r"two\.safetensors: there is no such file"):
        safetensors.open_safetensors(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"one.safetensors": {"a": ones(1)}},
        {"a": "one.safetensors", "b": "one.safetensors"},
    )
    with pytest.raises(WeightsError, match=r"one\.safetensors: tensor b is missing"):
        safetensors.open_safetensors(tmp_path)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"one.safetensors": {"a": ones(1)}, "two.safetensors": {"a": ones(1), "b": ones(1)}},
        {"a": "one.safetensors", "b": "two.safetensors"},
    )
    with pytest.raises(WeightsError, match=r"two\.safetensors: tensor a is also in one"):
        safetensors.open_safetensors(tmp_path)


def test_a_tensor_in_the_wrong_shard_is_named(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"one.safetensors": {"a": ones(1), "b": ones(1)}, "two.safetensors": {"c": ones(1)}},
        {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
    )
    with pytest.raises(WeightsError, match=r"one\.safetensors: tensor b belongs in two"):
        safetensors.open_safetensors(tmp_path)


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    write_shards(
        tmp_path, {"one.safetensors": {"a": ones(1), "b": ones(1)}}, {"a": "one.safetensors"}
    )
    with pytest.raises(WeightsError, match=r"one\.safetensors: tensor b is not named"):
        safetensors.open_safetensors(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / safetensors.INDEX).write_text(text)
    with pytest.raises(WeightsError, match=re.escape(safetensors.INDEX)):
        safetensors.open_safetensors(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", 3])
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, shard: Any) -> None:
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsError, match="is not the name of a file beside it"):
        safetensors.open_safetensors(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json: there is no such"):
        safetensors.open_safetensors(tmp_path)


def test_a_truncated_file_names_the_first_tensor_it_cuts(tmp_path: Path) -> None:
    path = tmp_path / safetensors.SINGLE
    save_file({"first": ones(4), "second": ones(4), "third": ones(4)}, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        WeightsError, match="2 tensors end beyond it, the first is second"
    ) as caught:
        safetensors.open_safetensors(tmp_path)
    assert str(path) in caught.value.found


def test_a_tensor_beyond_the_end_of_the_file_is_named(tmp_path: Path) -> None:
    header = {"far": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
    write_raw(tmp_path / safetensors.SINGLE, header, bytes(8))
    with pytest.raises(WeightsError, match="the first is far"):
        safetensors.open_safetensors(tmp_path)


def test_a_file_cut_anywhere_is_a_weights_error(tmp_path: Path) -> None:
    path = tmp_path / safetensors.SINGLE
    save_file({"a": ones(2, 3), "b": ones(1)}, path)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            safetensors.open_safetensors(tmp_path)


def test_a_file_cut_in_its_header_says_so(tmp_path: Path) -> None:
    path = tmp_path / safetensors.SINGLE
    save_file({"a": ones(2, 3)}, path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(WeightsError, match=r"its header should have \d+ bytes"):
        safetensors.open_safetensors(tmp_path)


@given(st.binary(max_size=200))
def test_garbage_is_a_weights_error(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, safetensors.SINGLE).write_bytes(struct.pack("<Q", len(garbage)) + garbage)
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            safetensors.open_safetensors(Path(folder))


def test_an_unsupported_dtype_names_file_and_tensor(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    write_raw(tmp_path / safetensors.SINGLE, header, bytes(8))
    with pytest.raises(WeightsError, match=r"model\.safetensors: tensor w has dtype F8_E4M3"):
        safetensors.open_safetensors(tmp_path)


def test_weights_laid_out_for_flax_are_refused(tmp_path: Path) -> None:
    save_file({"a": ones(1)}, tmp_path / safetensors.SINGLE, metadata={"format": "flax"})
    with pytest.raises(WeightsError, match="laid out for flax"):
        safetensors.open_safetensors(tmp_path)


def test_reading_names_an_unknown_tensor_and_a_vanished_file(tmp_path: Path) -> None:
    save_file({"a": ones(1)}, tmp_path / safetensors.SINGLE)
    checkpoint = safetensors.open_safetensors(tmp_path)
    with pytest.raises(WeightsError, match="there is no tensor b"):
        checkpoint.read("b")
    (tmp_path / safetensors.SINGLE).unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot read a"):
        checkpoint.read("a")
