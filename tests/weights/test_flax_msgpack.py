from __future__ import annotations

import io
import json
import tempfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights.formats import flax_msgpack, flax_names, msgpack_file, msgpack_writer
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
TREES = sorted((REFERENCE / "flax_param_trees").glob("*.json"))

DTYPES = [np.dtype(ml_dtypes.bfloat16), *map(np.dtype, ("f8", "f4", "f2", "i8", "i4", "u1", "?"))]
GRID = np.arange(6, dtype=np.float32).reshape(2, 3)


def tree_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def write(folder: Path, flat: Mapping[str, Any], name: str = flax_msgpack.SINGLE) -> Path:
    (folder / name).write_bytes(flax.serialization.msgpack_serialize(tree_of(flat)))
    return folder / name


def write_raw(folder: Path, content: Any) -> None:
    """Write what msgpack packs, with an array's parts in the place of each tuple."""

    def extend(value: Any) -> Any:
        if isinstance(value, tuple):
            return msgpack.ExtType(1, msgpack.packb(list(value)))
        return {key: extend(each) for key, each in value.items()}

    (folder / flax_msgpack.SINGLE).write_bytes(msgpack.packb(extend(content)))


def infos_of(tensors: Mapping[str, np.ndarray]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(values.shape, values.dtype) for name, values in tensors.items()}


def refused(folder: Path, match: str) -> None:
    with pytest.raises(WeightsError, match=match) as caught:
        flax_msgpack.open_flax(folder)
    assert str(folder) in caught.value.found


keys = st.sampled_from(["a/bias", "a/b/scale", "layers/0/weight", "layers/10/embedding", "é/w"])


@given(
    st.dictionaries(
        keys, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 9), max_size=3))
    ),
    st.integers(0, 99),
)
def test_any_dtype_and_shape_comes_back_bit_for_bit(
    described: dict[str, tuple[np.dtype, list[int]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensors = {
        key: np.asarray(rng.standard_normal(shape) * 8).astype(dtype)
        for key, (dtype, shape) in described.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), tensors)
        checkpoint = flax_msgpack.open_flax(Path(folder))
        assert isinstance(checkpoint, Checkpoint)
        named = {flax_names.torch_name(key): values for key, values in tensors.items()}
        assert checkpoint.infos() == infos_of(named)
        for name, values in named.items():
            read = checkpoint.read(name)
            assert (read.dtype, read.shape) == (values.dtype, values.shape)
            assert read.tobytes() == values.tobytes()


def test_paths_become_torch_names_and_kernels_are_transposed(tmp_path: Path) -> None:
    vector = GRID[0]
    write(
        tmp_path,
        {
            "model/layers/0/fc1/kernel": GRID,
            "model/layers/0/fc1/bias": vector,
            "model/layers/0/norm/scale": vector,
            "model/embed_tokens/embedding": GRID,
            "model/norm/weight": vector,
        },
    )
    checkpoint = flax_msgpack.open_flax(tmp_path)
    assert {name: info.shape for name, info in checkpoint.infos().items()} == {
        "model.layers.0.fc1.weight": (3, 2),
        "model.layers.0.fc1.bias": (3,),
        "model.layers.0.norm.weight": (3,),
        "model.embed_tokens.weight": (2, 3),
        "model.norm.weight": (3,),
    }
    np.testing.assert_array_equal(checkpoint.read("model.layers.0.fc1.weight"), GRID.T)
    np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), GRID)


def test_a_numpy_scalar_is_a_tensor_without_dimensions(tmp_path: Path) -> None:
    write(tmp_path, {"a/step": np.float32(3.5)})
    checkpoint = flax_msgpack.open_flax(tmp_path)
    assert checkpoint.infos()["a.step"].shape == ()
    assert checkpoint.read("a.step") == 3.5


