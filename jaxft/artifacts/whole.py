"""Writes a whole tuned model, with adapters merged into its weights, and verifies it.

A tensor without a trained part is the base's own. Before the new folder replaces an old one it is
read back: such tensors are compared with the base model's file, bit for bit, and the logits with
those of the live model, whose adapters are not merged. The loss by rounding the merged weights is
measured while they are written.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.artifacts import loaded, verify
from jaxft.artifacts.loaded import Tuned
from jaxft.artifacts.merge import Merged
from jaxft.artifacts.rounding import Rounding
from jaxft.artifacts.verify import Model, Rows
from jaxft.errors import WeightsError
from jaxft.models.families import multimodal
from jaxft.weights import finite, save
from jaxft.weights.formats import opening
from jaxft.weights.formats.checkpoint import TensorInfo
from jaxft.weights.places import companions, source
from jaxft.weights.places.source import Source
from jaxft.weights.places.vocabulary import Resized

# As shares of the largest logit, by the coarsest dtype among the compared weights.
_TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


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
    """Write a model folder: weights, config.json, tokenizer and the base model's other files.

    Args:
        output: The folder to write.
        found: The base model.
        model: The live model.
        rows: The rows on which the live model and the written one are compared.
        mesh: The devices that hold the model's leaves.
        kind: "merged" (safetensors) or "flax" (msgpack).
        dtype: The dtype of the written weights; "auto" keeps each tensor's dtype in the base
            model's file.
        replaces: Whether a folder that this function wrote before may be replaced, once the new one
            is complete.

    Raises:
        JaxftError: If the folder cannot be written, or is not the same model when it is read back.
    """
    save.check_apart(output, found)
    companions.check(found, model.chat_format)
    # Of a multimodal model only the text part was read, so only the text part can be written.
    family, config = multimodal.text_part(model.family, found.config())
    merged = Merged(model.tree, family, model.network, found.checkpoint(), model.family)
    infos = {each: _as_written(merged.info(each), dtype) for each in merged.names()}
    rounding = Rounding()
    with console.loading("Writing the whole model", len(infos)) as count:

        def read(each: str) -> np.ndarray:
            count(1)
            tensor = merged.read(each)
            written = _cast(each, tensor, infos[each].dtype)
            if merged.is_trained(each):
                rounding.add(each, merged.base(each), tensor, written)
            return written

        save.save_model(
            output,
            _config(config, merged, dtype, infos),
            infos,
            read,
            kind,
            lambda folder: _finish(folder, found, model, merged, infos, rows, mesh, rounding),
            replaces=verify.FILE if replaces else None,
        )


def working_dtype(infos: Mapping[str, TensorInfo]) -> str:
    """Return the dtype in which a model with these tensors is loaded with little or no loss.

    This is "bfloat16" if the largest tensor has that dtype, and else "float32".
    """
    return "bfloat16" if _largest(infos) == jnp.bfloat16 else "float32"


def _largest(infos: Mapping[str, TensorInfo]) -> np.dtype:
    return max(infos.values(), key=lambda info: math.prod(info.shape)).dtype


def _as_written(info: TensorInfo, dtype: str) -> TensorInfo:
    return info if dtype == "auto" else TensorInfo(info.shape, jnp.dtype(dtype))


def _cast(name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round a tensor to a dtype.

    Raises:
        WeightsError: If a value is too large for the dtype, or is not a finite number.
    """
    # An overflow is reported below, with the tensor's name.
    with np.errstate(over="ignore"):
        written = tensor.astype(dtype)
    if not finite.is_finite(written):
        if not finite.is_finite(tensor):
            raise WeightsError(
                f"{name} holds values that are no numbers.",
                "Nothing was written. What made it went wrong: train again, at a lower learning "
                "rate, or take the adapter as it was published.",
            )
        largest = np.abs(tensor).max()
        raise WeightsError(
            f"{name} has a value of {largest:.3g}, and the largest of {dtype} is "
            f"{jnp.finfo(dtype).max:.3g}.",
            "Nothing was written. Write it in float32 or bfloat16 (`jaxft export --dtype`).",
        )
    return written


