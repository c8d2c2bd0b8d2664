"""Write whole models: config.json with safetensors, or with HF Flax's msgpack.

Tensors are read one at a time, under Hugging Face's names. A model is written into a temporary
folder beside its target and moved to the target when it is complete.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from jaxft.errors import ConfigError, WeightsError
from jaxft.weights.formats import flax_msgpack, safetensors
from jaxft.weights.formats.checkpoint import TensorInfo
from jaxft.weights.places.source import Source

_SHARD_BYTES = 5_000_000_000  # the size in transformers' `save_pretrained`

Format = Literal["merged", "flax"]


def check_folder(folder: Path) -> None:
    """Refuse a target that is a file or a folder with files.

    Raises:
        WeightsError: The target is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(
            f"{folder} exists and is not empty.", "Choose a new folder: nothing is overwritten."
        )


def check_gives_way(folder: Path, mark: str) -> None:
    """Refuse to replace a folder of another kind.

    Args:
        folder: The target; it may be empty or absent.
        mark: A file that every folder of the right kind has.

    Raises:
        WeightsError: The target is not empty and lacks `mark`.
    """
    if not (folder / mark).is_file():
        check_folder(folder)


def check_apart(
    output: Path, base: Source, *, replaced: Sequence[str] = ("",), called: str = ""
) -> None:
    """Refuse to write into the folder of a base model, or to replace it.

    Links and `..` are followed.

    Args:
        output: The folder to write.
        base: The model.
        replaced: The names in `output` that writing replaces; "" is the folder itself.
        called: The user's name of `output`, with its value; "" shows its path.

    Raises:
        ConfigError: `output` is the model's folder or lies in it, or the model lies in one of
            `replaced`.
    """
    model, folder = base.folder.resolve(), output.resolve()
    # The folder of a GGUF file may hold unrelated folders.
    is_inside = folder == model or (base.gguf is None and model in folder.parents)
    if is_inside or any(model.is_relative_to(folder / name) for name in replaced):
        raise ConfigError(
            f"{called or output} is the base model's folder, lies in it, or has it inside.",
            "Choose another folder: what is tuned is kept apart from its base.",
        )


def save_model(
    folder: Path,
    config: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    kind: Format,
    finish: Callable[[Path], None],
    *,
    replaces: str | None,
) -> None:
    """Write a model folder.

    Args:
        folder: The target.
        config: The content of config.json.
        infos: Shape and dtype of every tensor by Hugging Face's name.
        read: Returns a tensor by name, in torch's layout.
        kind: "merged" is safetensors, "flax" is `flax_model.msgpack`.
        finish: Called with the new folder before it is moved, to add files and to check it.
        replaces: A file that marks an existing folder as one to replace; `None` allows only a
            target that is empty or absent.

    Raises:
        WeightsError: The target holds something that must not be replaced.
    """
    if replaces is None:
        check_folder(folder)
    else:
        check_gives_way(folder, replaces)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        text = json.dumps(dict(config), indent=2, sort_keys=True)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
        if kind == "flax":
            path = new / flax_msgpack.SINGLE
            flax_msgpack.save_msgpack(path, dict(infos), read, str(config["model_type"]))
        else:
            _save_safetensors(new, infos, read)
        finish(new)
        put_in_place(new, folder)


def put_in_place(new: Path, folder: Path) -> None:
    """Move a complete folder to its target and replace an old one, which stays if this fails."""
    old = new.parent / "old"
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        # An interrupt between the two moves: bring the old folder back out of the temporary one.
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise


def _save_safetensors(
    folder: Path, infos: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]
) -> None:
    shards = _shards(infos)
    if len(shards) == 1:
        _write(folder / safetensors.SINGLE, shards[0], read)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(folder / file, names, read)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_num_bytes(info) for info in infos.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / safetensors.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, names: list[str], read: Callable[[str], np.ndarray]) -> None:
    tensors = {name: np.asarray(read(name), order="C") for name in names}
    save_file(tensors, path, metadata={"format": "pt"})


def _shards(infos: Mapping[str, TensorInfo]) -> list[list[str]]:
    """Return the names of the tensors in each file of at most `_SHARD_BYTES`, in order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        if shards[-1] and size + _num_bytes(info) > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _num_bytes(info)
    return shards


def _num_bytes(info: TensorInfo) -> int:
    return int(np.prod(info.shape)) * info.dtype.itemsize
