"""The same rows written as every kind of file that is read, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
from pyarrow import parquet

Rows = list[dict]


def as_json_lines(values: Rows) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\r\n" for value in values).encode()


def as_json_list(values: Rows) -> bytes:
    return b"\xef\xbb\xbf \n " + json.dumps(values, indent=1).encode()


def as_wrapped_list(values: Rows) -> bytes:
    return json.dumps({"version": "1.0", "data": values}, ensure_ascii=False).encode()


def as_pretty_objects(values: Rows) -> bytes:
    return "\n".join(json.dumps(value, indent=2, ensure_ascii=False) for value in values).encode()


def as_csv(values: Rows, delimiter: str = ",") -> bytes:
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, values[0], quoting=csv.QUOTE_ALL, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(values)
        return file.getvalue().encode()


def as_tsv(values: Rows) -> bytes:
    return as_csv(values, "\t")


def as_parquet(values: Rows) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(values), sink, row_group_size=2)
    return sink.getvalue()


def as_arrow_file(values: Rows) -> bytes:
    return _as_arrow(values, pyarrow.ipc.new_file)


def as_arrow_stream(values: Rows) -> bytes:
    return _as_arrow(values, pyarrow.ipc.new_stream)


def _as_arrow(values: Rows, new_writer: Callable) -> bytes:
    sink, table = io.BytesIO(), pyarrow.Table.from_pylist(values)
    with new_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


# By the name of a file of that kind; the names differ, so that all fit into one folder.
KINDS: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": as_json_lines,
    "b.ndjson": as_json_lines,
    "c.json": as_json_lines,
    "d.json": as_json_list,
    "e.json": as_wrapped_list,
    "f.json": as_pretty_objects,
    "g.CSV": as_csv,
    "h.tsv": as_tsv,
    "i.parquet": as_parquet,
    "j.arrow": as_arrow_file,
    "k.arrow": as_arrow_stream,
}

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


def write_rows(folder: Path, name: str, values: Rows, packed: str = "") -> Path:
    """Write rows as the kind of file of this name, and return its path."""
    path = folder / (name + packed)
    path.write_bytes(PACKERS[packed](KINDS[name](values)))
    return path
