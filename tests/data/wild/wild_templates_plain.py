r"""Families whose templates write every turn the same, whatever follows it.

Each template is reduced and in our own words. What is kept of the stock one is said above it.
"""

from __future__ import annotations

from wild_build import Family, as_it_is, swallowing

_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
)

# Every turn between the same two tokens.
CHATML = Family(
    name="ChatML",
    template=(
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    stops=("<|im_end|>", "<|endoftext|>"),
    opening="",
    closing="<|im_end|>",
    pad="<|endoftext|>",
)

# A system message inside the first question; spaces around an answer; a start token each question.
LLAMA_2 = Family(
    name="Llama 2",
    template=(
        "{% set head = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
        "{% set head = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' %}"
        "{% set turns = messages[1:] %}{% endif %}"
        "{% for m in turns %}" + _ALTERNATE + "{% if m.role == 'user' %}"
        "{% set words = head ~ m.content if loop.first else m.content %}"
        "{{ bos_token ~ '[INST] ' ~ words.strip() ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m.content.strip() ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
    ),
    tokens=("<unk>", "<s>", "</s>"),
    eos="</s>",
    stops=("</s>",),
    opening=" ",
    closing=" </s>",
    clean=str.strip,
    bos="<s>",
)

# The day, always a system turn, tools in the first question, one call of a tool a turn, results of
# tools as JSON under the role ipython.
LLAMA_3 = Family(
    name="Llama 3.x",
    template=(
        "{% macro head(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}"
        "{% endmacro %}{{ bos_token }}"
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{% set words = '' %}{% set turns = messages %}"
        "{% if messages[0].role == 'system' %}{% set words = messages[0].content | trim %}"
        "{% set turns = messages[1:] %}{% endif %}"
        "{{ head('system') ~ 'Today is ' ~ date_string ~ '.\n\n' ~ words ~ '<|eot_id|>' }}"
        "{% if tools %}{{ head('user') ~ 'Functions:\n\n' }}"
        "{% for each in tools %}{{ (each | tojson(indent=4)) ~ '\n\n' }}{% endfor %}"
        "{{ (turns[0].content | trim) ~ '<|eot_id|>' }}{% set turns = turns[1:] %}{% endif %}"
        "{% for m in turns %}{% if m.tool_calls %}"
        "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call a turn') }}{% endif %}"
        "{% set call = m.tool_calls[0].function %}"
        "{{ head('assistant') ~ '{\"name\": \"' ~ call.name ~ '\", \"parameters\": ' }}"
        "{{ (call.arguments | tojson) ~ '}<|eot_id|>' }}"
        "{% elif m.role in ('tool', 'ipython') %}"
        "{{ head('ipython') ~ (m.content | tojson) ~ '<|eot_id|>' }}"
        "{% else %}{{ head(m.role) ~ (m.content | trim) ~ '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
    ),
    tokens=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    ),
    eos="<|eot_id|>",
    stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    opening="",
    closing="<|eot_id|>",
    clean=str.strip,
    bos="<|begin_of_text|>",
)

# Llama 3 as it was first published: the opening of a reply is written whether asked for or not.
LLAMA_3_FIRST = LLAMA_3._replace(
    name="Llama 3, first",
    template=(
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}"
        "{{ (m.content | trim) ~ '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    ),
)

# No system; the assistant is called model.
GEMMA_2 = Family(
    name="Gemma 2",
    template=(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('there is no role system') }}{% endif %}"
        "{% for m in messages %}" + _ALTERNATE + "{{ '<start_of_turn>' }}"
        "{{ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}"
        "{{ (m.content | trim) ~ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    tokens=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    eos="<eos>",
    stops=("<eos>", "<end_of_turn>"),
    opening="",
    closing="<end_of_turn>",
    clean=str.strip,
    bos="<bos>",
    pad="<pad>",
    takes_system=False,
)

