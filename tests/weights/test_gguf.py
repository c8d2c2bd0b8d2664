from __future__ import annotations

import contextlib
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxft.errors import JaxftError, UnsupportedModelError, WeightsError
from jaxft.weights.formats import gguf, gguf_file
from jaxft.weights.formats.checkpoint import Checkpoint

Write = Callable[..., Path]
Kind = library.GGMLQuantizationType


def permute_as_llama_cpp(values: np.ndarray, num_heads: int) -> np.ndarray:
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def test_every_tensor_comes_under_its_hugging_face_name(write_llama: Write) -> None:
    checkpoint = gguf.open_gguf(write_llama())
    assert isinstance(checkpoint, Checkpoint)
    blocks = [
        f"model.layers.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ]
    assert list(checkpoint.infos()) == ["model.embed_tokens.weight", "model.norm.weight", *blocks]


@pytest.mark.parametrize(
    ("source", "name", "num_heads"),
    [
        ("blk.1.attn_q", "model.layers.1.self_attn.q_proj", 4),
        ("blk.1.attn_k", "model.layers.1.self_attn.k_proj", 2),
    ],
)
def test_q_and_k_rows_are_put_back_in_order(
    write_llama: Write, source: str, name: str, num_heads: int
) -> None:
    rows = {"blk.1.attn_q": 64, "blk.1.attn_k": 32}[source]
    original = np.random.default_rng(1).standard_normal((rows, 64)).astype(np.float32)
    stored = permute_as_llama_cpp(original, num_heads)
    assert not np.array_equal(stored, original)
    checkpoint = gguf.open_gguf(write_llama(tensors={f"{source}.weight": stored}))
    np.testing.assert_array_equal(checkpoint.read(f"{name}.weight"), original)


def test_other_tensors_are_read_as_they_are(
    write_llama: Write, llama_tensors: dict[str, np.ndarray]
) -> None:
    checkpoint = gguf.open_gguf(write_llama())
    for name, source in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        np.testing.assert_array_equal(checkpoint.read(name), llama_tensors[source])


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1, Kind.Q8_0])
def test_a_quantized_tensor_reads_as_the_library_dequantizes_it(
    write_llama: Write,
    llama_tensors: dict[str, np.ndarray],
    kind: Kind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gguf_file, "_STEP_VALUES", 7 * 64)  # 300 rows in steps of 7
    checkpoint = gguf.open_gguf(write_llama(kinds={"token_embd.weight": kind}))
    values = checkpoint.read("model.embed_tokens.weight")
    expected = library.dequantize(library.quantize(llama_tensors["token_embd.weight"], kind), kind)
    np.testing.assert_array_equal(values, expected)
    assert 0 < np.abs(values - llama_tensors["token_embd.weight"]).max() < 0.5


def test_infos_announce_what_read_returns(write_llama: Write) -> None:
    checkpoint = gguf.open_gguf(write_llama(kinds={"blk.0.ffn_up.weight": Kind.Q4_1}))
    for name, info in checkpoint.infos().items():
        values = checkpoint.read(name)
        assert (values.shape, values.dtype) == info


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_unpermuting_inverts_the_converters_permutation(heads: int, half: int, width: int) -> None:
    values = np.arange(heads * half * 2 * width).reshape(-1, width)
    np.testing.assert_array_equal(
        gguf.unpermute(permute_as_llama_cpp(values, heads), heads), values
    )


