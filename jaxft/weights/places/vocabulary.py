"""A base model with another vocabulary than its files have: tokens added, and rows made for them.

The change is made where the model is read. A `Resized` source says another `vocab_size` in its
config.json, its checkpoint has that many rows in the embedding and the head, and its tokenizer has
the tokens; loading, sharding, quantizing, merging and writing see a base that is simply larger. The
invariant: a row that the files have is theirs, bit for bit.

Source: transformers `modeling_utils.py: PreTrainedModel._get_resized_embeddings`,
`_init_added_embeddings_weights_with_mean`, `_init_added_lm_head_bias_with_mean`. There a row is
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

_CHUNK_ROWS = 4096  # of a table, brought to float32 at once


@dataclasses.dataclass(frozen=True)
class Resized(Source):
    """A model that was found, with another vocabulary than its files have.

    Attributes:
        rows: Of the embedding and the head, 49,155 where the files have 49,152.
        stored_rows: How many the files have.
        new_ids: The tokens that were added, by their numbers; none where it is not known.
        own_tokenizer: The tokenizer with the added tokens; `None` is the one in the files.
        tables: Tensors that stand in the place of the files', by Hugging Face's names: an adapter
            may come with the embedding that it was trained beside.
    """

    rows: int
    stored_rows: int
    new_ids: tuple[int, ...]
    own_tokenizer: Any
    tables: Mapping[str, np.ndarray]

    def config(self) -> dict[str, Any]:
        """Return what config.json says, but for the size of the vocabulary.

        Raises:
            WeightsError: The file is missing or damaged.
            UnsupportedModelError: A GGUF that is not handled.
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
            UnsupportedModelError: A GGUF that is not handled.
        """
        family = families.family_of(super().config())
        original = names.under_full_names(super().checkpoint(), family)
        return ResizedCheckpoint(original, table_names(family), self.rows, self.tables)

    def tokenizer(self) -> Any:
        """Load the tokenizer, with the added tokens.

        Raises:
            WeightsError: There is none, or a damaged one.
            UnsupportedModelError: One that is not handled.
        """
        if self.own_tokenizer is None:
            return super().tokenizer()
        return copy.deepcopy(self.own_tokenizer)

    def is_of_files(self, name: str) -> bool:
        """Return whether a tensor, by the family's name, is the one in the model's files."""
        family = families.family_of(super().config())
        is_cut_or_grown = self.rows != self.stored_rows and name in table_names(family)
        return name not in self.tables and not is_cut_or_grown


@dataclasses.dataclass(frozen=True)
class ResizedCheckpoint:
    """A checkpoint whose tensors of the vocabulary have another number of rows.

    Attributes:
        original: The checkpoint, under the names of the family's table.
        resized: The names of the tensors that have a row for each token.
        rows: How many rows these have here.
        tables: What stands in the place of some of them, [rows, ...].
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
        """List the tensors, in the file's order."""
        return {
            name: TensorInfo((self.rows, *info.shape[1:]), info.dtype)
            if name in self.resized
            else info
            for name, info in self.original.infos().items()
        }

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or a region of it, into memory of its own.

        Raises:
            WeightsError: The file cannot give it; file and tensor are named.
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
        # A row that is made takes all that the files have, of these columns.
        read = self.original.read(name, (slice(0, num_stored), *columns))
        grown = with_rows(read, self.rows)
        return grown if region is None else grown[rows].copy()


def table_names(family: Family) -> frozenset[str]:
    """Return the names of the tensors that have a row for each token, in files of a family."""
    head = family.head_name
    return frozenset([names.embedding_name(family), f"{head}.weight", f"{head}.bias"])


def with_rows(tensor: np.ndarray, rows: int) -> np.ndarray:
    """Return a table with so many rows: its first ones, and then the mean of all of them.

    Args:
        tensor: [v, d], or [v] of a head's bias.
        rows: How many.
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
    """Return how many rows the embedding has in a model's files.

    Raises:
        UnsupportedModelError: If the architecture, or a feature of it, is not handled.
        WeightsError: If its config.json is missing or damaged.
    """
    if isinstance(found, Resized):
        return found.stored_rows
    config = found.config()
    return families.family_of(config).spec_from_config(config).vocab_size


def new_ids(found: Source) -> tuple[int, ...]:
    """Return the tokens that were added to a model, by their numbers."""
    return found.new_ids if isinstance(found, Resized) else ()


def resized(
    found: Source,
    rows: int,
    *,
    new_ids: Sequence[int] = (),
    own_tokenizer: Any = None,
    tables: Mapping[str, np.ndarray] | None = None,
) -> Resized:
    """Return a model with so many rows in its embedding and head.

    Args:
        found: The model; what it was resized to before does not count.
        rows: How many.
        new_ids: See `Resized`.
        own_tokenizer: See `Resized`; `None` keeps what the model had.
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
