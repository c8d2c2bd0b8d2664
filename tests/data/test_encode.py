from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from data_builders import LLAMA3, make_tokenizer

from jaxft.data import encode, tokens
from jaxft.data.rows import ChatCompletion, Conversation, Question, Text, TextCompletion, Tokenized
from jaxft.errors import DataError

# With the end token: 3, 6, 9, ... tokens, of which the last two are learned.
ROWS = [TextCompletion("f.jsonl", 10 + n, "ab" * n + "c" * (n - 1), "d") for n in range(1, 6)]


def tokens_row(ids: list[int], mask: list[int], number: int = 1) -> Tokenized:
    return Tokenized("f", number, np.array(ids, np.int32), np.array(mask, np.uint8))


def refuse_to_encode(*_):
    raise AssertionError("encoded although the cache has it")


def test_examples_are_what_encoding_each_row_gives():
    tokenizer = make_tokenizer()
    examples = encode.encode_rows(ROWS, tokenizer, 100)
    assert len(examples) == 5
    for index, row in enumerate(ROWS):
        fresh = tokens.encode_row(row, tokenizer)
        assert examples[index].input_ids.dtype == np.int32
        assert examples[index].loss_mask.dtype == np.uint8
        np.testing.assert_array_equal(examples[index].input_ids, fresh.input_ids)
        np.testing.assert_array_equal(examples[index].loss_mask, fresh.loss_mask)
    assert examples.lengths.tolist() == [len(examples[index].input_ids) for index in range(5)]
    assert examples.targets.tolist() == [2] * 5
    assert examples.numbers.tolist() == [11, 12, 13, 14, 15]


def test_long_rows_keep_their_start_and_those_without_a_target_are_dropped():
    tokenizer = make_tokenizer()
    whole = encode.encode_rows(ROWS, tokenizer, 100)
    assert whole.lengths.tolist() == [4, 7, 10, 13, 16]
    cut = encode.encode_rows(ROWS, tokenizer, 9)
    assert cut.numbers.tolist() == [11, 12, 13]
    assert cut.targets.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(cut[2].input_ids, whole[2].input_ids[:9])
    assert cut.report == dataclasses.replace(
        whole.report,
        tokens=4 + 7 + 9,
        targets=5,
        truncated=1,
        dropped=2,
        first_dropped="f.jsonl:14",
        max_length=9,
    )
    assert dataclasses.astuple(whole.report) == (5, 50, 10, 0, 0, "", 100)


def test_a_second_run_reads_the_cache_and_finds_the_same(monkeypatch):
    first = encode.encode_rows(ROWS, make_tokenizer(), 9)
    monkeypatch.setattr(tokens, "encode_row", refuse_to_encode)
    second = encode.encode_rows(list(ROWS), make_tokenizer(), 9)
    assert second.fingerprint == first.fingerprint
    assert second.report == first.report
    moved = [dataclasses.replace(row, source="other.jsonl") for row in ROWS]
    assert encode.encode_rows(moved, make_tokenizer(), 9).report.first_dropped == "other.jsonl:14"


CHATS = [
    Conversation("f", 1, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
]
MEANINGS = [
    [TextCompletion("f", 1, "hi", "ho")],
    [Question("f", 1, "hi", "ho")],
    [Text("f", 1, "hi ho")],
    [Text("f", 1, "hi  ho")],
    [tokens_row([5, 6, 7], [0, 1, 1])],
    [tokens_row([5, 6, 7], [0, 0, 1])],
    [tokens_row([5, 6, 8], [0, 1, 1])],
]
AS_COMPLETION = [ChatCompletion("f", 1, CHATS[0].messages[:1], CHATS[0].messages[1:])]


@pytest.mark.parametrize(
    "change",
    [
        lambda: encode.encode_rows(CHATS, make_tokenizer(), 99),
        lambda: encode.encode_rows(CHATS, make_tokenizer(LLAMA3), 100),
        lambda: encode.encode_rows(CHATS, make_tokenizer(extra_merges=(("a", "b"),)), 100),
        lambda: encode.encode_rows(CHATS, make_tokenizer(eos_token="<|eot|>"), 100),
        lambda: encode.encode_rows(CHATS * 2, make_tokenizer(), 100),
        lambda: encode.encode_rows(AS_COMPLETION, make_tokenizer(), 100),
    ],
)
def test_any_change_of_rows_tokenizer_template_or_length_encodes_anew(monkeypatch, change):
    encode.encode_rows(CHATS, make_tokenizer(), 100)
    monkeypatch.setattr(tokens, "encode_row", refuse_to_encode)
    with pytest.raises(AssertionError, match="although the cache has it"):
        change()


@pytest.mark.parametrize("rows", [ROWS, CHATS])
def test_rows_that_moved_to_other_lines_are_found_on_those(rows):
    encode.encode_rows(rows, make_tokenizer(), 100)
    moved = [dataclasses.replace(row, number=row.number + 1) for row in rows]
    numbers = encode.encode_rows(moved, make_tokenizer(), 100).numbers
    assert numbers.tolist() == [row.number + 1 for row in rows]


def test_rows_of_other_meaning_are_never_taken_for_each_other():
    found = [encode.encode_rows(rows, make_tokenizer(), 100) for rows in MEANINGS]
    assert len({examples.fingerprint for examples in found}) == len(MEANINGS)


def test_tokens_need_no_tokenizer_and_are_cut_and_dropped_like_text():
    rows = [
        tokens_row([9, 8, 7], [1, 1, 0], 0),
        tokens_row([], [], 1),
        tokens_row([5, 6, 7, 8], [0, 0, 0, 1], 2),
        tokens_row([5], [1], 3),
        tokens_row([4, 4, 4, 4], [1, 1, 1, 1], 4),
    ]
    examples = encode.encode_rows(rows, None, 3)
    assert examples.numbers.tolist() == [0, 4]
    assert [examples[index].input_ids.tolist() for index in range(2)] == [[9, 8, 7], [4, 4, 4]]
    assert [examples[index].loss_mask.tolist() for index in range(2)] == [[0, 1, 0], [0, 1, 1]]
    assert (examples.report.truncated, examples.report.dropped) == (1, 3)
    assert rows[4].loss_mask.tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="f:6: the row is text and there is no tokenizer"):
        encode.encode_rows([*rows, Text("f", 6, "a")], None, 3)