def test_the_config_says_what_the_metadata_says(write_llama: Write) -> None:
    assert gguf.gguf_config(write_llama()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 0.5,
        "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
        "vocab_size": 300,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def test_missing_optional_keys_mean_what_llama_cpp_takes_them_to_mean(write_llama: Write) -> None:
    dropped = {
        "llama.attention.head_count_kv": None,
        "llama.rope.freq_base": None,
        "llama.rope.dimension_count": None,
        "llama.vocab_size": None,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    config = gguf.gguf_config(write_llama(dropped))
    assert config["num_key_value_heads"] == 4
    assert config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["head_dim"] == 16
    assert config["vocab_size"] == 3
    assert "pad_token_id" not in config


def test_a_key_length_of_its_own_is_the_head_dim(write_llama: Write) -> None:
    wide = {
        f"llama.{key}": 32
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    assert gguf.gguf_config(write_llama(wide))["head_dim"] == 32


def test_an_output_tensor_means_an_untied_head(write_llama: Write) -> None:
    head = np.full((300, 64), 2.0, np.float32)
    path = write_llama(tensors={"output.weight": head})
    assert gguf.gguf_config(path)["tie_word_embeddings"] is False
    np.testing.assert_array_equal(gguf.open_gguf(path).read("lm_head.weight"), head)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.attn_factor", 1.5),
        ("llama.rope.scaling.yarn_beta_fast", 32.0),
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 4096),
        ("llama.attention.head_count_kv", [2, 1]),
        ("llama.rope.dimension_count", 8),
        ("llama.attention.value_length", 8),
        ("llama.a_key_of_tomorrow", 1),
        ("general.type", "adapter"),
        ("split.count", 2),
    ],
)
def test_metadata_that_changes_the_numbers_is_refused(
    write_llama: Write, key: str, value: Any
) -> None:
    path = write_llama({key: value})
    with pytest.raises(UnsupportedModelError) as caught:
        gguf.open_gguf(path)
    assert str(path) in caught.value.found
    assert str(value).strip("[]").split(",")[0] in caught.value.found


def test_rope_factors_go_into_the_config_and_are_no_weights(write_llama: Write) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    path = write_llama(tensors={"rope_freqs.weight": factors})
    rope = gguf.gguf_config(path)["rope_parameters"]
    assert rope["short_factor"] == rope["long_factor"] == factors.tolist()
    assert set(gguf.open_gguf(path).infos()) == set(gguf.open_gguf(write_llama()).infos())


def test_an_error_of_the_rope_names_the_file(write_llama: Write) -> None:
    path = write_llama({"llama.rope.scaling.type": "longrope"})
    with pytest.raises(UnsupportedModelError, match=re.escape(f"{path}: The GGUF's rope")):
        gguf.gguf_config(path)


def test_every_token_that_ends_a_turn_is_an_end(write_llama: Write) -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "<|im_end|>", "<|eot_id|>"]
    listed = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eot_token_id": 3}
    assert gguf.gguf_config(write_llama(listed))["eos_token_id"] == [2, 3, 4, 5]
    alone = {"tokenizer.ggml.tokens": tokens[:4], "tokenizer.ggml.eot_token_id": 2}
    assert gguf.gguf_config(write_llama(alone))["eos_token_id"] == 2


def test_neutral_values_of_unhandled_keys_are_accepted(write_llama: Write) -> None:
    neutral = {
        "llama.expert_count": 0,
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.attn_factor": 1.0,
        "llama.rope.scaling.finetuned": True,
        "llama.attention.causal": True,
    }
    assert gguf.gguf_config(write_llama(neutral)) == gguf.gguf_config(write_llama())


@pytest.mark.parametrize(
    "name",
    [
        "rope_factors_long.weight",
        "rope_freqs.bias",
        "blk.0.rope_freqs.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.output",
    ],
)
def test_a_tensor_that_no_table_names_is_refused(write_llama: Write, name: str) -> None:
    path = write_llama(tensors={name: np.ones((32, 32), np.float32)})
    with pytest.raises(UnsupportedModelError, match=re.escape(f"tensor {name} is not part")):
        gguf.open_gguf(path)


def test_another_architecture_is_refused_by_name(write_llama: Write) -> None:
    with pytest.raises(UnsupportedModelError, match="architecture mamba"):
        gguf.gguf_config(write_llama(architecture="mamba"))


@pytest.mark.parametrize("key", ["llama.block_count", "llama.context_length", "llama.vocab_size"])
def test_a_missing_key_is_named(write_llama: Write, key: str) -> None:
    with pytest.raises(WeightsError, match=f"the key {key} is missing"):
        gguf.gguf_config(write_llama({key: None}))


def test_a_type_that_cannot_be_dequantized_is_named(write_llama: Write, tmp_path: Path) -> None:
    path = write_llama()
    header = gguf_file.read_gguf(path)
    stored = header.tensors["output_norm.weight"]._replace(kind=Kind.I32)
    changed = gguf_file.GgufFile(path, header.metadata, {"output_norm.weight": stored})
    with pytest.raises(WeightsError, match=r"output_norm\.weight is stored as I32"):
        changed.read("output_norm.weight")


