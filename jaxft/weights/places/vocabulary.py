"""A base model with another vocabulary than its files have, with rows for added tokens.

A row here is always a row of the embedding or the head: the vector of one token. The change is made
where the model is read: a `Resized` source has another `vocab_size` in its config.json, its
checkpoint has that many rows in the embedding and the head, and its tokenizer has the added tokens.
So loading, sharding, quantizing, merging and writing see a larger base and need no special case.
Rows in the files stay the same, bit for bit.

Source: transformers `modeling_utils.py: PreTrainedModel._get_resized_embeddings`,
`_init_added_embeddings_weights_with_mean`, `_init_added_lm_head_bias_with_mean`. There a new row is
drawn around the mean of the others, with a variance of 1e-9 times theirs; here it is the mean.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.models import families
from jaxft.models.families.family import Family
from jaxft.weights import names
from jaxft.weights.formats import regions
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo
from jaxft.weights.formats.regions import Region
from jaxft.weights.places.source import Source

_CHUNK_ROWS = 4096  # rows of a table that are converted to float32 at once


@dataclasses.dataclass(frozen=True)
class Resized(Source):
    """A model that was found, with another vocabulary than its files have.

    Attributes:
        rows: The number of rows of the embedding and the head, such as 49,155.
        stored_rows: The number of rows in the files, such as 49,152.
        new_ids: The ids of the added tokens; empty if they are not known.
        own_tokenizer: The tokenizer with the added tokens; `None` is the one in the files.
        tables: Tensors that replace those in the files, by their Hugging Face names. An adapter may
            come with the embedding that it was trained with.
    """

    rows: int
    stored_rows: int
    new_ids: tuple[int, ...]
    own_tokenizer: Any
    tables: Mapping[str, np.ndarray]

    def config(self) -> dict[str, Any]:
        """Return the content of config.json with the new size of the vocabulary.

        Raises:
            WeightsError: The file is missing or damaged.
            UnsupportedModelError: The GGUF is not supported.
        """
        config = super().config()
        if families.family_of(config).text_families:
            text = dict(config.get("text_config") or {})
            return {**config, "text_config": {**text, "vocab_size": self.rows}}
        return {**config, "vocab_size": self.rows}

    def checkpoint(self) -> Checkpoint:
        """Open the weights, reading headers only.

        Raises:
            WeightsError: A file is missing, truncated or damaged.
            UnsupportedModelError: The GGUF is not supported.
        """
        family = families.family_of(super().config())
        original = names.under_full_names(super().checkpoint(), family)
        return ResizedCheckpoint(original, table_names(family), self.rows, self.tables)

    def tokenizer(self) -> Any:
        """Load the tokenizer, with the added tokens.

        Raises:
            WeightsError: There is no tokenizer, or a damaged one.
            UnsupportedModelError: The tokenizer is not supported.
        """
        if self.own_tokenizer is None:
            return super().tokenizer()
        return copy.deepcopy(self.own_tokenizer)

    def is_of_files(self, name: str) -> bool:
        """Return whether a tensor, by its name in the family, is the one in the model's files."""
        family = families.family_of(super().config())
        is_cut_or_grown = self.rows != self.stored_rows and name in table_names(family)
        return name not in self.tables and not is_cut_or_grown


@dataclasses.dataclass(frozen=True)
class ResizedCheckpoint:
    """A checkpoint whose embedding and head have another number of rows.

    Attributes:
        original: The checkpoint, under the names of the family's table.
        resized: The names of the tensors that have a row for each token.
        rows: The new number of rows of these tensors.
        tables: Tensors that replace some of them, [rows, ...].
    """

    original: Checkpoint
    resized: frozenset[str]
    rows: int
    tables: Mapping[str, np.ndarray]

    @property
    def path(self) -> Path:
        """Return the path of the original."""
        return self.original.path

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors with their new shapes, in the file's order."""
        return {
            name: TensorInfo((self.rows, *info.shape[1:]), info.dtype)
            if name in self.resized
            else info
            for name, info in self.original.infos().items()
        }

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or a region of it, into new memory.

        Raises:
            WeightsError: The tensor cannot be read; the error names the file and the tensor.
        """
        if name in self.tables:
            table = self.tables[name] if region is None else self.tables[name][region]
            return table.astype(self.original.infos()[name].dtype)
        if name not in self.resized:
            return self.original.read(name, region)
        num_stored, *others = self.original.infos()[name].shape
        rows, *columns = regions.whole((self.rows, *others)) if region is None else region
        if rows.stop <= num_stored:
            return self.original.read(name, (rows, *columns))
        # A new row is the mean of all rows in the files, for the columns of the region.
        read = self.original.read(name, (slice(0, num_stored), *columns))
        grown = with_rows(read, self.rows)
        return grown if region is None else grown[rows].copy()


def table_names(family: Family) -> frozenset[str]:
    """Return the names of the tensors of a family that have a row for each token."""
    head = family.head_name
    return frozenset([names.embedding_name(family), f"{head}.weight", f"{head}.bias"])


def with_rows(tensor: np.ndarray, rows: int) -> np.ndarray:
    """Return a table with another number of rows; each new row is the mean of all old ones.

    Args:
        tensor: [v, d], or [v] for the bias of a head.
        rows: The new number of rows. If it is smaller, the last rows are left out.
    """
    if rows <= len(tensor):
        return tensor[:rows]
    total = np.zeros(tensor.shape[1:], np.float64)
    for start in range(0, len(tensor), _CHUNK_ROWS):
        chunk = tensor[start : start + _CHUNK_ROWS].astype(np.float32)
        total += chunk.sum(axis=0, dtype=np.float64)
    grown = np.empty((rows, *tensor.shape[1:]), tensor.dtype)
    grown[: len(tensor)] = tensor
    grown[len(tensor) :] = (total / len(tensor)).astype(np.float32).astype(tensor.dtype)
    return grown


def stored_rows(found: Source) -> int:
    """Return the number of rows of the embedding in a model's files.

    Raises:
        UnsupportedModelError: The architecture, or a feature of it, is not supported.
        WeightsError: The config.json is missing or damaged.
    """
    if isinstance(found, Resized):
        return found.stored_rows
    config = found.config()
    return families.family_of(config).spec_from_config(config).vocab_size


def new_ids(found: Source) -> tuple[int, ...]:
    """Return the ids of the tokens that were added to a model."""
    return found.new_ids if isinstance(found, Resized) else ()


def resized(
    found: Source,
    rows: int,
    *,
    new_ids: Sequence[int] = (),
    own_tokenizer: Any = None,
    tables: Mapping[str, np.ndarray] | None = None,
) -> Resized:
    """Return a model with another number of rows in its embedding and head.

    Args:
        found: The model. If it is resized already, its old size does not matter.
        rows: The number of rows.
        new_ids: See `Resized`.
        own_tokenizer: See `Resized`; `None` keeps the tokenizer of the model.
        tables: See `Resized`.
    """
    if own_tokenizer is None and isinstance(found, Resized):
        own_tokenizer = found.own_tokenizer
    return Resized(
        name=found.name,
        folder=found.folder,
        gguf=found.gguf,
        revision=found.revision,
        origin=found.origin,
        rows=rows,
        stored_rows=stored_rows(found),
        new_ids=tuple(new_ids),
        own_tokenizer=own_tokenizer,
        tables=tables or {},
    )
