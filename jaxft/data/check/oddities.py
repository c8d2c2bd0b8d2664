"""The kinds of odd text, each with tests that do not take ordinary text for odd.

Each kind has two tests. `may_be_in` is quick and runs on much text at once. It may be true for text
without the oddity, but is never false for text with it: `may_be_in("naïve 안녕")` is False for
decomposed text. `find` returns the position of the oddity in one text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

Span = tuple[int, int]


class Oddity(NamedTuple):
    """One kind of odd text.

    Attributes:
        name: Its name, such as "mojibake".
        may_be_in: Returns False only if a text does not have it.
        find: Returns the first span of it in a text, or None.
    """

    name: str
    may_be_in: Callable[[str], bool]
    find: Callable[[str], Span | None]


# The characters that Windows-1252 and Latin-1 have for the bytes 0x80 to 0xBF.
_RAW = bytes(range(0x80, 0xC0))
_CONTINUATIONS = "".join(sorted({*_RAW.decode("cp1252", "ignore"), *_RAW.decode("latin-1")}))
# The punctuation among them, which follows letters in ordinary text. The others are signs.
_PUNCTUATION = "\u00a0\u00ab\u00b7\u00bb\u2013\u2014\u2018-\u201e\u2022\u2026\u2039\u203a"
_SIGNS = re.sub(f"[{_PUNCTUATION}]", "", _CONTINUATIONS)
# Two UTF-8 bytes for a letter with a mark ("Ã©"); three for a quotation mark ("â€™"); and two
# letters of three bytes each, as in Chinese, Japanese or Korean: a single one may be the French
# "é »" with its unbreakable space. A sign in `_SIGNS` is one byte of two.
_MOJIBAKE = re.compile(
    f"[ÃÂÅ][{_SIGNS}]|â(?:€|\u0080)|(?:[à-ï][{_CONTINUATIONS}]{{2}}){{2}}"
    # EUC-KR read as Latin-1, "¾È³çÇÏ¼¼": six characters of its range, a sign among them.
    "|(?=[\u00b0-\u00c8][\u00a1-\u00fe]{0,4}[\u00a1-\u00bf])(?:[\u00b0-\u00c8][\u00a1-\u00fe]){3}"
)
# Two characters with which all of these begin; they are quicker to search for.
_MAY_BE_MOJIBAKE = re.compile(f"[\u00b0-\u00ef][\u00c0-\u00fe{_CONTINUATIONS}]")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_NO_CONTROLS = bytes(sorted({*range(256)} - {*range(9), 11, *range(14, 32), 127}))
# Joiners (U+200C, U+200D) and direction marks belong to ordinary Persian, Hindi, Arabic and emoji.
_INVISIBLE = re.compile("[\u200b\u2060-\u2064\ufeff\u00ad\u3164\u115f\u1160\uffa0]")
_ENTITIES = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|hellip|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
_MARKUP = re.compile(r"</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>")
_TEMPLATE_MARKS = re.compile(
    r"(?<![${\\])\{\{-?\s*[A-Za-z_][\w.]*\s*(?:\|\s*\w+[^{}]*)?-?\}\}(?!\})"
    r"|\{%-?\s*(?:if|for|set|block|include|end\w+|else|elif)\b[^{}]*%\}"
)
# Signs of text about programs, which may mention templates and HTML.
_CODE = re.compile(
    r"```|`[^`\n]*\{\{|</?[a-zA-Z][^<>\n]*>|[;{]\s*$|\\[a-zA-Z]+\{"
    r"|^\s*(?:def|class|import|from|function|var|let|const|package|#include)\b"
    r"|\.format\(|\b(?:print|render)\(|\bf['\"]"
    r"|\b(?:jinja|mustache|handlebars|vue|angular|django|liquid|helm|ansible|templates?)\b",
    re.MULTILINE | re.IGNORECASE,
)
_MARKS = "\u0300-\u036f\u3099\u309a"
_VOWELS = "\u1161-\u1175"
_PARTS = re.compile(f"[{_MARKS}{_VOWELS}]")
_DECOMPOSED = re.compile(f"[^\\W{_MARKS}][{_MARKS}]+|[\u1100-\u1112][{_VOWELS}]")


def _has_controls(text: str) -> bool:
    """Return whether a text may have a control character. The ASCII ones are searched as bytes."""
    raw = text.encode("utf-8", "surrogatepass")
    if raw.translate(None, _NO_CONTROLS):
        return True
    return (
        not text.isascii()
        and (b"\xc2" in raw or b"\xef\xbf" in raw)
        and bool(_CONTROLS.search(text))
    )


def _find_pattern(pattern: re.Pattern[str], text: str) -> Span | None:
    found = pattern.search(text)
    return found.span() if found else None


def _not_ascii(pattern: re.Pattern[str], text: str) -> bool:
    return not text.isascii() and bool(pattern.search(text))


def _find_entity(text: str) -> Span | None:
    """Return the first HTML entity of a text that is not HTML itself."""
    found = _ENTITIES.search(text)
    return found.span() if found and not _MARKUP.search(text) else None


def _find_mark(text: str) -> Span | None:
    """Return the first mark of a template in a text that is not about programs."""
    found = _TEMPLATE_MARKS.search(text)
    return found.span() if found and not _CODE.search(text) else None


def _find_decomposed(text: str) -> Span | None:
    """Return the first letter that is written in parts although a single character exists."""
    for found in _DECOMPOSED.finditer(text):
        if len(unicodedata.normalize("NFC", found.group())) < len(found.group()):
            return found.span()
    return None


ODDITIES = (
    Oddity("replaced", lambda text: "\ufffd" in text, lambda text: _at(text, "\ufffd")),
    Oddity(
        "mojibake",
        functools.partial(_not_ascii, _MAY_BE_MOJIBAKE),
        functools.partial(_find_pattern, _MOJIBAKE),
    ),
    Oddity("controls", _has_controls, functools.partial(_find_pattern, _CONTROLS)),
    Oddity("returns", lambda text: "\r" in text, lambda text: _at(text, "\r")),
    Oddity(
        "invisible",
        functools.partial(_not_ascii, _INVISIBLE),
        functools.partial(_find_pattern, _INVISIBLE),
    ),
    Oddity("decomposed", functools.partial(_not_ascii, _PARTS), _find_decomposed),
    Oddity("entities", lambda text: "&" in text and ";" in text, _find_entity),
    Oddity("template_marks", lambda text: "{{" in text or "{%" in text, _find_mark),
)


def spelled(special_tokens: Iterable[str]) -> Oddity:
    """Return the oddity of text that spells special tokens, such as `<|im_end|>`."""
    longest_first = sorted(filter(None, special_tokens), key=lambda token: (-len(token), token))
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    beginnings = sorted({token[:2] for token in longest_first})
    return Oddity(
        "special_tokens",
        lambda text: any(each in text for each in beginnings) and bool(pattern.search(text)),
        functools.partial(_find_pattern, pattern),
    )


def _at(text: str, part: str) -> Span | None:
    start = text.find(part)
    return None if start < 0 else (start, start + len(part))
