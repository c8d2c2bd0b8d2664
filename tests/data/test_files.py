from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import itertools
import json
import tracemalloc

import hypothesis
import pyarrow
import pytest
from data_builders import VALUES, read_rows
from file_writers import KINDS, PACKERS, as_csv, as_json_list, write_rows
from hypothesis import strategies as st
from pyarrow import parquet

from jaxft.config import paths
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import files
from jaxft.data.sources.files import json_values
from jaxft.data.sources.source import rows_of
from jaxft.errors import DataError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
# All but those whose values are texts alone.
TYPED = [name for name in KINDS if name not in ("g.CSV", "h.tsv")]
PAIR = json.dumps(VALUES["text completion"])


def write(tmp_path, name: str, *lines: str | bytes):
    path = tmp_path / name
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def complaint(path) -> str:
    with pytest.raises(DataError) as caught:
        list(files.values(path))
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def read(path) -> list:
    return [value for _, value in files.values(path)]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", KINDS)
@hypothesis.given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@hypothesis.settings(max_examples=10)
def test_any_text_survives_in_any_kind_of_file(tmp_path_factory, name, packed, texts):
    values = [{"prompt": text, "completion": text[::-1], "n": "1"} for text in texts]
    path = write_rows(tmp_path_factory.mktemp("rows"), name, values, packed)
    assert read(path) == values


def test_values_of_every_type_are_read_back(tmp_path):
    # One value of each type of JSON, in more than one row.
    values = [
        {"messages": [{"role": "user", "content": "a"}], "n": 1, "x": 1.5, "yes": True},
        {"messages": [{"role": "user", "content": "안녕"}], "n": 2, "x": -1.0, "yes": False},
    ]
    for name in TYPED:
        assert read(write_rows(tmp_path, name, values)) == values


@pytest.mark.parametrize(
    "name", [name for name in KINDS if "CSV" not in name and "tsv" not in name]
)
@pytest.mark.parametrize("shape", VALUES)
def test_every_shape_can_be_written_as_lines_lists_and_columns(tmp_path, name, shape):
    path = write_rows(tmp_path, name, [VALUES[shape]] * 3)
    assert {type(row) for row in read_rows(path)} == {
        type(row) for row in rows_of([VALUES[shape]], "d")
    }


