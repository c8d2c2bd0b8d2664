"""Every family: each reply is supervised as it is generated, with its stop, and nothing else is."""

from __future__ import annotations

import pytest
from wild_build import Family, assistant, encode, make_tokenizer, system, user
from wild_families import each_family
from wild_oracle import check, supervised_texts
from wild_templates_ends import GLM_4, PHI_3, PHI_35, QWEN_25_BASE, SOLAR
from wild_templates_plain import DEEPSEEK_2, GEMMA_2, LLAMA_2

# Contents that stand for each other nowhere: white space at their edges, nothing at all, special
# tokens spelled out, braces of the template's language, letters of several bytes, line ends.
WORDS = {
    "words": "four",
    "one letter": "4",
    "white space before": "  four",
    "white space behind": "four \n",
    "line feeds around": "\n\nfour\n\n",
    "a word of the template": "assistant",
    "braces": "{{ messages }} {% raise %} {# no #}",
    "a stop in it": "a</s>b<|im_end|>c<|end|>d<|eot_id|>e",
    "a stop behind": "four</s><|im_end|>",
    "the end of a turn and the next": "four<|im_end|>\n<|im_start|>user\nfive",
    "the question": "2 + 2?",
    "composed": "\ud55c\uad6d\uc5b4",
    "decomposed": "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "emoji": "\U0001f44d\U0001f3fd\u200d\U0001f680",
    "token 0": "!!!",
    "byte-order mark": "\ufefffour",
    "carriage return": "four\r\nfive\r\n",
    "other line ends": "four\u2028five\x85\x0b\x0c",
    "a zero byte": "a\x00b",
}


BLANKS = {"nothing": "", "a space": " ", "a line feed": "\n", "line feeds": "\n\n"}


@each_family
def test_one_turn_is_supervised_with_its_stop(family: Family):
    encoded = check(family, user("2 + 2?"), assistant("four"))
    assert len(encoded.examples) == 1


@each_family
def test_several_turns_are_supervised_each_with_its_stop(family: Family):
    check(
        family,
        user("2 + 2?"),
        assistant("four"),
        user("And 3?"),
        assistant("seven"),
        user("four?"),
        assistant("four"),
    )


@each_family
def test_a_system_message_is_written_and_not_supervised(family: Family):
    if not family.takes_system:
        pytest.skip("this family refuses a system message")
    chat = (system("Be brief."), user("2 + 2?"), assistant("four"))
    tokenizer = make_tokenizer(family)
    for encoded in (check(family, *chat), check(family, *chat, user("3?"), assistant("five"))):
        for example in encoded.examples:
            assert "Be brief." in tokenizer.decode(example.input_ids.tolist())


@each_family
@pytest.mark.parametrize("name", WORDS)
def test_answers_of_all_kinds_are_supervised_exactly(family: Family, name: str):
    check(family, user("2 + 2?"), assistant(WORDS[name]))
    check(family, user("2 + 2?"), assistant(WORDS[name]), user("3?"), assistant("five"))
    check(family, user("2 + 2?"), assistant("four"), user("3?"), assistant(WORDS[name]))


@each_family
def test_questions_of_all_kinds_change_nothing_of_what_is_supervised(family: Family):
    for words in (*WORDS.values(), *BLANKS.values()):
        check(family, user(words), assistant("four"), user(words), assistant("five"))


@each_family
@pytest.mark.parametrize("name", BLANKS)
def test_blank_answers_are_supervised_as_a_stop(family: Family, name: str):
    """Where a template has no end of its own, what is left of white space is not settled."""
    blank = assistant(BLANKS[name])
    for chat in (
        (user("2 + 2?"), blank),
        (user("2 + 2?"), blank, user("3?"), assistant("five")),
        (user("2 + 2?"), assistant("four"), user("3?"), blank),
    ):
        if family.settles_blanks:
            encoded = check(family, *chat)
        else:
            encoded = encode(family, *chat)
            texts = supervised_texts(make_tokenizer(family), encoded)
            stops = [text.removeprefix(family.opening).strip() for text in texts]
            words = ["" if message is blank else message["content"] for message in chat[1::2]]
            assert [stop[: len(said)] for stop, said in zip(stops, words, strict=True)] == words
            for stop, said in zip(stops, words, strict=True):
                assert stop[len(said) :] in family.stops
        assert "blank_reply" in encoded.notes


@each_family
def test_a_chat_that_ends_with_a_question_has_its_replies_supervised(family: Family):
    check(family, user("2 + 2?"), assistant("four"), user("3?"))
    check(family, user("2 + 2?"), assistant("four"), user(""))
    check(family, user("2 + 2?"), assistant("four"), user("3?"), assistant("five"), user("4?"))


def test_the_table_of_replies_says_what_people_see():
    """The oracle's own proof, for some families, written out."""
    chat = (user("2 + 2?"), assistant(" four "), user("3?"), assistant("five"))
    for family, *texts in (
        (LLAMA_2, " four </s>", " five </s>"),
        (PHI_3, "four <|end|>", "five<|end|>"),
        (PHI_35, "four <|end|>", "five<|end|>"),
        (DEEPSEEK_2, "  four " + DEEPSEEK_2.eos, " five" + DEEPSEEK_2.eos),
        (GEMMA_2, "four<end_of_turn>", "five<end_of_turn>"),
        (GLM_4, "\n four <|user|>", "\nfive<|user|>"),
        (SOLAR, " four </s>", "five</s>"),
        (QWEN_25_BASE, " four <|im_end|>", "five<|im_end|>"),
    ):
        assert supervised_texts(make_tokenizer(family), encode(family, *chat)) == texts


@each_family
def test_the_end_of_a_reply_is_reported(family: Family):
    """It is what generation_config must have, whatever the model stopped at before."""
    tokenizer = make_tokenizer(family)
    encoded = encode(family, user("2 + 2?"), assistant("four"))
    closing = family.closing.strip()
    assert tokenizer.convert_ids_to_tokens(sorted(encoded.end_ids)) == [closing]
