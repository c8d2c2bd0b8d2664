from __future__ import annotations

import dataclasses
import datetime
import json
import re
import tracemalloc

import numpy as np
import pytest
from data_builders import CHAT, CHATML, LLAMA3, VALUES, make_encoding, make_tokenizer

from jaxft.config import SourceConfig
from jaxft.data.chats import encoding
from jaxft.data.examples import cache, chunk, encode, tokens
from jaxft.data.examples.cache import Fingerprint
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.source import open_rows, rows_of
from jaxft.errors import DataError

# With the end token: 4, 7, 10, ... tokens, of which the last two are supervised.
VALUES_OF_LENGTHS = [{"prompt": "ab" * n + "c" * (n - 1), "completion": "d"} for n in range(1, 6)]


def made_rows(*values, name="made"):
    return rows_of(list(values), name)


def write_rows(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return open_rows([SourceConfig(path=str(path))], None, "train")[0]


def token_rows(*pairs):
    labels = [[i if m else -100 for i, m in zip(ids, mask, strict=True)] for ids, mask in pairs]
    return made_rows(
        *({"input_ids": ids, "labels": own} for (ids, _), own in zip(pairs, labels, strict=True))
    )


def refuse_to_encode(*_):
    raise AssertionError("encoded although the cache has it")


def lists(examples):
    return [
        (ids.tolist(), mask.tolist())
        for ids, mask in map(examples.__getitem__, range(len(examples)))
    ]


def test_examples_are_what_encoding_each_row_gives_in_order():
    own = make_encoding(make_tokenizer())
    source = made_rows(*VALUES.values(), *VALUES_OF_LENGTHS)
    examples = encode.encode_source(source, own)
    fresh = [tokens.encode_row(row, own).examples for row in source]
    assert lists(examples) == lists([example for some in fresh for example in some])
    assert (examples[0].input_ids.dtype, examples[0].loss_mask.dtype) == (np.int32, np.uint8)
    assert examples.lengths.tolist() == [len(ids) for ids, _ in lists(examples)]
    assert examples.targets.tolist() == [sum(mask) for _, mask in lists(examples)]
    assert [examples.place(i) for i in range(3)] == [RowPlace("made", i, "row") for i in range(3)]
    ends = {end for row in source for end in tokens.encode_row(row, own).end_ids}
    assert examples.end_ids == tuple(sorted(ends))


def test_the_examples_of_a_row_stand_at_its_place(tmp_path):
    long = {"text": "abc" * 10}
    source = write_rows(tmp_path / "f.jsonl", [*VALUES_OF_LENGTHS[:2], long])
    own = make_encoding(make_tokenizer(), max_length=16, overlong="split")
    examples = encode.encode_source(source, own)
    assert [str(examples.place(i)) for i in range(len(examples))] == [
        f"{tmp_path}/f.jsonl:{number}" for number in (1, 2, 3, 3)
    ]
    assert examples.lengths.tolist() == [4, 7, 16, 15]
    assert examples.full_lengths.tolist() == [4, 7, 31, 31]


def test_the_report_counts_rows_and_says_where_the_first_of_each_kind_stands():
    own = make_encoding(make_tokenizer(), max_length=9)
    blank = {"prompt": "a", "completion": " ", "id": 7}
    unanswered = {"messages": CHAT[:1]}
    report = encode.encode_source(made_rows(*VALUES_OF_LENGTHS, blank, unanswered), own).report
    assert report.rows == 7
    assert report.examples == 4
    assert report.tokens == 4 + 7 + 9 + 3
    assert report.targets == 2 + 2 + 1 + 2
    assert (report.longest, report.max_length) == (16, 9)
    assert (report.truncated, report.cut_off, report.without_target, report.dropped) == (1, 2, 1, 3)
    assert report.notes == {"blank_reply": 1, "templated": 1}
    assert report.unused == {"id": 1}
    assert report.first == {
        "truncated": "made row 2",
        "cut_off": "made row 3",
        "dropped": "made row 3",
        "blank_reply": "made row 5",
        "unused.id": "made row 5",
        "without_target": "made row 6",
        "templated": "made row 6",
    }
    assert report.first["dropped"] == "made row 3"


def test_rows_may_have_any_number_of_fields_that_are_not_used():
    values = [{"text": "a", f"field{number}": 1} for number in range(300)]
    report = encode.encode_source(made_rows(*values), make_encoding(make_tokenizer())).report
    assert len(report.unused) == 201
    assert report.unused["(others)"] == 100
    assert report.first["unused.(others)"] == "made row 200"


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 100])
@pytest.mark.parametrize("overlong", ["truncate", "split", "drop"])
def test_how_rows_are_cut_into_batches_does_not_matter(
    monkeypatch, cache_folder, overlong, batch_rows
):
    own = make_encoding(make_tokenizer(), max_length=9, overlong=overlong)
    values = [*VALUES.values(), *VALUES_OF_LENGTHS, {"text": "a", "x": 1}, {"text": "b", "x": 1}]
    whole = encode.encode_source(made_rows(*values), own)
    monkeypatch.setattr(chunk, "_BATCH_ROWS", batch_rows)
    monkeypatch.setattr(encode, "code_digest", lambda _: "other")
    parts = encode.encode_source(made_rows(*values), own)
    assert len(list((cache_folder / "jaxft").iterdir())) == 2
    assert lists(parts) == lists(whole)
    assert (parts.report, parts.fingerprint) == (whole.report, whole.fingerprint)


