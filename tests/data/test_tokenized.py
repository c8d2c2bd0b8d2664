from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import pytest
from data_builders import make_tokenizer
from hypothesis import strategies as st

from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace
from jaxft.errors import DataError

MASKS = ("loss_mask", "completion_mask", "assistant_masks")
KINDS = (int, bool, float)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=8)


def parse(**value):
    return shapes.parse_row(value, RowPlace("train_dataset", 3, "row"))


def complaint(**value) -> str:
    with pytest.raises(DataError) as caught:
        parse(**value)
    assert str(caught.value).startswith("train_dataset row 3: ")
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


@hypothesis.given(ids=IDS, data=st.data())
def test_labels_say_what_is_supervised_and_without_them_all_is(ids, data):
    mask = data.draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids)))
    labels = [token if supervised else -100 for token, supervised in zip(ids, mask, strict=True)]
    row = parse(input_ids=ids, labels=labels)
    assert row.input_ids.dtype == np.int32
    assert row.loss_mask.dtype == np.uint8
    assert (row.input_ids.tolist(), row.loss_mask.tolist()) == (ids, mask)
    assert parse(input_ids=ids, labels=None).loss_mask.tolist() == [1] * len(ids)


@hypothesis.given(
    ids=IDS, before=st.integers(0, 3), after=st.integers(0, 3), pad=st.integers(-100, 9)
)
def test_padding_on_either_side_leaves_no_trace(ids, before, after, pad):
    hypothesis.assume(ids)
    filler = max(pad, 0)
    padded = parse(
        input_ids=[filler] * before + ids + [filler] * after,
        attention_mask=[0] * before + [1] * len(ids) + [0] * after,
        labels=[pad] * before + ids + [pad] * after,
    )
    assert padded.input_ids.tolist() == ids
    assert padded.loss_mask.tolist() == [1] * len(ids)


def test_a_row_of_nothing_but_padding_is_empty():
    assert len(parse(input_ids=[2, 2], attention_mask=[0, 0]).input_ids) == 0


def test_what_a_tokenizer_returns_is_a_row():
    encoded = make_tokenizer()("he said", padding="max_length", max_length=9)
    row = shapes.parse_row(encoded, RowPlace("d", 0, "row"))
    assert row.input_ids.tolist() == make_tokenizer()("he said")["input_ids"]


@pytest.mark.parametrize("convert", [tuple, np.array, lambda ids: np.array(ids, np.uint8)])
def test_arrays_are_as_good_as_lists(convert):
    row = parse(input_ids=convert([5, 6]), labels=convert([5, 6]), attention_mask=convert([1, 1]))
    assert (row.input_ids.tolist(), row.loss_mask.tolist()) == ([5, 6], [1, 1])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"input_ids": "5 6"}, '"input_ids" is not a flat list of whole numbers'),
        ({"input_ids": 5}, '"input_ids" is not a flat list'),
        ({"input_ids": [5, 6.5]}, '"input_ids" is not a flat list'),
        ({"input_ids": [True]}, '"input_ids" is not a flat list'),
        ({"input_ids": [5, None]}, '"input_ids" is not a flat list'),
        ({"input_ids": [[5, 6]]}, '"input_ids" is not a flat list'),
        ({"input_ids": [[5], [6, 7]]}, '"input_ids" is not a flat list'),
        ({"input_ids": [5, 2**80]}, '"input_ids" is not a flat list'),
        ({"input_ids": [5, -100]}, '"input_ids[1]" is -100'),
        ({"input_ids": [5, 2**31]}, '"input_ids[1]" is 2147483648'),
        ({"input_ids": [5], "labels": [5, 6]}, '"labels" has 2 numbers and "input_ids" 1'),
        ({"input_ids": [5, 6], "attention_mask": [1]}, '"attention_mask" has 1 numbers'),
        ({"input_ids": [5, 6], "attention_mask": [1, 2]}, '"attention_mask[1]" is 2'),
        ({"input_ids": [5] * 3, "attention_mask": [1, 0, 1]}, "0 between tokens"),
        ({"input_ids": [5, 6], "labels": "a"}, '"labels" is not a flat list'),
        ({"input_ids": [5, 6], "loss_mask": [1, 2]}, '"loss_mask[1]" is 2'),
        ({"input_ids": [5, 6], "loss_mask": [1, 0.5]}, '"loss_mask" is not a flat list'),
        ({"input_ids": [5, 6], "loss_mask": [1, float("nan")]}, '"loss_mask" is not a flat'),
        ({"input_ids": [5, 6], "completion_mask": [1]}, '"completion_mask" has 1 numbers'),
        ({"input_ids": [5, 6], "assistant_masks": "11"}, '"assistant_masks" is not a flat list'),
        ({"input_ids": [5, 6], "position_ids": [0, 0]}, '"position_ids" does not say'),
        ({"input_ids": [5, 6], "position_ids": [1, 2]}, '"position_ids" does not say'),
        ({"input_ids": [5, 6], "position_ids": [0]}, '"position_ids" does not say'),
        ({"input_ids": [5, 6], "seq_lengths": [1, 1]}, '"seq_lengths" does not say'),
        ({"input_ids": [5, 6], "seq_lengths": 2}, '"seq_lengths" is not a flat list'),
        ({"input_ids": [5, 6], "segment_ids": [0, 1]}, '"segment_ids" does not say'),
        ({"input_ids": [5, 6], "cu_seq_lens_q": [0, 1, 2]}, '"cu_seq_lens_q" does not say'),
        ({"input_ids": [5, 6], "loss_weights": [1, 0.5]}, '"loss_weights" says by its name'),
        ({"input_ids": [5, 6], "shift_labels": [6, -100]}, '"shift_labels" says by its name'),
    ],
)
def test_what_is_no_row_of_tokens_is_named(value, words):
    assert words in complaint(**value)