@pytest.mark.parametrize("length", [1, 6, 7, 11, 12, 200, 70_000])
def test_large_arrays_are_read_and_written_in_chunks_as_flax_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 6 * 4)
    monkeypatch.setattr(msgpack_writer, "_CHUNK_BYTES", 6 * 4)
    monkeypatch.setattr(msgpack_writer, "_BLOCK_VALUES", 4)
    if length > 200:  # many values in few chunks: the headers of every length
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100_000)
        monkeypatch.setattr(msgpack_writer, "_CHUNK_BYTES", 100_000)
        monkeypatch.setattr(msgpack_writer, "_BLOCK_VALUES", 1000)
    kernel = np.arange(3 * length, dtype=np.float32).reshape(length, 3)
    half = kernel.astype(ml_dtypes.bfloat16)
    flat = {"model/fc1/kernel": kernel, "model/embed_tokens/embedding": half}
    path = write(tmp_path, dict(sorted(flat.items())))
    checkpoint = flax_msgpack.open_flax(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("model.fc1.weight"), kernel.T)
    read = checkpoint.read("model.embed_tokens.weight")
    assert (read.dtype, read.tobytes()) == (half.dtype, half.tobytes())
    copy = tmp_path / "copy.msgpack"
    flax_msgpack.save_msgpack(copy, checkpoint.infos(), checkpoint.read, "opt")
    assert copy.read_bytes() == path.read_bytes()


def test_opening_reads_no_values_and_reading_holds_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((256, 1024), np.float32)
    flat = {f"model/layers/{layer}/fc1/kernel": values for layer in range(4)}
    # One of them in chunks.
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", values.nbytes)
    write(tmp_path, flat | {"model/z/bias": np.zeros(values.size + 1, np.float32)})
    tracemalloc.start()
    try:
        checkpoint = flax_msgpack.open_flax(tmp_path)
        assert len(checkpoint.infos()) == 5
        assert tracemalloc.get_traced_memory()[1] < 200_000
        for name in checkpoint.infos():
            checkpoint.read(name)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * values.nbytes
        tracemalloc.reset_peak()
        with (tmp_path / "copy").open("wb") as opened:
            monkeypatch.setattr(msgpack_writer, "_BLOCK_VALUES", 1 << 14)
            named = {key: checkpoint.infos()[flax_names.torch_name(key)] for key in flat}
            msgpack_writer.write_arrays(
                opened, named, lambda key: checkpoint.read(flax_names.torch_name(key))
            )
        assert tracemalloc.get_traced_memory()[1] < 1.4 * values.nbytes
    finally:
        tracemalloc.stop()


def test_shards_read_as_one_checkpoint_and_may_be_empty(tmp_path: Path) -> None:
    write(tmp_path, {"model/a/kernel": GRID}, "one.msgpack")
    write(tmp_path, {}, "empty.msgpack")
    write(tmp_path, {"model/a/bias": GRID[0], "model/b/bias": GRID[1]}, "two.msgpack")
    placed = {
        "model/a/bias": "two.msgpack",
        "model/a/kernel": "one.msgpack",
        "model/b/bias": "two.msgpack",
    }
    (tmp_path / flax_msgpack.INDEX).write_text(json.dumps({"weight_map": placed}))
    checkpoint = flax_msgpack.open_flax(tmp_path)
    assert set(checkpoint.infos()) == {"model.a.bias", "model.a.weight", "model.b.bias"}
    np.testing.assert_array_equal(checkpoint.read("model.a.weight"), GRID.T)
    (tmp_path / "two.msgpack").unlink()
    refused(tmp_path, r"two\.msgpack: there is no such file, though flax_model\.msgpack\.index")
    with pytest.raises(WeightsError, match=r"two\.msgpack: cannot read model\.b\.bias"):
        checkpoint.read("model.b.bias")