def test_a_second_run_reads_the_cache_and_finds_the_same(monkeypatch):
    own = make_encoding(make_tokenizer(), max_length=9)
    first = encode.encode_source(made_rows(*VALUES_OF_LENGTHS), own)
    monkeypatch.setattr(tokens, "encode_rows", refuse_to_encode)
    again = make_encoding(make_tokenizer(), max_length=9)
    second = encode.encode_source(made_rows(*VALUES_OF_LENGTHS), again)
    assert lists(second) == lists(first)
    assert second.fingerprint == first.fingerprint
    assert second.report == first.report
    assert second.end_ids == first.end_ids


def test_files_that_were_moved_are_found_under_their_new_names(tmp_path, monkeypatch):
    own = make_encoding(make_tokenizer(), max_length=9)
    before = write_rows(tmp_path / "before.jsonl", VALUES_OF_LENGTHS)
    encode.encode_source(before, own)
    monkeypatch.setattr(tokens, "encode_rows", refuse_to_encode)
    after = write_rows(tmp_path / "after.jsonl", VALUES_OF_LENGTHS)
    examples = encode.encode_source(after, own)
    assert str(examples.place(1)) == f"{tmp_path}/after.jsonl:2"
    assert examples.report.first["dropped"] == f"{tmp_path}/after.jsonl:4"


TOKENIZER = make_tokenizer()
BASE = make_encoding(TOKENIZER)
OTHER_ENCODINGS = {
    "max_length": dataclasses.replace(BASE, max_length=99),
    "overlong": dataclasses.replace(BASE, overlong="split"),
    "train_on": dataclasses.replace(BASE, train_on="all"),
    "train_on_reasoning": dataclasses.replace(BASE, train_on_reasoning=False),
    "template_kwargs": dataclasses.replace(BASE, template_kwargs={"enable_thinking": False}),
    "stop_ids": dataclasses.replace(BASE, stop_ids=()),
    "template": dataclasses.replace(BASE, tokenizer=make_tokenizer(LLAMA3)),
    "eos": dataclasses.replace(BASE, tokenizer=make_tokenizer(eos_token="<|eot|>")),
    "merges": dataclasses.replace(BASE, tokenizer=make_tokenizer(extra_merges=(("a", "b"),))),
}


@pytest.mark.parametrize("changed", OTHER_ENCODINGS)
def test_any_change_of_the_encoding_encodes_anew(monkeypatch, changed):
    encode.encode_source(made_rows({"messages": CHAT}), BASE)
    monkeypatch.setattr(tokens, "encode_rows", refuse_to_encode)
    encode.encode_source(made_rows({"messages": CHAT}), BASE)
    with pytest.raises(AssertionError, match="although the cache has it"):
        encode.encode_source(made_rows({"messages": CHAT}), OTHER_ENCODINGS[changed])


