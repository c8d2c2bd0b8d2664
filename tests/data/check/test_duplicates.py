"""Copies and near copies, planted and not."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from check_builders import chat, make_side
from hypothesis import strategies as st

from jaxft.data.check import duplicates, sweep
from jaxft.data.check.pool import Pool

WORDS = (
    "the",
    "sea",
    "old",
    "man",
    "boat",
    "fish",
    "sun",
    "bread",
    "king",
    "road",
    "tree",
    "house",
)


def find(train, held_out=None, near=True):
    """Return the copies in sides."""
    pool = Pool(train.examples)
    form = sweep.find_form(pool) if near else None

    def swept(pool):
        return sweep.run(pool, form, (), None, 10_000, lambda amount: None)

    other = None if held_out is None else Pool(held_out.examples)
    return duplicates.find(pool, swept(pool), other, None if other is None else swept(other), form)


def sentence(seed, words=30):
    random = np.random.default_rng(seed % 2**32)
    return " ".join(random.choice(WORDS, words))


def new_words(seed):
    """Return words that no other text has."""
    letters = (
        np.random.default_rng(seed % 2**32)
        .integers(97, 123, 60)
        .astype(np.uint8)
        .tobytes()
        .decode()
    )
    return " ".join(letters[start : start + 6] for start in range(0, 60, 6))


def texts(*seeds):
    return [{"text": sentence(seed)} for seed in seeds]


def test_copies_are_counted_with_the_first_original():
    found = find(make_side(texts(1, 2, 1, 3, 2, 1)))
    assert found.exact.count == 3
    assert found.exact.of == 6
    assert found.exact.first == [
        ("made row 2", "made row 0"),
        ("made row 4", "made row 1"),
        ("made row 5", "made row 0"),
    ]
    assert found.num_distinct == 3
    assert found.near.count == 0


@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
@hypothesis.settings(max_examples=30)
def test_the_number_of_copies_is_the_rows_less_the_distinct_ones(seeds):
    found = find(make_side(texts(*seeds)), near=False)
    assert found.exact.count == len(seeds) - len(set(seeds))
    assert found.num_distinct == len(set(seeds))
    assert found.near is None


def test_a_copy_that_differs_in_a_word_is_almost_one():
    first, second = sentence(1), sentence(2)
    rows = [
        {"text": text} for text in (first, second, first.replace(" ", " the ", 1), second + ".")
    ]
    found = find(make_side(rows))
    assert found.exact.count == 0
    assert found.near.count == 2
    assert set(found.near.first) == {("made row 2", "made row 0"), ("made row 3", "made row 1")}
    assert found.near.is_exact


def test_held_out_rows_that_are_training_rows_are_counted():
    held_out = [*texts(2, 7), {"text": sentence(3) + "."}]
    found = find(make_side(texts(1, 2, 3)), make_side(held_out, "eval"))
    assert found.held_out.count == 1
    assert found.held_out.of == 3
    assert found.held_out.first == [("eval row 0", "made row 1")]
    assert found.near_held_out.count == 1
    assert found.near_held_out.first == [("eval row 2", "made row 2")]


def test_near_copies_among_held_out_rows_alone_are_none_of_training():
    found = find(
        make_side(texts(1, 2)), make_side([*texts(5), {"text": sentence(5) + "."}], "eval")
    )
    assert found.near.count == found.near_held_out.count == found.held_out.count == 0


def test_one_long_system_message_makes_no_copies():
    system = sentence(0, 200)
    rows = [
        {
            "messages": [
                {"role": "system", "content": system},
                *chat(sentence(s, 8), sentence(-s, 8))["messages"],
            ]
        }
        for s in range(1, 40)
    ]
    assert find(make_side(rows)).near.count == 0


def test_what_all_prompts_share_does_not_make_their_questions_alike():
    system = {"role": "system", "content": " ".join(map(new_words, range(1000, 1020)))}

    def asked(question):
        return {"messages": [system, *chat(question, "yes, that is so")["messages"]]}

    rows = [asked(new_words(seed)) for seed in range(40)]
    assert find(make_side(rows)).near.count == 0
    # Eight of ten words alike are not enough, whatever stands before all of them.
    rows += [asked(new_words(seed)[:-12] + new_words(-seed)[:12]) for seed in range(10, 40)]
    assert find(make_side(rows)).near.count == 0
    found = find(make_side([*rows, asked(new_words(7) + "?")]))
    assert found.near.first == [("made row 70", "made row 7")]


def test_one_word_in_common_beside_what_prompts_share_is_too_little():
    forms = [*range(20, 40)], [*range(40, 56), *range(36, 40)]
    words = [(form, word) for form in (0, 1) for word in range(60 + 20 * form, 80 + 20 * form)]
    rows = [
        {"input_ids": [*forms[form], word, 5, 6], "labels": [-100] * 21 + [5, 6]}
        for form, word in [*words, (1, 60)]
    ]
    assert find(make_side(rows)).near.count == 0


def test_two_questions_about_one_text_are_no_copies():
    text = sentence(1, 150)
    rows = [chat(f"{text} Who?", "The old man."), chat(f"{text} Where?", "On the sea, far out.")]
    assert find(make_side(rows)).near.count == 0


def test_one_answer_to_many_questions_makes_no_near_copies():
    rows = [chat(sentence(seed), "yes, that is so, my friend") for seed in range(30)]
    found = find(make_side(rows))
    assert found.near.count == 0
    assert found.num_distinct_supervised == 1


def test_pieces_of_one_row_are_no_copies_of_each_other():
    side = make_side([{"text": "the " * 200}, *texts(1)], max_length=16, overlong="split")
    assert len(Pool(side.examples)) > 4
    found = find(side)
    assert found.exact.count == found.near.count == 0


def test_beyond_a_limit_near_copies_are_estimated(monkeypatch):
    monkeypatch.setattr(duplicates, "_MAX_COMPARED", 10)
    pairs = [text for seed in range(40) for text in (sentence(seed), sentence(seed) + ".")]
    found = find(make_side([{"text": text} for text in pairs]))
    assert not found.near.is_exact
    assert 35 <= found.near.count <= 45


@pytest.mark.parametrize("limit", [7, 1000])
def test_sketches_are_made_of_evenly_spaced_examples_beyond_a_limit(monkeypatch, limit):
    monkeypatch.setattr(sweep, "MAX_SKETCHES", limit)
    pool = Pool(make_side(texts(*range(20))).examples)
    swept = sweep.run(pool, sweep.find_form(pool), (), None, 10_000, lambda amount: None)
    assert swept.sketched.tolist() == list(range(0, 20, 3 if limit == 7 else 1))
    assert len(swept.sketch) == len(swept.sketched)


def test_examples_of_several_sources_are_numbered_through():
    side = make_side(texts(1, 2))
    other = make_side(texts(3, 1), "other")
    side.sources += other.sources
    side.encodings += other.encodings
    side.examples += other.examples
    pool = Pool(side.examples)
    assert [str(pool.place(index)) for index in range(4)] == [
        "made row 0",
        "made row 1",
        "other row 0",
        "other row 1",
    ]
    assert pool[3].input_ids.tolist() == pool[0].input_ids.tolist()
    assert find(side).exact.first == [("other row 1", "made row 0")]


def test_blocks_are_all_examples_in_order(monkeypatch):
    monkeypatch.setattr("jaxft.data.check.pool._BLOCK_TOKENS", 100)
    pool = Pool(make_side(texts(*range(9))).examples)
    blocks = list(pool.blocks())
    assert len(blocks) > 3
    assert [block.start for block in blocks] == np.cumsum(
        [0, *(len(block.lengths) for block in blocks[:-1])]
    ).tolist()
    whole = np.concatenate([block.ids for block in blocks])
    assert whole.tolist() == [token for index in range(9) for token in pool[index].input_ids]
