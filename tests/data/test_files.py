from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json

import hypothesis
import pyarrow
import pytest
from data_builders import VALUES
from hypothesis import strategies as st
from pyarrow import parquet

from jaxft.data import files, sources
from jaxft.data.rows import Text
from jaxft.errors import DataError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
PAIR = json.dumps(VALUES["text completion"])


def write(tmp_path, name: str, *lines: str | bytes):
    path = tmp_path / name
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def complaint(path) -> str:
    with pytest.raises(DataError) as caught:
        sources.read_rows(path)
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def pairs(rows) -> list[tuple[str, str]]:
    return [(row.prompt, row.completion) for row in rows]


def as_json_lines(values: list[dict]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\r\n" for value in values).encode()


def as_json_list(values: list[dict]) -> bytes:
    return b"\xef\xbb\xbf \n " + json.dumps(values, indent=1).encode()


def as_csv(values: list[dict]) -> bytes:
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, values[0], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(values)
        return file.getvalue().encode()


def as_parquet(values: list[dict]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(values), sink, row_group_size=2)
    return sink.getvalue()


KINDS = {
    "a.jsonl": as_json_lines,
    "b.json": as_json_lines,
    "c.json": as_json_list,
    "d.CSV": as_csv,
    "e.parquet": as_parquet,
}


@pytest.mark.parametrize("name", KINDS)
@hypothesis.given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_survives_in_any_kind_of_file(tmp_path_factory, name, texts):
    path = tmp_path_factory.mktemp("rows") / name
    values = [{"prompt": text, "completion": text[::-1], "n": "1"} for text in texts]
    path.write_bytes(KINDS[name](values))
    assert pairs(sources.read_rows(path)) == [(text, text[::-1]) for text in texts]


@pytest.mark.parametrize("kind", [as_json_lines, as_json_list, as_parquet])
@pytest.mark.parametrize("shape", VALUES)
def test_every_shape_can_be_written_as_lines_lists_and_columns(tmp_path, kind, shape):
    suffix = "parquet" if kind is as_parquet else "json"
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(kind([VALUES[shape]] * 3))
    assert {type(row) for row in sources.read_rows(path)} == {
        type(sources.rows_of([VALUES[shape]], "d")[0])
    }


@pytest.mark.parametrize(
    ("name", "kind", "places"),
    [
        ("a.jsonl", as_json_lines, [":1", ":2", ":3"]),
        ("b.json", as_json_lines, [":1", ":2", ":3"]),
        ("c.json", as_json_list, [" row 0", " row 1", " row 2"]),
        ("d.csv", as_csv, [":2", ":5", ":7"]),
        ("e.parquet", as_parquet, [" row 0", " row 1", " row 2"]),
    ],
)
def test_every_row_knows_where_it_stands(tmp_path, name, kind, places):
    path = tmp_path / name
    path.write_bytes(kind([{"text": 'a\n,\n"b'}, {"text": "\nc"}, {"text": "d"}]))
    assert [row.place for row in sources.read_rows(path)] == [f"{path}{place}" for place in places]


def test_an_unknown_ending_lists_those_that_are_known(tmp_path):
    for name in ("rows.xlsx", "rows"):
        message = complaint(write(tmp_path, name, PAIR))
        assert message.endswith("Supported endings: .jsonl, .json, .csv, .parquet, .txt.")


def test_blank_lines_are_skipped_and_still_counted(tmp_path):
    path = write(tmp_path, "rows.jsonl", "", PAIR, "  \r", '{"messages": 1}')
    assert f"{path}:4: " in complaint(path)
    path = write(tmp_path, "rows.csv", "", "text,n", "", "a,1", "\r", "b,2")
    assert [row.number for row in sources.read_rows(path)] == [4, 6]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
def test_a_byte_order_mark_is_ignored(tmp_path, name):
    line = '{"text": "a"}' if "json" in name else "text"
    path = write(tmp_path, name, b"\xef\xbb\xbf" + line.encode(), "", line)
    assert sources.read_rows(path)[0].text in ("a", "text")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [}', "not JSON (Expecting value at column 15)"),
        ("[" * 100_000, "not JSON ("),
        ('{"prompt": "a"}', 'its fields: "prompt"'),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff at position 12"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_bad_line_of_json_is_named(tmp_path, name, line, words):
    path = write(tmp_path, name, PAIR, line)
    message = complaint(path)
    assert message.startswith(f"{path}:2: ")
    assert words in message


def test_a_bad_list_of_json_is_named_by_its_line_and_bad_items_by_their_index(tmp_path):
    path = write(tmp_path, "rows.json", "[", PAIR, '{"text": 1}]')
    assert complaint(path).startswith(f"{path}:3: not JSON (Expecting ',' delimiter at column 1)")
    path = write(tmp_path, "rows.json", "[", PAIR + ",", '{"text": 1}]')
    assert complaint(path).startswith(f'{path} row 1: "text" is a number')
    path = write(tmp_path, "rows.json", "{", '"data": []', "}")
    assert "or all of a .json file one list" in complaint(path)


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        (["text,text", "a,b"], 1, 'has the column "text" twice'),
        (["text,n", "a,b,c"], 2, "has 3 cells and the header 2"),
        (["text,n", '"a\nb",1', "c"], 4, "has 1 cells and the header 2"),
        (["text,n", '"a" b,c'], 2, "not CSV (',' expected after '\"')"),
        (["text,n", "a,1", '"a\nb', "c"], 3, "not CSV (unexpected end of data)"),
        (["a,b", "1,2"], 2, 'its fields: "a", "b"'),
        (["text", b"\xff"], 2, "not UTF-8"),
        (["text;n", "a;1"], 2, 'its fields: "text;n"'),
    ],
)
def test_a_bad_row_of_csv_is_named_by_the_line_it_begins_on(tmp_path, lines, place, words):
    path = write(tmp_path, "rows.csv", *lines)
    message = complaint(path)
    assert message.startswith(f"{path}:{place}: ")
    assert words in message