@hypothesis.given(ids=st.lists(st.integers(0, 9), min_size=2, max_size=8))
def test_shifted_labels_are_refused(ids):
    shifted = [*ids[1:], -100]
    hypothesis.assume(ids[:-1] != ids[1:])
    first = next(index for index in range(len(ids)) if ids[index] != shifted[index])
    message = complaint(input_ids=ids, labels=shifted)
    assert f'"labels" has {shifted[first]} where "input_ids" has {ids[first]}' in message
    assert "not the next one's" in message


@hypothesis.given(ids=IDS, data=st.data(), name=st.sampled_from(MASKS), kind=st.sampled_from(KINDS))
def test_a_mask_leaves_out_what_labels_would_learn(ids, data, name, kind):
    flags = st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids))
    mask, by_labels = data.draw(flags), data.draw(flags)
    labels = [token if on else -100 for token, on in zip(ids, by_labels, strict=True)]
    values = [kind(on) for on in mask]
    assert parse(input_ids=ids, **{name: values}).loss_mask.tolist() == mask
    both = parse(input_ids=ids, labels=labels, **{name: values})
    expected = [min(pair) for pair in zip(mask, by_labels, strict=True)]
    assert both.loss_mask.tolist() == expected
    assert both.unused == ()


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations(MASKS, 2)))
def test_masks_must_agree_but_for_padding(one, two):
    padded = {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}
    agreed = parse(**padded, **{one: [0, 1, 0], two: [0, 1, 1]})
    assert agreed.loss_mask.tolist() == [0, 1]
    message = complaint(**padded, **{one: [0, 1, 0], two: [1, 1, 0]})
    assert f'"{one}" and "{two}" differ, at token 0' in message
    assert "differ" in complaint(**padded, **{one: [1, 1, 1], two: [1, 0, 1]})


@pytest.mark.parametrize(
    "beside",
    [
        {"position_ids": [0, 1, 2, 3]},
        {"position_ids": [0, 0, 1, 2]},
        {"position_ids": [1, 0, 1, 2]},
        {"seq_lengths": [3]},
        {"seq_lengths": [4]},
        {"segment_ids": [0, 1, 1, 1]},
        {"cu_seqlens": [0, 3]},
    ],
)
def test_positions_and_lengths_of_one_text_change_nothing(beside):
    row = parse(input_ids=[0, 5, 6, 7], attention_mask=[0, 1, 1, 1], **beside)
    assert row.input_ids.tolist() == [5, 6, 7]
    assert row.unused == ()


def test_what_tokenizers_write_beside_tokens_is_counted():
    row = parse(input_ids=[5, 6], token_type_ids=[0, 0], special_tokens_mask=[0, 0], length=2)
    assert row.loss_mask.tolist() == [1, 1]
    assert row.unused == ("token_type_ids", "special_tokens_mask", "length")