def test_a_template_that_writes_the_date_encodes_anew_on_another_day(monkeypatch):
    dated = make_encoding(make_tokenizer("{{ strftime_now('%Y-%m-%d') }}" + CHATML))
    source = made_rows({"messages": CHAT})

    def on(day):
        class Fixed(datetime.date):
            @classmethod
            def today(cls):
                return cls.fromisoformat(day)

        monkeypatch.setattr(encoding.datetime, "date", Fixed)
        return encode.cache_key(source, dated)

    assert on("2026-01-01") == on("2026-01-01")
    assert on("2026-01-01") != on("2026-01-02")


def test_other_code_or_another_library_encodes_anew(monkeypatch, tmp_path):
    import tokenizers

    source, keys = made_rows({"messages": CHAT}), set()
    keys.add(encode.cache_key(source, BASE))
    with monkeypatch.context() as patch:
        patch.setattr(encode, "code_digest", lambda _: "other")
        keys.add(encode.cache_key(source, BASE))
    monkeypatch.setattr(tokenizers, "__version__", "0")
    keys.add(encode.cache_key(source, BASE))
    assert len(keys) == 3
    digests = set()
    for number, text in enumerate(("a = 1\n", "a = 2\n", "a = 1\n")):
        folder = tmp_path / str(number)
        (folder / "deeper").mkdir(parents=True)
        (folder / "deeper" / "code.py").write_text(text)
        digests.add(encode.code_digest(folder))
    assert len(digests) == 2


# Rows that say alike, but not the same: each has other tokens, or others that are supervised.
MEANINGS = [
    {"prompt": "hi", "completion": "ho"},
    {"question": "hi", "answer": "ho"},
    {"text": "hi ho"},
    {"text": "hi  ho"},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]},
    {"input_ids": [5, 6, 8], "labels": [-100, 6, 8]},
]


def test_rows_of_other_meaning_are_never_taken_for_each_other():
    found = [encode.encode_source(made_rows(value), BASE) for value in MEANINGS]
    assert len({examples.fingerprint for examples in found}) == len(MEANINGS)


def test_a_completion_of_a_chat_is_not_taken_for_the_chat():
    several = [*CHAT, *CHAT]
    chat = encode.encode_source(made_rows({"messages": several}), BASE)
    completion = {"prompt": several[:3], "completion": several[3:]}
    as_completion = encode.encode_source(made_rows(completion), BASE)
    assert as_completion[0].input_ids.tolist() == chat[0].input_ids.tolist()
    assert as_completion.targets[0] < chat.targets[0]


def test_the_fingerprint_on_disk_is_that_of_the_examples_in_order():
    for max_length in (100, 9):
        own = make_encoding(make_tokenizer(), max_length=max_length)
        examples = encode.encode_source(made_rows(*VALUES.values(), *VALUES_OF_LENGTHS), own)
        recomputed = Fingerprint()
        for index in range(len(examples)):
            recomputed.add(*examples[index])
        assert examples.fingerprint == recomputed.hexdigest()


def test_tokens_need_no_tokenizer_and_are_cut_and_dropped_like_text():
    pairs = [
        ([9, 8, 7], [1, 1, 0]),
        ([], []),
        ([5, 6, 7, 8], [0, 0, 0, 1]),
        ([5], [1]),
        ([4, 4, 4, 4], [1, 1, 1, 1]),
    ]
    own = make_encoding(None, max_length=3)
    examples = encode.encode_source(token_rows(*pairs), own)
    assert lists(examples) == [([9, 8, 7], [0, 1, 0]), ([4, 4, 4], [0, 1, 1])]
    assert [examples.place(i).number for i in range(2)] == [0, 4]
    report = examples.report
    assert (report.truncated, report.cut_off, report.without_target) == (1, 1, 2)
    with pytest.raises(DataError, match="made row 0: the row is text and there is no tokenizer"):
        encode.encode_source(made_rows({"text": "a"}), own)


def test_a_token_that_the_model_has_no_embedding_for_is_found():
    source = token_rows(([99], [1]), ([1, 2], [0, 1]), ([7, 1, 9], [0, 1, 0]))
    examples = encode.encode_source(source, make_encoding(None, max_length=3))
    examples.check_ids(10)
    with pytest.raises(DataError, match=r"^made row 2: the row has the token 9, .* ends at 8"):
        examples.check_ids(9)
    # What is cut off is never looked up.
    encode.encode_source(source, make_encoding(None, max_length=2)).check_ids(8)


