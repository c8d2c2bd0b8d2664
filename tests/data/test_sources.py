from __future__ import annotations

import json

import datasets
import hypothesis
import numpy as np
import pytest
from data_builders import CHAT, VALUES
from hypothesis import strategies as st

from jaxft.data import sources
from jaxft.data.rows import Conversation, TextCompletion, Tokenized
from jaxft.errors import DataError


def complaint(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def contents(rows) -> list:
    """Return what rows say, without their places; tokens as lists."""
    return [
        (row.input_ids.tolist(), row.loss_mask.tolist())
        if isinstance(row, Tokenized)
        else [type(row), *(getattr(row, name) for name in type(row).__slots__)]
        for row in rows
    ]


@pytest.mark.parametrize("text", ["", "\n \t\n"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_a_file_without_rows_is_refused(tmp_path, text, ending):
    path = tmp_path / f"rows.{ending}"
    path.write_text(text)
    assert f"{path} is empty" in complaint(sources.read_rows, path)


def test_a_missing_file_names_the_nearest_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    read = sources.read_rows
    assert f"Did you mean {path}?" in complaint(read, tmp_path / "rosw.jsonl")
    assert "No file in" in complaint(read, tmp_path / "something-else")
    assert "does not exist either" in complaint(read, tmp_path / "no" / "rows.jsonl")


def test_a_folder_is_no_file(tmp_path):
    assert "cannot be read: it is a folder" in complaint(sources.read_rows, tmp_path)


def as_generator(values):
    return (value for value in values)


def as_map_style(values):
    class MapStyle:
        """As torch's data sets: no iterator, and no IndexError at the end."""

        def __len__(self):
            return len(values)

        def __getitem__(self, index):
            return values[index % len(values)]

    return MapStyle()


def as_streamed(values):
    return datasets.Dataset.from_list(values).to_iterable_dataset()


@pytest.mark.parametrize(
    "convert", [list, tuple, as_generator, as_map_style, datasets.Dataset.from_list, as_streamed]
)
@pytest.mark.parametrize("name", VALUES)
def test_python_data_sets_have_the_rows_that_a_file_has(tmp_path, convert, name):
    values = [VALUES[name] | {"extra": number} for number in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, values)))
    rows = sources.rows_of(convert(values), "train_dataset")
    assert contents(rows) == contents(sources.read_rows(path))
    assert [row.place for row in rows] == [f"train_dataset row {number}" for number in range(3)]


@pytest.mark.parametrize("format", [None, "numpy", "arrow", "pandas"])
def test_data_sets_in_a_format_have_the_same_rows(format):
    for name in ("messages", "tokens"):
        dataset = datasets.Dataset.from_list([VALUES[name]] * 2)
        plain = sources.rows_of(dataset, "d")
        if format in ("arrow", "pandas"):
            # Items are tables there, which have no rows of their own.
            assert "d row 0: " in complaint(sources.rows_of, dataset.with_format(format), "d")
        else:
            assert contents(sources.rows_of(dataset.with_format(format), "d")) == contents(plain)


def test_columns_that_a_row_lacks_are_null_and_as_good_as_absent():
    columns = {"messages": [CHAT, None], "prompt": [None, "hi"], "completion": [None, "ho"]}
    assert sources.rows_of(datasets.Dataset.from_dict(columns), "d") == [
        Conversation("d", 0, tuple(CHAT), unit="row"),
        TextCompletion("d", 1, "hi", "ho", unit="row"),
    ]


@hypothesis.given(number=st.integers(0, 5))
def test_a_bad_item_is_named_by_its_index(number):
    values = [VALUES["text"]] * number + [{"text": 1}]
    message = complaint(sources.rows_of, values, "eval_dataset")
    assert message.startswith(f'eval_dataset row {number}: "text" is a number')


def test_a_data_set_of_nothing_is_refused():
    assert "d is empty" in complaint(sources.rows_of, [], "d")


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list([VALUES["text"]])), 'keys "train"'),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]]}, 'one dict, with the keys "input_ids"'),
        ("rows.jsonl", "is a str"),
        (3, "is a int"),
        (["a"], "d row 0: found a string"),
        ([np.int64(3)], "d row 0: found a int64"),
    ],
)
def test_what_is_no_set_of_rows_is_named(dataset, words):
    assert words in complaint(sources.rows_of, dataset, "d")