@pytest.mark.parametrize(
    ("shards", "placed", "match"),
    [
        ({"one": "a"}, {"a/w": "one", "b/w": "one"}, "one: tensor b/w is missing"),
        ({"one": "a", "two": "ab"}, {"a/w": "one", "b/w": "two"}, "two: tensor a/w is also in one"),
        ({"one": "ab", "two": "c"}, {"a/w": "one", "b/w": "two", "c/w": "two"}, "belongs in two"),
        ({"one": "ab"}, {"a/w": "one"}, "one: tensor b/w is not named"),
        ({}, {"a/w": "../one"}, "is not the name of a file beside it"),
        ({"empty": ""}, {"a/w": "empty"}, "empty: tensor a/w is missing"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_refused(
    tmp_path: Path, shards: dict[str, str], placed: dict[str, str], match: str
) -> None:
    for name, letters in shards.items():
        write(tmp_path, {f"{letter}/w": GRID for letter in letters}, name)
    (tmp_path / flax_msgpack.INDEX).write_text(json.dumps({"weight_map": placed}))
    refused(tmp_path, match)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000],
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / flax_msgpack.INDEX).write_text(text)
    refused(tmp_path, r"index\.json: not a readable index")


def test_a_file_cut_anywhere_is_a_weights_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"a/kernel": GRID, "b/bias": GRID[0]})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        refused(tmp_path, r"flax_model\.msgpack: ")
    path.write_bytes(whole[:-1])
    refused(tmp_path, "the file is cut off within b/bias")
    path.write_bytes(whole + b"\x80")
    refused(tmp_path, "1 bytes follow its end")


@given(st.binary(max_size=300))
def test_garbage_is_a_weights_error(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, flax_msgpack.SINGLE).write_bytes(b"\x81\xa1a" + garbage)
        refused(Path(folder), r"flax_model\.msgpack")


FLOATS = ([2, 3], "float32", bytes(24))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (FLOATS, "does not hold a mapping"),
        ({"a": {"w": ([2, 3], "float32", bytes(23))}}, r"a/w has 23 bytes where float32 \[2, 3\]"),
        ({"a": {"w": ([2, 3], "float8_e4m3", bytes(6))}}, "a/w has the dtype float8_e4m3; known"),
        ({"a": {"w": ([2, 3], "float32")}}, "a/w is not shape, dtype and values"),
        ({"a": {"w": ([-2, -3], "float32", bytes(24))}}, "the shape of a/w is not a list of len"),
        ({"a": {"w": ([0, 2**63], "float32", b"")}}, "the shape of a/w is not a list of lengths"),
        ({"a": {"w": ([0, *[2**40] * 3], "float32", b"")}}, "the shape of a/w is too large"),
        ({"a": {"w": ("shape", "float32", bytes(24))}}, "a/w has a text where a list"),
        (
            {"a": {"kernel": ([24], "uint8", bytes(24))}},
            r"the kernel a/kernel has the shape \[24\]",
        ),
        ({"a": {"scale": FLOATS, "weight": FLOATS}}, r"both the tensor a\.weight"),
        ({1: FLOATS}, "the whole has a int where a text"),
    ],
)
def test_an_array_that_is_not_right_is_named(tmp_path: Path, content: Any, match: str) -> None:
    write_raw(tmp_path, content)
    refused(tmp_path, match)


@pytest.mark.parametrize(
    ("leaf", "match"),
    [
        ("text", "a/w is a text, not an array"),
        (3, "a/w is a int, not an array"),
        (None, "a/w is a nil, not an array"),
        (1.5, "a/w is a float, not an array"),
        ([1], "a/w is a list, not an array"),
        (1j, "a/w has the extension type 2"),
        ({"__msgpack_chunked_array__": True}, "a/w is not chunked as flax"),
        ({"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}, "are not arrays of one"),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"1": GRID}},
            "a/w is not chunked as flax",
        ),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": 5}, "chunks": {"0": GRID[0]}},
            r"a/w has 12 bytes where float32 \[5\] takes 20",
        ),
    ],
)
def test_a_leaf_that_is_no_array_is_named(tmp_path: Path, leaf: Any, match: str) -> None:
    write(tmp_path, {"a": {"w": leaf}})
    refused(tmp_path, match)


def test_a_repeated_key_a_longer_array_and_endless_nesting_are_refused(tmp_path: Path) -> None:
    leaf = msgpack.packb(msgpack.ExtType(1, msgpack.packb(list(FLOATS))))
    path = tmp_path / flax_msgpack.SINGLE
    path.write_bytes(b"\x82\xa1a" + leaf + b"\xa1a" + leaf)
    refused(tmp_path, "a is there twice")
    longer = msgpack.packb(list(FLOATS)) + b"\x00"
    path.write_bytes(b"\x81\xa1a" + msgpack.packb(msgpack.ExtType(1, longer)))
    refused(tmp_path, "a should end at byte")
    path.write_bytes(b"\x81\xa1a" * 100_000)
    refused(tmp_path, "nested more than 64 deep")