def test_what_a_tokenizer_was_used_for_before_does_not_matter(monkeypatch):
    tokenizer = make_tokenizer()
    own = make_encoding(tokenizer, max_length=9)
    encode.encode_source(made_rows(*VALUES_OF_LENGTHS), own)
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=5)
    monkeypatch.setattr(tokens, "encode_rows", refuse_to_encode)
    assert len(encode.encode_source(made_rows(*VALUES_OF_LENGTHS), own)) == 3


def test_a_row_that_cannot_be_encoded_leaves_nothing_in_the_cache(cache_folder):
    bad = {"messages": CHAT[1:]}
    with pytest.raises(DataError, match="made row 5: the first message"):
        encode.encode_source(made_rows(*VALUES_OF_LENGTHS, bad), BASE)
    assert list((cache_folder / "jaxft").iterdir()) == []


def test_rows_with_nothing_supervised_at_all_are_refused(cache_folder):
    for _ in range(2):
        with pytest.raises(DataError, match=r"made: none of its 3 rows has a token to learn"):
            encode.encode_source(made_rows(*[{"messages": CHAT[:1]}] * 3), BASE)
    assert list((cache_folder / "jaxft").iterdir()) == []


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_a_length_that_leaves_no_target_is_refused_with_the_length_needed(overlong):
    own = make_encoding(make_tokenizer(), max_length=2, overlong=overlong)
    with pytest.raises(DataError, match=re.escape("Raise data.max_length")) as caught:
        encode.encode_source(made_rows(*VALUES_OF_LENGTHS), own)
    assert "longest row has 16 tokens" in caught.value.remedy


def test_progress_runs_to_the_last_row_and_is_silent_when_cached():
    seen: list[int] = []
    source = made_rows(*VALUES_OF_LENGTHS * 120)
    encode.encode_source(source, BASE, lambda done, _: seen.append(done))
    assert seen == [256, 512, 600]
    encode.encode_source(source, BASE, lambda done, _: seen.append(done))
    assert len(seen) == 3


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import datasets

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written") as caught:
        encode.encode_source(made_rows(*VALUES_OF_LENGTHS), BASE)
    assert "HF_DATASETS_CACHE" in caught.value.remedy


def test_encoding_prints_nothing(capfd):
    own = make_encoding(make_tokenizer(model_max_length=4), max_length=9)
    encode.encode_source(made_rows(*VALUES_OF_LENGTHS), own)
    assert capfd.readouterr() == ("", "")


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path, monkeypatch):
    def peak(number):
        values = [{"text": f"{index} " * 99} for index in range(number)]
        source = write_rows(tmp_path / f"{number}.jsonl", values)
        tracemalloc.start()
        examples = encode.encode_source(source, BASE)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(examples) == number
        return found

    monkeypatch.setattr(chunk, "_BATCH_ROWS", 32)
    peak(160)  # what is imported and remembered is not counted
    few, many = peak(160), peak(800)
    assert many < 2 * few


def test_the_memory_of_what_was_read_is_given_back_now_and_then(monkeypatch):
    released = []
    monkeypatch.setattr(
        cache.StoredExamples, "release", lambda stored: released.append(len(stored.table))
    )
    examples = encode.encode_source(made_rows(*VALUES_OF_LENGTHS), BASE)
    for index in range(100):
        examples[index % 5]
    assert released == [5] * 3


def test_a_batch_of_long_rows_is_short(monkeypatch):
    monkeypatch.setattr(chunk, "_BATCH_SIZE", 1000)
    values = [{"text": "a" * 400}, *[{"text": "a"}] * 200, {"text": "a" * 5000}, {"text": "b"}]
    assert [len(batch) for batch in chunk.batches(made_rows(*values))] == [202, 1]
    values = [{"prompt": "a" * 300, "completion": "b" * 300}, {"input_ids": [1] * 600}]
    chat = {"messages": [{**message, "content": "a" * 600} for message in CHAT]}
    assert [len(batch) for batch in chunk.batches(made_rows(*values, chat, chat))] == [2, 1, 1]
