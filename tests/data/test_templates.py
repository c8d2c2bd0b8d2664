from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from data_builders import CHATML, LLAMA3, MISTRAL, QWEN3, make_tokenizer
from hypothesis import strategies as st

from jaxft.data import templates
from jaxft.data.rows import (
    ChatCompletion,
    Conversation,
    Question,
    Text,
    TextCompletion,
    Tokenized,
)
from jaxft.errors import DataError

SYSTEM = {"role": "system", "content": "Sys."}
TURNS = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": " 1. "},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2.\n"},
)


def learned(row, tokenizer) -> list[str]:
    rendered = templates.render_row(row, tokenizer)
    return [rendered.text[start:stop] for start, stop in rendered.spans]


def refusal(row, tokenizer) -> str:
    with pytest.raises(DataError) as caught:
        templates.render_row(row, tokenizer)
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [" 1. <|im_end|>", "2.\n<|im_end|>"]),
        (LLAMA3, ["1.<|eot|>", "2.<|eot|>"]),
        (MISTRAL, [" 1.</s>", " 2.</s>"]),
        (QWEN3, [" 1. <|im_end|>", "<think>\n\n</think>\n\n2.\n<|im_end|>"]),
    ],
)
def test_assistant_turns_are_found_with_their_closing_token(template, expected):
    tokenizer = make_tokenizer(template)
    row = Conversation("f", 1, TURNS)
    assert learned(row, tokenizer) == expected
    assert templates.render_row(row, tokenizer).text == tokenizer.apply_chat_template(
        list(TURNS), tokenize=False
    )


def test_what_is_learned_follows_what_generation_is_given():
    tokenizer = make_tokenizer(CHATML)
    rendered = templates.render_row(Conversation("f", 1, (SYSTEM, *TURNS)), tokenizer)
    for (start, _), index in zip(rendered.spans, (2, 4), strict=True):
        prompt = tokenizer.apply_chat_template(
            [SYSTEM, *TURNS[: index - 1]], tokenize=False, add_generation_prompt=True
        )
        assert rendered.text[:start] == prompt


def test_two_turns_of_the_assistant_in_a_row_are_both_learned():
    row = Conversation("f", 1, (TURNS[0], TURNS[1], TURNS[3]))
    assert learned(row, make_tokenizer()) == [" 1. <|im_end|>", "2.\n<|im_end|>"]


def test_turns_of_equal_content_are_told_apart():
    row = Conversation("f", 1, (TURNS[0], TURNS[1]) * 3)
    spans = templates.render_row(row, make_tokenizer()).spans
    assert len(set(spans)) == 3
    assert learned(row, make_tokenizer()) == [" 1. <|im_end|>"] * 3


def test_a_conversation_without_assistant_has_nothing_learned():
    assert learned(Conversation("f", 1, TURNS[:1]), make_tokenizer()) == []


def test_a_chat_completion_is_learned_to_its_very_end():
    row = ChatCompletion("f", 1, TURNS[:1], TURNS[1:2])
    assert learned(row, make_tokenizer()) == [" 1. <|im_end|>\n"]


def test_plain_text_is_joined_closed_and_never_templated():
    tokenizer = make_tokenizer(CHATML)
    assert templates.render_row(TextCompletion("f", 1, "a ", "b"), tokenizer).text == "a b</s>"
    assert learned(TextCompletion("f", 1, "a ", "b"), tokenizer) == ["b</s>"]
    assert learned(TextCompletion("f", 1, "a ", "b</s>"), tokenizer) == ["b</s>"]


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL, QWEN3])
@hypothesis.given(question=st.text("a {}\n"), answer=st.text("b {}\n"))
def test_a_question_is_a_chat_of_two_messages_where_the_model_chats(template, question, answer):
    tokenizer = make_tokenizer(template)
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert templates.render_row(
        Question("f", 1, question, answer), tokenizer
    ) == templates.render_row(Conversation("f", 1, chat), tokenizer)


@hypothesis.given(question=st.text("a {}\n"), answer=st.text("b {}\n"))
def test_a_question_is_plain_text_under_headings_where_the_model_does_not(question, answer):
    tokenizer = make_tokenizer(None)
    prompt = f"### Instruction:\n{question}\n\n### Response:\n"
    assert templates.ask(question, tokenizer) == prompt
    assert templates.render_row(
        Question("f", 1, question, answer), tokenizer
    ) == templates.render_row(TextCompletion("f", 1, prompt, answer), tokenizer)


