r"""A chat as the text that the model's chat template writes.

`write(chat)` of `user: 2 + 2?` and `assistant: 4` is, for ChatML, `<|im_start|>user\n2 +
2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n`. This is the only file that renders or parses a
template. It does not know which part of the text is supervised.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxft.data.chats.encoding import Tokenizer
from jaxft.data.rows.row import Message
from jaxft.errors import DataError

# Exceptions that a template can raise on values that it was not written for.
_TEMPLATE_FAULTS = (TypeError, ValueError, KeyError, IndexError, AttributeError)

# The tags around generated text. Source: transformers defines them.
_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")

Spans = tuple[tuple[int, int], ...]


class Chat(NamedTuple):
    """The arguments of a chat template other than the messages.

    Attributes:
        tokenizer: A tokenizer with a chat template.
        tools: Tools that may be called, as JSON schemas.
        template_kwargs: Further variables of the template.
        place: The place of the row, for errors.
        has_null_contents: Whether a blank content beside a tool call is passed as null.
    """

    tokenizer: Tokenizer
    tools: Sequence[Mapping[str, Any]]
    template_kwargs: Mapping[str, Any]
    place: str
    has_null_contents: bool = False

    def write(self, messages: Sequence[Message], *, is_prompt: bool = False) -> str:
        """Return the text that the template writes for messages.

        Args:
            messages: The chat, or its beginning.
            is_prompt: Whether the text ends with the opening of a reply, as it does in generation.

        Raises:
            DataError: The tokenizer has no chat template, or its template refuses the messages.
        """
        return self._written(messages, is_prompt=is_prompt, has_marks=False)[0]

    def write_with_marks(self, messages: Sequence[Message]) -> tuple[str, Spans | None]:
        """Return the text, and the spans of it between the template's `generation` marks.

        A span is a pair of character positions. For a template without such marks the spans are
        None.

        Raises:
            DataError: See `write`.

        Source: transformers `utils/chat_template_utils.py: AssistantTracker`.
        """
        has_marks = bool(_MARKS.search(self.template))
        return self._written(messages, is_prompt=False, has_marks=has_marks)

    @property
    def template(self) -> str:
        """The Jinja text that writes this chat; some tokenizers have another one for tools.

        Raises:
            DataError: The tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{self.place}: the row is a chat and the tokenizer has no chat template.",
                "Set data.chat_template to chatml, alpaca or a file, or use an instruction-tuned "
                "model.",
            )
        template: str = self.tokenizer.get_chat_template(None, list(self.tools) or None)
        return template

    def _given(self, message: Message) -> Message:
        """Return a message in the form that is passed to the template."""
        is_null = self.has_null_contents and message.get("tool_calls")
        return (
            {**message, "content": None} if is_null and not message["content"].strip() else message
        )

    def _written(
        self, messages: Sequence[Message], *, is_prompt: bool, has_marks: bool
    ) -> tuple[str, Spans | None]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        # `apply_chat_template` makes this call, and cannot return the positions of the marks.
        tools: Any = [dict(tool) for tool in self.tools] or None
        # The function is annotated to return a text. It returns texts and the positions of marks.
        render: Any = render_jinja_template
        try:
            texts, marks = render(
                conversations=[[self._given(message) for message in messages]],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=has_marks,
                add_generation_prompt=is_prompt,
                **{**self.tokenizer.special_tokens_map, **self.template_kwargs},
            )
        except (jinja2.TemplateError, *_TEMPLATE_FAULTS) as error:
            raise DataError(
                f"{self.place}: the chat template refuses the messages:"
                f" {' '.join(str(error).split())}.",
                "Change the row's roles or their order to what the template takes, or set "
                "data.chat_template to another one.",
            ) from error
        spans = tuple((start, stop) for start, stop in marks[0]) if has_marks else None
        return texts[0], spans


@functools.lru_cache(maxsize=64)
def tested_texts(template: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the literals that a template searches for in contents, and those it compares them to.

    The template writes a content like any other one if the content contains none of the first and
    equals none of the second. For Qwen 3 `</think>` is among the first.
    """
    import jinja2
    from jinja2 import nodes

    try:
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        tree = environment.parse(_MARKS.sub("", template))
    except jinja2.TemplateError:
        return frozenset(), frozenset()  # rendering will raise the error
    sought: set[str] = set()
    compared: set[str] = set()
    for call in tree.find_all((nodes.Call, nodes.Filter, nodes.Test)):
        name = getattr(getattr(call, "node", None), "name", None)
        if name not in ("raise_exception", "strftime_now"):
            for argument in getattr(call, "args", ()):
                sought |= _literals(argument)
    for compare in tree.find_all(nodes.Compare):
        operators = {operand.op for operand in compare.ops}
        into = sought if operators & {"in", "notin"} else compared
        into |= _literals(compare)
    return frozenset(filter(str.strip, sought)), frozenset(compared)


def _literals(node: Any) -> set[str]:
    """Return the string literals in a part of a template."""
    from jinja2 import nodes

    found = {each.value for each in node.find_all(nodes.Const)}
    if isinstance(node, nodes.Const):
        found.add(node.value)
    return {value for value in found if isinstance(value, str) and value}
