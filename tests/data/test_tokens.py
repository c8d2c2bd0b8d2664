from __future__ import annotations

import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
from data_builders import CHATML, LLAMA3, MISTRAL, make_encoding, make_tokenizer
from hypothesis import strategies as st

from jaxft.data.chats import exchange
from jaxft.data.examples import render, tokens
from jaxft.data.rows.row import Dialogue, RowPlace, Text, TextCompletion, Tokenized
from jaxft.errors import DataError

TOKENIZERS = {
    name: make_tokenizer(template, adds_start=name in ("llama3", "mistral"))
    for name, template in {
        "chatml": CHATML,
        "llama3": LLAMA3,
        "mistral": MISTRAL,
    }.items()
}
TEXTS = st.text(st.sampled_from("helt: \n.é\u2028😀"), max_size=12)


PLACE = RowPlace("f", 1)


def encode(row, tokenizer) -> tokens.Example:
    """Return the one example that a row gives."""
    (example,) = tokens.encode_row(row, make_encoding(tokenizer)).examples
    return example


def chat(*contents: str) -> Dialogue:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return Dialogue(PLACE, messages)


def cut(text: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
    """Return the pieces of a text: not supervised, supervised, not supervised, and so on."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis.given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_a_chat_has_the_ids_of_its_whole_text(name, pairs):
    row = chat(*itertools.chain(*pairs))
    tokenizer = TOKENIZERS[name]
    whole = tokenizer.apply_chat_template(list(row.messages), return_dict=True)["input_ids"]
    assert encode(row, tokenizer).input_ids.tolist() == whole


@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis.given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_pieces_that_tokenize_alone_as_together_give_the_same_mask(name, pairs):
    tokenizer = TOKENIZERS[name]
    for row in (chat(*itertools.chain(*pairs)), TextCompletion(PLACE, *pairs[0])):
        (rendered,) = render.render_row(row, make_encoding(tokenizer))
        pieces = [
            tokenizer(text, add_special_tokens=rendered.is_plain and index == 0)["input_ids"]
            for index, text in enumerate(cut(rendered.text, rendered.spans))
        ]
        example = encode(row, tokenizer)
        hypothesis.assume(list(itertools.chain(*pieces)) == example.input_ids.tolist())
        expected = [index % 2 for index, piece in enumerate(pieces) for _ in piece]
        assert example.loss_mask.tolist() == [0, *expected[1:]]


def test_a_token_across_the_start_of_a_completion_is_supervised_whole():
    tokenizer = make_tokenizer()
    example = encode(TextCompletion(PLACE, "a h", "e."), tokenizer)
    names = tokenizer.convert_ids_to_tokens(example.input_ids)
    assert names == ["a", "Ġ", "he", ".", "</s>"]
    assert example.loss_mask.tolist() == [0, 0, 1, 1, 1]


def test_the_first_token_is_never_a_target():
    example = encode(TextCompletion(PLACE, "", "ab"), make_tokenizer())
    assert example.loss_mask.tolist() == [0, 1, 1]


def test_a_start_token_lets_the_first_word_be_a_target():
    tokenizer = make_tokenizer(adds_start=True)
    example = encode(TextCompletion(PLACE, "", "ab"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["<s>", "a", "b", "</s>"]
    assert example.loss_mask.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("adds_end", [False, True])
@pytest.mark.parametrize("prompt", ["a", "<s>a"])
def test_start_and_end_tokens_are_never_doubled(prompt, adds_end):
    tokenizer = make_tokenizer(adds_start=True, adds_end=adds_end)
    example = encode(TextCompletion(PLACE, prompt, "b"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["<s>", "a", "b", "</s>"]
    assert example.loss_mask.tolist() == [0, 0, 1, 1]


def test_a_template_that_writes_the_start_token_gets_no_second_one():
    tokenizer = make_tokenizer(LLAMA3, adds_start=True)
    ids = encode(chat("a", "b"), tokenizer).input_ids
    assert np.sum(ids == tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_for_generation_is_how_the_training_row_begins(name):
    tokenizer = TOKENIZERS[name]
    for row in (
        chat("a", "b", "c", "d"),
        Dialogue(PLACE, chat("a", "b").messages, num_prompt=1),
        TextCompletion(PLACE, "a:", "b"),
    ):
        ids = tokens.encode_prompt(exchange.first_exchange(row, tokenizer).prompt, tokenizer)
        example = encode(row, tokenizer)
        assert example.input_ids[: len(ids)].tolist() == ids
        assert not example.loss_mask[: len(ids)].any()
        assert example.loss_mask[len(ids)] == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis.given(text=TEXTS)
def test_a_text_is_its_tokens_and_an_end_all_supervised_but_the_first(name, text):
    tokenizer = TOKENIZERS[name]
    example = encode(Text(PLACE, text), tokenizer)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert example.input_ids.tolist() == ids
    is_blank = not text.strip()
    assert example.loss_mask.tolist() == [0] + [0 if is_blank else 1] * (len(ids) - 1)


@pytest.mark.parametrize("adds_end", [False, True])
def test_a_text_that_spells_its_start_and_end_has_them_once(adds_end):
    tokenizer = make_tokenizer(adds_start=True, adds_end=adds_end)
    for text in ("ab", "<s>ab", "ab</s>", "<s>ab</s>"):
        example = encode(Text(PLACE, text), tokenizer)
        assert tokenizer.convert_ids_to_tokens(example.input_ids) == ["<s>", "a", "b", "</s>"]
        assert example.loss_mask.tolist() == [0, 1, 1, 1]


def test_tokens_pass_through_and_their_mask_is_not_shared():
    row = Tokenized(PLACE, np.array([7, 3], np.int32), np.array([1, 1], np.uint8))
    example = encode(row, None)
    assert (example.input_ids.tolist(), example.loss_mask.tolist()) == ([7, 3], [0, 1])
    assert row.loss_mask.tolist() == [1, 1]


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(DataError, match="f:1: the row is text and there is no tokenizer"):
        encode(Text(PLACE, "a"), None)


def test_a_prompt_for_generation_is_left_open_by_a_tokenizer_that_closes_texts():
    tokenizer = make_tokenizer(adds_start=True, adds_end=True)
    ids = tokens.encode_prompt("a", tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "a"]


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False
        eos_token = "</s>"

    with pytest.raises(DataError, match="Slow cannot say where"):
        tokens.encode_row(
            TextCompletion(PLACE, "a", "b"),
            dataclasses.replace(make_encoding(make_tokenizer()), tokenizer=Slow()),
        )


def test_offsets_that_do_not_follow_the_text_are_refused(monkeypatch):
    real = tokens._encodings(["ab</s>"], make_tokenizer(), is_plain=True)[0]

    class Broken:
        ids, special_tokens_mask = real.ids, real.special_tokens_mask

        def char_to_token(self, at):
            return None

    monkeypatch.setattr(tokens, "_encodings", lambda *_, **__: [Broken()])
    with pytest.raises(DataError, match="offsets do not follow the text"):
        encode(TextCompletion(PLACE, "a", "b"), make_tokenizer())


def test_rows_give_alone_what_they_give_in_a_batch():
    tokenizer = TOKENIZERS["llama3"]
    rows = [chat("a", "b"), Text(PLACE, "ab"), TextCompletion(PLACE, "a", "b"), chat("c", " d ")]
    encoding = make_encoding(tokenizer)
    together = tokens.encode_rows(rows, encoding)
    for row, encoded in zip(rows, together, strict=True):
        alone = tokens.encode_row(row, encoding)
        assert (encoded.end_ids, encoded.notes) == (alone.end_ids, alone.notes)
        for one, other in zip(encoded.examples, alone.examples, strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.loss_mask.tolist() == other.loss_mask.tolist()
