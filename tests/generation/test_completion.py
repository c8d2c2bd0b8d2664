"""Prompts to answers: whole or streamed, as plain text or as a chat."""

from __future__ import annotations

import dataclasses
from typing import Any

import byte_tokenizer
import pytest
import tiny

from jaxft.errors import DataError
from jaxft.generation import completion, text
from jaxft.generation.completion import Generator
from jaxft.generation.decoding import CachedDecoder
from jaxft.generation.sampling import GREEDY
from jaxft.models.network import base_network

NETWORK = base_network(dataclasses.replace(tiny.SPEC, vocab_size=byte_tokenizer.VOCAB_SIZE))
TREE = tiny.random_leaves(NETWORK, seed=1)
CHAT = [{"role": "user", "content": "Wer sind Sie? é"}]
DRAWN = dataclasses.replace(GREEDY, temperature=2.0, seed=3)


@pytest.fixture(scope="module")
def generator(byte_level: Any) -> Generator:
    decoder = CachedDecoder(NETWORK, stop_ids=(0,), mesh=tiny.one_device(), dtype="float32")
    return Generator(decoder, byte_level)


@pytest.mark.parametrize("how", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("prompt", ["In the beginning", CHAT], ids=["plain", "chat"])
def test_a_stream_joins_to_the_whole_answer(generator, prompt, how):
    pieces = list(completion.stream(generator, TREE, prompt, max_new_tokens=40, how=how))
    assert len(pieces) > 1
    assert completion.complete(generator, TREE, [prompt], max_new_tokens=40, how=how) == [
        "".join(pieces)
    ]


def test_a_batch_of_unlike_prompts_gets_each_ones_answer(generator):
    prompts = ["In the beginning", CHAT, "x"]
    answers = completion.complete(generator, TREE, prompts, max_new_tokens=12, how=GREEDY)
    assert len(set(answers)) == 3
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = completion.complete(generator, TREE, [prompt], max_new_tokens=12, how=GREEDY)
        assert alone == [answer]


def test_a_chat_is_answered_after_the_opening_of_the_assistants_turn(generator, byte_level):
    rendered = "<|start|>user\nWer sind Sie? é<|end|>\n<|start|>assistant\n"
    rows = generator.decoder.rows(
        TREE, [byte_level(rendered)["input_ids"]], max_new_tokens=12, how=GREEDY
    )
    assert completion.complete(generator, TREE, [CHAT], max_new_tokens=12, how=GREEDY) == [
        text.decode(byte_level, rows[0])
    ]


def test_a_question_is_a_message_only_to_a_model_that_chats(byte_level, byte_fallback):
    assert completion.as_question("Why?", byte_level) == [{"role": "user", "content": "Why?"}]
    assert completion.as_question("Why?", byte_fallback) == "Why?"


def test_an_empty_prompt_is_refused(generator):
    with pytest.raises(DataError, match="no token"):
        completion.complete(generator, TREE, [""], max_new_tokens=1, how=GREEDY)
