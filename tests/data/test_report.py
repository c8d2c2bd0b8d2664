from __future__ import annotations

import hypothesis
from data_builders import make_tokenizer
from hypothesis import strategies as st

from jaxft.data import report, tokens
from jaxft.data.report import Piece, Report
from jaxft.data.rows import Conversation, TextCompletion

TURNS = (
    {"role": "user", "content": "héllo"},
    {"role": "assistant", "content": "the end"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "😀"},
)


def test_a_row_is_shown_with_what_is_learned_between_marks():
    tokenizer = make_tokenizer()
    example = tokens.encode_row(Conversation("f", 1, TURNS), tokenizer)
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
    example = tokens.encode_row(TextCompletion("f", 1, prompt + "a", completion), tokenizer)
    pieces = report.split_pieces(example, tokenizer)
    assert [piece.is_target for piece in pieces] == [False, True]
    assert "".join(piece.text for piece in pieces) == prompt + "a" + completion + "</s>"


def test_a_row_learned_to_its_end_has_no_empty_piece():
    tokenizer = make_tokenizer()
    example = tokens.encode_row(TextCompletion("f", 1, "a", "b"), tokenizer)
    assert report.split_pieces(example, tokenizer) == [Piece("a", False), Piece("b</s>", True)]


def test_the_description_names_only_what_happened():
    quiet = Report(5, 1234, 10, 0, 0, "", 100)
    assert report.describe(quiet) == "5 rows; 1,234 tokens, 10 of them learned"
    loud = Report(5, 20, 5, 1, 2, "f:14", 1024)
    assert report.describe(loud) == (
        "5 rows; 20 tokens, 5 of them learned; 1 row cut at 1,024 tokens; "
        "2 rows dropped for want of a target (the first: f:14)"
    )
