from __future__ import annotations

import json

import hypothesis
import numpy as np
import pytest
from file_writers import write_rows
from hypothesis import strategies as st

from jaxft.config import HoldOutConfig, SourceConfig
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import hold_out
from jaxft.data.sources.hold_out import HoldOut
from jaxft.data.sources.source import RowSource, open_rows
from jaxft.errors import DataError

FRACTIONS = st.floats(0.01, 0.99)
PLACE = RowPlace("rows", 1)


class Values:
    """An origin of rows from a list."""

    name = "rows"

    def __init__(self, values: list[dict]) -> None:
        self._values = values

    def values(self):
        return (
            (RowPlace("rows", number, "row"), value) for number, value in enumerate(self._values)
        )

    def content(self) -> str:
        return json.dumps(self._values)


def divide(*lists: list[dict], fraction: float = 0.5, by: str | None = None) -> list:
    """Return for each list of values its training part and its held-out part."""
    origins = [Values(values) for values in lists]
    divided = HoldOut(HoldOutConfig(fraction=fraction, by=by), origins)
    return [
        tuple([value for _, value in divided.values(each, side)] for side in ("train", "eval"))
        for each in origins
    ]


def complaint(*arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        divide(*arguments, **options)
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def in_groups(sizes: list[int]) -> list[dict]:
    """Return rows of as many groups, one after another in turn."""
    rounds = range(max(sizes))
    return [
        {"book": f"b{group}", "text": f"{group}.{number}"}
        for number in rounds
        for group, size in enumerate(sizes)
        if number < size
    ]


@hypothesis.given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30), fraction=FRACTIONS)
def test_every_row_is_on_one_side_in_order_and_groups_stay_together(sizes, fraction):
    values = in_groups(sizes)
    ((train, held_out),) = divide(values, fraction=fraction, by="book")
    assert [value for value in values if value in train] == train
    assert [value for value in values if value in held_out] == held_out
    assert len(train) + len(held_out) == len(values)
    assert train
    assert held_out
    assert not {value["book"] for value in train} & {value["book"] for value in held_out}


@hypothesis.given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30), fraction=FRACTIONS)
def test_the_fraction_is_met_as_nearly_as_the_groups_that_are_left_allow(sizes, fraction):
    ids, counts = np.arange(len(sizes), dtype=np.uint64), np.array(sizes, np.int64)
    chosen = hold_out.choose(ids, counts, fraction)
    wanted, share = fraction * counts.sum(), counts[chosen].sum()
    assert 1 <= len(chosen) < len(sizes)
    # The last one that was taken brought it nearer, unless it is the only one.
    assert len(chosen) == 1 or abs(wanted - share) < abs(wanted - share + counts[chosen[-1]])
    # None that was left out would, unless it is the last one to learn from.
    if len(chosen) < len(sizes) - 1:
        left = np.setdiff1d(ids, chosen)
        assert all(abs(wanted - share) <= abs(wanted - share - counts[one]) for one in left)


def test_a_group_as_large_as_all_others_is_supervised():
    for order in ([98, 1, 1], [1, 98, 1], [1, 1, 98]):
        chosen = hold_out.choose(np.arange(3, dtype=np.uint64), np.array(order), 0.1)
        assert order.index(98) not in chosen


@hypothesis.given(num_rows=st.integers(2, 300), fraction=FRACTIONS)
def test_of_rows_without_groups_the_fraction_is_met_to_the_row(num_rows, fraction):
    ((_, held_out),) = divide([{"text": str(n)} for n in range(num_rows)], fraction=fraction)
    assert abs(len(held_out) - min(max(fraction * num_rows, 1), num_rows - 1)) <= 0.5


def test_equal_rows_are_on_one_side_whatever_the_order_of_their_fields():
    values = [{"text": str(number % 50), "n": 1} for number in range(100)]
    ((train, held_out),) = divide(values + [dict(reversed(v.items())) for v in values])
    assert len(train) == len(held_out) == 100
    assert not {value["text"] for value in train} & {value["text"] for value in held_out}