def test_a_missing_tensor_or_file_is_named(write_llama: Write, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no tensor model\.layers\.9"):
        gguf.open_gguf(write_llama()).read("model.layers.9.mlp.up_proj.weight")
    with pytest.raises(WeightsError, match=r"nowhere\.gguf: No such file"):
        gguf.open_gguf(tmp_path / "nowhere.gguf")


def test_a_truncated_tensor_is_named(write_llama: Write) -> None:
    path = write_llama()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"truncated: tensor blk\.1\.ffn_down\.weight ends"):
        gguf.open_gguf(path)


def test_a_file_cut_after_it_was_opened_is_an_error(write_llama: Write) -> None:
    path = write_llama()
    checkpoint = gguf.open_gguf(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"ends within blk\.1\.ffn_down\.weight"):
        checkpoint.read("model.layers.1.mlp.down_proj.weight")


def test_a_changed_file_is_read_anew(write_llama: Write) -> None:
    assert gguf.gguf_config(write_llama())["rms_norm_eps"] == 0.5
    changed = write_llama({"llama.attention.layer_norm_rms_epsilon": 0.25})
    assert gguf.gguf_config(changed)["rms_norm_eps"] == 0.25


@pytest.mark.parametrize(
    ("start", "kind", "found"),
    [
        (b"GGML\x03\0\0\0", WeightsError, "does not begin with GGUF"),
        (b"GGUF\0\0\0\x03", UnsupportedModelError, "big-endian"),
        (b"GGUF\x01\0\0\0", UnsupportedModelError, "version 1"),
    ],
)
def test_another_container_is_refused(
    write_llama: Write, start: bytes, kind: type[JaxftError], found: str
) -> None:
    path = write_llama()
    path.write_bytes(start + path.read_bytes()[8:])
    with pytest.raises(kind, match=found):
        gguf.open_gguf(path)


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    writer.add_array("tokenizer.ggml.token_type", [1, 3])
    writer.add_tensor("output_norm.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@settings(max_examples=200)
@given(st.data())
def test_a_file_cut_anywhere_is_a_weights_error(tiny_bytes: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tiny_bytes) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cut.gguf")
        path.write_bytes(tiny_bytes[:cut])
        with pytest.raises(WeightsError, match=r"cut\.gguf"):
            gguf_file.read_gguf(path)


def test_a_string_cut_short_is_not_taken_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "words.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_string("general.name", "abcdef")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert gguf_file.read_gguf(path).metadata["general.name"] == "abcdef"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(WeightsError, match="6 bytes expected, 4 left"):
        gguf_file.read_gguf(path)


def test_arrays_nested_without_end_are_a_weights_error(tmp_path: Path) -> None:
    path = tmp_path / "nested.gguf"
    start = struct.pack("<IIQQQ1sI", library.GGUF_MAGIC, 3, 0, 1, 1, b"a", 9)
    path.write_bytes(start + struct.pack("<IQ", 9, 1) * 5000)
    with pytest.raises(WeightsError, match="the header is damaged"):
        gguf_file.read_gguf(path)


def test_an_empty_tensor_is_refused(tiny_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    dims = struct.pack("<QQ", 32, 2)
    assert tiny_bytes.count(dims) == 1
    path.write_bytes(tiny_bytes.replace(dims, struct.pack("<QQ", 32, 0)))
    with pytest.raises(WeightsError, match=r"output_norm\.weight has .* \(a dimension of 0\)"):
        gguf_file.read_gguf(path)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_byte_never_escapes_as_another_exception(
    tiny_bytes: bytes, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tiny_bytes) - 1))
    damaged = bytearray(tiny_bytes)
    damaged[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.gguf")
        path.write_bytes(damaged)
        # Any other exception passes through and fails the test.
        with contextlib.suppress(JaxftError):
            file = gguf_file.read_gguf(path)
            assert all(t.offset + t.num_bytes <= len(damaged) for t in file.tensors.values())
