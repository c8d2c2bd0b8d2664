"""What of a row is supervised, as text."""

from __future__ import annotations

import hypothesis
import pytest
from data_builders import CHATML, LLAMA3, MISTRAL, QWEN3, make_encoding, make_tokenizer
from hypothesis import strategies as st

from jaxft.data.examples import render
from jaxft.data.rows.row import Dialogue, RowPlace, Text, TextCompletion
from jaxft.errors import DataError

PLACE = RowPlace("f.jsonl", 7)
SYSTEM = {"role": "system", "content": "Sys."}
TURNS = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": " 1. "},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2.\n"},
)


def dialogue(*messages: dict, **options) -> Dialogue:
    return Dialogue(PLACE, messages or TURNS, **options)


def supervised(row, tokenizer, **options) -> list[list[str]]:
    """Return what is supervised of each example of a row."""
    encoding = make_encoding(tokenizer, **options)
    return [
        [each.text[start:stop] for start, stop in each.spans]
        for each in render.render_row(row, encoding)
    ]


def refusal(row, tokenizer) -> str:
    with pytest.raises(DataError) as caught:
        render.render_row(row, make_encoding(tokenizer))
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [" 1. <|im_end|>", "2.\n<|im_end|>"]),
        (LLAMA3, ["1.<|eot|>", "2.<|eot|>"]),
        (MISTRAL, [" 1.</s>", " 2.</s>"]),
    ],
)
def test_replies_are_supervised_with_the_token_that_ends_them(template, expected):
    tokenizer = make_tokenizer(template)
    (rendered,) = render.render_row(dialogue(), make_encoding(tokenizer))
    assert [rendered.text[start:stop] for start, stop in rendered.spans] == expected
    assert rendered.text == tokenizer.apply_chat_template(list(TURNS), tokenize=False)


def test_a_chat_whose_earlier_turns_are_rewritten_is_cut_into_its_replies():
    empty = "<think>\n\n</think>\n\n"
    tokenizer = make_tokenizer(QWEN3)
    rendered = render.render_row(dialogue(), make_encoding(tokenizer))
    assert [each.text[start:stop] for each in rendered for start, stop in each.spans] == [
        f"{empty} 1. <|im_end|>",
        f"{empty}2.\n<|im_end|>",
    ]
    for each, index in zip(rendered, (1, 3), strict=True):
        prompt = tokenizer.apply_chat_template(
            list(TURNS[:index]), tokenize=False, add_generation_prompt=True
        )
        assert each.text[: each.spans[0][0]] == prompt
    assert "cut_into_replies" in rendered[0].notes


def test_two_turns_of_the_assistant_in_a_row_are_both_supervised():
    row = dialogue(TURNS[0], TURNS[1], TURNS[3])
    assert supervised(row, make_tokenizer()) == [[" 1. <|im_end|>", "2.\n<|im_end|>"]]


def test_turns_of_equal_content_are_told_apart():
    assert supervised(dialogue(*TURNS[:2] * 3), make_tokenizer()) == [[" 1. <|im_end|>"] * 3]


def test_a_conversation_without_assistant_has_nothing_supervised():
    assert supervised(dialogue(TURNS[0]), make_tokenizer()) == [[]]


@pytest.mark.parametrize(
    ("train_on", "num_prompt", "expected"),
    [
        ("assistant", 0, [" 1. <|im_end|>", "2.\n<|im_end|>"]),
        ("assistant", 3, ["2.\n<|im_end|>"]),
        ("last_assistant", 0, ["2.\n<|im_end|>"]),
        ("completion", 0, ["2.\n<|im_end|>"]),
        ("completion", 1, [" 1. <|im_end|>", "2.\n<|im_end|>"]),
    ],
)
def test_the_recipe_and_the_row_say_which_replies_are_supervised(train_on, num_prompt, expected):
    row = dialogue(num_prompt=num_prompt)
    assert supervised(row, make_tokenizer(), train_on=train_on) == [expected]


def test_a_reply_that_the_row_marks_is_not_supervised():
    for skipped, expected in (({1}, ["2.\n<|im_end|>"]), ({3}, [" 1. <|im_end|>"]), ({1, 3}, [])):
        row = dialogue(skipped=frozenset(skipped))
        assert supervised(row, make_tokenizer()) == [expected]


