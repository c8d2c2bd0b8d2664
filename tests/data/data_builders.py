"""Small tokenizers with the chat templates of the wild, and examples without any tokenizer."""

from __future__ import annotations

import datasets
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxft.data import encode
from jaxft.data.report import Report
from jaxft.data.rows import Place

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

SPECIAL_TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]

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
    **tokens: str | None,
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of some 270 tokens."""
    merges = MERGES + list(extra_merges)
    words = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL_TOKENS)
    if adds_start or adds_end:
        single = f"{'<s> ' if adds_start else ''}$A{' </s>' if adds_end else ''}"
        ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(single=single, special_tokens=ids),
            ]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} | tokens
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in names.items() if token}
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_examples(rows: list[tuple[list[int], list[int]]]) -> encode.Examples:
    """Return examples of the given tokens and masks."""
    lengths = [len(ids) for ids, _ in rows]
    targets = [sum(mask) for _, mask in rows]
    columns = {
        "number": np.arange(1, len(rows) + 1, dtype=np.int32),
        "length": np.array(lengths, np.int32),
        "full_length": np.array(lengths, np.int32),
        "targets": np.array(targets, np.int32),
        "full_targets": np.array(targets, np.int32),
        "highest_id": np.array([max(ids) for ids, _ in rows], np.int32),
        "input_ids": [np.array(ids, np.int32) for ids, _ in rows],
        "loss_mask": [np.array(mask, np.uint8) for _, mask in rows],
    }
    report = Report(len(rows), sum(lengths), sum(targets), 0, 0, "", max(lengths))
    return encode.Examples(datasets.Dataset.from_dict(columns), report, Place("made", 1))