def test_a_token_that_the_model_has_no_embedding_for_is_found():
    dropped = tokens_row([99], [1], 2)
    rows = [dropped, tokens_row([1, 2], [0, 1], 3), tokens_row([7, 1, 9], [0, 1, 0], 4)]
    examples = encode.encode_rows(rows, None, 3)
    examples.check_ids(10)
    with pytest.raises(DataError, match=r"f:4: the row has the token 9, .* ends at 8"):
        examples.check_ids(9)
    # What is cut off is never looked up.
    encode.encode_rows(rows, None, 2).check_ids(8)
    as_rows = [dataclasses.replace(row, unit="row") for row in rows]
    with pytest.raises(DataError, match=r"^f row 4: "):
        encode.encode_rows(as_rows, None, 3).check_ids(9)


def test_what_a_tokenizer_was_used_for_before_does_not_matter(monkeypatch):
    tokenizer = make_tokenizer()
    encode.encode_rows(ROWS, tokenizer, 9)
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=5)
    monkeypatch.setattr(tokens, "encode_row", refuse_to_encode)
    assert len(encode.encode_rows(ROWS, tokenizer, 9)) == 3


def test_an_interrupted_run_leaves_nothing_in_the_cache(cache_folder, monkeypatch):
    rows = [*ROWS, Conversation("f", 6, [{"role": "assistant", "content": "b"}])]
    with pytest.raises(DataError, match="f:6: the first message"):
        encode.encode_rows(rows, make_tokenizer(), 9)
    assert list((cache_folder / "jaxft").iterdir()) == []


def test_the_fingerprint_follows_tokens_and_targets():
    tokenizer = make_tokenizer()
    prints = {
        encode.encode_rows(rows, tokenizer, length).fingerprint
        for rows, length in ((ROWS, 9), (ROWS, 8), (ROWS[:1], 9), (CHATS, 90), (AS_COMPLETION, 90))
    }
    assert len(prints) == 5


def test_rows_with_nothing_learned_at_all_are_refused():
    rows = [Conversation("f.jsonl", 1, [{"role": "user", "content": "a"}])] * 3
    with pytest.raises(DataError, match=r"f.jsonl: none of its 3 rows has a token to learn"):
        encode.encode_rows(rows, make_tokenizer(), 9)


def test_a_length_that_cuts_every_target_is_refused_with_the_length_needed():
    with pytest.raises(DataError, match=re.escape("Raise data.max_length")) as caught:
        encode.encode_rows(ROWS, make_tokenizer(), 2)
    assert "longest row has 16 tokens" in caught.value.remedy


def test_progress_runs_from_none_to_all_and_is_silent_when_cached():
    seen: list[tuple[int, int]] = []
    rows = ROWS * 90
    encode.encode_rows(rows, make_tokenizer(), 9, lambda *done: seen.append(done))
    assert seen == [(0, 450), (200, 450), (400, 450), (450, 450)]
    encode.encode_rows(rows, make_tokenizer(), 9, lambda *done: seen.append(done))
    assert len(seen) == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import datasets

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written") as caught:
        encode.encode_rows(ROWS, make_tokenizer(), 9)
    assert "HF_DATASETS_CACHE" in caught.value.remedy


def test_encoding_prints_nothing(capfd):
    encode.encode_rows(ROWS, make_tokenizer(model_max_length=4), 9)
    assert capfd.readouterr() == ("", "")