def test_reading_names_an_unknown_tensor_and_a_file_that_shrank(tmp_path: Path) -> None:
    path = write(tmp_path, {"a/w": GRID})
    checkpoint = flax_msgpack.open_flax(tmp_path)
    with pytest.raises(WeightsError, match=r"there is no tensor b\.w"):
        checkpoint.read("b.w")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"flax_model\.msgpack: cannot read a\.w"):
        checkpoint.read("a.w")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    refused(tmp_path, r"flax_model\.msgpack\.index\.json: there is no such file")


@pytest.mark.parametrize("file", TREES or [pytest.param(None, marks=pytest.mark.skip)], ids=str)
def test_the_names_of_every_family_are_inverted(file: Path) -> None:
    tree = {
        key: TensorInfo(tuple(shape), np.dtype(dtype))
        for key, (shape, dtype) in (json.loads(file.read_text()).items())
    }
    stems = ("gpt_neo", "gptj", "gpt2", *file.stem.split("_")[:1])
    model_type = next(stem for stem in stems if file.stem.startswith(stem))
    torch_infos = {flax_names.torch_name(key): info for key, info in tree.items()}
    assert len(torch_infos) == len(tree)
    names = flax_names.flax_paths(torch_infos, model_type)
    assert names == {key: flax_names.torch_name(key) for key in tree}
    # And written out: the file has the family's paths and shapes.
    values = {key: np.full(info.shape, 0.5, info.dtype) for key, info in tree.items()}
    torch_values = {
        flax_names.torch_name(key): array.T if flax_names.is_transposed(key) else array
        for key, array in values.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, flax_msgpack.SINGLE)
        flax_msgpack.save_msgpack(
            path, infos_of(torch_values), torch_values.__getitem__, model_type
        )
        assert {k: a.shape for k, a in msgpack_file.read_arrays(path).items()} == {
            key: info.shape for key, info in tree.items()
        }


@pytest.mark.parametrize("model_type", ["llama", "mistral", "opt"])
def test_a_tied_head_is_written_where_flax_knows_no_tying(tmp_path: Path, model_type: str) -> None:
    tensors = {"model.embed_tokens.weight": GRID}
    path = tmp_path / flax_msgpack.SINGLE
    flax_msgpack.save_msgpack(path, infos_of(tensors), tensors.__getitem__, model_type)
    restored = flax.serialization.msgpack_restore(path.read_bytes())
    np.testing.assert_array_equal(restored["model"]["embed_tokens"]["embedding"], GRID)
    assert ("lm_head" in restored) == (model_type != "opt")
    if model_type != "opt":
        np.testing.assert_array_equal(restored["lm_head"]["kernel"], GRID.T)


def test_a_family_or_dtype_that_flax_never_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="transformers never had qwen2 in Flax"):
        flax_msgpack.save_msgpack(tmp_path / "x", {}, lambda _: GRID, "qwen2")
    infos = {"a.bias": TensorInfo((2,), np.dtype(np.complex64))}
    with pytest.raises(WeightsError, match=r"tensor a\.bias has dtype complex64"):
        flax_msgpack.save_msgpack(tmp_path / "x", infos, lambda _: GRID, "opt")
    assert not (tmp_path / "x").exists()


def test_blocks_of_a_large_array_join_to_it() -> None:
    values = np.arange(35, dtype=np.int64).reshape(5, 7).T
    for width in (1, 5, 6, 100):
        opened = io.BytesIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(msgpack_writer, "_BLOCK_VALUES", width)
            info = TensorInfo(values.shape, values.dtype)
            msgpack_writer.write_arrays(opened, {"a": info}, lambda _: values)
        restored = flax.serialization.msgpack_restore(opened.getvalue())["a"]
        np.testing.assert_array_equal(restored, values)