def _config(
    base: Mapping[str, Any], merged: Merged, dtype: str, infos: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """Return config.json: the base's, with the dtype and the tied head of the written model.

    `auto_map` is left out: it names code in the base's folder, which is not copied.
    """
    left_out = {"auto_map"} if dtype == "auto" else {"auto_map", "dtype", "torch_dtype"}
    config = {key: value for key, value in base.items() if key not in left_out}
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype"] = _largest(infos).name
    return {**config, "tie_word_embeddings": merged.has_tied_head}


def _finish(
    folder: Path,
    found: Source,
    live: Tuned,
    merged: Merged,
    infos: Mapping[str, TensorInfo],
    rows: Rows,
    mesh: Mesh,
    rounding: Rounding,
) -> None:
    """Add the other files and the record, and verify that the written model is the live one.

    Raises:
        WeightsError: If an untrained tensor is not the base's, or the logits differ by more than
            rounding explains.
    """
    companions.write(folder, found, live.chat_format, console.note)
    untrained = _check_untrained(folder, merged, infos)
    here = source.resolve(str(folder), None, console.note)
    reread = loaded.load(here, None, {}, origin=folder, mesh=mesh, dtype=working_dtype(infos))
    difference = verify.compare(
        Model(live.network, live.tree),
        Model(reread.network, reread.tree),
        rows,
        mesh=mesh,
        dtype="float32",
    )
    written = {info.dtype.name for info in infos.values()}
    tolerance = _tolerance(written | _dtypes(live.tree))
    in_words = " and ".join(sorted(written))
    if not difference.relative <= tolerance:
        raise WeightsError(
            "Read back, the logits of what was written differ from the live model's by "
            f"{difference.relative:.1e} of the largest.",
            f"It was not kept; rounding to {in_words} explains {tolerance:.0e}. "
            "Export in float32, or look to the disk.",
        )
    what = f"the model in this folder, in {in_words}, read back, with the live model"
    record = verify.report(what, rows, difference, dtype="float32", tolerance=tolerance)
    of_file = sum(
        not isinstance(found, Resized) or found.is_of_files(merged.source(each))
        for each in untrained
    )
    counts = {"num_tensors": len(infos), "num_untrained_equal_to_base_file": of_file}
    verify.write(folder, record | counts | rounding.report())
    console.note(
        f"Read back: its logits differ by {difference.relative:.1e} of the largest, on "
        f"{verify.rows_in_words(record)}; the mean divergence is {difference.kl:.1e} nats. "
        f"{of_file} of {len(infos)} tensors are the base's, bit for bit."
    )
    if rounding.has_updates:
        console.note(rounding.in_words())


def _check_untrained(folder: Path, merged: Merged, infos: Mapping[str, TensorInfo]) -> list[str]:
    """Compare the tensors without a trained part with the base model's, and return their names.

    Raises:
        WeightsError: If a tensor differs in any bit from the base's, rounded to the same dtype.
    """
    untrained = [name for name in infos if not merged.is_trained(name)]
    written = opening.open_folder(folder)
    with console.loading("Comparing with the base", len(untrained), silent_s=2.0) as count:
        for name in untrained:
            expected = merged.base(name).astype(infos[name].dtype)
            if written.read(name).tobytes() != expected.tobytes():
                raise WeightsError(
                    f"Read back, {name} is not the base model's, and nothing of it was trained.",
                    "It was not kept. Look to the disk, and write it again.",
                )
            count(1)
    return untrained


def _dtypes(tree: Mapping[str, Any]) -> set[str]:
    """Return the dtypes of a live model's leaves; the base may have been rounded to them."""
    return {leaf.dtype.name for leaf in trees.flatten(tree).values()}


def _tolerance(dtypes: set[str]) -> float:
    return max(_TOLERANCES.get(dtype, 0) for dtype in dtypes)
