from __future__ import annotations

import dataclasses
import json

import hypothesis
from data_builders import make_encoding, make_tokenizer
from hypothesis import strategies as st

from jaxft.data.chats import notes
from jaxft.data.examples import report, tokens
from jaxft.data.examples.report import Piece, Report
from jaxft.data.examples.tally import Tally
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import Dialogue, RowPlace, TextCompletion

PLACE = RowPlace("f.jsonl", 1)

TURNS = (
    {"role": "user", "content": "héllo"},
    {"role": "assistant", "content": "the end"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "😀"},
)


def encoded(row, tokenizer) -> Example:
    (example,) = tokens.encode_row(row, make_encoding(tokenizer)).examples
    return example


def test_a_row_is_shown_with_what_is_supervised_between_marks():
    tokenizer = make_tokenizer()
    example = encoded(Dialogue(PLACE, TURNS), tokenizer)
    assert report.mark_targets(example, tokenizer, before="[[", after="]]") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nhéllo<|im_end|>\n"
        "<|im_start|>assistant\n[[the end<|im_end|>]]\n"
        "<|im_start|>user\nand?<|im_end|>\n"
        "<|im_start|>assistant\n[[😀<|im_end|>]]\n"
    )


@hypothesis.given(prompt=st.text("he t\n.", max_size=9), completion=st.text("he t\n.", max_size=9))
def test_pieces_alternate_and_spell_the_row(prompt, completion):
    tokenizer = make_tokenizer()
    example = encoded(TextCompletion(PLACE, prompt + "a", completion), tokenizer)
    pieces = report.split_pieces(example, tokenizer)
    assert [piece.is_target for piece in pieces] == [False, True]
    assert "".join(piece.text for piece in pieces) == prompt + "a" + completion + "</s>"


def test_a_row_supervised_to_its_end_has_no_empty_piece():
    tokenizer = make_tokenizer()
    example = encoded(TextCompletion(PLACE, "a", "b"), tokenizer)
    assert report.split_pieces(example, tokenizer) == [Piece("a", False), Piece("b</s>", True)]


def test_the_description_names_only_what_happened():
    quiet = Report(rows=5, examples=5, tokens=1234, targets=10, longest=90, max_length=100)
    assert report.describe(quiet) == "5 rows; 1,234 tokens, 10 of them learned"
    loud = Report(
        rows=5,
        examples=7,
        tokens=20,
        targets=6,
        longest=2048,
        max_length=1024,
        truncated=1,
        cut_off=2,
        without_target=1,
        dropped=3,
        notes={"blank_reply": 2},
        unused={"id": 5, "a.b": 1},
        first={
            "truncated": "f:13",
            "cut_off": "f:14",
            "without_target": "f:1",
            "dropped": "f:1",
            "blank_reply": "f:2",
            "unused.id": "f:1",
            "unused.a.b": "f:3",
        },
    )
    assert report.describe(loud).splitlines() == [
        "5 rows as 7 examples; 20 tokens, 6 of them learned; the longest has 2,048",
        "  1 example cut at 1,024 tokens (f:13)",
        "  2 examples left out because nothing learned is within 1,024 tokens (the first: f:14)",
        "  1 example left out because nothing in it is learned (f:1)",
        f"  2 rows: {notes.NOTES['blank_reply']} (the first: f:2)",
        "  fields not used: id (5 rows), a.b (1 row)",
    ]
    split = dataclasses.replace(quiet, split=2, too_long=1, first={"split": "f:3", "too_long": "g"})
    assert report.describe(split).splitlines()[1:] == [
        "  2 examples split at 100 tokens (the first: f:3)",
        "  1 example left out for being longer than 100 tokens (g)",
    ]


counted = st.lists(
    st.tuples(
        st.sampled_from(["", "truncated", "split", "too_long", "cut_off", "without_target"]),
        st.lists(st.sampled_from(sorted(notes.NOTES)), unique=True, max_size=2),
        st.lists(st.sampled_from(["id", "truncated", "blank_reply"]), unique=True, max_size=2),
    ),
    max_size=12,
)


def tally_of(rows, start=0):
    """Count rows that stand at the lines from `start` on."""
    tally = Tally()
    for number, (outcome, true_of, unused) in enumerate(rows, start):
        row = TextCompletion(RowPlace("f", number), "", "", unused=tuple(unused))
        tally.count_row(row, true_of, frozenset({number % 3}))
        kept = outcome in ("", "truncated", "split")
        tally.count_example(number, int(kept), outcome, row.place)
    return tally


@hypothesis.given(counted, st.integers(0, 12))
def test_a_report_of_two_parts_is_that_of_the_whole_and_survives_json(rows, at):
    whole, first = tally_of(rows), tally_of(rows[:at])
    first.add(tally_of(rows[at:], start=len(rows[:at])))
    report_of_parts = first.report(99)
    assert report_of_parts == whole.report(99)
    assert first.end_ids == whole.end_ids
    again = Report(**json.loads(json.dumps(dataclasses.asdict(report_of_parts))))
    assert again == report_of_parts
    report.describe(again)


@hypothesis.given(counted)
def test_each_row_is_kept_or_counted_as_left_out(rows):
    made = tally_of(rows).report(99)
    assert made.examples + made.dropped == made.rows == len(rows)
    assert made.too_long + made.cut_off + made.without_target == made.dropped
    left_out = [
        n for n, row in enumerate(rows) if row[0] in ("too_long", "cut_off", "without_target")
    ]
    assert made.first.get("dropped", "") == (f"f:{left_out[0]}" if left_out else "")
    for name in notes.NOTES:
        true_of = [number for number, (_, some, _) in enumerate(rows) if name in some]
        assert made.notes.get(name, 0) == len(true_of)
        assert made.first.get(name, "") == (f"f:{true_of[0]}" if true_of else "")
