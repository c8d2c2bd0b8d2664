# ruff: noqa: RUF001 (characters that look like others are what is tested)
"""Odd text: each kind planted, and ordinary text of many kinds that has none of them."""

from __future__ import annotations

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxft.data.check import oddities, texts
from jaxft.data.rows.row import Dialogue, RowPlace, Text, TextCompletion

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def text_row(text, number=1):
    return Text(RowPlace("f", number), text)


def dialogue(*contents, number=1):
    roles = ("user", "assistant") * 2
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]
    return Dialogue(RowPlace("f", number), messages)


def scan(*rows):
    return texts.scan(rows, SPECIAL, "<s>", "</s>", lambda amount: None)


ODD = {
    "replaced": ["caf\ufffd", "안\ufffd녕"],
    "mojibake": [
        "The cafÃ© is open.",
        "Donâ€™t go.",
        "Donâ\x80\x99t go.",
        "ÃŸ and Ã¤ and Ã–l",
        "25Â°C",
        "안녕하세요".encode().decode("cp1252", "replace").replace("\ufffd", "\x81"),
        "안녕하세요".encode().decode("latin-1"),
        "日本語".encode().decode("latin-1"),
        "안녕하세요".encode("euc-kr").decode("latin-1"),
    ],
    "controls": ["a\x00b", "\x1b[31mred", "a\x08b", "x\x7f", "a\x92b", "a\uffff"],
    "returns": ["one\r\ntwo"],
    "invisible": ["a\u200bb", "\ufeffstart", "soft\u00adhyphen", "\u3164"],
    "decomposed": [
        unicodedata.normalize("NFD", "café"),
        unicodedata.normalize("NFD", "한국어"),
        unicodedata.normalize("NFD", "がぎぐ"),
    ],
    "entities": ["Tom &amp; Jerry", "&quot;so&quot;", "it&#39;s", "a&nbsp;b", "&#x27;"],
    "template_marks": [
        "Hello {{user}}!",
        "{{ instruction }}",
        "Dear {{ name | title }}, welcome.",
        "안녕하세요 {{이름}}님 {{ name }}",
        "{% if input %}x{% endif %}",
    ],
}

ORDINARY = [
    "탄력키를 켜려면 설정에서 접근성을 누르십시오. “그렇다”고 했다… 25°C, 3·1 운동, 100㎡.",
    "The “quick” brown fox — don’t ask — costs £3 or €4; it’s 20°C, ½ cup, naïve café, ©2024™.",
    "L’élève naïf a déjà été à l’hôtel : « café\u00a0» où l’œuvre… Ça coûte 5\u00a0€. Noël, ÉTÉ, À",
    "Ils ont dit «\u00a0oui, c’est décidé\u00a0» ; élevé\u00a0; Moët\u00a0! À\u00a0: ÀÉÈÇ, ÂGE, Ô",
    "O PÃO, AÇÃO, NÃO, AMANHÃ, irmã, coração, MAÇÃ “doce”. SÃO — IRMÃ’S",
    "Größe, Straße, Übung, Ärger; „Zitat“, ‚einfach‘. Ål, Ærø, ÅR, på",
    "Привет, мир! Ёлка, «кавычки», №5.",
    "Tiếng Việt có dấu: Đặng Thái Sơn, Huế, Nguyễn, ÂU CƠ, Ăn, Â.",
    "日本語のテキスト。「がぎぐげご」。中文：你好，世界！",
    "می‌خواهم کتاب بخوانم",
    "हिन्दी में क्ष और ज्ञ",
    "👩‍👩‍👧‍👦 ❤️ 👍🏽 🇰🇷",
    "אבגד, العربية \u200f(نص)\u200f",
    "x̂ = ŷ + ɛ̃ and m̃",
    "if (a && b) { return &x; } int m[2][2] = {{1,2},{3,4}}; map<string, int> x = {{a, 1}};",
    'print(f"{{literal}} {value}")\n"{{}}".format(1)',
    "```\n{{ user.name }}\n```",
    "Use `{{ name }}` in the file.",
    "In Jinja, {{ name }} is replaced.",
    "\\frac{{a}}{{b}} \\textbf{{bold}}",
    "on: push\n  run: echo ${{ secrets.TOKEN }}",
    "<p>Fish &amp; chips &nbsp;</p>",
    "<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>",
    "curl 'http://a/?x=1&lt=2&amp=3' && ls -l | grep '^d' > out; echo $?",
    "def f(x: list[int]) -> dict:\n\treturn {**{'a': {}}}\n\f\n",
    "x < s > y, a <sub> b, i < im_start",
]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in ODD for text in ODD[name]])
def test_odd_text_is_found_and_called_what_it_is(name, text):
    found = scan(text_row("An ordinary line.\n" + text + "\nAnd one more."))
    assert name in found.odd
    assert found.odd[name].count == 1
    # C1 characters of a wrong decoding are control characters too.
    assert set(found.odd) - {name} <= {"controls", "mojibake"}


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_not_odd(text):
    assert scan(text_row(text), dialogue(text, text), dialogue(text, text)).odd == {}


