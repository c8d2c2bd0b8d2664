from __future__ import annotations

from pathlib import Path

import flax.serialization
import numpy as np
import pytest
import torch_files
from safetensors.numpy import save_file

from jaxft.errors import WeightsError
from jaxft.weights.formats import flax_msgpack, opening, safetensors, torch_pickle

VALUES = np.arange(3, dtype=np.float32)


def write(folder: Path, name: str) -> None:
    """Write a model of one tensor, called after the file's format."""
    if name == safetensors.SINGLE:
        save_file({"safetensors": VALUES}, folder / name)
    elif name == flax_msgpack.SINGLE:
        (folder / name).write_bytes(flax.serialization.msgpack_serialize({"msgpack": VALUES}))
    elif name == torch_pickle.SINGLE:
        torch_files.write_model(folder / name, {"bin": VALUES}, is_legacy=False)


@pytest.mark.parametrize(
    ("files", "used"),
    [
        ([safetensors.SINGLE, flax_msgpack.SINGLE, torch_pickle.SINGLE], "safetensors"),
        ([torch_pickle.SINGLE, flax_msgpack.SINGLE], "msgpack"),
        ([torch_pickle.SINGLE], "bin"),
    ],
)
def test_the_preferred_format_of_a_folder_is_used(
    tmp_path: Path, files: list[str], used: str
) -> None:
    for name in files:
        write(tmp_path, name)
    checkpoint = opening.open_folder(tmp_path)
    assert list(checkpoint.infos()) == [used]
    np.testing.assert_array_equal(checkpoint.read(used), VALUES)


@pytest.mark.parametrize("index", [safetensors.INDEX, flax_msgpack.INDEX, torch_pickle.INDEX])
def test_an_index_alone_is_a_model(tmp_path: Path, index: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / index).write_text('{"weight_map": {"a": "gone"}}')
    assert opening.lack(tmp_path) == ""
    with pytest.raises(WeightsError, match="gone: there is no such file"):
        opening.open_folder(tmp_path)


def test_a_folder_of_other_files_says_what_it_has_and_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_text("")
    with pytest.raises(WeightsError, match=r"only training_args\.bin") as caught:
        opening.open_folder(tmp_path)
    assert "flax_model.msgpack or flax_model.msgpack.index.json" in caught.value.remedy


def test_the_files_to_fetch_are_those_of_the_preferred_format() -> None:
    assert opening.wanted_files([torch_pickle.INDEX, flax_msgpack.SINGLE]) == [
        "flax_model.msgpack",
        "flax_model.msgpack.index.json",
        "flax_model-*.msgpack",
    ]
    assert opening.wanted_files(["tf_model.h5"]) == []
