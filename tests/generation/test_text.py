"""Text that comes in pieces: it joins to the whole, and no character is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft.errors import ConfigError
from jaxft.generation import text


@given(ids=st.lists(st.integers(0, 257), max_size=24))
def test_pieces_of_any_bytes_join_to_the_whole(byte_level, ids):
    assert "".join(text.pieces(byte_level, ids)) == text.decode(byte_level, ids)


@given(written=st.text(alphabet="a é€🐈\u200d", max_size=12))
def test_no_piece_holds_a_part_of_a_character(byte_level, written):
    ids = byte_level(written)["input_ids"]
    assert list(text.pieces(byte_level, ids)) == list(written)


def test_a_character_is_shown_with_its_last_byte(byte_level):
    taken = 0

    def ids():
        nonlocal taken
        for taken, token in enumerate(byte_level("a🐈b")["input_ids"], start=1):  # noqa: B007
            yield token

    assert [(piece, taken) for piece in text.pieces(byte_level, ids())] == [
        ("a", 1),
        ("🐈", 5),
        ("b", 6),
    ]


@given(
    ids=st.lists(
        st.integers(0, 7) | st.sampled_from([8 + byte for byte in (0x41, 0xC3, 0xA9, 0xE2, 0x82)]),
        max_size=12,
    )
)
def test_pieces_join_where_a_run_of_bytes_is_decoded_as_one(byte_fallback, ids):
    assert "".join(text.pieces(byte_fallback, ids)) == text.decode(byte_fallback, ids)


def test_a_later_byte_can_take_back_a_character(byte_fallback):
    # Why bytes are held back: the é of the first two is gone when a third follows.
    first_two = [8 + 0xC3, 8 + 0xA9]
    assert text.decode(byte_fallback, first_two) == "é"
    assert text.decode(byte_fallback, [*first_two, 8 + 0xE2]) == "���"


def test_a_stop_string_is_found_where_its_last_token_comes_and_not_before(byte_level):
    prompt, answer = (byte_level(each)["input_ids"] for each in ("say a sto", "p and stop it"))
    ends = text.ends_with(byte_level, [[], prompt], ["stop"])
    # It may begin in the prompt, and is found once: what comes after it ends nothing.
    found = [row for row in (0, 1) for n in range(1, len(answer) + 1) if ends(row, answer[:n])]
    assert found == [0, 1, 1]
    assert ends(1, answer[:1])
    assert not ends(0, answer[:1])
    assert ends(0, answer[: len("p and stop")])


def test_special_tokens_end_a_row_as_text_too(byte_level):
    ids = byte_level("a<|end|>")["input_ids"]
    assert text.ends_with(byte_level, [[]], ["<|end|>"])(0, ids)


def test_without_stop_strings_there_is_nothing_to_ask_and_an_empty_one_is_refused(byte_level):
    assert text.ends_with(byte_level, [[]], []) is None
    with pytest.raises(ConfigError, match="empty"):
        text.ends_with(byte_level, [[]], ["x", ""])


def test_special_tokens_are_no_text(byte_level):
    ids = byte_level("<|start|>a<|end|>b")["input_ids"]
    assert len(ids) == 4
    assert text.decode(byte_level, ids) == "ab"
