"""Writes the folder of an adapter and verifies it; `whole` does the same for a merged model.

Before the new folder replaces an old one it is read back, and its logits are compared with those
of the live model.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import conversion, peft_format, tables
from jaxft.artifacts import loaded, verify
from jaxft.artifacts.loaded import Tuned
from jaxft.artifacts.verify import Rows
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import mask, numbers
from jaxft.parallel import rules
from jaxft.weights import save
from jaxft.weights.places import companions, vocabulary
from jaxft.weights.places.source import Source

# As shares of the largest logit. The arrays are the same, so the first covers only the noise of the
# program. An adapter that began with a part of the weights is written as a difference, which adds
# in another order, like a merge.
_TOLERANCE, _TOLERANCE_WITH_START = 1e-5, 1e-4


def write_adapter(
    folder: Path,
    base: Source,
    lora: LoraConfig,
    model: Tuned,
    rows: Rows,
    *,
    mesh: Mesh,
    dtype: str,
    facts: Mapping[str, str],
) -> None:
    """Write an adapter folder, replacing an adapter that is there.

    Args:
        folder: The folder to write.
        base: The base model of the adapter.
        lora: The adapter's config.
        model: The live model.
        rows: The rows on which the live model and the written one are compared.
        mesh: The devices that hold the model's leaves.
        dtype: The dtype of activations and matrix products.
        facts: Facts for the model card that are not in the files, by label.

    Raises:
        ConfigError: If the folder is the base model's, or lies in it.
        WeightsError: If the folder holds something that is not an adapter.
        AdapterError: If the adapter, read back, does not give the live model's logits.
    """
    save.check_apart(folder, base)
    family, network = model.family, model.network
    content, tensors = conversion.to_peft(
        lora, family, network, model.tree, base_model=base.name, revision=base.revision
    )
    beside = tables.to_write(base, family, network)
    stored = vocabulary.stored_rows(base)
    live_parts = mask.parts(network, model.tree)
    has_start = bool(live_parts.started)
    tolerance = _TOLERANCE_WITH_START if has_start else _TOLERANCE
    # For such an adapter a difference of products is written: the same sums in another order, which
    # can only be compared in float32.
    dtype, precision = ("float32", "highest") if has_start else (dtype, None)

    def check(written: Path) -> dict[str, str]:
        try:
            config, again = peft_format.read_adapter(written)
            # Read as by a user who has only the folder and the base model.
            described = peft_format.read_lora_config(config, written)
            theirs = loaded.network_of(described, again, family, network.spec, written)
            _check_tables(folder, beside, again)
            filed = tables.num_rows(again, described, family, stored)
            num_rows = stored if filed is None else filed
            if num_rows != network.spec.vocab_size:
                raise _not_as_written(folder, f"by its shapes its base has {num_rows} tokens")
            leaves = peft_format.from_tensors(again, family, theirs, written)
        except AdapterError as error:
            raise _not_as_written(folder, error.found) from error
        leaves = trees.combine(leaves, numbers.leaves(described, family, theirs))
        placed = jax.device_put(leaves, rules.shardings(leaves, mesh))
        live = verify.Model(network, model.tree)
        reread = verify.Model(theirs, trees.combine(live_parts.frozen, placed))
        with jax.default_matmul_precision(precision):
            found = verify.compare(live, reread, rows, mesh=mesh, dtype=dtype)
        if not found.relative <= tolerance:
            by = f"its logits differ from the live model's by {found.relative:.1e} of the largest"
            raise _not_as_written(folder, by)
        what = "the adapter in this folder, read back, with the live model"
        record = verify.report(what, rows, found, dtype=dtype, tolerance=tolerance)
        verify.write(written, record)
        console.note(f"The adapter, read back, gives {verify.in_words(record)}.")
        if isinstance(base, vocabulary.Resized) and base.own_tokenizer is not None:
            companions.save_tokenizer(model.chat_format.apply(base.tokenizer()), written)
        model.chat_format.write(written)
        return {"Verified": f"read back, it gives {verify.in_words(record)}"}

    peft_format.save_adapter(folder, tensors, content, check, facts, beside)


def _check_tables(folder: Path, beside: tables.Beside, again: Mapping[str, np.ndarray]) -> None:
    for name, table in beside.tensors.items():
        if not np.array_equal(table, again[name]):
            raise _not_as_written(folder, f"{name} is another")


def _not_as_written(folder: Path, found: str) -> AdapterError:
    return AdapterError(
        f"The adapter was written to the disk of {folder.parent}, but read back it is not the live "
        f"model's: {found}",
        "It is not kept. Look to the disk, and write it again; what a run has trained is in its "
        "checkpoints.",
    )