PLACES = {
    "a.jsonl": [":1", ":2", ":3"],
    "b.ndjson": [":1", ":2", ":3"],
    "c.json": [":1", ":2", ":3"],
    "d.json": [" row 0", " row 1", " row 2"],
    "e.json": [" row 0", " row 1", " row 2"],
    "f.json": [":1", ":4", ":7"],
    "g.CSV": [":2", ":5", ":7"],
    "h.tsv": [":2", ":5", ":7"],
    "i.parquet": [" row 0", " row 1", " row 2"],
    "j.arrow": [" row 0", " row 1", " row 2"],
    "k.arrow": [" row 0", " row 1", " row 2"],
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", KINDS)
def test_every_row_knows_where_it_stands(tmp_path, name, packed):
    path = write_rows(
        tmp_path, name, [{"text": 'a\n,\n"b'}, {"text": "\nc"}, {"text": "d"}], packed
    )
    places = [str(place) for place, _ in files.values(path)]
    assert places == [f"{path}{place}" for place in PLACES[name]]


def test_every_ending_has_a_file_here_and_none_looks_like_a_name_on_the_hub():
    assert {files.ending(path) for path in map(paths.Path, KINDS)} == set(files.ENDINGS) - {".txt"}
    for ending, packed in itertools.product(files.ENDINGS, PACKERS):
        assert files.ending(paths.Path(f"a.b{ending.upper()}{packed}")) == ending
        assert not paths.may_be_on_hub(f"owner/name{ending}{packed}", [])


def test_an_unknown_ending_lists_those_that_are_known(tmp_path):
    for name in ("rows.xlsx", "rows", "rows.gz", "rows.jsonl.bz2"):
        message = complaint(write(tmp_path, name, PAIR))
        assert message.endswith(
            f"{', '.join(files.ENDINGS)}, each also with .gz or .zst behind it."
        )


def test_blank_lines_are_skipped_and_still_counted(tmp_path):
    path = write(tmp_path, "rows.jsonl", "", PAIR, "  \r", '{"messages": 1}')
    assert [place.number for place, _ in files.values(path)] == [2, 4]
    path = write(tmp_path, "rows.csv", "", "text,n", "", "a,1", "\r", "b,2")
    assert [place.number for place, _ in files.values(path)] == [4, 6]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt"])
def test_a_byte_order_mark_is_ignored(tmp_path, name):
    line = '{"text": "a"}' if "json" in name else "text"
    path = write(tmp_path, name, b"\xef\xbb\xbf" + line.encode(), "", line)
    assert read(path)[0]["text"] in ("a", "text")


def test_members_of_a_compressed_file_follow_each_other(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert read(path) == [{"text": "a"}, {"text": "b"}]


# JSON


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
SPACES = st.text(" \t\r\n", max_size=5)


@hypothesis.given(
    values=st.lists(JSON, max_size=5),
    indent=st.none() | st.integers(0, 3),
    is_list=st.booleans(),
    space=SPACES,
    num_chars=st.integers(1, 40),
)
def test_json_is_read_piece_by_piece_as_json_loads_reads_it(
    tmp_path_factory, values, indent, is_list, space, num_chars
):
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    # A lone value that is an object may be a wrapper, and a lone list is the list of rows.
    values = values if is_list else [{"text": value} for value in values]
    texts = [json.dumps(value, indent=indent, ensure_ascii=False) for value in values]
    joined = f"[{space}{f'{space},'.join(texts)}{space}]" if is_list else f" {space}".join(texts)
    path.write_text(joined + space, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_WINDOW", num_chars)
        patch.setattr(json_values.opening, "pieces", lambda _: cut(joined + space, num_chars))
        assert read(path) == values
    assert read(path) == values


@pytest.mark.parametrize("number", ["12", "0.5", "1e5", "1e+5", "1.5e-05", "-1E-5"])
@pytest.mark.parametrize("num_chars", [1, 2, 3])
def test_a_number_is_read_as_one_wherever_a_piece_ends(tmp_path, monkeypatch, number, num_chars):
    path = tmp_path / "rows.json"
    text = f"[{number}, {number}]"
    path.write_text(text)
    monkeypatch.setattr(json_values, "_WINDOW", num_chars)
    monkeypatch.setattr(json_values.opening, "pieces", lambda _: cut(text, num_chars))
    assert read(path) == [float(number)] * 2


def cut(text: str, num_chars: int):
    return iter([text[at : at + num_chars] for at in range(0, len(text), num_chars)])


@hypothesis.given(lines=st.lists(st.sampled_from(['{"a": 1}', "", "  "]), max_size=9))
def test_a_broken_value_is_named_by_its_line_wherever_it_stands(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text("\n".join([*lines, ' {"text": nul}']))
    assert complaint(path).startswith(
        f'{path}:{len(lines) + 1}: not JSON (Expecting value at column 11): " {{'
    )


@pytest.mark.parametrize(
    "value",
    [
        {"data": [{"text": "a"}, {"text": "b"}]},
        {"version": 1, "train": [{"text": "a"}, {"text": "b"}], "note": None},
    ],
)
def test_one_list_of_rows_within_one_object_is_the_rows(tmp_path, value):
    for indent in (None, 1):
        path = write(tmp_path, "rows.json", json.dumps(value, indent=indent))
        assert read(path) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    "value",
    [
        VALUES["messages"],
        VALUES["sharegpt"],
        {"대화": [{"role": "user", "content": "a"}]},  # messages, by a name that columns give
        {"text": "a", "others": [{"text": "b"}]},
        {"body": "a"},
    ],
)
def test_one_object_that_is_a_row_is_a_row(tmp_path, value):
    assert read(write(tmp_path, "rows.json", json.dumps(value, indent=1))) == [value]


def test_two_lists_within_one_object_have_to_be_told_apart(tmp_path):
    path = write(tmp_path, "rows.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}')
    assert 'several lists of rows: "train", "test"' in complaint(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [}', "not JSON (Expecting value at column 15)"),
        ("[" * 100_000, "not JSON ("),
        ('{"n": ' + "1" * 5000 + "}", "not JSON ("),
        ('{"text": "a", "n": 1, "text": "b"}', 'an object has the key "text" twice'),
        ('{"messages": [{"role": "user", "role": "x"}]}', 'the key "role" twice'),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff at position 12"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_bad_line_of_json_is_named(tmp_path, name, line, words):
    path = write(tmp_path, name, PAIR, line)
    message = complaint(path)
    assert message.startswith(f"{path}:2: ")
    assert words in message


def test_a_bad_list_of_json_is_named_by_its_line(tmp_path):
    path = write(tmp_path, "rows.json", "[", PAIR, '{"text": 1}]')
    assert complaint(path).startswith(f"{path}:3: not JSON (Expecting ',' delimiter at column 1)")
    path = write(tmp_path, "rows.json", "[", PAIR, "]", " x")
    assert complaint(path).startswith(f"{path}:4: not JSON (Extra data at column 2)")


# CSV and TSV


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        (["text,text", "a,b"], 1, 'has the column "text" twice'),
        (["text,n", "a,b,c"], 2, "has 3 cells and the header 2"),
        (["text,n", '"a\nb",1', "c"], 4, "has 1 cells and the header 2"),
        (["text,n", '"a" b,c'], 2, "not CSV (',' expected after '\"')"),
        (["text,n", "a,1", '"a\nb', "c"], 3, "not CSV (unexpected end of data)"),
        (["text,n", b"\xff"], 2, "not UTF-8"),
        (["text;n", "a;1"], 1, "separated by semicolons, and not by commas"),
        (["text\tn", "a\t1"], 1, "give it the ending .tsv"),
        (["sep=;", "text;n"], 1, "separated by semicolons"),
    ],
)
def test_a_bad_row_of_csv_is_named_by_the_line_it_begins_on(tmp_path, lines, place, words):
    path = write(tmp_path, "rows.csv", *lines)
    message = complaint(path)
    assert message.startswith(f"{path}:{place}: ")
    assert words in message


def test_commas_in_a_file_of_tabs_are_named(tmp_path):
    assert "give it the ending .csv" in complaint(write(tmp_path, "rows.tsv", "text,n", "a,1"))


@pytest.mark.parametrize("last", ["b", '"', "b,c"])
def test_a_cell_may_be_long_and_the_limit_of_the_process_stays(tmp_path, last):
    path = write(tmp_path, "rows.csv", "text", "a" * 200_000, last)
    values = files.values(path)
    assert len(next(values)[1]["text"]) == 200_000
    assert csv.field_size_limit() == 131_072
    with contextlib.suppress(DataError):
        list(values)
    assert csv.field_size_limit() == 131_072


# Parquet and Arrow


def test_a_value_that_python_has_no_type_for_stands_there_as_such(tmp_path):
    path = tmp_path / "rows.parquet"
    # Python has no dates after the year 9999.
    dates = pyarrow.array([2**62, 0, None], pyarrow.timestamp("us"))
    with pytest.raises((ValueError, OverflowError)):
        dates.to_pylist()
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "date": dates}), path)
    foreign = files.columns.ForeignValue("timestamp[us]")
    assert [row["date"] for row in read(path)] == [foreign, datetime.datetime(1970, 1, 1), None]
    rows = read_rows(path)
    assert [(row.text, row.unused) for row in rows] == [
        ("a", ("date",)),
        ("b", ("date",)),
        ("c", ()),
    ]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "rows.arrow"
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    assert 'the column "text" is there twice' in complaint(path)


