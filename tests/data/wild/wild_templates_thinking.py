r"""Families that think before they answer, and Qwen 2.5, whose way of calling tools they have.

Each template is reduced and in our own words. What is kept of the stock one is said above it. What
a family generates for a message with a thought is written out in the tests, not here: `opening` is
what it generates before an answer without one.
"""

from __future__ import annotations

from wild_build import Family
from wild_templates_plain import CHATML

_SYSTEM_WITH_TOOLS = (
    "{% set turns = messages %}{% set words = standard %}{% if messages[0].role == 'system' %}"
    "{% set words = messages[0].content %}{% set turns = messages[1:] %}{% endif %}"
    "{% if words or tools %}{{ '<|im_start|>system\n' ~ words }}"
    "{% if tools %}{{ '\n\n# Tools\n\n<tools>' }}"
    "{% for each in tools %}{{ '\n' ~ (each | tojson) }}{% endfor %}{{ '\n</tools>' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
)

_CALLS = (
    "{% for call in m.tool_calls or [] %}{% if not loop.first or words %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' ~ call.function.name ~ \'", "arguments": \' }}'
    "{{ (call.function.arguments | tojson) ~ '}\n</tool_call>' }}{% endfor %}"
)

# Results of tools that follow each other share one turn of the user.
_RESULT = (
    "{% if loop.first or turns[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}"
    "{% endif %}{{ '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' }}"
    "{% if loop.last or turns[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)

# A system turn of its own where the chat has none; tools.
QWEN_25 = CHATML._replace(
    name="Qwen 2.5",
    template=(
        "{% set standard = 'You are good.' %}" + _SYSTEM_WITH_TOOLS + "{% for m in turns %}"
        "{% if m.role == 'tool' %}" + _RESULT + "{% else %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}{% set words = m.content %}"
        + _CALLS
        + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
)

# Where a user asked last; results of tools, which the user's turns may hold too, are no question.
_LAST_QUESTION = (
    "{% set ns = namespace(asked=turns | length - 1) %}{% for m in turns %}"
    "{% if m.role == 'user' and not m.content.startswith('<tool_response>') %}"
    "{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
)

# A thought from its field, or from between the tags of the content.
_CUT_THOUGHT = (
    "{% set thought = '' %}{% set words = m.content %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in words %}"
    "{% set thought = words.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)


def _qwen(further: str, shown: str, calls: str, prompt: str) -> str:
    """Return a template of Qwen 3's kind.

    Args:
        further: What is done with thought and words.
        shown: When a turn behind the last question shows its thought.
        calls: What writes the calls of tools.
        prompt: What opens a reply.
    """
    return (
        "{% set standard = '' %}" + _SYSTEM_WITH_TOOLS + _LAST_QUESTION + "{% for m in turns %}"
        "{% if m.role == 'tool' %}"
        + _RESULT
        + "{% elif m.role == 'assistant' %}"
        + _CUT_THOUGHT
        + further
        + "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.asked and "
        + shown
        + " %}{{ '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ words.lstrip('\n') }}"
        "{% else %}{{ words }}{% endif %}"
        + calls
        + "{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}"
        "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}" + prompt + "{% endif %}"
    )


_NO_THOUGHT_IF_ASKED = (
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
_THOUGHT_UNLESS_ASKED = _NO_THOUGHT_IF_ASKED.replace(
    "{% endif %}", "{% else %}{{ '<think>\n' }}{% endif %}"
)

# Thoughts of turns before the last question are dropped; the last turn has one, if an empty one.
QWEN_3 = CHATML._replace(
    name="Qwen 3",
    template=_qwen("", "(loop.last or thought)", _CALLS, _NO_THOUGHT_IF_ASKED),
    opening="<think>\n\n</think>\n\n",
    clean=lambda text: text.lstrip("\n"),
)

# As before, but that the opening of a reply has no thought, an empty one included.
QWEN_3_WITHOUT = QWEN_3._replace(
    name="Qwen 3, not thinking", opening="", kwargs={"enable_thinking": False}
)

# The opening of a reply opens its thought.
QWEN_3_THINKING = QWEN_3._replace(
    name="Qwen 3, thinking 2507",
    template=_qwen("", "(loop.last or thought)", _CALLS, "{{ '<think>\n' }}"),
    opening="\n</think>\n\n",
)

# Contents are stripped, arguments of calls are written as tags, every turn behind the last
# question has a thought.
QWEN_35 = QWEN_3._replace(
    name="Qwen 3.5",
    template=_qwen(
        "{% set thought = thought | trim %}{% set words = words | trim %}",
        "true",
        "{% for call in m.tool_calls or [] %}{{ '\n\n' if loop.first and words else '' }}"
        "{{ '<tool_call>\n<function=' ~ call.function.name ~ '>\n' }}"
        "{% for name, value in call.function.arguments | items %}"
        "{{ '<parameter=' ~ name ~ '>\n' ~ value ~ '\n</parameter>\n' }}{% endfor %}"
        "{{ '</function>\n</tool_call>' }}{% endfor %}",
        _THOUGHT_UNLESS_ASKED,
    ),
    opening="\n</think>\n\n",
    clean=str.strip,
)

# The token names of DeepSeek, whose bars and spaces are their own.
_BAR, _SPACE = "\uff5c", "\u2581"


def _name(words: str) -> str:
    return f"<{_BAR}{words.replace(' ', _SPACE)}{_BAR}>"


_USER, _ASSISTANT = _name("User"), _name("Assistant")
_END = _name("end of sentence")
_CALL_TOKENS = tuple(
    _name(f"tool {part} {edge}")
    for part in ("calls", "call", "outputs", "output")
    for edge in ("begin", "end")
)

# What stands before the last `</think>` is dropped everywhere; the opening of a reply opens a
# thought; calls of tools are written where there is no content at all (null, not "").
R1_DISTILL = Family(
    name="R1-Distill",
    template=(
        "{% set ns = namespace(words='', tool=false) %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.words = m.content %}{% endif %}{% endfor %}"
        "{{ bos_token ~ ns.words }}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.tool = false %}{{ '" + _USER + "' ~ m.content }}"
        "{% elif m.role == 'assistant' and m.content is none %}"
        "{{ '" + _ASSISTANT + _CALL_TOKENS[0] + "' }}{% for call in m.tool_calls %}"
        "{{ '" + _CALL_TOKENS[2] + "function\n' ~ call.function.name ~ '\n' }}"
        "{{ (call.function.arguments | tojson) ~ '" + _CALL_TOKENS[3] + "' }}{% endfor %}"
        "{{ '" + _CALL_TOKENS[1] + _END + "' }}{% elif m.role == 'assistant' %}"
        "{% set words = m.content %}"
        "{% if '</think>' in words %}{% set words = words.split('</think>')[-1] %}{% endif %}"
        "{{ '" + _CALL_TOKENS[5] + "' if ns.tool else '" + _ASSISTANT + "' }}"
        "{% set ns.tool = false %}{{ words ~ '" + _END + "' }}"
        "{% elif m.role == 'tool' %}{{ '' if ns.tool else '" + _CALL_TOKENS[4] + "' }}"
        "{% set ns.tool = true %}"
        "{{ '" + _CALL_TOKENS[6] + "' ~ m.content ~ '" + _CALL_TOKENS[7] + "' }}{% endif %}"
        "{% endfor %}{% if ns.tool %}{{ '" + _CALL_TOKENS[5] + "' }}{% endif %}"
        "{% if add_generation_prompt and not ns.tool %}"
        "{{ '" + _ASSISTANT + "<think>\n' }}{% endif %}"
    ),
    tokens=(_name("begin of sentence"), _USER, _ASSISTANT, _END, *_CALL_TOKENS),
    eos=_END,
    stops=(_END,),
    opening="\n</think>\n\n",
    closing=_END,
    clean=str.lstrip,
    bos=_name("begin of sentence"),
    pad=_END,
    settles_blanks=False,
)

# Always a system turn, which says whether to think; marks around replies, headers included; a
# model that does not think is shown an empty thought in every turn.
SMOLLM_3 = CHATML._replace(
    name="SmolLM3",
    template=(
        "{% set mode = '/no_think' if enable_thinking is defined and not enable_thinking"
        " else '/think' %}{% set words = '' %}{% set turns = messages %}"
        "{% if messages[0].role == 'system' %}{% set words = messages[0].content %}"
        "{% if '/no_think' in words %}{% set mode = '/no_think' %}"
        "{% elif '/think' in words %}{% set mode = '/think' %}{% endif %}"
        "{% set words = words.replace('/no_think', '').replace('/think', '').rstrip() %}"
        "{% set turns = messages[1:] %}{% endif %}"
        "{{ '<|im_start|>system\n## Metadata\n\nToday: ' ~ strftime_now('%d %B %Y') }}"
        "{{ '\nReasoning Mode: ' ~ mode ~ '\n\n## Custom Instructions\n\n' ~ words }}"
        "{{ '\n\n<|im_end|>\n' }}{% for m in turns %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\n' }}"
        "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}"
        "{{ m.content.lstrip('\n') ~ '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' ~ ('user' if m.role == 'tool' else m.role) ~ '\n' }}"
        "{{ m.content ~ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
    ),
    clean=lambda text: text.lstrip("\n"),
)

THINKING = (
    QWEN_25,
    QWEN_3,
    QWEN_3_WITHOUT,
    QWEN_3_THINKING,
    QWEN_35,
    R1_DISTILL,
    SMOLLM_3,
)
