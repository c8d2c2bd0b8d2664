"""The examples of a source: its rows are encoded once, and later read from the cache on disk.

`encode_source(rows, encoding)` returns examples that are read by index from memory-mapped files.
The memory does not grow with the number of rows, neither while encoding nor later. The cache's
folder is named by a digest of everything that decides the tokens, the source code of `data/`
included, so it always holds the same tokens that encoding again would give. Every example has at
least one target, which is a supervised token.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

import jaxft
from jaxft.data.chats.encoding import Encoding
from jaxft.data.examples import cache, chunk, workers
from jaxft.data.examples.cache import StoredExamples
from jaxft.data.examples.chunk import Chunk
from jaxft.data.examples.report import Report
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import Row, RowPlace
from jaxft.data.sources.source import RowSource
from jaxft.errors import DataError

# Called now and then with the number of encoded rows, and the number of all rows if it is known.
Progress = Callable[[int, int | None], None]

# After this many reads, the memory of read examples is freed. Each read can map up to 2 MiB around
# the example.
_READS_HELD = 32

# Starting processes takes some seconds. In that time this process alone encodes so many batches.
_BATCHES_ALONE = 48
_MOST_WORKERS = 16


class Examples:
    """The examples of a source, memory-mapped and read by index.

    Attributes:
        lengths: The number of tokens in each example.
        targets: The number of supervised tokens in each example, at least 1.
        full_lengths: The number of tokens in each example before it was cut.
        report: The report on the encoding of the rows.
        fingerprint: A digest of all tokens and masks. A resumed run recognises its data by it.
        end_ids: The tokens that end supervised parts.
    """

    def __init__(self, stored: StoredExamples) -> None:
        """Read the table of the stored examples."""
        self._stored = stored
        self._num_read = 0
        self._starts = stored.table["start"]
        self.lengths: Int32[np.ndarray, " n"] = np.ascontiguousarray(stored.table["length"])
        self.targets: Int32[np.ndarray, " n"] = np.ascontiguousarray(stored.table["targets"])
        self.full_lengths: Int32[np.ndarray, " n"] = stored.table["full_length"]
        self.report: Report = stored.report
        self.fingerprint: str = stored.fingerprint
        self.end_ids: tuple[int, ...] = stored.end_ids

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        self._num_read += 1
        if self._num_read % _READS_HELD == 0:
            self._stored.release()
        start = int(self._starts[index])
        part = slice(start, start + int(self.lengths[index]))
        return Example(self._stored.input_ids[part], self._stored.loss_mask[part])

    def place(self, index: int) -> RowPlace:
        """Return the place of the row that an example was made of."""
        line = self._stored.table[index]
        source, unit = self._stored.files[line["file"]]
        return RowPlace(source, int(line["number"]), unit)

    def check_ids(self, vocab_size: int) -> None:
        """Raise if an example has a token id that is not below `vocab_size`.

        For such a token JAX would silently read another embedding, and the run would go on.

        Raises:
            DataError: An example has a token without an embedding.
        """
        chunk.check_ids(self._stored.table, self._stored.files, vocab_size)


def encode_source(
    source: RowSource,
    encoding: Encoding,
    progress: Progress | None = None,
    num_workers: int | None = None,
) -> Examples:
    """Encode the rows of a source, or map the examples that an earlier call wrote to the cache.

    The cache is the folder `jaxft` in the cache of datasets (environment variable
    `HF_DATASETS_CACHE`).

    Args:
        source: The rows.
        encoding: Decides the tokens of the rows.
        progress: See `Progress`. It is not called if the examples come from the cache.
        num_workers: The number of processes that encode; 1 uses this process only. None starts
            more if there are many rows and more than two cores. The examples do not depend on it.

    Raises:
        DataError: A row cannot be read or encoded, no example has a target, or the cache cannot be
            written.
    """
    import datasets

    parent = Path(datasets.config.HF_DATASETS_CACHE) / "jaxft"
    folder = parent / cache_key(source, encoding)
    stored = cache.load(folder, source.files)
    if stored is None:
        chunks = _told(_chunks(chunk.batches(source), encoding, num_workers), progress)
        try:
            with contextlib.closing(chunks):  # ends the workers
                report = cache.write(folder, chunks, encoding.max_length, source.files)
        except OSError as error:
            raise DataError(
                f"The cache of encoded rows, {parent}, cannot be written: {error.strerror}.",
                "Set HF_DATASETS_CACHE to a folder with room that this user may write to.",
            ) from error
        if not report.examples:
            raise nothing_left(source.name, report)
        stored = cache.load(folder, source.files)
        assert stored is not None
    return Examples(stored)


def cache_key(source: RowSource, encoding: Encoding) -> str:
    """Return a digest of everything that decides the examples of a source."""
    import jinja2
    import tokenizers
    import transformers

    libraries = (jaxft, jinja2, tokenizers, transformers)
    parts = [
        source.digest(),
        encoding.key(),
        [library.__version__ for library in libraries],
        code_digest(Path(__file__).parent.parent),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_digest(folder: Path) -> str:
    """Return a digest of the Python files in a folder, because other code may give other tokens."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def nothing_left(name: str, report: Report) -> DataError:
    """Return the error for rows in which nothing is supervised."""
    if report.without_target == report.dropped:
        return DataError(
            f"{name}: none of its {report.rows:,} rows has a token to learn.",
            'Learned are turns of the role "assistant", answers, texts, and tokens whose label is'
            " not -100: add some.",
        )
    return DataError(
        f"{name}: at {report.max_length:,} tokens, none of its {report.rows:,} rows has a token"
        " left to learn.",
        f"Raise data.max_length; the longest row has {report.longest:,} tokens.",
    )


def _chunks(
    batches: Iterator[list[Row]], encoding: Encoding, num_workers: int | None
) -> Iterator[Chunk]:
    """Yield a chunk for each batch of rows, in order."""
    chosen = num_workers
    if chosen is None:
        chosen = min(_num_cores() - 1, _MOST_WORKERS)  # one core is kept busy by reading
        num_alone = _BATCHES_ALONE if chosen > 1 else None
        yield from workers.encode_here(itertools.islice(batches, num_alone), encoding)
    for following in batches:
        rest = itertools.chain([following], batches)
        if chosen > 1:
            yield from workers.encode_in_processes(rest, encoding, chosen)
        else:
            yield from workers.encode_here(rest, encoding)


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _told(chunks: Iterable[Chunk], progress: Progress | None) -> Generator[Chunk, None, None]:
    """Yield the chunks, and report the number of rows so far after each."""
    done = 0
    for each in chunks:
        yield each
        done += each.tally.rows
        if progress is not None:
            progress(done, None)
