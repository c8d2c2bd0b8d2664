"""The search for odd text in rows: broken encodings, invisible characters, unrendered marks.

`{"answer": "The cafÃ© is &amp; remains open."}` has two oddities: UTF-8 that was read as Latin-1,
and an entity of HTML. The search reads rows and not decoded tokens, because a tokenizer repairs
some oddities and a chat template adds special tokens. Almost all text is ordinary, so about 256 kB
of rows are tested at once, and single rows only for an oddity that some of them may have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxft import console
from jaxft.data.check import oddities
from jaxft.data.check.oddities import Oddity
from jaxft.data.rows.row import Dialogue, Row, Text, TextCompletion

_BATCH_CHARACTERS = 1 << 18
# Reading this takes about a minute. Later rows are not searched, and a finding says so.
MAX_CHARACTERS = 2_000_000_000
_NUM_SHOWN = 5
_SNIPPET = 30


@dataclasses.dataclass(frozen=True)
class Seen:
    """The rows with one kind of oddity.

    Attributes:
        count: The number of rows.
        first: The places of the first rows, each with an excerpt.
    """

    count: int
    first: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class TextScan:
    """The results of the search.

    Attributes:
        rows: The number of rows that were searched.
        characters: The number of characters in them.
        is_whole: Whether these are all rows.
        odd: The rows with each kind of oddity, by its name in `odd_texts.SENTENCES`.
    """

    rows: int
    characters: int
    is_whole: bool
    odd: dict[str, Seen]


# Answers that programs write when there is no answer.
_NO_ANSWERS = frozenset({"nan", "NaN", "null", "None", "undefined", "[deleted]", "[removed]"})


def scan(
    rows: Iterable[Row],
    special_tokens: Iterable[str],
    bos_token: str,
    eos_token: str,
    advance: Callable[[int], None],
) -> TextScan:
    """Search the texts of rows for oddities.

    Args:
        rows: The rows, which are read once.
        special_tokens: Texts that the tokenizer takes for special tokens, wherever they stand.
        bos_token: The start token, which may begin a plain text, or "".
        eos_token: The end token, which may end a plain text, or "".
        advance: Called with the number of rows of each batch.
    """
    watched = [*oddities.ODDITIES, oddities.spelled(special_tokens)]
    found: dict[str, Seen] = {}
    num_rows = num_characters = 0
    is_whole = True
    for batch in _batches(rows, bos_token, eos_token):
        if num_characters >= MAX_CHARACTERS:
            is_whole = False
            break
        num_rows += len(batch)
        num_characters += sum(len(text) for _, text in batch)
        _look(batch, watched, found)
        advance(len(batch))
    return TextScan(num_rows, num_characters, is_whole, found)


def text_of(row: Row) -> str:
    """Return all text of a row, with line feeds between its parts; "" for a row of tokens."""
    match row:
        case Dialogue():
            return "\n".join(message["content"] for message in row.messages)
        case TextCompletion():
            return f"{row.prompt}\n{row.completion}"
        case Text():
            return row.text
    return ""


def _batches(
    rows: Iterable[Row], bos_token: str, eos_token: str
) -> Iterator[list[tuple[Row, str]]]:
    """Yield rows with their texts, in batches of limited size."""
    batch: list[tuple[Row, str]] = []
    size = 0
    for row in rows:
        text = text_of(row)
        if isinstance(row, Text):
            text = text.removeprefix(bos_token).rstrip().removesuffix(eos_token)
        batch.append((row, text))
        size += len(text)
        if size >= _BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _look(
    batch: Sequence[tuple[Row, str]], watched: Sequence[Oddity], found: dict[str, Seen]
) -> None:
    """Search a batch of rows, and add the oddities to `found`."""
    whole = "\n".join(text for _, text in batch)
    for oddity in watched:
        if oddity.may_be_in(whole):
            for row, text in batch:
                at = oddity.find(text) if oddity.may_be_in(text) else None
                if at is not None:
                    _add(found, _name(oddity, row), row, _snippet(text, *at))
    for row, text in batch:
        for name in _kinds(row, text):
            _add(found, name, row, "")


def _name(oddity: Oddity, row: Row) -> str:
    """Return the name of an oddity in a row. Special tokens in a plain text may mean a chat."""
    is_chat = oddity.name == "special_tokens" and isinstance(row, Text)
    return "written_chat" if is_chat else oddity.name


def _kinds(row: Row, text: str) -> Iterator[str]:
    """Yield the oddities of a row as a whole, such as `blank_answer`."""
    match row:
        case Dialogue():
            replies = [each for each in row.messages if each["role"] == "assistant"]
            if any(_says_nothing(each) for each in row.messages if each["role"] == "user"):
                yield "blank_question"
            if any(_says_nothing(each) for each in replies):
                yield "blank_answer"
            if any(each["content"].strip() in _NO_ANSWERS for each in replies):
                yield "no_answer"
        case TextCompletion():
            if not row.prompt.strip():
                yield "blank_question"
            if not row.completion.strip():
                yield "blank_answer"
            if row.completion.strip() in _NO_ANSWERS:
                yield "no_answer"
        case Text():
            if not text.strip():
                yield "blank_text"


def _says_nothing(message: dict[str, Any]) -> bool:
    return not message["content"].strip() and not message.get("tool_calls")


def _add(found: dict[str, Seen], name: str, row: Row, snippet: str) -> None:
    seen = found.get(name, Seen(0, []))
    shown = [*seen.first, (str(row.place), snippet)] if len(seen.first) < _NUM_SHOWN else seen.first
    found[name] = Seen(seen.count + 1, shown)


def _snippet(text: str, start: int, stop: int) -> str:
    """Return an excerpt around an oddity, with escapes for invisible characters."""
    return console.printable(text[max(0, start - _SNIPPET) : stop + _SNIPPET])
