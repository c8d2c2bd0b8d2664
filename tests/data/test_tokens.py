from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import pytest
from data_builders import CHATML, LLAMA3, MISTRAL, QWEN3, make_tokenizer
from hypothesis import strategies as st

from jaxft.data import templates, tokens
from jaxft.data.rows import (
    ChatCompletion,
    Conversation,
    Question,
    Text,
    TextCompletion,
    Tokenized,
)
from jaxft.errors import DataError

TOKENIZERS = {
    name: make_tokenizer(template, adds_start=name in ("llama3", "mistral"))
    for name, template in {
        "chatml": CHATML,
        "llama3": LLAMA3,
        "mistral": MISTRAL,
        "qwen3": QWEN3,
    }.items()
}
TEXTS = st.text(st.sampled_from("helt: \n.é\u2028😀"), max_size=12)


def chat(*contents: str) -> Conversation:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return Conversation("f", 1, messages)


def cut(text: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
    """Return the pieces of a text: not learned, learned, not learned, and so on."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis.given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_a_chat_has_the_ids_of_its_whole_text(name, pairs):
    row = chat(*itertools.chain(*pairs))
    tokenizer = TOKENIZERS[name]
    whole = tokenizer.apply_chat_template(list(row.messages), return_dict=True)["input_ids"]
    assert tokens.encode_row(row, tokenizer).input_ids.tolist() == whole


@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis.given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_pieces_that_tokenize_alone_as_together_give_the_same_mask(name, pairs):
    tokenizer = TOKENIZERS[name]
    for row in (chat(*itertools.chain(*pairs)), TextCompletion("f", 1, *pairs[0])):
        rendered = templates.render_row(row, tokenizer)
        pieces = [
            tokenizer(text, add_special_tokens=rendered.is_plain and index == 0)["input_ids"]
            for index, text in enumerate(cut(rendered.text, rendered.spans))
        ]
        example = tokens.encode_row(row, tokenizer)
        hypothesis.assume(list(itertools.chain(*pieces)) == example.input_ids.tolist())
        expected = [index % 2 for index, piece in enumerate(pieces) for _ in piece]
        assert example.loss_mask.tolist() == [0, *expected[1:]]


def test_a_token_across_the_start_of_a_completion_is_learned_whole():
    tokenizer = make_tokenizer()
    example = tokens.encode_row(TextCompletion("f", 1, "a h", "e."), tokenizer)
    names = tokenizer.convert_ids_to_tokens(example.input_ids)
    assert names == ["a", "Ġ", "he", ".", "</s>"]
    assert example.loss_mask.tolist() == [0, 0, 1, 1, 1]


def test_the_first_token_is_never_a_target():
    example = tokens.encode_row(TextCompletion("f", 1, "", "ab"), make_tokenizer())
    assert example.loss_mask.tolist() == [0, 1, 1]


def test_a_start_token_lets_the_first_word_be_a_target():
    tokenizer = make_tokenizer(adds_start=True)
    example = tokens.encode_row(TextCompletion("f", 1, "", "ab"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["<s>", "a", "b", "</s>"]
    assert example.loss_mask.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("adds_end", [False, True])
@pytest.mark.parametrize("prompt", ["a", "<s>a"])
def test_start_and_end_tokens_are_never_doubled(prompt, adds_end):
    tokenizer = make_tokenizer(adds_start=True, adds_end=adds_end)
    example = tokens.encode_row(TextCompletion("f", 1, prompt, "b"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["<s>", "a", "b", "</s>"]
    assert example.loss_mask.tolist() == [0, 0, 1, 1]


def test_a_template_that_writes_the_start_token_gets_no_second_one():
    tokenizer = make_tokenizer(LLAMA3, adds_start=True)
    ids = tokens.encode_row(chat("a", "b"), tokenizer).input_ids
    assert np.sum(ids == tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_for_generation_is_how_the_training_row_begins(name):
    tokenizer = TOKENIZERS[name]
    for row in (
        chat("a", "b", "c", "d"),
        ChatCompletion("f", 1, chat("a").messages, chat("a", "b").messages[1:]),
        TextCompletion("f", 1, "a:", "b"),
        Question("f", 1, "a", "b"),
    ):
        ids = tokens.encode_prompt(templates.first_exchange(row, tokenizer).prompt, tokenizer)
        example = tokens.encode_row(row, tokenizer)
        assert example.input_ids[: len(ids)].tolist() == ids
        assert not example.loss_mask[: len(ids)].any()
        assert example.loss_mask[len(ids)] == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis.given(text=TEXTS)
def test_a_text_is_its_tokens_and_an_end_all_learned_but_the_first(name, text):
    tokenizer = TOKENIZERS[name]
    example = tokens.encode_row(Text("f", 1, text), tokenizer)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert example.input_ids.tolist() == ids
    is_blank = not text.strip()
    assert example.loss_mask.tolist() == [0] + [0 if is_blank else 1] * (len(ids) - 1)


@pytest.mark.parametrize("adds_end", [False, True])
def test_a_text_that_spells_its_start_and_end_has_them_once(adds_end):
    tokenizer = make_tokenizer(adds_start=True, adds_end=adds_end)
    for text in ("ab", "<s>ab", "ab</s>", "<s>ab</s>"):
        example = tokens.encode_row(Text("f", 1, text), tokenizer)
        assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["<s>", "a", "b", "</s>"]
        assert example.loss_mask.tolist() == [0, 1, 1, 1]


def test_tokens_pass_through_and_their_mask_is_not_shared():
    row = Tokenized("f", 1, np.array([7, 3], np.int32), np.array([1, 1], np.uint8))
    example = tokens.encode_row(row, None)
    assert (example.input_ids.tolist(), example.loss_mask.tolist()) == ([7, 3], [0, 1])
    assert row.loss_mask.tolist() == [1, 1]


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(DataError, match="f:1: the row is text and there is no tokenizer"):
        tokens.encode_row(Text("f", 1, "a"), None)


def test_a_prompt_for_generation_is_left_open_by_a_tokenizer_that_closes_texts():
    tokenizer = make_tokenizer(adds_start=True, adds_end=True)
    ids = tokens.encode_prompt("a", tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "a"]


def test_a_tokenizer_without_offsets_is_refused(monkeypatch):
    class Slow:
        is_fast = False
        eos_token = "</s>"

    with pytest.raises(DataError, match="Slow cannot say where"):
        tokens.encode_row(TextCompletion("f", 1, "a", "b"), Slow())


@pytest.mark.parametrize(
    "damage",
    [
        lambda offsets: [(start, start) for start, _ in offsets],
        lambda offsets: offsets[::-1],
    ],
)
def test_offsets_that_do_not_follow_the_text_are_refused(damage):
    tokenizer = make_tokenizer()

    class Broken:
        is_fast = True
        eos_token = "</s>"
        eos_token_id = bos_token_id = -1

        def __call__(self, text, **options):
            encoded = tokenizer(text, **options)
            return encoded | {"offset_mapping": damage(encoded["offset_mapping"])}

    with pytest.raises(DataError, match="offsets do not follow the text"):
        tokens.encode_row(TextCompletion("f", 1, "a", "b"), Broken())
