from __future__ import annotations

import itertools

import hypothesis
import numpy as np
from check_builders import chat, make_side, run_check
from hypothesis import strategies as st

from jaxft.data.check import figures
from jaxft.data.check.figures import Bar


@hypothesis.given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_a_histogram_has_each_example_in_the_bar_of_its_length(lengths):
    bars = figures.histogram(np.array(lengths, np.int32))
    assert [bar.count for bar in bars] == [
        sum(bar.low <= length <= bar.high for length in lengths) for bar in bars
    ]
    assert sum(bar.count for bar in bars) == len(lengths)
    assert len(bars) <= 11
    assert bars[0].count
    assert bars[-1].count
    assert all(one.high + 1 == other.low for one, other in itertools.pairwise(bars))


def test_bars_are_as_wide_as_a_power_of_two_and_one_outlier_widens_none():
    lengths = np.array([*range(1, 101)] * 3 + [9000], np.int32)
    bars = figures.histogram(lengths)
    assert bars[0] == Bar(1, 16, 48)
    assert bars[-1].high == 9000
    assert figures.histogram(np.zeros(0, np.int32)) == []


def test_figures_are_those_of_the_examples():
    side = make_side([chat("hello", "the end"), chat("a", "b"), {**chat("c", "d"), "id": 7}])
    found = run_check(side).train
    examples = [side.examples[0][index] for index in range(3)]
    lengths = sorted(len(example.input_ids) for example in examples)
    assert (found.rows, found.examples) == (3, 3)
    assert found.tokens == sum(lengths)
    assert found.targets == sum(int(example.loss_mask.sum()) for example in examples)
    assert (found.shortest, found.median, found.longest) == tuple(lengths)
    assert found.unused == {"id": 1}
    assert found.source == "made"
    assert found.supervised_share == found.targets / found.tokens


def test_figures_of_several_sources_are_added_up():
    side = make_side([chat("a", "b"), {**chat("b", "c"), "id": 1}])
    other = make_side([{**chat("c", "d"), "id": 2}] * 2, "other")
    one, two = run_check(side).train, run_check(other).train
    side.sources += other.sources
    side.encodings += other.encodings
    side.examples += other.examples
    both = run_check(side).train
    assert both.source == "made, other"
    for name in ("rows", "examples", "tokens", "targets"):
        assert getattr(both, name) == getattr(one, name) + getattr(two, name)
    assert both.notes == {"templated": 4}
    assert both.unused == {"id": 3}
    assert both.first == {"templated": "made row 0", "unused.id": "made row 1"}