def test_columns_of_maps_and_dictionaries_are_objects_and_texts(tmp_path):
    path = tmp_path / "rows.parquet"
    maps = pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    words = pyarrow.array(["x"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"maps": maps, "words": words}), path)
    assert read(path) == [{"maps": {"a": 1}, "words": "x"}]


# Text


def test_paragraphs_are_rows_and_keep_their_lines(tmp_path):
    path = write(tmp_path, "rows.txt", "", " a", "b \r", "\r", " \t", "c\u2028d", "")
    assert list(files.values(path)) == [
        (RowPlace(str(path), 2), {"text": " a\nb "}),
        (RowPlace(str(path), 6), {"text": "c\u2028d"}),
    ]


@hypothesis.given(blocks=st.lists(st.lists(st.text("ab .", min_size=1), min_size=1), max_size=4))
def test_paragraphs_together_are_the_lines_of_the_file(tmp_path_factory, blocks):
    path = tmp_path_factory.mktemp("rows") / "rows.txt"
    path.write_text("\n\n".join("\n".join(lines) for lines in blocks), encoding="utf-8")
    expected = [line for lines in blocks for line in lines if line.strip()]
    assert [line for value in read(path) for line in value["text"].split("\n")] == expected


# Memory


# Of a wrapped list the whole file is one value.
@pytest.mark.parametrize("name", [name for name in KINDS if name != "e.json"])
def test_a_file_is_never_held_as_a_whole(tmp_path, name):
    packed = ".gz" if name in ("b.ndjson", "i.parquet") else ""
    values = [{"text": f"{number} " + "x" * 10_000, "id": str(number)} for number in range(1000)]
    path = write_rows(tmp_path, name, values, packed)
    del values
    next(files.values(path))  # what is imported on the first reading
    tracemalloc.start()
    assert sum(1 for _ in files.values(path)) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # of 10 MB


def test_writers_here_write_what_their_formats_are():
    assert json.loads(as_json_list([{"a": 1}]).decode("utf-8-sig")) == [{"a": 1}]
    assert as_csv([{"a": 1, "b": 2}]) == b'"a","b"\r\n"1","2"\r\n'