@pytest.mark.parametrize("name", ODD)
def test_rows_are_counted_and_the_first_are_named(name):
    odd = ODD[name][0]
    rows = [text_row(odd if number % 10 == 3 else "plain", number) for number in range(100)]
    seen = scan(*rows).odd[name]
    assert seen.count == 10
    assert [place for place, _ in seen.first] == ["f:3", "f:13", "f:23", "f:33", "f:43"]
    assert all(snippet.isprintable() for _, snippet in seen.first)


@hypothesis.given(st.text())
def test_the_quick_test_never_misses_what_the_slow_one_finds(text):
    for oddity in (*oddities.ODDITIES, oddities.spelled(SPECIAL)):
        if oddity.find(text) is not None:
            assert oddity.may_be_in(text)


@hypothesis.given(st.text(), st.sampled_from([text for some in ODD.values() for text in some]))
def test_the_quick_test_finds_what_is_planted_anywhere(text, odd):
    for oddity in oddities.ODDITIES:
        if oddity.find(text + odd) is not None:
            assert oddity.may_be_in(text + odd)


@hypothesis.given(st.text(st.characters(codec="ascii", categories=["L", "N", "Zs"])))
def test_plain_words_are_never_odd(text):
    assert set(scan(text_row(text)).odd) <= {"blank_text"}


@hypothesis.given(st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1))
def test_hangul_is_never_odd(text):
    assert scan(dialogue(text, text)).odd == {}


def test_special_tokens_in_a_chat_are_spelled_and_in_a_plain_text_are_a_chat():
    assert set(scan(dialogue("say <|im_end|> now", "no")).odd) == {"special_tokens"}
    assert set(scan(text_row("<|im_start|>user\nhi<|im_end|>")).odd) == {"written_chat"}
    assert scan(text_row("a text that ends as it should.</s>")).odd == {}
    assert scan(text_row("<s>a text that begins so")).odd == {}


def test_blank_parts_are_named():
    rows = [
        dialogue(" ", "yes", number=1),
        dialogue("yes?", "\n", number=2),
        TextCompletion(RowPlace("f", 3), "", "a"),
        TextCompletion(RowPlace("f", 4), "a", "\t"),
        text_row(" \n ", 5),
        dialogue("yes?", "nan", number=6),
        TextCompletion(RowPlace("f", 7), "x", " None"),
        dialogue("is it nan or None?", "It is None of these.", number=8),
    ]
    places = {name: [place for place, _ in seen.first] for name, seen in scan(*rows).odd.items()}
    assert places == {
        "blank_question": ["f:1", "f:3"],
        "blank_answer": ["f:2", "f:4"],
        "blank_text": ["f:5"],
        "no_answer": ["f:6", "f:7"],
    }


def test_a_call_of_a_tool_is_no_blank_answer():
    row = dialogue("what time is it?", "")
    row.messages[1]["tool_calls"] = [{"function": {"name": "now", "arguments": {}}}]
    assert scan(row).odd == {}


def test_after_so_many_characters_no_more_rows_are_read(monkeypatch):
    monkeypatch.setattr(texts, "MAX_CHARACTERS", 1000)
    monkeypatch.setattr(texts, "_BATCH_CHARACTERS", 500)
    seen = scan(*(text_row("x" * 100, number) for number in range(50)))
    assert (seen.rows, seen.characters, seen.is_whole) == (10, 1000, False)
    assert scan(text_row("x" * 999)).is_whole
