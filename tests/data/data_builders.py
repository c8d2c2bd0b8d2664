"""Small tokenizers with the chat templates of the wild, and examples without any tokenizer."""

from __future__ import annotations

from pathlib import Path

import byte_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from jaxft.config import SourceConfig
from jaxft.data.chats.encoding import Encoding
from jaxft.data.rows.row import Row
from jaxft.data.sources.source import open_rows

# As SmolLM2 and Qwen2 have it: a system prompt appears when none is given.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# As Llama 3: writes the start token itself, strips contents, no line feed after a turn.
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)

# As Mistral: no opening of the assistant's turn, the end token closes it, roles must alternate.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must\nalternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)

# As Qwen3: the last turn opens with an empty thought, earlier turns lose it.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>")

# Pairs that merge across the places where texts are joined.
MERGES = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ċ", "Ċ"), (":", "Ġ"), ("Ġ", "Ġ"), ("l", "l")]


# One value of every shape that a row may have.
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
VALUES = {
    "messages": {"messages": CHAT},
    "chat completion": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "text completion": {"prompt": "hi", "completion": "ho"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    },
    "alpaca": {"instruction": "hi", "input": "", "output": "ho"},
    "question": {"question": "hi", "answer": "ho"},
    "text": {"text": "hi ho"},
    "tokens": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
}


def make_tokenizer(
    chat_template: str | None = CHATML,
    *,
    adds_start: bool = False,
    adds_end: bool = False,
    extra_merges: tuple[tuple[str, str], ...] = (),
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    **tokens: str | None,
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of some 270 tokens."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} | tokens
    tokenizer = byte_tokenizer.make(
        last=special_tokens,
        merges=[*MERGES, *extra_merges],
        keeps_words=False,
        chat_template=chat_template,
        **{name: token for name, token in named.items() if token},
    )
    if adds_start or adds_end:
        single = f"{'<s> ' if adds_start else ''}$A{' </s>' if adds_end else ''}"
        ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(single=single, special_tokens=ids),
            ]
        )
    return tokenizer


def make_encoding(tokenizer, **options) -> Encoding:
    """Return an encoding in which replies are supervised, and which stops at the end token."""
    stop_id = None if tokenizer is None else tokenizer.eos_token_id
    settings = {
        "stop_ids": () if stop_id is None else (stop_id,),
        "train_on": "assistant",
        "train_on_reasoning": True,
        "template_kwargs": {},
        "max_length": 100_000,
        "overlong": "truncate",
    }
    return Encoding(tokenizer, **settings | options)


def read_rows(path: Path) -> list[Row]:
    """Return every row of a file."""
    (source,) = open_rows([SourceConfig(path=str(path))], None, "train")
    return list(source)
