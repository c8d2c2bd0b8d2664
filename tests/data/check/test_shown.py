from __future__ import annotations

import sys

import hypothesis
import numpy as np
import pytest
from check_builders import chat, make_side
from data_builders import make_tokenizer
from hypothesis import strategies as st

from jaxft.data.check import picture, shown
from jaxft.data.check.figures import Bar
from jaxft.data.check.pool import Pool
from jaxft.data.examples.tokens import Example
from jaxft.errors import ConfigError

PIECES = st.lists(st.tuples(st.text("abc", min_size=1), st.booleans()), max_size=8)


def test_bars_are_as_long_as_their_counts():
    bars = [Bar(1, 8, 16), Bar(9, 16, 0), Bar(17, 1200, 7), Bar(1201, 9999, 1)]
    assert shown.bar_lines(bars, 8, has_blocks=True) == [
        "        1 - 8  16  ████████",
        "       9 - 16   0  ",
        "   17 - 1,200   7  ███▌",
        "1,201 - 9,999   1  ▌",
    ]
    assert [line.count("#") for line in shown.bar_lines(bars, 8, has_blocks=False)] == [8, 0, 4, 1]
    assert shown.bar_lines([Bar(1, 8, 999), Bar(9, 16, 1)], 8, has_blocks=True)[1].endswith("1  ▏")
    assert shown.bar_lines([], 8, has_blocks=True) == []


@hypothesis.given(PIECES, st.integers(2, 40))
def test_a_shortened_text_keeps_both_ends_and_what_is_supervised_of_them(pieces, most):
    flat = [(character, is_supervised) for text, is_supervised in pieces for character in text]
    short = shown.shortened(pieces, most)
    if len(flat) <= most:
        assert short == tuple(pieces)
        return
    kept = [(character, mark) for text, mark in short if "..." not in text for character in text]
    half = most // 2
    assert kept == flat[:half] + flat[len(flat) - half :]
    (said,) = [text for text, _ in short if "..." in text]
    assert said == f" ... ({len(flat) - 2 * half:,} characters) ... "


def test_an_example_is_shown_as_text_or_without_a_tokenizer_as_numbers():
    side = make_side([chat("hello", "the end")])
    told = shown.show(side.examples[0][0], "f:1", make_tokenizer(), 1000)
    assert [text for text, is_supervised in told.pieces if is_supervised] == ["the end<|im_end|>"]
    assert (told.place, told.tokens) == ("f:1", len(side.examples[0][0].input_ids))
    numbers = Example(np.array([5, 6], np.int32), np.array([0, 1], np.uint8))
    assert shown.show(numbers, "f:1", None, 1000).pieces == (("5 ", False), ("6 ", True))


def test_the_first_the_shortest_and_the_longest_are_shown_once_each():
    pool = Pool(make_side([{"text": "fish " * count} for count in (3, 9, 1, 5)]).examples)
    assert shown.typical(pool) == [0, 2, 1]
    assert shown.typical(Pool(make_side([{"text": "a b"}]).examples)) == [0]


def test_a_picture_without_matplotlib_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pool = Pool(make_side([{"text": "a b"}]).examples)
    with pytest.raises(ConfigError, match="not installed") as error:
        picture.save(pool, 100, "t", tmp_path / "a.png")
    assert "pip install 'jaxft[picture]'" in error.value.remedy


def test_a_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    pool = Pool(make_side([{"text": "a b"}]).examples)
    picture.save(pool, 100, "t", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(ConfigError, match="cannot be written"):
        picture.save(pool, 100, "t", tmp_path / "nowhere" / "a.png")
