"""A whole tuned model on disk, checked: adapters merged into what they stand beside.

Before the folder takes its place it is read back, and its logits are compared with those of the
live model, whose adapters are apart. What rounding the merged weights costs is measured as they are
written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft.errors import WeightsError
from jaxft.lora import tuned, verify
from jaxft.lora.merge import Merged
from jaxft.lora.rounding import Rounding
from jaxft.lora.tuned import Tuned
from jaxft.lora.verify import Model, Rows
from jaxft.models.families import multimodal
from jaxft.weights import base, save, source
from jaxft.weights.checkpoint import TensorInfo
from jaxft.weights.source import Source

# Of the largest logit. What is merged is rounded to the model's dtype, once a weight.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1}


def write_model(
    output: Path,
    found: Source,
    model: Tuned,
    rows: Rows,
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
        rows: On which it is compared with what was written.
        mesh: Where its leaves lie.
        kind: "merged" (safetensors) or "flax" (msgpack).
        dtype: Of the weights written.
        replaces: Whether a folder that was written by this gives way once the new one is complete.

    Raises:
        JaxftError: If it cannot be written, or is not the same model when it is read back.
    """
    save.check_apart(output, found)
    # Of a model with other parts, none of which was read, the text part alone can be written.
    family, config = multimodal.text_part(model.family, found.config())
    merged = Merged(jax.tree.map(np.asarray, model.tree), family, model.network)
    infos = {each: TensorInfo(merged.shape(each), jnp.dtype(dtype)) for each in merged.names()}
    rounding = Rounding(dtype)
    with console.loading("Writing the whole model", len(infos)) as count:

        def read(each: str) -> np.ndarray:
            count(1)
            tensor = merged.read(each)
            written = tensor.astype(jnp.dtype(dtype))
            rounding.add(each, merged.base(each), tensor, written)
            return written

        save.save_model(
            output,
            _config(config, merged, dtype),
            infos,
            read,
            kind,
            lambda folder: _finish(folder, found, model, rows, mesh, rounding),
            replaces=verify.FILE if replaces else None,
        )


def stored_dtype(found: Source) -> str:
    """Return the dtype of the base model's weights as they are in its file."""
    infos = found.checkpoint().infos()
    largest = max(infos.values(), key=lambda info: int(np.prod(info.shape)))
    return "bfloat16" if largest.dtype == jnp.bfloat16 else "float32"


def _config(base: Mapping[str, Any], merged: Merged, dtype: str) -> dict[str, Any]:
    config = {key: value for key, value in base.items() if key != "torch_dtype"}
    return {**config, "dtype": dtype, "tie_word_embeddings": merged.has_tied_head}


def _finish(
    folder: Path, found: Source, live: Tuned, rows: Rows, mesh: Mesh, rounding: Rounding
) -> None:
    """Add the tokenizer and the record, and make sure that what was written is the live model.

    Raises:
        WeightsError: If its logits differ by more than rounding.
    """
    try:
        live.chat_format.apply(found.tokenizer()).save_pretrained(folder)
    except WeightsError as error:
        console.note(f"No tokenizer is written: {error.found}")
    live.chat_format.write(folder, base.read_generation(found))
    dtype, tolerance = rounding.dtype, _TOLERANCES[rounding.dtype]
    here = source.resolve(str(folder), None, console.note)
    reread = tuned.load(here, None, {}, origin=folder, mesh=mesh, dtype=dtype)
    difference = verify.compare(
        Model(live.network, live.tree),
        Model(reread.network, reread.tree),
        rows,
        mesh=mesh,
        dtype="float32",
    )
    if not difference.relative <= tolerance:
        raise WeightsError(
            "Read back, the logits of what was written differ from the live model's by "
            f"{difference.relative:.1e} of the largest.",
            f"It was not kept; rounding to {dtype} explains {tolerance:.0e}. "
            "Export in float32, or look to the disk.",
        )
    what = f"the model in this folder, in {dtype}, read back, with the live model"
    record = verify.report(what, rows, difference, dtype="float32", tolerance=tolerance)
    verify.write(folder, record | rounding.report())
    console.note(
        f"Read back: its logits differ by {difference.relative:.1e} of the largest, on "
        f"{verify.rows_in_words(record)}; the mean divergence is {difference.kl:.1e} nats."
    )
    if rounding.has_updates:
        console.note(rounding.in_words())