@hypothesis.given(
    one=st.sets(st.integers(0, 40), min_size=2),
    other=st.sets(st.integers(0, 40), min_size=2),
    fraction=st.floats(0.05, 0.4),
)
def test_a_group_is_on_the_same_side_in_every_source(one, other, fraction):
    english = [{"id": number, "text": "a"} for number in one]
    # As CSV has them, and not as often.
    korean = [{"id": str(number), "text": "가"} for number in sorted(other) for _ in range(2)]
    try:
        parts = divide(english, korean, fraction=fraction, by="id")
    except DataError:  # the one's held-out groups are all groups of the other
        hypothesis.reject()
    train, held_out = ({str(v["id"]) for part in parts for v in part[side]} for side in (0, 1))
    assert not train & held_out


def test_of_each_source_a_part_is_held_out():
    sizes = (10, 100, 1000)
    parts = divide(
        *([{"text": f"{size} {n}"} for n in range(size)] for size in sizes), fraction=0.2
    )
    assert [len(held_out) for _, held_out in parts] == [2, 20, 200]


def test_files_with_the_same_ids_are_divided_alike():
    english = [{"id": number, "text": "a"} for number in range(40)]
    korean = [{"id": number, "text": "가"} for number in range(39, -1, -1)]
    alone = [divide(values, fraction=0.2, by="id")[0][1] for values in (english, korean)]
    assert {value["id"] for value in alone[0]} == {value["id"] for value in alone[1]}
    assert len(alone[0]) == 8


def test_which_rows_are_held_out_is_the_same_on_every_machine():
    ((_, held_out),) = divide([{"text": str(number)} for number in range(20)], fraction=0.2)
    assert [value["text"] for value in held_out] == ["1", "5", "6", "16"]


def test_a_row_without_the_field_is_refused_with_its_place():
    message = complaint([{"book": "a", "text": "b"}, {"buch": "a", "text": "b"}], by="book")
    assert message.startswith('rows row 1: the row has no "book", by which rows are held out')
    assert 'its fields: "buch", "text".' in message
    assert 'no "book"' in complaint([{"book": None, "text": "b"}], by="book")
    assert 'Did you mean "text"?' in complaint([{"text": "b"}], by="txet")


def test_a_side_that_would_be_empty_is_an_error_with_the_number_of_groups():
    message = complaint([{"book": "a", "text": str(number)} for number in range(5)], by="book")
    assert 'no training rows in rows: its 5 rows are 1 group by "book".' in message
    assert "its 3 rows are 1 group of equal rows" in complaint([{"text": "a"}] * 3)


@pytest.mark.parametrize("value", [1, "1"])
def test_a_number_and_its_text_are_one_group(value):
    groups = {hold_out.group_of({"id": each}, "id", PLACE) for each in (value, 1)}
    assert len(groups) == 1
    assert hold_out.group_of({"id": True}, "id", PLACE) not in groups
    assert hold_out.group_of({"id": [1]}, "id", PLACE) not in groups


# Through files


def open_sides(path, **options) -> tuple[RowSource, ...]:
    config = HoldOutConfig(**options)
    source = [SourceConfig(path=str(path))]
    return tuple(open_rows(source, config, side)[0] for side in ("train", "eval"))


@pytest.mark.parametrize("name", ["a.jsonl", "d.json", "g.CSV", "i.parquet", "k.arrow"])
def test_the_sides_are_the_same_in_every_kind_of_file(tmp_path, name):
    values = [{"text": str(number), "book": f"b{number % 7}"} for number in range(70)]
    train, held_out = open_sides(write_rows(tmp_path, name, values), fraction=0.3, by="book")
    found = {row.text for row in held_out}
    expected = divide(values, fraction=0.3, by="book")[0][1]
    assert found == {value["text"] for value in expected}
    assert found | {row.text for row in train} == {value["text"] for value in values}
    assert [row.place.number for row in held_out] == sorted(row.place.number for row in held_out)


def test_the_digest_changes_with_the_side_and_with_how_rows_are_divided(tmp_path):
    values = [{"text": str(number), "book": str(number % 7)} for number in range(70)]
    path = write_rows(tmp_path, "a.jsonl", values)
    whole = open_rows([SourceConfig(path=str(path))], None, "train")
    found = [
        *open_sides(path, fraction=0.3, by="book"),
        *open_sides(path, fraction=0.4, by="book"),
        *open_sides(path, fraction=0.3),
        *whole,
    ]
    assert len({source.digest() for source in found}) == len(found)


def test_nothing_is_read_before_rows_are_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("no JSON")
    train, _ = open_sides(path, fraction=0.5)
    with pytest.raises(DataError, match="not JSON"):
        next(iter(train))
