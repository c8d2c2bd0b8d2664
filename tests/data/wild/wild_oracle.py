"""The tokens of a chat that must be supervised, derived without jaxft and compared with jaxft's.

The law: before reply `i` a model is given what transformers' `apply_chat_template` makes of the
messages before it, with `add_generation_prompt`; it then generates the reply as the family's table
says it. So the tokens of prompt and reply together begin an example, those of the reply are
supervised, and no other token is. One example has all replies where transformers' rendering of the
whole chat has each of them as it is generated; else each has an example of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from wild_build import Family, encode, make_tokenizer

from jaxft.data.examples.tokens import Encoded
from jaxft.data.rows.row import Message


def render(tokenizer: Any, messages: Sequence[Message], *, is_prompt: bool, **given: Any) -> str:
    """Return transformers' rendering of a chat."""
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=is_prompt, **given
    )
    assert isinstance(text, str)
    return text


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Return a text's tokens, special ones as it spells them, none added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def replies_of(family: Family, messages: Sequence[Message]) -> dict[int, str]:
    """Return every reply of a chat as the family generates it, by its message's index."""
    return {
        index: family.reply(message)
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    }


def assert_supervised(
    family: Family,
    messages: Sequence[Message],
    encoded: Encoded,
    replies: Mapping[int, str] | None = None,
    tokenizer: Any = None,
    **given: Any,
) -> None:
    """Compare what is supervised with what the model would have to generate.

    Args:
        family: Whose templates and tokens.
        messages: The chat.
        encoded: What jaxft makes of it.
        replies: What is to be supervised, by its message's index; all replies, if None.
        tokenizer: Another one than the family's standard one.
        given: Further variables of the template, tools among them.
    """
    tokenizer = tokenizer or make_tokenizer(family)
    replies = replies_of(family, messages) if replies is None else replies
    given = {**family.kwargs, **given}
    # transformers itself, tokens included; the texts below only say how long things are.
    prompts = {
        index: (
            render(tokenizer, messages[:index], is_prompt=True, **given),
            tokenizer.apply_chat_template(
                list(messages[:index]), add_generation_prompt=True, return_dict=True, **given
            )["input_ids"],
        )
        for index in replies
    }
    whole = render(tokenizer, messages, is_prompt=False, **given)
    ends = [prompt + replies[index] for index, (prompt, _) in prompts.items()]
    last = max(replies) == len(messages) - 1
    is_one = all(
        whole.startswith(end) or (last and end is ends[-1] and end.startswith(whole))
        for end in ends
    )
    assert len(encoded.examples) == (1 if is_one else len(replies))
    texts = [max(whole, ends[-1], key=len)] * len(replies) if is_one else ends
    masks = [np.zeros(len(example.input_ids), np.uint8) for example in encoded.examples]
    stop_ids = {tokenizer.convert_tokens_to_ids(stop) for stop in family.stops}
    for number, (index, text) in enumerate(zip(replies, texts, strict=True)):
        at = 0 if is_one else number
        supervised = encoded.examples[at].input_ids.tolist()
        expected = ids_of(tokenizer, text)
        # The text of one reply alone may go on behind it, with what the template writes there.
        assert supervised[: len(expected)] == expected
        assert len(supervised) == len(expected) or not is_one
        _, prompt_ids = prompts[index]
        assert supervised[: len(prompt_ids)] == prompt_ids
        stop = len(ids_of(tokenizer, ends[number]))
        masks[at][len(prompt_ids) : stop] = 1
        assert supervised[stop - 1] in stop_ids | encoded.end_ids
    for example, mask in zip(encoded.examples, masks, strict=True):
        mask[:1] = 0
        assert example.loss_mask.tolist() == mask.tolist()


def check(family: Family, *messages: Message, **given: Any) -> Encoded:
    """Encode a chat of plain replies, compare it, and return what became of it."""
    encoded = encode(family, *messages, **given)
    of_template = {name: value for name, value in given.items() if name == "tools"}
    assert_supervised(family, messages, encoded, tokenizer=given.get("tokenizer"), **of_template)
    return encoded


def supervised_texts(tokenizer: Any, encoded: Encoded) -> list[str]:
    """Return each run of supervised tokens, decoded."""
    texts = []
    for example in encoded.examples:
        edges = np.flatnonzero(np.diff(np.pad(example.loss_mask, 1)))
        texts += [
            tokenizer.decode(example.input_ids[start:stop].tolist())
            for start, stop in edges.reshape(-1, 2)
        ]
    return texts


def text_of(tokenizer: Any, encoded: Encoded) -> list[str]:
    """Return each example, decoded."""
    return [tokenizer.decode(example.input_ids.tolist()) for example in encoded.examples]
