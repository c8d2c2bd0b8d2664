"""Long chats and long words: the same law, at a cost that grows with what is written."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils import chat_template_utils
from wild_build import (
    EDGE_MERGES,
    Family,
    assistant,
    calling,
    dialogue,
    encode,
    encoding,
    make_tokenizer,
    system,
    tool,
    user,
)
from wild_families import each_family, each_of
from wild_oracle import assert_supervised, supervised_texts, text_of
from wild_templates_ends import GLM_4, MISTRAL_3, PHI_3, QWEN_15_FIRST, SOLAR
from wild_templates_plain import CHATML, GEMMA_3, LLAMA_2, LLAMA_3
from wild_templates_thinking import QWEN_3, QWEN_25, R1_DISTILL, SMOLLM_3

from jaxft.data.examples import tokens
from jaxft.data.rows.row import RowPlace, TextCompletion


def long_chat(turns: int) -> list[dict[str, Any]]:
    pairs = [(user(f"And {i} times two?"), assistant(f"It is {2 * i}.")) for i in range(turns)]
    return [message for pair in pairs for message in pair]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The characters of every text that a template is made to write."""
    lengths: list[int] = []
    render: Any = chat_template_utils.render_jinja_template

    def counted(*args: Any, **kwargs: Any) -> Any:
        texts, marks = render(*args, **kwargs)
        lengths.extend(len(text) for text in texts)
        return texts, marks

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", counted)
    return lengths


@each_family
def test_no_more_is_rendered_than_a_few_times_what_is_supervised_from(family: Family, rendered):
    """One text for a chat, or one a reply: what is rendered stays in proportion to them."""
    tokenizer = make_tokenizer(family)
    for turns in (10, 60):
        rendered.clear()
        encoded = encode(family, *long_chat(turns))
        characters = sum(map(len, text_of(tokenizer, encoded)))
        # A chat of a new outline is written with markers too, to its end and to some replies.
        assert sum(rendered) <= 12 * characters
        assert len(encoded.examples) in (1, turns)


@each_of([CHATML, LLAMA_2, LLAMA_3, GEMMA_3, PHI_3, GLM_4, QWEN_15_FIRST, QWEN_25, SMOLLM_3])
@pytest.mark.parametrize("answer", ["It is {}.", " {} ", "{{ {} }}", "a <|im_end|> {}"])
def test_what_is_rendered_of_one_text_grows_with_its_turns(family: Family, answer: str, rendered):
    costs = []
    for turns in (40, 160):
        chat = [
            {**message, "content": answer.replace("{}", str(index))} if index % 2 else message
            for index, message in enumerate(long_chat(turns))
        ]
        rendered.clear()
        encode(family, *chat)
        costs.append(sum(rendered) / turns)
    assert costs[1] <= 1.5 * costs[0]


@pytest.mark.parametrize("kind", ["blank replies", "calls of tools", "a tag"])
@each_of([LLAMA_3, QWEN_25])
def test_unusual_replies_cost_no_more_as_a_chat_grows(family: Family, kind: str, rendered):
    reply = {
        "blank replies": [assistant("")],
        "calls of tools": [calling("add", a=1), tool("4"), assistant("four")],
        "a tag": [assistant("</think> four")],
    }[kind]
    costs = []
    for turns in (10, 40):
        rendered.clear()
        encode(family, *[each for _ in range(turns) for each in (user("2 + 2?"), *reply)])
        costs.append(sum(rendered) / turns)
    assert costs[1] <= 1.5 * costs[0]


def test_a_second_chat_of_a_known_outline_is_rendered_once(rendered):
    settings = encoding(CHATML)
    tokens.encode_row(dialogue(*long_chat(40)), settings)
    rendered.clear()
    other = [{**each, "content": each["content"].upper()} for each in long_chat(40)]
    tokens.encode_row(dialogue(*other), settings)
    assert len(rendered) == 1


@each_of([CHATML, LLAMA_2, LLAMA_3, PHI_3, GLM_4, SMOLLM_3])
def test_300_turns_are_all_supervised(family: Family):
    chat = long_chat(300)
    texts = supervised_texts(make_tokenizer(family), encode(family, *chat))
    assert texts == [family.reply(message).rstrip("\n") for message in chat[1::2]]


@each_of([R1_DISTILL, SOLAR])
def test_100_turns_of_a_template_that_rewrites_are_100_examples(family: Family):
    chat = long_chat(100)
    encoded = encode(family, *chat)
    assert len(encoded.examples) == 100
    texts = supervised_texts(make_tokenizer(family), encoded)
    assert texts == [family.reply(message) for message in chat[1::2]]


@each_of([PHI_3, MISTRAL_3])
def test_a_row_of_a_megabyte_is_exact(family: Family):
    words = "hello \ud55c\uad6d \U0001f44d {{ x }}\n" * 20_000
    chat = (system("Be brief."), user(words), assistant(words), user("3?"), assistant("five"))
    assert sum(len(message["content"].encode()) for message in chat) > 1_000_000
    tokenizer = make_tokenizer(family)
    texts = supervised_texts(tokenizer, encode(family, *chat, tokenizer=tokenizer))
    assert texts == [family.reply(chat[2]).rstrip(), family.reply(chat[4]).rstrip()]


@each_family
def test_tokens_that_merge_over_the_edge_of_a_reply_are_those_of_the_whole_text(family: Family):
    """A token of prompt and reply both is supervised whole, as trainers do; no other one is cut."""
    tokenizer = make_tokenizer(family, EDGE_MERGES)
    for answer in ("four", "\nfour", " the", "\n\n", "  four  \n", "the\n"):
        if not (family.settles_blanks or answer.strip()):
            continue
        chat = (user("2 + 2?"), assistant(answer))
        (example,) = encode(family, *chat, tokenizer=tokenizer).examples
        prompt = tokenizer.apply_chat_template(
            [chat[0]], tokenize=False, add_generation_prompt=True, **family.kwargs
        )
        ids = example.input_ids.tolist()
        text = prompt + family.reply(chat[1])
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[: len(expected)] == expected
        supervised = tokenizer.decode(example.input_ids[example.loss_mask == 1].tolist())
        reply = family.reply(chat[1]).rstrip("\n")
        assert supervised.strip().endswith(family.closing.strip())
        assert "".join(reply.split()) == "".join(supervised.split()).removeprefix(":")


def test_edges_of_plain_text_follow_the_same_rule():
    tokenizer = make_tokenizer(CHATML, EDGE_MERGES)
    settings = encoding(CHATML, tokenizer)
    row = TextCompletion(RowPlace("f", 1), "2 + 2:\n", "\nfour")
    (example,) = tokens.encode_row(row, settings).examples
    whole = "2 + 2:\n\nfour<|im_end|>"
    assert example.input_ids.tolist() == tokenizer(whole)["input_ids"]
    supervised = tokenizer.decode(example.input_ids[example.loss_mask == 1].tolist())
    assert supervised == "\n\nfour<|im_end|>"


@each_of([CHATML, QWEN_3, PHI_3, GLM_4])
def test_letters_of_many_bytes_are_cut_nowhere(family: Family):
    """Each of these is several tokens of the byte-level tokenizer, at the very edges of a reply."""
    for letter in (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\ud55c",
        "\u1112\u1161\u11ab",
        "\ufeff",
    ):
        chat = (user(letter), assistant(letter), user(letter * 2), assistant(letter * 2))
        encoded = encode(family, *chat)
        assert_supervised(family, chat, encoded)
