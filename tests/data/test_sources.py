from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxft.data import sources
from jaxft.data.rows import ChatCompletion, Conversation, TextCompletion
from jaxft.errors import DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def write(tmp_path, *lines: str | bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def complaint(path) -> str:
    with pytest.raises(DataError) as caught:
        sources.read_rows(path)
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def test_the_three_shapes_are_told_apart_and_extra_fields_ignored(tmp_path):
    path = write(
        tmp_path,
        json.dumps({"messages": CHAT, "ref": "Gen 1:1", "prompt": "hi"}),
        json.dumps({"prompt": CHAT[:1], "completion": CHAT[1:]}),
        json.dumps({"prompt": "hi", "completion": "ho"}),
    )
    name = str(path)
    assert sources.read_rows(path) == [
        Conversation(name, 1, tuple(CHAT)),
        ChatCompletion(name, 2, tuple(CHAT[:1]), tuple(CHAT[1:])),
        TextCompletion(name, 3, "hi", "ho"),
    ]


def test_blank_lines_are_skipped_and_still_counted(tmp_path):
    path = write(tmp_path, "", json.dumps({"messages": CHAT}), "  \r", '{"messages": 1}')
    assert f"{path}:4: " in complaint(path)


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps({"messages": CHAT}).encode())
    assert sources.read_rows(path)[0].line == 1


@hypothesis.given(texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_any_text_survives_and_stays_on_its_line(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    objects = [{"prompt": text, "completion": text[::-1]} for text in texts]
    lines = [json.dumps(each, ensure_ascii=False) + "\r\n" for each in objects]
    path.write_bytes("".join(lines).encode())
    rows = sources.read_rows(path)
    assert [(r.prompt, r.completion) for r in rows] == [(t, t[::-1]) for t in texts]
    assert [r.line for r in rows] == list(range(1, len(texts) + 1))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [}', "not JSON (Expecting value at column 15)"),
        ("[" * 100_000, "not JSON ("),
        ("[1]", "found a list where"),
        ("null", "found null where"),
        ('{"text": "a", "id": 3}', 'its fields: "text", "id"'),
        ("{}", "its fields: none"),
        ('{"prompt": "a"}', 'its fields: "prompt"'),
        ('{"prompt": "a", "completion": 1}', '"prompt" is a string and "completion" is a number'),
        ('{"prompt": "a", "completion": []}', '"completion" is an empty list'),
        ('{"messages": "a"}', '"messages" is a string'),
        ('{"messages": []}', '"messages" is an empty list'),
        ('{"messages": ["a"]}', '"messages[0]" is a string'),
        ('{"messages": [{"role": "user"}]}', '"messages[0]" lacks "content"; its fields: "role"'),
        ('{"messages": [{"role": "user", "content": null}]}', '"messages[0].content" is null'),
        ('{"messages": [{"role": 1, "content": "a"}]}', '"messages[0].role" is a number'),
        ('{"prompt": "\\ud800", "completion": "a"}', "unpaired surrogate '\\ud800'"),
        ('{"messages": [{"role": "u", "content": "a"}], "tools": [{}]}', '"tools"'),
        (
            '{"messages": [{"role": "u", "content": "a", "tool_calls": [1]}]}',
            '"messages[0]" has "tool_calls"',
        ),
        (
            '{"messages": [{"role": "u", "content": "a"}], "prompt": "a", "completion": "b"}',
            'both "messages" and "prompt"',
        ),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff at position 12"),
    ],
)
def test_a_bad_line_is_named_with_what_was_found(tmp_path, line, words):
    path = write(tmp_path, json.dumps({"messages": CHAT}), line)
    message = complaint(path)
    assert message.startswith(f"{path}:2: ")
    assert words in message


@pytest.mark.parametrize("lines", [(), ("", " \t")])
def test_a_file_without_rows_is_refused(tmp_path, lines):
    assert "is empty" in complaint(write(tmp_path, *lines))


def test_a_missing_file_names_the_nearest_one(tmp_path):
    path = write(tmp_path, "{}")
    assert f"Did you mean {path}?" in complaint(tmp_path / "rosw.jsonl")
    assert "No file in" in complaint(tmp_path / "something-else")
    assert "does not exist either" in complaint(tmp_path / "no" / "rows.jsonl")


def test_a_folder_is_no_file(tmp_path):
    assert "cannot be read" in complaint(tmp_path)
