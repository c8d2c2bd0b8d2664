"""Encoding in a thread or in worker processes, while further rows are read.

The chunks are returned in the order of the rows. A worker is another Python process that runs this
file: it reads pickled lists of rows from its standard input and writes pickled chunks to its
standard output. It is not a fork, because JAX's threads do not survive one, and not a process of
multiprocessing, which would run the caller's script again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from jaxft.data.chats.encoding import Encoding
from jaxft.data.examples.chunk import Chunk, encode_chunk
from jaxft.data.rows.row import Row
from jaxft.errors import DataError

# Batches in the queue for each thread, so that the next rows are ready when one batch is done.
_BATCHES_AHEAD = 2

# A worker uses one core, so its tokenizer starts no threads. It uses no accelerator.
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"}


def encode_here(batches: Iterable[list[Row]], encoding: Encoding) -> Iterator[Chunk]:
    """Yield a chunk for each batch of rows, in order, encoded in one thread of this process.

    Meanwhile the next rows are read, and the tokenizer's own threads use the other cores.

    Args:
        batches: Batches of rows.
        encoding: Decides the tokens of the rows.

    Raises:
        DataError: A row cannot be read or encoded. The error is that of the first such row.
    """
    return _in_order(batches, lambda rows: encode_chunk(rows, encoding), 1)


def encode_in_processes(
    batches: Iterable[list[Row]], encoding: Encoding, num_workers: int
) -> Iterator[Chunk]:
    """Yield a chunk for each batch of rows, in order, encoded in worker processes.

    Args:
        batches: Batches of rows.
        encoding: Decides the tokens of the rows.
        num_workers: The number of processes.

    Raises:
        DataError: A row cannot be read or encoded (the error is that of the first such row), or a
            worker was killed.
    """
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def encode(rows: list[Row]) -> Chunk:
        worker = idle.get()
        try:
            return worker.encode(rows)
        finally:
            idle.put(worker)

    with contextlib.ExitStack() as stack:
        for _ in range(num_workers):
            idle.put(stack.enter_context(contextlib.closing(_Worker(encoding))))
        yield from _in_order(batches, encode, num_workers)


def _in_order(
    batches: Iterable[list[Row]], encode: Callable[[list[Row]], Chunk], num_threads: int
) -> Iterator[Chunk]:
    """Call `encode` in threads and yield its results in order, reading only a little ahead."""
    waiting: collections.deque[Future[Chunk]] = collections.deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for future in _submitted(batches, lambda rows: pool.submit(encode, rows)):
                waiting.append(future)
                if len(waiting) == num_threads * _BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submitted(
    batches: Iterable[list[Row]], submit: Callable[[list[Row]], Future[Chunk]]
) -> Iterator[Future[Chunk]]:
    """Yield the future of each batch. If reading fails, the last future holds the error."""
    try:
        for rows in batches:
            yield submit(rows)
    except DataError as error:
        failed: Future[Chunk] = Future()
        failed.set_exception(error)
        yield failed


class _Worker:
    """A process that encodes one batch at a time."""

    def __init__(self, encoding: Encoding) -> None:
        """Start the process, and send it a copy of the encoding without its memory of layouts."""
        paths = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
        )
        self._send(dataclasses.replace(encoding))

    def encode(self, rows: list[Row]) -> Chunk:
        """Return the chunk of a batch of rows.

        Raises:
            DataError: A row cannot be encoded, or the process was killed.
        """
        self._send(rows)
        assert self._process.stdout is not None
        try:
            answer: Chunk | DataError = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._lost() from None
        if isinstance(answer, DataError):
            raise answer
        return answer

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # from data that was not sent yet
                pipe.close()

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(value, self._process.stdin, protocol=5)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _lost(self) -> DataError:
        return DataError(
            f"A process that encodes rows was ended (exit status {self._process.wait()}).",
            "See above for what it said; if there was not enough memory, set "
            "data.dataset_num_proc: 1.",
        )


def main() -> None:
    """Run as a worker: answer each list of rows with a chunk, or with the error of a row."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process will kill this one
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text must not mix with the answers
    encoding: Encoding = pickle.load(requests)
    while True:
        try:
            rows = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: Chunk | DataError = encode_chunk(rows, encoding)
        except DataError as error:
            answer = error
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
