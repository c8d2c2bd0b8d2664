from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from jaxft.errors import WeightsError
from jaxft.weights.places import tokenizer

Write = Callable[..., Path]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

# Pieces as sentencepiece learns them: the better the earlier, and single letters last.
PIECES = ["▁a", "ab", "an", "▁an", "bc", "▁ab", "▁▁", "한국", "abc", "▁한국", "nan", "▁anan"]
LETTERS = ["▁", *"abcn", "한", "국", "\n"]
TOKENS = [
    ("<unk>", UNKNOWN, 0.0),
    ("<s>", CONTROL, 0.0),
    ("</s>", CONTROL, 0.0),
    ("<tag>", USER_DEFINED, -1000.0),
    ("   ", USER_DEFINED, -1000.0),
    *((f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)),
    *((piece, NORMAL, -float(number)) for number, piece in enumerate(PIECES + LETTERS)),
]
IDS = {token: number for number, (token, _, _) in enumerate(TOKENS)}
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": [token for token, _, _ in TOKENS],
    "tokenizer.ggml.token_type": [kind for _, kind, _ in TOKENS],
    "tokenizer.ggml.scores": [score for _, _, score in TOKENS],
}
GEMMA = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}


def encode_as_llama_cpp(text: str, *, has_prefix: bool) -> list[int]:
    """The algorithm of llama.cpp's `llm_tokenizer_spm`, as plainly as it can be said."""
    ids: list[int] = []
    for piece, is_special in cut_at_specials(text):
        if is_special:
            ids.append(IDS[piece])
            continue
        symbols = list((" " * has_prefix + piece).replace(" ", "▁"))
        while pairs := [
            (-TOKENS[IDS[left + right]][2], place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in IDS
        ]:
            place = min(pairs)[1]
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        for symbol in symbols:
            known = [symbol] if symbol in IDS else [f"<0x{b:02X}>" for b in symbol.encode()]
            ids += [IDS[token] for token in known]
    return ids


def cut_at_specials(text: str) -> Iterator[tuple[str, bool]]:
    specials = [token for token, kind, _ in TOKENS if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    plain = ""
    while text:
        found = next((token for token in specials if text.startswith(token)), None)
        if found is None:
            plain, text = plain + text[0], text[1:]
            continue
        if plain:
            yield plain, False
        yield found, True
        plain, text = "", text[len(found) :]
    if plain:
        yield plain, False


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Callable[..., Any]:
    def one(changed: dict[str, Any], base: dict[str, Any] = SENTENCEPIECE) -> Any:
        path = tmp_path_factory.mktemp("tokenizer") / "tiny.gguf"
        mine = {"tokenizer.ggml.merges": None} | base if base is SENTENCEPIECE else base
        unsaid = dict.fromkeys(
            f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "unknown", "padding")
        )
        return tiny_tokenizer(path, unsaid | mine | changed)

    return one


@pytest.fixture(scope="module")
def gemma(build: Callable[..., Any]) -> Any:
    return build(GEMMA)


@pytest.fixture(scope="module")
def llama(build: Callable[..., Any]) -> Any:
    return build({"tokenizer.ggml.add_bos_token": False})


TEXTS = st.text("abcn 한국\n한") | st.text(st.characters(codec="utf-8", exclude_characters="▁"))
MIXED = st.lists(TEXTS | st.sampled_from(["<tag>", "<s>", "</s>", "<unk>", "   "])).map("".join)


@given(MIXED)
@example("abcabc banana 한국  <tag> 🙂")
def test_sentencepiece_without_a_prefix_equals_llama_cpp(gemma: Any, text: str) -> None:
    assert gemma(text).input_ids == encode_as_llama_cpp(text, has_prefix=False)


@given(MIXED)
@example("abcabc banana 한국  <tag>an<s> an")
def test_sentencepiece_with_a_prefix_equals_llama_cpp(llama: Any, text: str) -> None:
    assert llama(text).input_ids == encode_as_llama_cpp(text, has_prefix=True)


@given(MIXED)
def test_sentencepiece_gives_text_back(gemma: Any, text: str) -> None:
    assert gemma.decode(gemma(text).input_ids) == text


@given(TEXTS.filter(lambda text: "   " not in text))
def test_the_prefix_goes_when_text_is_given_back(llama: Any, text: str) -> None:
    assert llama.decode(llama(text).input_ids) == text


def test_what_is_not_in_the_vocabulary_becomes_bytes(gemma: Any) -> None:
    assert gemma.convert_ids_to_tokens(gemma("é").input_ids) == ["<0xC3>", "<0xA9>"]
    assert gemma("<0x41>").input_ids != [IDS["<0x41>"]]


def test_scores_and_not_places_in_the_file_rank_the_pieces(build: Callable[..., Any]) -> None:
    scores = [score for _, _, score in TOKENS]
    assert build(GEMMA)("anab").input_ids == [IDS["an"], IDS["ab"]]
    assert build(GEMMA)("abc").input_ids == [IDS["abc"]]
    scores[IDS["bc"]] = 1.0
    scores[IDS["abc"]] = -100.0
    ids = build(GEMMA | {"tokenizer.ggml.scores": scores})("abcn").input_ids
    assert ids == [IDS["abc"], IDS["n"]]
    scores[IDS["bc"]] = -200.0
    scores[IDS["ab"]] = -300.0
    assert build(GEMMA | {"tokenizer.ggml.scores": scores})("ab").input_ids == [IDS["ab"]]


def test_what_sentencepiece_files_leave_out(build: Callable[..., Any]) -> None:
    plain = build({})
    assert (plain.unk_token, plain.bos_token, plain.eos_token) == ("<unk>", "<s>", "</s>")
    assert plain.pad_token is None
    assert plain("a").input_ids == [IDS["<s>"], IDS["▁a"]]
    assert build({"tokenizer.ggml.bos_token_id": 2}).bos_token == "</s>"


def test_control_tokens_are_special_and_users_own_are_text(gemma: Any) -> None:
    ids = gemma("<s>a<tag>b<unk></s>").input_ids
    assert gemma.decode(ids, skip_special_tokens=True) == "a<tag>b"


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("Phi 3 Mini", "<tag>\n a", ["<tag>", "▁", "\n", "▁a"]),
        ("Phi-3-mini-4k", "<tag>\n a", ["<tag>", "▁a"]),
        ("phi3", "</s> \na", ["</s>", "▁a"]),
        ("phi3", "<s> a", ["<s>", "▁", "▁a"]),
    ],
)
def test_only_a_phi_3s_tokens_swallow_the_blanks_behind_them(
    name: str, text: str, pieces: list[str], build: Callable[..., Any]
) -> None:
    built = build({"general.name": name, "tokenizer.ggml.add_bos_token": False})
    assert built.convert_ids_to_tokens(built(text).input_ids) == pieces


