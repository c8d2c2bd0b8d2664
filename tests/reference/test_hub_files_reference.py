"""Old checkpoints on the Hub: names without the base model's prefix, masks, a second tied head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from jax.sharding import Mesh
from reference_models import TinyModel
from safetensors.numpy import save_file

from jaxft.errors import WeightsError
from jaxft.weights import load, names
from jaxft.weights.formats import safetensors

pytestmark = pytest.mark.reference

PREFIXES = {"gpt2": "transformer.", "opt": "model.", "llama": "model."}
HEAD = "lm_head.weight"

Tensors = dict[str, np.ndarray]


def tensors_of(model: TinyModel, *, without: str) -> Tensors:
    """Return a model's tensors, a prefix taken from their names."""
    saved = model.checkpoint()
    return {name.removeprefix(without): saved.read(name) for name in saved.infos()}


def assert_loads(model: TinyModel, tensors: Tensors, folder: Path, mesh: Mesh) -> None:
    """Write the tensors, read them, and find the model."""
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, folder / safetensors.SINGLE)
    tree = load.load_base(
        safetensors.open_safetensors(folder),
        model.family,
        model.network,
        dtype="float32",
        mesh=mesh,
        progress=lambda _: None,
        quantization=None,
        rounding=None,
    )
    jax.tree.map(np.testing.assert_array_equal, tree, model.load(model.network, mesh))


@pytest.mark.parametrize("name", PREFIXES)
def test_names_without_the_prefix_load(
    name: str, tiny_model: Callable[..., TinyModel], tmp_path: Path, one_device: Mesh
) -> None:
    tensors = tensors_of(tiny_model(name), without=PREFIXES[name])
    assert not any(each.startswith(PREFIXES[name]) for each in tensors)
    assert_loads(tiny_model(name), tensors, tmp_path, one_device)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_of_gpt2_are_no_weights(
    prefix: str, tiny_model: Callable[..., TinyModel], tmp_path: Path, one_device: Mesh
) -> None:
    tensors = tensors_of(tiny_model("gpt2"), without="" if prefix else "transformer.")
    for layer in range(3):
        tensors[f"{prefix}h.{layer}.attn.bias"] = np.tri(96, dtype=np.float32)[None, None]
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.float32([-1e4])
    assert_loads(tiny_model("gpt2"), tensors, tmp_path, one_device)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_second_copy_of_a_tied_head_loads_only_if_it_is_one(
    name: str, tiny_model: Callable[..., TinyModel], tmp_path: Path, one_device: Mesh
) -> None:
    model = tiny_model(name)
    tensors = tensors_of(model, without=PREFIXES[name])
    tensors[HEAD] = model.checkpoint().read(names.embedding_name(model.family))
    assert_loads(model, tensors, tmp_path, one_device)
    tensors[HEAD] = tensors[HEAD] + 1
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs from"):
        assert_loads(model, tensors, tmp_path, one_device)


def test_a_mixture_of_names_with_and_without_the_prefix_does_not_load(
    tiny_model: Callable[..., TinyModel], tmp_path: Path, one_device: Mesh
) -> None:
    tensors = tensors_of(tiny_model("gpt2"), without="")
    tensors["ln_f.bias"] = tensors.pop("transformer.ln_f.bias")
    with pytest.raises(WeightsError, match=r"1 missing .*1 unexpected"):
        assert_loads(tiny_model("gpt2"), tensors, tmp_path, one_device)
