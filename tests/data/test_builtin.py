"""The chat templates that jaxft brings."""

from __future__ import annotations

import pytest
from data_builders import make_encoding, make_tokenizer

from jaxft.config.data import BUILT_IN_TEMPLATES
from jaxft.data.chats import builtin
from jaxft.data.examples import tokens
from jaxft.data.rows.row import Dialogue, RowPlace
from jaxft.errors import DataError

CHAT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
)


def written(name: str, tokenizer, messages=CHAT) -> str:
    tokenizer.chat_template = builtin.resolve(name, tokenizer)
    return tokenizer.apply_chat_template(list(messages), tokenize=False)


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("alpaca", "### Instruction:", "### Response:"),
        ("alpaca-ko", "### 명령어:", "### 응답:"),
        ("qa-ko", "### 질문:", "### 답변:"),
    ],
)
def test_parts_stand_under_headings_and_replies_end(name, question, answer):
    assert written(name, make_tokenizer(None)) == (
        f"Be brief.\n\n{question}\nOne?\n\n{answer}\n1</s>\n\n{question}\nTwo?\n\n{answer}\n2</s>"
    )


def test_chatml_ends_turns_with_a_token_that_the_tokenizer_has():
    with_tokens = make_tokenizer(None)
    assert written("chatml", with_tokens, CHAT[1:3]) == (
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    )
    without = make_tokenizer(None, special_tokens=("<s>", "</s>"))
    assert written("chatml", without, CHAT[1:3]) == (
        "<|im_start|>user\nOne?</s>\n<|im_start|>assistant\n1</s>\n"
    )


def test_a_recipe_may_name_each_template_that_there_is():
    assert tuple(builtin.BUILT_IN) == BUILT_IN_TEMPLATES


@pytest.mark.parametrize("adds_start", [False, True])
@pytest.mark.parametrize("name", builtin.BUILT_IN)
def test_a_chat_begins_as_every_text_of_its_tokenizer_does(name, adds_start):
    tokenizer = make_tokenizer(None, adds_start=adds_start)
    tokenizer.chat_template = builtin.resolve(name, tokenizer)
    encoded = tokens.encode_row(Dialogue(RowPlace("f", 1), CHAT), make_encoding(tokenizer))
    ids = encoded.examples[0].input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == int(adds_start)
    assert ids[0] == tokenizer.bos_token_id or not adds_start


@pytest.mark.parametrize("name", builtin.BUILT_IN)
def test_replies_are_supervised_to_their_end(name):
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = builtin.resolve(name, tokenizer)
    encoded = tokens.encode_row(Dialogue(RowPlace("f", 1), CHAT), make_encoding(tokenizer))
    (example,) = encoded.examples
    supervised = tokenizer.decode(example.input_ids[example.loss_mask == 1])
    end = "<|im_end|>" if name == "chatml" else "</s>"
    assert supervised == f"1{end}2{end}"
    assert tokenizer.convert_ids_to_tokens(list(encoded.end_ids)) == [end]


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert written(str(tmp_path / "mine.jinja"), make_tokenizer(None)) == "Be brief."


def test_a_name_that_is_nothing_lists_the_built_in_ones():
    with pytest.raises(DataError, match="chatml, alpaca, alpaca-ko, qa-ko"):
        builtin.resolve("chatmml", make_tokenizer(None))


def test_a_role_without_a_place_is_refused():
    row = Dialogue(RowPlace("f", 4), ({"role": "tool", "content": "x"}, *CHAT[1:3]))
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = builtin.resolve("alpaca", tokenizer)
    with pytest.raises(DataError, match="f:4: the chat template refuses"):
        tokens.encode_row(row, make_encoding(tokenizer))