def test_a_text_is_learned_whole_with_one_end_token():
    tokenizer = make_tokenizer()
    assert learned(Text("f", 1, " a\nb "), tokenizer) == [" a\nb </s>"]
    assert learned(Text("f", 1, "a</s>"), tokenizer) == ["a</s>"]


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_blank_text_teaches_nothing(text):
    assert learned(Text("f", 1, text), make_tokenizer()) == []


REVERSED = CHATML.replace("in messages", "in messages | reverse")
OTHER_OPENING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
DOUBLED = CHATML.replace("message['content'] +", "message['content'] + message['content'] +")
COUNTING = CHATML.replace("'<|im_end|>\n'", "'<|im_end|>' ~ message['content'] | length")
LAST_DIFFERS = CHATML.replace(
    "message['content'] + '<|im_end|>\n'",
    "message['content']"
    " + ('</s>' if loop.last and message['role'] == 'assistant' else '<|im_end|>\n')",
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REVERSED, "before message 1 is not how the text begins"),
        (OTHER_OPENING, "before message 1 is not how the text begins"),
        (DOUBLED, "content 2 times"),
        (COUNTING, "depends on its content"),
        (LAST_DIFFERS, "the end of message 1 depends on what follows it"),
    ],
)
def test_a_template_that_cannot_be_split_is_refused(template, reason):
    message = refusal(Conversation("f.jsonl", 7, TURNS), make_tokenizer(template))
    assert message.startswith("f.jsonl:7: the chat template cannot be split exactly")
    assert reason in message


def test_a_template_that_refuses_the_roles_is_quoted():
    row = Conversation("f", 3, (TURNS[0], TURNS[0]))
    assert "f:3: the chat template refuses the messages: roles must alternate" in refusal(
        row, make_tokenizer(MISTRAL)
    )


def test_a_chat_needs_a_chat_template():
    assert "no chat template" in refusal(Conversation("f", 1, TURNS), make_tokenizer(None))


def test_a_chat_that_the_assistant_opens_is_refused():
    message = refusal(Conversation("f", 1, TURNS[1:]), make_tokenizer())
    assert "first message is the assistant's" in message


def test_plain_text_needs_an_end_token():
    tokenizer = make_tokenizer(eos_token=None, pad_token=None)
    for row in (TextCompletion("f", 1, "a", "b"), Text("f", 1, "a")):
        assert "f:1: the tokenizer has no end token" in refusal(row, tokenizer)


def tokens_row(text: str, learned: str) -> Tokenized:
    """Return bytes as tokens, of which those under a 1 are learned."""
    ids = np.array(make_tokenizer()(text)["input_ids"], np.int32)
    return Tokenized("f", 1, ids, np.array(list(learned), np.uint8))


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        (Conversation("f", 1, (SYSTEM, *TURNS)), (SYSTEM, TURNS[0]), " 1. "),
        (Conversation("f", 1, TURNS[:1]), TURNS[:1], ""),
        (ChatCompletion("f", 1, TURNS[:3], TURNS[3:]), TURNS[:3], "2.\n"),
        (TextCompletion("f", 1, "a", "b"), "a", "b"),
        (Question("f", 1, "a", "b"), ({"role": "user", "content": "a"},), "b"),
        (Text("f", 1, "a b c d e f"), "a b c", " d e f"),
        (Text("f", 1, "abcdef"), "abc", "def"),
        (Text("f", 1, "a"), "a", ""),
        (Text("f", 1, ""), "", ""),
        (Text("f", 1, "abcd " * 99), "abcd " * 11 + "abcd", " " + "abcd " * 87),
        (tokens_row("abcd", "0011"), "ab", "cd"),
        (tokens_row("abcd", "1111"), "ab", "cd"),
        (tokens_row("abcd", "0000"), "abcd", ""),
        (tokens_row("<s>abc", "0001"), "<s>ab", "c"),
    ],
)
def test_the_first_exchange_is_the_first_question_and_its_answer(row, prompt, answer):
    assert templates.first_exchange(row, make_tokenizer()) == (prompt, answer)


def test_a_model_that_does_not_chat_is_asked_in_plain_text():
    exchange = templates.first_exchange(Question("f", 1, "a", "b"), make_tokenizer(None))
    assert exchange == ("### Instruction:\na\n\n### Response:\n", "b")
