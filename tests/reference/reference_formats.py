"""One model in every format that can be read, each written by whoever defines it.

transformers writes safetensors and torch writes .bin; no transformers of today writes msgpack, so
that comes from jaxft, whose files `test_flax_reference` and `test_formats_reference` hold to the
Flax classes' own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from reference_models import TinyModel

from jaxft.weights.formats import flax_msgpack, flax_names, safetensors, torch_pickle

FORMATS = ("safetensors", "msgpack", ".bin", ".bin, legacy")


def formats_of(model: TinyModel) -> tuple[str, ...]:
    """Return the formats that a family's models come in."""
    kinds = [kind for kind in FORMATS if kind != "msgpack"]
    return FORMATS if model.family.model_type in flax_names.FAMILIES else tuple(kinds)


def write(model: TinyModel, kind: str, folder: Path) -> None:
    """Write a model's folder in a format, in the dtype that it was saved in."""
    folder.mkdir()
    shutil.copy(model.folder / "config.json", folder)
    saved = safetensors.open_safetensors(model.folder)
    if kind == "safetensors":
        shutil.copy(model.folder / safetensors.SINGLE, folder)
    elif kind == "msgpack":
        path = folder / flax_msgpack.SINGLE
        flax_msgpack.save_msgpack(path, saved.infos(), saved.read, model.family.model_type)
    else:
        # Of a tied head, torch keeps the copy that shares the embedding's storage.
        stored = torch.bfloat16 if "bfloat16" in _dtypes(model) else torch.float32
        state = model.torch_model.state_dict()
        tied = {name: tensor.data_ptr() for name, tensor in state.items()}
        once = {pointer: state[name].to(stored) for name, pointer in tied.items()}
        torch.save(
            {name: once[pointer] for name, pointer in tied.items()},
            folder / torch_pickle.SINGLE,
            _use_new_zipfile_serialization=kind == ".bin",
        )


def _dtypes(model: TinyModel) -> set[str]:
    return {info.dtype.name for info in model.checkpoint().infos().values()}
