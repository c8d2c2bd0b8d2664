"""Broken files: each is refused with its name and in two lines, or gives rows; nothing else."""

from __future__ import annotations

import gzip
import json

import hypothesis
import pyarrow
import pytest
from data_builders import CHAT, VALUES
from file_writers import KINDS, PACKERS, as_arrow_stream, as_parquet, write_rows
from hypothesis import strategies as st
from pyarrow import parquet

from jaxft.config import SourceConfig
from jaxft.data.sources.source import open_rows
from jaxft.errors import DataError

LINE = json.dumps(VALUES["text"]).encode() + b"\n"
ROWS = [
    {"text": text, "n": str(n)} for n, text in enumerate(["a", "é", "한글", "\U0001f600\n,", ""])
]
KOREAN = '{"text": "한글 문장입니다"}\n'.encode("cp949")
WESTERN = '{"text": "naïve café \N{RIGHT SINGLE QUOTATION MARK}"}\n'.encode("cp1252")


def read(path) -> int:
    (source,) = open_rows([SourceConfig(path=str(path))], None, "train")
    return sum(1 for _ in source)


def complaint(path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def outcome(path) -> str:
    """Return the error of reading a file, or its own name where it gives rows."""
    try:
        return str(path) if read(path) else "no rows"
    except DataError as error:
        return str(error) if len(str(error).split("\n")) == 2 else "not two lines"


@st.composite
def damage(draw, data: bytes) -> bytes:
    """Return a file's bytes after one to three accidents."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "flip", "insert", "delete", "double"]))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(min_size=1, max_size=6)) + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + draw(st.integers(1, 20)) :]
        else:
            data = data[:at] + data
    return data


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", [*KINDS, "l.txt"])
@hypothesis.given(st.data())
@hypothesis.settings(max_examples=25)
def test_a_damaged_file_is_refused_by_its_name_or_gives_rows(tmp_path_factory, name, packed, data):
    path = tmp_path_factory.mktemp("rows") / (name + packed)
    whole = "안녕\n\nb\n".encode() if name == "l.txt" else KINDS[name](ROWS)
    path.write_bytes(data.draw(damage(PACKERS[packed](whole))))
    assert outcome(path).startswith(str(path))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("other", KINDS)
def test_a_file_under_the_name_of_another_kind_is_refused_or_gives_rows(
    tmp_path, name, other, packed
):
    path = write_rows(tmp_path, name, ROWS, packed)
    renamed = path.rename(tmp_path / f"x{other}{packed}")
    assert outcome(renamed).startswith(str(renamed))


FILES = {
    "an empty file": ("a.jsonl", b"", "is empty: it has no rows"),
    "blank lines": ("a.jsonl", b"\n \n\r\n", "is empty"),
    "an empty list": ("a.json", b" [ ] ", "is empty"),
    "a mark alone": ("a.csv", b"\xef\xbb\xbf", "is empty"),
    "a header alone": ("a.csv", b"text,n\n", "is empty"),
    "blank paragraphs": ("a.txt", b"\n\n  \n", "is empty"),
    "an empty packed file": ("a.jsonl.gz", gzip.compress(b""), "is empty"),
    "UTF-16 with a mark": ("a.jsonl", LINE.decode().encode("utf-16"), "is UTF-16 text"),
    "UTF-16 without one": ("a.txt", LINE.decode().encode("utf-16-le"), "as in UTF-16"),
    "UTF-32": ("a.csv", "text\na".encode("utf-32"), "is UTF-32 text"),
    "CP949": ("a.jsonl", LINE + KOREAN, ":2: not UTF-8"),
    "Korean text in CP949": ("a.jsonl", KOREAN, "looks like CP949: `iconv -f CP949"),
    "Western text": ("a.jsonl", LINE + WESTERN, "looks like CP1252"),
    "two encodings in one line": ("a.txt", "é 한글 ".encode() + b"\xe9", "Save the file as UTF-8."),
    "gzip by another name": ("a.jsonl", gzip.compress(LINE), "is compressed with gzip"),
    "no gzip": ("a.jsonl.gz", LINE, "not gzip, or damaged"),
    "no zstd": ("a.jsonl.zst", LINE, "not zstd, or damaged"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINE * 99)[:-9], "not gzip, or damaged (Truncated"),
    "an Excel file": ("a.csv", b"PK\x03\x04" + bytes(60), "is a zip archive, or an Excel file"),
    "Parquet by another name": ("a.jsonl", as_parquet(ROWS), "is Parquet, and not what its name"),
    "no Parquet": ("a.parquet", LINE, "not Parquet, or damaged, after 0 rows"),
    "empty Parquet": ("a.parquet", b"", "not Parquet, or damaged"),
    "empty Arrow": ("a.arrow", b"", "not Arrow, or damaged"),
    "cut Parquet": ("a.parquet", as_parquet(ROWS)[:-9], "not Parquet, or damaged"),
    "cut Arrow": ("a.arrow", as_arrow_stream(ROWS)[:-99], "not Arrow, or damaged"),
    "a pointer": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a list not closed": ("a.json", b"[" + LINE, "not JSON (Expecting ',' delimiter"),
    "no comma": ("a.json", b"[" + LINE + LINE + b"]", "a.json:2: not JSON"),
    "lines in a list": ("a.jsonl", b"[\n" + LINE + b"]", "belong in a .json file"),
    "a cut last line": ("a.jsonl", LINE + LINE[:-4], "a.jsonl:2: not JSON"),
    "a number": ("a.json", b"3", "a.json:1: found a number where a row should be"),
    "half a character": ("a.jsonl", rb'{"text": "\ud83d"}', "unpaired surrogate"),
    "a page": ("a.jsonl", b"<!DOCTYPE html>\n<html>", '"<!DOCTYPE html>"'),
    "old line ends": ("a.csv", b"text,n\ra,1\rb,2\r", "not CSV (new-line character"),
    "a column of others": ("a.csv", b"a,b\n1,2\n", 'its fields: "a", "b"'),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_wrong_with_a_file_is_said_in_words(tmp_path, case):
    name, data, words = FILES[case]
    path = tmp_path / name
    path.write_bytes(data)
    message = complaint(path)
    assert message.startswith(str(path))
    assert words in message


def test_a_parquet_file_without_rows_is_empty(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert f"{path} is empty" in complaint(path)


def test_offsets_that_lead_out_of_a_file_are_noticed(tmp_path):
    path = tmp_path / "rows.arrow"
    whole = as_arrow_stream([{"text": "abcd"}, {"text": "efgh"}])
    offsets, wild = (b"".join(n.to_bytes(4, "little") for n in (0, at, 8)) for at in (4, 2**30))
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, wild))
    assert "not Arrow, or damaged" in complaint(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert f"{path} cannot be read: Permission denied." in complaint(path)


def test_a_megabyte_of_text_and_three_hundred_turns_are_a_row(tmp_path):
    path = tmp_path / "rows.json"
    value = {"messages": CHAT * 150 + [{"role": "user", "content": "가" * 1_000_000}, CHAT[1]]}
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read(path) == 1
