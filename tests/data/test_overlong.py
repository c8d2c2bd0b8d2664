from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxft.data.examples import overlong
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import RowPlace
from jaxft.errors import DataError

PLACE = RowPlace("f.jsonl", 3)


@st.composite
def examples(draw):
    """Draw tokens that are all different, and a mask; the first token is never a target."""
    mask = draw(st.lists(st.integers(0, 1), max_size=30))
    mask[:1] = [0] * len(mask[:1])
    return Example(np.arange(len(mask), dtype=np.int32), np.array(mask, np.uint8))


def joined(pieces):
    return [token for piece in pieces for token in piece.input_ids.tolist()]


def supervised(pieces):
    return [int(t) for piece in pieces for t in piece.input_ids[piece.loss_mask == 1]]


lengths = st.integers(2, 12)


@hypothesis.given(examples(), lengths)
def test_pieces_have_every_token_once_in_order_and_lose_only_their_first_targets(example, length):
    before = example.loss_mask.tolist()
    pieces = overlong.split(example, length)
    assert joined(pieces) == example.input_ids.tolist()
    assert [len(piece.input_ids) for piece in pieces[:-1]] == [length] * len(pieces[:-1])
    assert all(1 <= len(piece.input_ids) <= length for piece in pieces)
    assert supervised(pieces) == [t for t in supervised([example]) if t % length]
    assert example.loss_mask.tolist() == before


@hypothesis.given(examples(), lengths, st.sampled_from(["truncate", "drop", "split"]))
def test_what_is_kept_fits_has_a_target_and_nothing_else_is_lost(example, length, mode):
    kept, outcome = overlong.fit(example, length, mode, PLACE)
    assert all(len(each.input_ids) <= length and each.loss_mask.any() for each in kept)
    assert all(not each.loss_mask[0] for each in kept)
    wanted = supervised([example])
    if not wanted:
        assert outcome == "without_target"
    elif len(example.input_ids) <= length:
        assert outcome == ""
        assert kept == (example,)
    elif mode == "drop":
        assert outcome == "too_long"
    elif mode == "truncate":
        wanted = [t for t in wanted if t < length]
        assert outcome == ("truncated" if wanted else "cut_off")
    else:
        wanted = [t for t in wanted if t % length]
        assert outcome == ("split" if wanted else "cut_off")
    is_dropped = outcome in ("without_target", "too_long", "cut_off")
    assert is_dropped == (not kept)
    assert supervised(kept) == ([] if is_dropped else wanted)


@hypothesis.given(examples(), lengths)
def test_error_refuses_what_is_longer_and_nothing_else(example, length):
    if len(example.input_ids) <= length or not example.loss_mask.any():
        fitted = overlong.fit(example, length, "error", PLACE)
        assert fitted == overlong.fit(example, length, "drop", PLACE)
        return
    with pytest.raises(DataError, match=rf"^f.jsonl:3: the row has {len(example.input_ids)} ") as e:
        overlong.fit(example, length, "error", PLACE)
    assert "data.overlong" in e.value.remedy
    assert f"data.max_length is {length}." in e.value.found
