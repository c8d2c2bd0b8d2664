from __future__ import annotations

import gzip
import json
import tracemalloc

import datasets
import hypothesis
import numpy as np
import pytest
from data_builders import CHAT, VALUES
from file_writers import KINDS, write_rows
from hypothesis import strategies as st

from jaxft.config import SourceConfig
from jaxft.data.rows.row import Dialogue, TextCompletion, Tokenized
from jaxft.data.sources.source import RowSource, open_rows, rows_of
from jaxft.errors import DataError


def open_one(path, **options) -> RowSource:
    (source,) = open_rows([SourceConfig(path=str(path), **options)], None, "train")
    return source


def complaint(make) -> str:
    """Return what is wrong with the rows that a function makes, when they are read."""
    with pytest.raises(DataError) as caught:
        list(make())
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


def texts(rows) -> list[str]:
    return [row.text for row in rows]


def write(path, *texts: str):
    """Write rows of text as JSON Lines, packed by the ending of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# Files, folders and patterns


def test_a_missing_file_names_the_nearest_one(tmp_path):
    path = write(tmp_path / "rows.jsonl", "a")
    assert f"Did you mean {path}?" in complaint(lambda: open_one(tmp_path / "rosw.jsonl"))
    assert "Paths in a recipe start" in complaint(lambda: open_one(tmp_path / "something.else"))
    assert "There is no folder" in complaint(lambda: open_one(tmp_path / "no" / "rows.jsonl"))
    assert "matches no file" in complaint(lambda: open_one(tmp_path / "*.csv"))


def test_a_folder_is_all_its_files_of_rows_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "b" / "1.jsonl.gz", "c")
    write(tmp_path / "a.jsonl", "a", "b")
    (tmp_path / "c.txt").write_text("d\n\ne")
    for name in ("README.md", "README.txt", "licence.txt", ".hidden.jsonl", "picture.png"):
        (tmp_path / name).write_text("not a row")
    write(tmp_path / ".cache" / "x.jsonl", "not a row")
    source = open_one(tmp_path)
    assert texts(source) == ["a", "b", "c", "d", "e"]
    assert source.name == f"3 files in {tmp_path}"
    names = [path.name for path in source.ignored]
    assert names == ["README.md", "README.txt", "licence.txt", "picture.png"]
    assert [str(row.place) for row in source][:3] == [
        f"{tmp_path / 'a.jsonl'}:1",
        f"{tmp_path / 'a.jsonl'}:2",
        f"{tmp_path / 'b' / '1.jsonl.gz'}:1",
    ]


def test_a_pattern_is_what_matches_it(tmp_path):
    for name in ("x/train-1.jsonl", "x/train-2.jsonl", "test-1.jsonl"):
        write(tmp_path / name, name)
    assert texts(open_one(tmp_path / "**" / "train-*")) == ["x/train-1.jsonl", "x/train-2.jsonl"]
    assert texts(open_one(tmp_path / "*.jsonl")) == ["test-1.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write(tmp_path / "rows[1].jsonl", "a")
    write(tmp_path / "rows1.jsonl", "b")
    assert texts(open_one(tmp_path / "rows[1].jsonl")) == ["a"]


def test_a_folder_without_files_of_rows_is_refused(tmp_path):
    (tmp_path / "notes.md").touch()
    assert "has no files of rows" in complaint(lambda: open_one(tmp_path))


@pytest.mark.parametrize("held_out", ["test-0.jsonl", "data/validation.jsonl", "eval/a.jsonl"])
def test_a_folder_does_not_teach_what_it_keeps_for_testing(tmp_path, held_out):
    write(tmp_path / "train-0.jsonl", "a")
    write(tmp_path / "contest.jsonl", "b")  # a word that only looks like one
    assert len(list(open_one(tmp_path))) == 2
    write(tmp_path / held_out, "c")
    assert "has files for training and others" in complaint(lambda: open_one(tmp_path))


def test_one_empty_file_among_others_is_named(tmp_path):
    write(tmp_path / "a.jsonl", "a")
    empty = write(tmp_path / "b.jsonl")
    assert f"{empty} is empty" in complaint(lambda: open_one(tmp_path))


def test_columns_give_fields_other_names(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"질문": "hi", "답변": "ho"}))
    source = open_one(path, columns={"question": "질문", "answer": "답변"})
    assert contents(source) == contents(rows_of([VALUES["question"]], "d"))


# Reading again, and digests


@pytest.mark.parametrize("name", KINDS)
def test_a_source_gives_the_same_rows_each_time(tmp_path, name):
    source = open_one(write_rows(tmp_path, name, [{"text": str(n)} for n in range(5)]))
    assert texts(source) == texts(source) == ["0", "1", "2", "3", "4"]
    first, second = iter(source), iter(source)
    assert [next(first).text, next(first).text, next(second).text] == ["0", "1", "0"]


def test_a_source_is_read_no_further_than_it_is_asked(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    assert next(iter(open_one(path))).text == "a"


def test_a_digest_is_of_what_is_in_the_files_and_not_of_their_names(tmp_path):
    one = write(tmp_path / "one" / "a.jsonl", "a", "b")
    other = write(tmp_path / "other" / "b.jsonl", "a", "b")
    assert open_one(one).digest() == open_one(other).digest() == open_one(one.parent).digest()
    as_text = write(tmp_path / "c.jsonl", "a", "b").rename(tmp_path / "c.txt")
    others = [
        open_one(one),
        open_one(write(tmp_path / "d.jsonl", "a", "c")),
        open_one(one, columns={"text": "body"}),
        open_one(as_text),
        rows_of([{"text": "a"}, {"text": "b"}], "d"),
    ]
    assert len({source.digest() for source in others}) == len(others)


def test_where_one_file_ends_and_the_next_begins_is_part_of_the_digest(tmp_path):
    write(tmp_path / "x" / "1.txt", "a", "b")
    write(tmp_path / "x" / "2.txt", "c")
    write(tmp_path / "y" / "1.txt", "a")
    write(tmp_path / "y" / "2.txt", "b", "c")
    assert open_one(tmp_path / "x").digest() != open_one(tmp_path / "y").digest()


# Python objects


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
    source = rows_of(convert(values), "train_dataset")
    assert contents(source) == contents(source) == contents(open_one(path))
    places = [str(row.place) for row in source]
    assert places == [f"train_dataset row {number}" for number in range(3)]


@pytest.mark.parametrize("format", [None, "numpy", "arrow", "pandas"])
def test_data_sets_in_a_format_have_the_same_rows(format):
    for name in ("messages", "tokens"):
        dataset = datasets.Dataset.from_list([VALUES[name]] * 2)
        changed = rows_of(dataset.with_format(format), "d")
        if format in ("arrow", "pandas"):
            # Items are tables there, which have no rows of their own.
            assert "d row 0: " in complaint(lambda changed=changed: changed)
        else:
            assert contents(changed) == contents(rows_of(dataset, "d"))


def test_columns_that_a_row_lacks_are_null_and_as_good_as_absent():
    columns = {"messages": [CHAT, None], "prompt": [None, "hi"], "completion": [None, "ho"]}
    chat, pair = rows_of(datasets.Dataset.from_dict(columns), "d")
    assert isinstance(chat, Dialogue)
    assert list(chat.messages) == CHAT
    assert isinstance(pair, TextCompletion)
    assert (pair.prompt, pair.completion) == ("hi", "ho")


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@hypothesis.given(values=st.lists(VALUE, max_size=4), others=st.lists(VALUE, max_size=4))
def test_a_digest_of_python_objects_is_of_their_values(values, others):
    digest = rows_of(values, "d").digest()
    assert digest == rows_of(tuple(values), "e").digest()
    assert digest == rows_of(as_generator(values), "f").digest()
    # True is no 1 here, though Python takes them for equal.
    assert (digest == rows_of(others, "d").digest()) == (repr(values) == repr(others))


def test_arrays_of_other_values_have_other_digests():
    arrays = [[1, 2], [1, 3], [[1, 2]], [1.0, 2.0]]
    found = {rows_of([{"input_ids": np.array(a)}], "d").digest() for a in arrays}
    assert len(found) == len(arrays)


def test_a_digest_of_a_data_set_is_of_its_rows_wherever_they_lie(tmp_path):
    dataset = datasets.Dataset.from_dict({"text": [str(number) for number in range(2500)]})
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    saved = datasets.load_from_disk(tmp_path / "saved")
    pieces = datasets.concatenate_datasets([dataset.select(range(7)), dataset.skip(7)])
    found = {rows_of(each, "d").digest() for each in (dataset, saved, pieces)}
    assert len(found) == 1
    reversed_ = dataset.select(range(2499, -1, -1))
    assert rows_of(reversed_, "d").digest() not in found


def test_a_data_set_is_not_copied_into_memory():
    dataset = datasets.Dataset.from_dict({"text": ["x" * 10_000] * 1000})
    source = rows_of(dataset, "d")
    next(iter(source))
    tracemalloc.start()
    source.digest()
    assert sum(1 for _ in source) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # of 10 MB


@hypothesis.given(number=st.integers(0, 5))
def test_a_bad_item_is_named_by_its_index(number):
    values = [VALUES["text"]] * number + [{"text": 1}]
    message = complaint(lambda: rows_of(values, "eval_dataset"))
    assert message.startswith(f'eval_dataset row {number}: "text" is a number')


@pytest.mark.parametrize("dataset", [[], (), datasets.Dataset.from_list([]), iter(())])
def test_a_data_set_of_nothing_is_refused(dataset):
    assert "d is empty" in complaint(lambda: rows_of(dataset, "d"))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list([VALUES["text"]])), 'keys "train"'),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]]}, 'one dict, with the keys "input_ids"'),
        ("rows.jsonl", "is a str"),
        (3, "is a int"),
        (["a"], "d row 0: found a string"),
        ([np.int64(3)], "d row 0: found "),
    ],
)
def test_what_is_no_set_of_rows_is_named(dataset, words):
    assert words in complaint(lambda: rows_of(dataset, "d"))