# The system's words begin the first question.
GEMMA_3 = GEMMA_2._replace(
    name="Gemma 3",
    template=(
        "{{ bos_token }}{% set head = '' %}{% set turns = messages %}"
        "{% if messages[0].role == 'system' %}{% set head = messages[0].content ~ '\n\n' %}"
        "{% set turns = messages[1:] %}{% endif %}"
        "{% for m in turns %}" + _ALTERNATE + "{{ '<start_of_turn>' }}"
        "{{ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}"
        "{{ head if loop.first else '' }}{{ (m.content | trim) ~ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    takes_system=True,
)

# No opening of a reply, a space before it; the system's words begin the first question.
MISTRAL_1 = Family(
    name="Mistral v1",
    template=(
        "{{ bos_token }}{% set head = '' %}{% set turns = messages %}"
        "{% if messages[0].role == 'system' %}{% set head = messages[0].content ~ '\n\n' %}"
        "{% set turns = messages[1:] %}{% endif %}"
        "{% for m in turns %}" + _ALTERNATE + "{% if m.role == 'user' %}"
        "{{ ' [INST] ' ~ (head if loop.first else '') ~ m.content ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}{% endfor %}"
    ),
    tokens=("<unk>", "<s>", "</s>"),
    eos="</s>",
    stops=("</s>",),
    opening=" ",
    closing="</s>",
    bos="<s>",
)

# A reply is opened by what a model of completions reads: a word and a colon, without a space.
DEEPSEEK_2 = Family(
    name="DeepSeek V2",
    template=(
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ 'User: ' ~ m.content ~ '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' ~ m.content ~ eos_token }}"
        "{% elif m.role == 'system' %}{{ m.content ~ '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    tokens=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001, their own bars
    eos="<｜end▁of▁sentence｜>",  # noqa: RUF001
    stops=("<｜end▁of▁sentence｜>",),  # noqa: RUF001
    opening=" ",
    closing="<｜end▁of▁sentence｜>",  # noqa: RUF001
    bos="<｜begin▁of▁sentence｜>",  # noqa: RUF001
    pad="<｜end▁of▁sentence｜>",  # noqa: RUF001
)

# The end token closes turns of everyone; the headings are no special tokens.
ZEPHYR = Family(
    name="Zephyr",
    template=(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ eos_token ~ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    tokens=("<unk>", "<s>", "</s>"),
    eos="</s>",
    stops=("</s>",),
    opening="",
    closing="</s>",
    bos="<s>",
    pad="</s>",
)

# No line feeds; contents are stripped.
COMMAND_R = Family(
    name="Command-R",
    template=(
        "{{ bos_token }}{% set names = {'system': 'SYSTEM', 'user': 'USER'} %}"
        "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' }}"
        "{{ names.get(m.role, 'CHATBOT') ~ '_TOKEN|>' ~ m.content.strip() }}"
        "{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
    ),
    tokens=(
        "<PAD>",
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
    ),
    eos="<|END_OF_TURN_TOKEN|>",
    stops=("<|END_OF_TURN_TOKEN|>",),
    opening="",
    closing="<|END_OF_TURN_TOKEN|>",
    clean=str.strip,
    bos="<BOS_TOKEN>",
    pad="<PAD>",
)

# Headings in text; an end token and a blank line after an answer.
ALPACA = Family(
    name="alpaca",
    template=(
        "{{ 'Below is a task. Do it.\n\n' }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ m.content ~ '\n\n' }}"
        "{% elif m.role == 'user' %}{{ '### Instruction:\n' ~ m.content ~ '\n\n' }}"
        "{% else %}{{ '### Response:\n' ~ m.content ~ eos_token ~ '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    tokens=("</s>",),
    eos="</s>",
    stops=("</s>",),
    opening="",
    closing="</s>",
)

# A token of its own between role and words; special tokens take the white space on both sides.
PHI_4 = Family(
    name="Phi-4",
    template=(
        "{% for m in messages %}"
        "{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    tokens=tuple(
        swallowing(text, left=True, right=True)
        for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
    ),
    eos="<|im_end|>",
    stops=("<|endoftext|>", "<|im_end|>"),
    opening="",
    closing="<|im_end|>",
    clean=as_it_is,
    bos="<|endoftext|>",
    pad="<|endoftext|>",
)

PLAIN = (
    CHATML,
    LLAMA_2,
    LLAMA_3,
    LLAMA_3_FIRST,
    GEMMA_2,
    GEMMA_3,
    MISTRAL_1,
    DEEPSEEK_2,
    ZEPHYR,
    COMMAND_R,
    ALPACA,
    PHI_4,
)