def test_everything_is_supervised_where_all_is_asked_for():
    tokenizer = make_tokenizer()
    whole = tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert supervised(dialogue(), tokenizer, train_on="all") == [[whole]]
    assert supervised(TextCompletion(PLACE, "a ", "b"), tokenizer, train_on="all") == [["a b</s>"]]


def test_thoughts_are_left_out_where_they_are_not_to_be_supervised():
    reply = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n4"}
    for template in (CHATML, QWEN3):
        row = dialogue(TURNS[0], reply)
        options = {"train_on_reasoning": False}
        assert supervised(row, make_tokenizer(template), **options) == [["4<|im_end|>"]]


def test_plain_text_is_joined_closed_and_never_templated():
    tokenizer = make_tokenizer(CHATML)
    (rendered,) = render.render_row(TextCompletion(PLACE, "a ", "b"), make_encoding(tokenizer))
    assert rendered.text == "a b</s>"
    assert supervised(TextCompletion(PLACE, "a ", "b"), tokenizer) == [["b</s>"]]
    assert supervised(TextCompletion(PLACE, "a ", "b</s>"), tokenizer) == [["b</s>"]]


def test_a_text_is_supervised_whole_with_one_end_token():
    tokenizer = make_tokenizer()
    assert supervised(Text(PLACE, " a\nb "), tokenizer) == [[" a\nb </s>"]]
    assert supervised(Text(PLACE, "a</s>"), tokenizer) == [["a</s>"]]


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_blank_text_teaches_nothing(text):
    assert supervised(Text(PLACE, text), make_tokenizer()) == [[]]


@hypothesis.given(question=st.text("a {}\n<"), answer=st.text("b {}\n<"))
def test_words_stand_in_the_text_whatever_they_are(question, answer):
    row = dialogue({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    assert supervised(row, make_tokenizer()) == [[f"{answer}<|im_end|>"]]


REVERSED = CHATML.replace("in messages", "in messages | reverse")
LAST_DIFFERS = CHATML.replace(
    "message['content'] + '<|im_end|>\n'",
    "message['content']"
    " + ('</s>' if loop.last and message['role'] == 'assistant' else '<|im_end|>\n')",
)
DEAF = CHATML.replace("message['content'] +", "('' if message['role'] == 'tool' else 'x') +")


def test_a_template_that_cannot_be_split_is_refused():
    message = refusal(dialogue(), make_tokenizer(REVERSED))
    assert message.startswith("f.jsonl:7: the chat template cannot be split exactly")


def test_an_end_that_depends_on_what_follows_is_the_one_that_is_generated():
    assert supervised(dialogue(), make_tokenizer(LAST_DIFFERS)) == [[" 1. </s>"], ["2.\n</s>"]]


def test_a_message_that_the_template_leaves_out_is_refused():
    message = refusal(dialogue({"role": "user", "content": "lost"}, TURNS[1]), make_tokenizer(DEAF))
    assert 'f.jsonl:7: the chat template leaves out message 0, of the role "user"' in message


def test_a_template_that_refuses_the_roles_is_quoted():
    message = refusal(dialogue(TURNS[0], TURNS[0], TURNS[1]), make_tokenizer(MISTRAL))
    assert "f.jsonl:7: the chat template refuses the messages: roles must alternate" in message


def test_a_chat_needs_a_chat_template():
    assert "no chat template" in refusal(dialogue(), make_tokenizer(None))


def test_a_chat_that_the_assistant_opens_is_refused_unless_that_is_not_supervised():
    message = refusal(dialogue(*TURNS[1:]), make_tokenizer())
    assert "first message is the assistant's" in message
    row = dialogue(*TURNS[1:], skipped=frozenset({0}))
    assert supervised(row, make_tokenizer()) == [["2.\n<|im_end|>"]]


def test_plain_text_needs_an_end_token():
    tokenizer = make_tokenizer(eos_token=None, pad_token=None)
    for row in (TextCompletion(PLACE, "a", "b"), Text(PLACE, "a")):
        assert "f.jsonl:7: the tokenizer has no end token" in refusal(row, tokenizer)
