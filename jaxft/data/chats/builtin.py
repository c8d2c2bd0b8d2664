"""The built-in chat templates, for models without one; and the loading of templates from files.

`alpaca` writes `### Instruction:`, the question, `### Response:` and the answer. `alpaca-ko` has
these headings in Korean, and `qa-ko` the Korean words for question and answer. `chatml` puts each
message between `<|im_start|>` and `<|im_end|>`. A template is made for one tokenizer: it ends a
turn with a token that this tokenizer has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxft.data.chats.encoding import Tokenizer
from jaxft.errors import DataError

DEFAULT = "alpaca"


_IM_START, _IM_END = "<|im_start|>", "<|im_end|>"


def resolve(name: str, tokenizer: Tokenizer) -> str:
    """Return the chat template that a recipe names.

    Args:
        name: A built-in template's name, or the path of a Jinja file.
        tokenizer: The tokenizer that the template is made for.

    Raises:
        DataError: There is no such template or file, or the tokenizer has no end token.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](tokenizer)
    path = Path(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(
            f"data.chat_template={name} cannot be read: {reason}.",
            f"Name a Jinja file, or one of: {', '.join(BUILT_IN)}.",
        ) from error


def with_defaults(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with default values for variables that the caller does not set.

    With `{"enable_thinking": False}` it begins with `{%- set enable_thinking = enable_thinking if
    enable_thinking is defined else false -%}`.
    """
    lines = [
        f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} -%}}\n"
        for name, value in values.items()
    ]
    return "".join(lines) + template


def _literal(value: Any) -> str:
    """Return a JSON value as Jinja writes it."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        pairs = (f"{_quoted(str(key))}: {_literal(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value)


def _plain(question: str, answer: str) -> Callable[[Tokenizer], str]:
    """Return a function that makes a template with headings for the question and the answer."""

    def make(tokenizer: Tokenizer) -> str:
        end = _end_token(tokenizer)
        ask, reply = _quoted(f"### {question}:\n"), _quoted(f"### {answer}:\n")
        return (
            f"{_start(tokenizer)}"
            "{% for message in messages %}"
            "{% if message['role'] == 'system' %}"
            "{{ message['content'] + '\\n\\n' }}"
            "{% elif message['role'] == 'user' %}"
            f"{{{{ {ask} + message['content'] + '\\n\\n' }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {reply} + message['content'] + {_quoted(end)} }}}}"
            "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
            "{% else %}"
            "{{ raise_exception('this template has the roles system, user and assistant alone') }}"
            "{% endif %}"
            "{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {reply} }}}}{{% endif %}}"
        )

    return make


def _chatml(tokenizer: Tokenizer) -> str:
    """Return ChatML. If the tokenizer lacks `<|im_end|>`, turns end with its own end token."""
    has_tokens = {_IM_START, _IM_END} <= set(map(str, tokenizer.added_tokens_decoder.values()))
    end = _quoted((_IM_END if has_tokens else _end_token(tokenizer)) + "\n")
    return (
        f"{_start(tokenizer)}"
        "{% for message in messages %}"
        f"{{{{ '{_IM_START}' + message['role'] + '\\n' + message['content'] + {end} }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{_IM_START}assistant\\n' }}}}{{% endif %}}"
    )


# Functions that make a template for a tokenizer, by the template's name.
BUILT_IN: Mapping[str, Callable[[Tokenizer], str]] = {
    "chatml": _chatml,
    "alpaca": _plain("Instruction", "Response"),
    "alpaca-ko": _plain("명령어", "응답"),  # as Korean translations of the alpaca data have it
    "qa-ko": _plain("질문", "답변"),
}


def _start(tokenizer: Tokenizer) -> str:
    """Return Jinja for the start token if the tokenizer begins every text with one, else ""."""
    ids = tokenizer("a")["input_ids"]
    has_start = tokenizer.bos_token is not None and ids[:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" if has_start else ""


def _end_token(tokenizer: Tokenizer) -> str:
    """Return the tokenizer's end token.

    Raises:
        DataError: The tokenizer has no end token.
    """
    if tokenizer.eos_token is None:
        raise DataError(
            "The tokenizer has no end token to close a reply with.",
            "Set data.eos_token, or eos_token in tokenizer_config.json; without it a model cannot "
            "learn to stop.",
        )
    end: str = tokenizer.eos_token
    return end


def _quoted(text: str) -> str:
    """Return a text as a Jinja literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
