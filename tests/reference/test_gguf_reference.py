"""SmolLM2 from its GGUF file, held to transformers' conversion and to a tokenizer by hand."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
import pytest
import regex
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jaxft.errors import WeightsError
from jaxft.weights.formats import gguf_file
from jaxft.weights.places import source

pytest.importorskip("torch")
pytestmark = pytest.mark.reference

TEXTS = [
    "Hello world",
    "In 1611, 1234567890 people; 3.14159 and 0x1F, v2.0.1-rc3",
    "sum:  10\n\n2. second",
    "  leading,  double   spaces \t tabs\n\n\nnew lines\r\n and trailing  ",
    "I'll say they've won't can't I'M",
    "naïve café, Ελληνικά, русский, 你好世界, 한국어, العربية, ١٢٣, ², ½, Ⅷ",
    "emoji 🙂👩‍👩‍👧 and \u200b zero width, nbsp\u00a0here",
    "def f(x):\n    return {'a': x[0] ** 2, 'b': not x}  # comment\n\tif x != 3: pass",
    "<|im_start|>user\nHow old is 42?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name>a/b<file_sep>x.py<|im_end|",
    "And God said, Let there be light: and there was light.",
    "",
    " ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


@pytest.fixture(scope="module")
def found() -> source.Source:
    try:
        smollm = source.resolve("HuggingFaceTB/SmolLM2-135M-Instruct", None, lambda _: None)
    except WeightsError as error:
        pytest.skip(str(error))
    if smollm.gguf is None:
        pytest.skip("the original weights were found instead of the GGUF file")
    return smollm


def test_every_tensor_is_bit_equal_to_transformers_conversion(found: source.Source) -> None:
    assert found.gguf is not None
    model = AutoModelForCausalLM.from_pretrained(
        found.folder, gguf_file=found.gguf.name, dtype="float32"
    )
    expected = {name: values.numpy() for name, values in model.state_dict().items()}
    assert np.shares_memory(expected.pop("lm_head.weight"), expected["model.embed_tokens.weight"])
    checkpoint = found.checkpoint()
    assert set(checkpoint.infos()) == set(expected)
    assert len(expected) == 272
    for name, values in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32), err_msg=name)


def test_the_config_equals_transformers_conversion(found: source.Source) -> None:
    assert found.gguf is not None
    expected = AutoConfig.from_pretrained(found.folder, gguf_file=found.gguf.name).to_dict()
    config = found.config()
    assert config.pop("architectures") == ["LlamaForCausalLM"]  # transformers leaves it empty
    assert config == {name: expected[name] for name in config}


class TokenizerByHand:
    """Byte-level BPE as its paper has it: cut, then merge the pair of lowest rank."""

    # Source: GPT-2's `encoder.py`, the pattern of `Encoder`.
    words = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )

    def __init__(self, metadata: dict[str, Any]) -> None:
        tokens = metadata["tokenizer.ggml.tokens"]
        kinds = metadata["tokenizer.ggml.token_type"]
        self.ids = {token: number for number, token in enumerate(tokens)}
        merges = metadata["tokenizer.ggml.merges"]
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        specials = [token for token, kind in zip(tokens, kinds, strict=True) if kind != 1]
        self.specials = regex.compile("(" + "|".join(map(regex.escape, specials)) + ")")
        self.letters = self.bytes_to_letters()

    @staticmethod
    def bytes_to_letters() -> dict[int, str]:
        """Printable bytes are themselves, the others are counted up from 256."""
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = (byte for byte in range(256) if byte not in printable)
        moved = {byte: chr(256 + number) for number, byte in enumerate(others)}
        return {byte: chr(byte) for byte in printable} | moved

    def encode(self, text: str) -> list[int]:
        """Encode text, special tokens first."""
        ids: list[int] = []
        for number, part in enumerate(self.specials.split(text)):
            ids += [self.ids[part]] if number % 2 else self.encode_plain(part)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Encode text without special tokens: digits stand alone."""
        pieces = regex.split(r"(\p{N})", text)
        words = itertools.chain.from_iterable(self.words.findall(piece) for piece in pieces)
        merged = (self.merge([self.letters[b] for b in word.encode()]) for word in words)
        return [self.ids[token] for token in itertools.chain.from_iterable(merged)]

    def merge(self, word: list[str]) -> list[str]:
        """Join the neighbours of lowest rank, the leftmost first, until none can be joined."""
        while True:
            pairs = [
                (self.ranks[pair], place)
                for place, pair in enumerate(itertools.pairwise(word))
                if pair in self.ranks
            ]
            if not pairs:
                return word
            _, place = heapq.nsmallest(1, pairs)[0]
            word = [*word[:place], word[place] + word[place + 1], *word[place + 2 :]]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_a_tokenizer_written_by_hand(found: source.Source, text: str) -> None:
    assert found.gguf is not None
    by_hand = TokenizerByHand(gguf_file.read_gguf(found.gguf).metadata)
    tokenizer = found.tokenizer()
    ids = tokenizer(text).input_ids
    assert ids == by_hand.encode(text)
    assert tokenizer.decode(ids) == text


def test_tokens_equal_transformers_converter_once_it_splits_digits(found: source.Source) -> None:
    assert found.gguf is not None
    converted = AutoTokenizer.from_pretrained(found.folder, gguf_file=found.gguf.name)
    ours = found.tokenizer()
    spaced = "sum:  10\n\n2. second"  # uncut, the last space and newline go with the digit
    assert ours(spaced).input_ids != converted(spaced).input_ids
    converted.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    for text in TEXTS:
        assert ours(text).input_ids == converted(text).input_ids
    for role in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(ours, role) == getattr(converted, role)
    assert len(ours) == len(converted) == 49152


def test_the_chat_template_renders_the_conversation(found: source.Source) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert found.tokenizer().apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )
