r"""Families of chat models as they are found in the wild, and what must be supervised with each.

How the folder works. `wild_templates_plain`, `wild_templates_ends` and `wild_templates_thinking`
hold one `Family` for each kind of model: a chat template (reduced, in our own words, the same as
the stock one in what matters), its special tokens with their flags, its end token, the tokens at
which it stops, and, written by hand, how the model would generate a reply: for Llama 2 the reply
`4` is ` 4 </s>`. `wild_oracle` derives from that, and from transformers' `apply_chat_template`
alone, which tokens must be supervised, and compares them with those that jaxft supervises. The
tests name the cases. Only `encoding` and `encode` call jaxft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import byte_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from jaxft.data.chats.encoding import Encoding
from jaxft.data.examples import tokens
from jaxft.data.examples.tokens import Encoded
from jaxft.data.rows.row import Dialogue, Message, RowPlace
from jaxft.errors import DataError

# Pairs that merge inside words alone, so that no token stands across the edge of a reply.
WORD_MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("ì", "Ĺ"), ("s", "s"))
# Pairs that merge across it, as they do in real vocabularies.
EDGE_MERGES = (*WORD_MERGES, ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "t"), (":", "Ċ"))


def as_it_is(text: str) -> str:
    return text


class Family(NamedTuple):
    r"""A kind of chat model.

    Attributes:
        name: What tests call it.
        template: The Jinja text.
        tokens: Its special tokens; those with flags as `AddedToken`.
        eos: The tokenizer's end token.
        stops: The tokens at which generation stops, as generation_config.json has them.
        opening: What is generated before the words, such as `<think>\n\n</think>\n\n`.
        closing: What is generated after the words, the stop included.
        clean: What the template makes of the words of a message.
        bos: The tokenizer's start token, if it has one.
        pad: The padding token, if it has one.
        takes_system: Whether a system message is written.
        kwargs: Variables that are given to the template.
        settles_blanks: Whether the template says where a blank reply ends.
    """

    name: str
    template: str
    tokens: tuple[str | AddedToken, ...]
    eos: str
    stops: tuple[str, ...]
    opening: str
    closing: str
    clean: Callable[[str], str] = as_it_is
    bos: str | None = None
    pad: str | None = None
    takes_system: bool = True
    kwargs: dict[str, Any] = {}  # noqa: RUF012, a tuple's default is never changed
    settles_blanks: bool = True

    def reply(self, message: Message) -> str:
        """Return what the model generates for a message without thoughts and calls."""
        return self.opening + self.clean(message["content"]) + self.closing


def swallowing(text: str, *, left: bool = False, right: bool = False) -> AddedToken:
    """Return a special token that takes the white space beside it with it."""
    return AddedToken(text, lstrip=left, rstrip=right, normalized=False, special=True)


def make_tokenizer(
    family: Family, merges: Sequence[tuple[str, str]] = WORD_MERGES
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a family's special tokens and template.

    It is made once for each family, as a run has one.
    """
    key = repr((family, merges))
    if key not in _TOKENIZERS:
        _TOKENIZERS[key] = _made(family, merges)
    return _TOKENIZERS[key]


_TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {}


def _made(family: Family, merges: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    return byte_tokenizer.make(
        last=[each if isinstance(each, AddedToken) else swallowing(each) for each in family.tokens],
        merges=merges,
        keeps_words=merges == WORD_MERGES,
        chat_template=family.template,
        **{name: token for name, token in named.items() if token},
    )


def encoding(family: Family, tokenizer: Any = None, **changes: Any) -> Encoding:
    """Return how a family's rows become tokens."""
    tokenizer = tokenizer or make_tokenizer(family)
    settings: dict[str, Any] = {
        "train_on": "assistant",
        "train_on_reasoning": True,
        "template_kwargs": family.kwargs,
        "max_length": 4096,
        "overlong": "truncate",
    }
    stop_ids = tuple(map(tokenizer.convert_tokens_to_ids, family.stops))
    return Encoding(tokenizer, stop_ids, **{**settings, **changes})


def user(words: str) -> Message:
    return {"role": "user", "content": words}


def assistant(words: str, **further: Any) -> Message:
    return {"role": "assistant", "content": words, **further}


def system(words: str) -> Message:
    return {"role": "system", "content": words}


def tool(words: str, **further: Any) -> Message:
    return {"role": "tool", "content": words, **further}


def calling(name: str, words: str = "", **arguments: Any) -> Message:
    """Return an assistant's message that calls a tool."""
    function = {"name": name, "arguments": arguments}
    call = {"id": "abcde1234", "type": "function", "function": function}
    return assistant(words, tool_calls=[call])


# A tool as rows have it.
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def dialogue(*messages: Message, **further: Any) -> Dialogue:
    return Dialogue(RowPlace("f.jsonl", 7), messages, **further)


def encode(family: Family, *messages: Message, tokenizer: Any = None, **further: Any) -> Encoded:
    """Return what jaxft makes of a dialogue; `further` are fields of the row, or the encoding."""
    of_row = {
        name: further.pop(name)
        for name in ("num_prompt", "skipped", "tools", "template_kwargs")
        if name in further
    }
    row = dialogue(*messages, **of_row)
    return tokens.encode_row(row, encoding(family, tokenizer, **further))


def encode_or_refuse(family: Family, *messages: Message, **further: Any) -> Encoded | None:
    """Return what jaxft makes of a dialogue, None where it refuses it and names its place."""
    try:
        return encode(family, *messages, **further)
    except DataError as error:
        if not str(error).startswith("f.jsonl:7: "):
            raise
        return None
