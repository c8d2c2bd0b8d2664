"""A whole tuned model on disk, checked: adapters merged into what they stand beside.

Before the folder takes its place it is read back, and its logits are compared with those of the
live model, whose adapters are apart.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft.errors import WeightsError
from jaxft.lora import tuned
from jaxft.lora.merge import Merged
from jaxft.lora.tuned import Tuned
from jaxft.models import forward
from jaxft.models.families import multimodal
from jaxft.parallel import mesh as meshes
from jaxft.weights import save, source
from jaxft.weights.checkpoint import TensorInfo
from jaxft.weights.source import Source

_COMPARED_TOKENS = 64
# Of the largest logit. What is merged is rounded to the model's dtype, once a weight.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1}


def write_model(
    output: Path,
    found: Source,
    model: Tuned,
    *,
    mesh: Mesh,
    kind: save.Format,
    dtype: str,
    replaces: bool,
) -> None:
    """Write a model folder: weights, config.json, tokenizer.

    Args:
        output: The folder.
        found: The base model, for its config.json and its tokenizer.
        model: The model.
        mesh: Where its leaves lie.
        kind: "merged" (safetensors) or "flax" (msgpack).
        dtype: Of the weights written.
        replaces: Whether a folder that is there gives way once the new one is complete.

    Raises:
        JaxftError: If it cannot be written, or is not the same model when it is read back.
    """
    # Of a model with other parts, none of which was read, the text part alone can be written.
    family, config = multimodal.text_part(model.family, found.config())
    merged = Merged(jax.tree.map(np.asarray, model.tree), family, model.network)
    infos = {each: TensorInfo(merged.shape(each), jnp.dtype(dtype)) for each in merged.names()}
    with console.loading("Writing the whole model", len(infos)) as count:

        def read(each: str) -> np.ndarray:
            count(1)
            return merged.read(each).astype(jnp.dtype(dtype))

        save.save_model(
            output,
            _config(config, merged, dtype),
            infos,
            read,
            kind,
            lambda folder: _finish(folder, found, model, mesh, dtype),
            replaces=replaces,
        )


def stored_dtype(found: Source) -> str:
    """Return the dtype of the base model's weights as they are in its file."""
    infos = found.checkpoint().infos()
    largest = max(infos.values(), key=lambda info: int(np.prod(info.shape)))
    return "bfloat16" if largest.dtype == jnp.bfloat16 else "float32"


def _config(base: Mapping[str, Any], merged: Merged, dtype: str) -> dict[str, Any]:
    config = {key: value for key, value in base.items() if key != "torch_dtype"}
    return {**config, "dtype": dtype, "tie_word_embeddings": merged.has_tied_head}


def _finish(folder: Path, found: Source, live: Tuned, mesh: Mesh, dtype: str) -> None:
    """Add the tokenizer, and make sure that what was written is the live model.

    Raises:
        WeightsError: If its logits differ by more than rounding.
    """
    try:
        found.tokenizer().save_pretrained(folder)
    except WeightsError as error:
        console.note(f"No tokenizer is written: {error.found}")
    generation = found.folder / "generation_config.json"
    if found.gguf is None and generation.is_file():
        shutil.copy(generation, folder / generation.name)
    reread = tuned.load(
        source.resolve(str(folder), None, console.note),
        None,
        {},
        origin=folder,
        mesh=mesh,
        dtype=dtype,
    )
    expected, written = _logits(live, mesh), _logits(reread, mesh)
    difference = float(jnp.max(jnp.abs(expected - written)) / jnp.max(jnp.abs(expected)))
    if not difference <= _TOLERANCES[dtype]:
        raise WeightsError(
            "Read back, the logits of what was written differ from the live model's by "
            f"{difference:.1e} of the largest.",
            f"It was not kept; rounding to {dtype} explains {_TOLERANCES[dtype]:.0e}. "
            "Export in float32, or look to the disk.",
        )
    console.note(f"Read back: its logits differ by {difference:.1e} of the largest.")


def _logits(model: Tuned, mesh: Mesh) -> jax.Array:
    """Return float32 logits of a row of tokens spread over the vocabulary."""
    network = model.network
    length = min(_COMPARED_TOKENS, network.spec.max_tokens or _COMPARED_TOKENS)
    ids = jnp.linspace(0, network.spec.vocab_size - 1, length).astype(jnp.int32)[None]
    # As many copies of the row as the mesh divides rows into.
    ids = jnp.tile(ids, (meshes.row_shards(mesh), 1))
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], ids.shape)

    @jax.jit
    def logits(tree: Mapping[str, Any]) -> jax.Array:
        segments = jnp.ones_like(ids)
        return forward.logits(network, tree, ids, segments, positions, mesh=mesh, dtype="float32")

    return logits(model.tree)