@pytest.mark.parametrize("last", ["b", '"', "b,c"])
def test_a_cell_may_be_long_and_the_limit_of_the_process_stays(tmp_path, last):
    path = write(tmp_path, "rows.csv", "text", "a" * 200_000, last)
    values = files.values(path)
    assert len(next(values)[1]["text"]) == 200_000
    assert csv.field_size_limit() == 131_072
    with contextlib.suppress(DataError):
        list(values)
    assert csv.field_size_limit() == 131_072


def test_columns_of_parquet_that_mean_nothing_are_not_read(tmp_path):
    path = tmp_path / "rows.parquet"
    # Python has no dates after the year 9999.
    dates = pyarrow.array([2**62, 2**62], pyarrow.timestamp("us"))
    with pytest.raises((ValueError, OverflowError)):
        dates.to_pylist()
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "date": dates}), path)
    assert [row.text for row in sources.read_rows(path)] == ["a", "b"]
    days = pyarrow.array([datetime.date(2020, 1, 1)])
    parquet.write_table(pyarrow.table({"body": ["a"], "date": days}), path)
    assert 'row 0: the row has no known shape; its fields: "body", "date"' in complaint(path)


@pytest.mark.parametrize("damage", ["junk", "empty", "short", "torn"])
def test_a_damaged_parquet_file_is_refused(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    whole = as_parquet([{"text": "abcdefgh" * 9}] * 3)
    torn = whole[:10] + b"\xff" * 40 + whole[50:]
    path.write_bytes({"junk": b"junk", "empty": b"", "short": whole[:-9], "torn": torn}[damage])
    message = complaint(path)
    assert message.startswith(f"{path}: not Parquet, or damaged, after 0 rows (")


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert f"{path} is empty" in complaint(path)


def test_paragraphs_are_rows_and_keep_their_lines(tmp_path):
    path = write(tmp_path, "rows.txt", "", " a", "b \r", "\r", " \t", "c\u2028d", "")
    name = str(path)
    assert sources.read_rows(path) == [Text(name, 2, " a\nb "), Text(name, 6, "c\u2028d")]


@hypothesis.given(blocks=st.lists(st.lists(st.text("ab .", min_size=1), min_size=1), max_size=4))
def test_paragraphs_together_are_the_lines_of_the_file(tmp_path_factory, blocks):
    path = tmp_path_factory.mktemp("rows") / "rows.txt"
    path.write_text("\n\n".join("\n".join(lines) for lines in blocks), encoding="utf-8")
    found = [value["text"] for _, value in files.values(path)]
    expected = [line for lines in blocks for line in lines if line.strip()]
    assert [line for text in found for line in text.split("\n")] == expected
