r"""Families whose turns end in an unusual way, and those that move the system's words about.

Each template is reduced and in our own words. What is kept of the stock one is said above it.
"""

from __future__ import annotations

from wild_build import Family, swallowing
from wild_templates_plain import CHATML, MISTRAL_1, ZEPHYR

# The tokens of turns swallow the line feed behind them; a whole chat ends with the end token.
PHI_3 = Family(
    name="Phi-3",
    template=(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    tokens=(
        "<unk>",
        "<s>",
        "</s>",
        "<|endoftext|>",
        *(
            swallowing(text, right=True)
            for text in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
        ),
    ),
    eos="<|endoftext|>",
    stops=("<|endoftext|>", "<|assistant|>", "<|end|>"),
    opening="",
    closing="<|end|>\n",
    bos="<s>",
    pad="<|endoftext|>",
)

# As before, but that a blank system message is left out and that only the end token stops.
PHI_35 = PHI_3._replace(
    name="Phi-3.5",
    template=PHI_3.template.replace(
        "{{ '<|' ~", "{% if m.role != 'system' or m.content %}{{ '<|' ~"
    ).replace("{% endfor %}", "{% endif %}{% endfor %}"),
    stops=("<|endoftext|>",),
)

# Without line feeds; a whole chat ends with the end token.
PHI_4_MINI = PHI_3._replace(
    name="Phi-4-mini",
    template=(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    stops=("<|endoftext|>", "<|end|>"),
    closing="<|end|>",
)

# Nothing closes a turn: a model stops by opening the next one. Calls of tools as a name and JSON.
GLM_4 = Family(
    name="GLM-4",
    template=(
        "{{ '[gMASK]<sop>' }}{% if tools %}{{ '<|system|>\nTools:' }}"
        "{% for each in tools %}{{ '\n' ~ (each | tojson) }}{% endfor %}{% endif %}"
        "{% for m in messages %}{% if m.tool_calls %}{% for call in m.tool_calls %}"
        "{{ '<|assistant|>' ~ call.function.name ~ '\n' ~ (call.function.arguments | tojson) }}"
        "{% endfor %}{% else %}"
        "{{ '<|' ~ ('observation' if m.role == 'tool' else m.role) ~ '|>\n' ~ m.content }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    tokens=(
        "<|endoftext|>",
        "[gMASK]",
        "<sop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ),
    eos="<|endoftext|>",
    stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    opening="\n",
    closing="<|user|>",
    settles_blanks=False,
    pad="<|endoftext|>",
)

# The closing token stands between turns alone, and before the opening of a reply.
QWEN_15_FIRST = CHATML._replace(
    name="Qwen 1.5, first",
    template=(
        "{% if messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}"
        "{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role != 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    settles_blanks=False,
)

# No token at all, neither between turns nor at the end.
SOLAR = Family(
    name="SOLAR",
    template=(
        "{% set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant'} %}"
        "{% for m in messages %}{{ '### ' ~ names[m.role] ~ ':\n' ~ m.content }}"
        "{{ '' if m.role == 'assistant' else '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
    ),
    tokens=("<unk>", "<s>", "</s>"),
    eos="</s>",
    stops=("</s>",),
    opening="",
    closing="</s>",
    bos="<s>",
    pad="</s>",
    settles_blanks=False,
)

# A base model, which has the tokens of ChatML and stops at another one.
QWEN_25_BASE = CHATML._replace(name="Qwen 2.5, base", eos="<|endoftext|>", stops=("<|endoftext|>",))

# ChatML, and the end token behind a chat that the assistant closes.
ZEPHYR_GEMMA = CHATML._replace(
    name="Zephyr-Gemma",
    template=(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% elif messages[-1].role == 'assistant' %}{{ eos_token }}{% endif %}"
    ),
    tokens=("<bos>", "<eos>", "<|im_start|>", "<|im_end|>"),
    eos="<eos>",
    stops=("<eos>",),
    bos="<bos>",
    pad="<eos>",
)

# Phi-4 as it was first published: a question is followed at once by the opening of its answer.
PHI_4_FIRST = CHATML._replace(
    name="Phi-4, first",
    template=(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content ~ '<|im_end|>' }}"
        "{% else %}{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}"
        "{% if m.role == 'user' %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
        "{% endif %}{% endfor %}"
    ),
    tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
)


def _mistral(space: str, answer: str) -> str:
    """Return the template of Mistral v3 and later: the last question has the system's words.

    It has them only while no answer follows, and so has the last question of all the tools. Calls
    of tools are a list of JSON behind a token; their ids have nine characters.
    """
    ask = f"'[INST]{space}'"
    return (
        "{% set head = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
        "{% set head = messages[0].content ~ '\n\n' %}{% set turns = messages[1:] %}{% endif %}"
        "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
        "{% set ns = namespace(n=0) %}{% for m in turns %}"
        "{% if m.role in ('user', 'assistant') and m.tool_calls is not defined %}"
        "{% if (m.role == 'user') != (ns.n % 2 == 0) %}"
        "{{ raise_exception('user and assistant take turns') }}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
        "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
        "{% if tools and m == asked[-1] %}"
        "{{ '[AVAILABLE_TOOLS]' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{{ " + ask + " ~ (head if loop.last else '') ~ m.content ~ '[/INST]' }}"
        "{% elif m.tool_calls is defined and m.tool_calls is not none %}"
        "{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}"
        "{{ (call.function | tojson)[:-1] ~ ', \"id\": \"' ~ call.id ~ '\"}' }}"
        "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' ~ eos_token }}"
        "{% elif m.role == 'assistant' %}{{ " + answer + " ~ eos_token }}"
        "{% elif m.role == 'tool' %}"
        '{{ \'[TOOL_RESULTS]{"content": \' ~ m.content ~ \', "call_id": "\' }}'
        "{{ m.tool_call_id ~ '\"}[/TOOL_RESULTS]' }}"
        "{% else %}{{ raise_exception('there is no role ' ~ m.role) }}{% endif %}{% endfor %}"
    )


MISTRAL_3 = MISTRAL_1._replace(
    name="Mistral v3",
    template=_mistral(" ", "' ' ~ (m.content | trim)"),
    tokens=(
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    clean=str.strip,
)

MISTRAL_NEMO = MISTRAL_3._replace(
    name="Mistral Nemo", template=_mistral("", "m.content"), opening="", clean=lambda text: text
)

# A heading for everyone, and an end token that belongs to no turn but the last one of all.
ENDED_ONCE = ZEPHYR._replace(
    name="ended once",
    template=(
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    opening=" ",
    closing="\n</s>",
)

ENDS = (
    PHI_3,
    PHI_35,
    PHI_4_MINI,
    PHI_4_FIRST,
    GLM_4,
    QWEN_15_FIRST,
    SOLAR,
    QWEN_25_BASE,
    ZEPHYR_GEMMA,
    MISTRAL_3,
    MISTRAL_NEMO,
    ENDED_ONCE,
)
