"""A region of a tensor is that slice of the whole, in every format, and costs its bytes alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from hypothesis import given
from hypothesis import strategies as st

from jaxft.models.families import llama
from jaxft.weights import names
from jaxft.weights.formats import flax_msgpack, msgpack_writer, opening, regions
from jaxft.weights.formats import gguf as gguf_models
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo
from jaxft.weights.places.vocabulary import ResizedCheckpoint

KERNEL, TABLE, SCALE = "model.fc.weight", "model.embed_tokens.weight", "model.norm.weight"
ROWS = 12


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {KERNEL: (10, 6), TABLE: (ROWS, 5), SCALE: (7,), "conv.weight": (4, 3, 5), "step": ()}
    return {name: np.asarray(rng.standard_normal(s), np.float32) for name, s in shapes.items()}


def safetensors_shards(folder: Path) -> Checkpoint:
    halves = [dict(list(tensors().items())[half::2]) for half in (0, 1)]
    placed = {}
    for number, half in enumerate(halves):
        safetensors.numpy.save_file(half, folder / f"model-{number}.safetensors")
        placed |= dict.fromkeys(half, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return opening.open_folder(folder)


def safetensors_file(folder: Path) -> Checkpoint:
    safetensors.numpy.save_file(tensors(), folder / "model.safetensors")
    return opening.open_folder(folder)


def msgpack(folder: Path, chunk_bytes: int = 1 << 30) -> Checkpoint:
    made = tensors()
    infos = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in made.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msgpack_writer, "_CHUNK_BYTES", chunk_bytes)
        flax_msgpack.save_msgpack(folder / flax_msgpack.SINGLE, infos, made.__getitem__, "llama")
    return opening.open_folder(folder)


def torch(folder: Path, is_legacy: bool) -> Checkpoint:
    torch_files.write_model(folder / "pytorch_model.bin", tensors(), is_legacy=is_legacy)
    return opening.open_folder(folder)


def renamed(folder: Path) -> Checkpoint:
    made = tensors()
    old = {name.removeprefix("model."): tensor for name, tensor in made.items()}
    safetensors.numpy.save_file(old, folder / "model.safetensors")
    return names.under_full_names(opening.open_folder(folder), llama.LLAMA)


def resized(folder: Path, rows: int, tables: bool = False) -> Checkpoint:
    own = {TABLE: np.arange(rows * 5.0).reshape(rows, 5)} if tables else {}
    return ResizedCheckpoint(safetensors_file(folder), frozenset([TABLE]), rows, own)


def gguf_model(folder: Path) -> Checkpoint:
    """Write a Llama whose q and k rows are in another order, in types with and without blocks."""
    path, rng = folder / "tiny.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        **{"embedding_length": 64, "feed_forward_length": 96, "block_count": 1},
        **{"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 40},
        **{"context_length": 128},
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    kinds = gguf.GGMLQuantizationType
    stored = {
        "token_embd": ((40, 64), kinds.Q8_0),
        "output_norm": ((64,), kinds.F32),
        "blk.0.attn_q": ((64, 64), kinds.Q4_0),
        "blk.0.attn_k": ((32, 64), kinds.F16),
        "blk.0.ffn_down": ((64, 96), kinds.BF16),
    }
    for name, (shape, kind) in stored.items():
        values = gguf.quantize(rng.standard_normal(shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_models.open_gguf(path)


OPENED: dict[str, Callable[[Path], Checkpoint]] = {
    "safetensors": safetensors_file,
    "safetensors in shards": safetensors_shards,
    "msgpack": msgpack,
    "msgpack in chunks": lambda folder: msgpack(folder, 7 * 4),
    "torch": lambda folder: torch(folder, False),
    "torch, before zip": lambda folder: torch(folder, True),
    "under other names": renamed,
    "a grown vocabulary": lambda folder: resized(folder, ROWS + 4),
    "a cut vocabulary": lambda folder: resized(folder, ROWS - 4),
    "tables of an adapter": lambda folder: resized(folder, ROWS, True),
    "GGUF": gguf_model,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Checkpoint]:
    return {name: open_(tmp_path_factory.mktemp("weights")) for name, open_ in OPENED.items()}


def regions_of(data: st.DataObject, shape: tuple[int, ...]) -> regions.Region:
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    stops = [data.draw(st.integers(a + 1, size)) for a, size in zip(starts, shape, strict=True)]
    return tuple(map(slice, starts, stops))


@pytest.mark.parametrize("kind", OPENED)
@given(data=st.data())
def test_a_region_is_that_slice_of_the_whole(checkpoints, kind, data):
    checkpoint = checkpoints[kind]
    name = data.draw(st.sampled_from(sorted(checkpoint.infos())))
    region = regions_of(data, checkpoint.infos()[name].shape)
    whole, part = checkpoint.read(name), checkpoint.read(name, region)
    np.testing.assert_array_equal(part, whole[region], strict=True)
    np.testing.assert_array_equal(
        checkpoint.read(name, regions.whole(whole.shape)), whole, strict=True
    )


@given(st.data())
def test_runs_are_the_values_of_a_region_in_their_order(data):
    shape = data.draw(st.lists(st.integers(1, 4), max_size=4))
    region = regions_of(data, tuple(shape))
    starts, length = regions.runs(shape, region)
    found = (starts[:, None] + np.arange(length)).ravel()
    np.testing.assert_array_equal(
        found, np.arange(np.prod(shape, dtype=int)).reshape(shape)[region].ravel()
    )


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The number of bytes of each read of a file's values."""
    sizes, read_into = [], regions._read_into

    def watched(opened, memory):
        sizes.append(len(memory))
        read_into(opened, memory)

    monkeypatch.setattr(regions, "_read_into", watched)
    return sizes


@pytest.mark.parametrize(
    ("kind", "name", "region", "num_bytes"),
    [
        ("safetensors", KERNEL, (slice(2, 7), slice(1, 3)), 5 * 2 * 4),
        ("safetensors in shards", TABLE, (slice(4, 8), slice(0, 5)), 4 * 5 * 4),
        ("msgpack", KERNEL, (slice(2, 7), slice(1, 3)), 5 * 2 * 4),
        ("msgpack in chunks", KERNEL, (slice(0, 10), slice(1, 3)), 10 * 2 * 4),
        ("under other names", KERNEL, (slice(0, 1), slice(0, 6)), 6 * 4),
        ("a grown vocabulary", TABLE, (slice(4, ROWS), slice(0, 2)), 8 * 2 * 4),
        ("a grown vocabulary", TABLE, (slice(ROWS, ROWS + 2), slice(0, 2)), ROWS * 2 * 4),
        ("a cut vocabulary", TABLE, (slice(4, 6), slice(0, 5)), 2 * 5 * 4),
        # Of a GGUF whole blocks: 32 values in 34 bytes, and in 18.
        ("GGUF", TABLE, (slice(3, 5), slice(33, 40)), 2 * 34),
        ("GGUF", "model.layers.0.mlp.down_proj.weight", (slice(0, 4), slice(5, 8)), 4 * 3 * 2),
        # Of rows in another order whole heads, of 16 rows here.
        ("GGUF", "model.layers.0.self_attn.q_proj.weight", (slice(17, 30), slice(0, 64)), 16 * 36),
    ],
)  # fmt: skip
def test_the_bytes_of_the_region_are_read_and_no_others(
    checkpoints, counted, kind, name, region, num_bytes
):
    checkpoints[kind].read(name, region)
    assert sum(counted) == num_bytes