def test_a_saved_sentencepiece_tokenizer_encodes_the_same(llama: Any, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    loaded = tokenizer.load_folder(tmp_path)
    for text in ("banana 한국<tag>an  abc\n🙂", "  an"):
        assert loaded(text, add_special_tokens=False).input_ids == llama(text).input_ids


@pytest.mark.parametrize(
    "changed",
    [
        {"tokenizer.ggml.scores": [0.0]},
        {"tokenizer.ggml.token_type": [1, 1]},
        {"tokenizer.ggml.unknown_token_id": 9999},
    ],
)
def test_a_damaged_sentencepiece_tokenizer_is_refused(
    changed: dict[str, Any], build: Callable[..., Any]
) -> None:
    with pytest.raises(WeightsError, match="the tokenizer is damaged"):
        build(changed)


def pieces(cut: str, text: str, build: Callable[..., Any]) -> list[str]:
    """How text is cut before merging."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    keys = {
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.token_type": [NORMAL] * len(letters),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    steps = build(keys, base={"tokenizer.ggml.model": "gpt2"}).backend_tokenizer
    normal = steps.normalizer.normalize_str(text) if steps.normalizer else text
    return [normal[begin:end] for _, (begin, end) in steps.pre_tokenizer.pre_tokenize_str(normal)]


@pytest.mark.parametrize(
    ("cut", "text", "expected"),
    [
        ("llama-bpe", "in 12345!", ["in", " ", "123", "45", "!"]),
        ("dbrx", "in 12345!", ["in", " ", "123", "45", "!"]),
        ("qwen2", "in 123!", ["in", " ", "1", "2", "3", "!"]),
        ("gpt-4o", "in 12345!", ["in", " ", "123", "45", "!"]),
        (
            "llama-bpe",
            "I'LL say\n\n  (x)\r\n",
            ["I", "'LL", " say", "\n\n", " ", " (", "x", ")\r\n"],
        ),
        ("qwen2", "한국어 문장.\n코드", ["한국어", " 문장", ".\n", "코드"]),
        ("gpt-4o", "camelCase don't a//b/\n", ["camel", "Case", " don't", " a", "//", "b", "/\n"]),
        ("llama-bpe", "camelCase don't", ["camelCase", " don", "'t"]),
    ],
)
def test_text_is_cut_as_the_model_was_trained(
    cut: str, text: str, expected: list[str], build: Callable[..., Any]
) -> None:
    assert pieces(cut, text, build) == expected


def test_qwen_composes_and_the_others_do_not(build: Callable[..., Any]) -> None:
    decomposed = unicodedata.normalize("NFD", "한")
    assert len(decomposed) == 3
    assert pieces("qwen2", decomposed, build) == ["한"]
    assert "".join(pieces("llama-bpe", decomposed, build)) == decomposed


BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["<end>", "a", "b", "c", "ab", "abc"],
    "tokenizer.ggml.token_type": [CONTROL] + [NORMAL] * 5,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.add_bos_token": None,
}


@pytest.mark.parametrize(
    ("cut", "expected"), [("llama-bpe", [0, 5]), ("qwen2", [4, 3]), ("gpt-2", [4, 3])]
)
def test_llama_3_begins_with_its_token_and_keeps_a_word_that_is_a_token(
    cut: str, expected: list[int], build: Callable[..., Any]
) -> None:
    built = build({"tokenizer.ggml.pre": cut}, base=BYTE_LEVEL)
    assert built("abc").input_ids == expected


def test_the_file_decides_whether_llama_3_begins_with_its_token(build: Callable[..., Any]) -> None:
    keys = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
    assert build(keys, base=BYTE_LEVEL)("abc").input_ids == [5]
