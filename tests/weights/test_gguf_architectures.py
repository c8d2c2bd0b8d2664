from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.models import families
from jaxft.models.spec import LongScaling, ModelSpec
from jaxft.weights.formats import gguf

Write = Callable[..., Path]

SIZES = {
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 3,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 128,
    "attention.layer_norm_rms_epsilon": 0.5,
    "rope.freq_base": 5000.0,
    "vocab_size": 300,
}
OTHER_SIZES = {
    "qwen2": {},
    "qwen3": {"attention.key_length": 24, "attention.value_length": 24},
    "gemma3": {
        "attention.key_length": 24,
        "attention.value_length": 24,
        "attention.sliding_window": 8,
    },
    "phi3": {"attention.sliding_window": 8},
}


def metadata(architecture: str, changed: dict[str, Any] | None = None) -> dict[str, Any]:
    keys = SIZES | OTHER_SIZES[architecture] | (changed or {})
    return {f"{architecture}.{key}": value for key, value in keys.items() if value is not None}


def spec_of(path: Path) -> ModelSpec:
    config = gguf.gguf_config(path)
    return families.family_of(config).spec_from_config(config)


# The library's names beside Hugging Face's, for one block.
SPLIT = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
QK_NORMS = {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
LLAMA_NORM = {"ffn_norm.weight": "post_attention_layernorm.weight"}
BLOCKS = {
    "qwen2": SPLIT
    | LLAMA_NORM
    | {
        "attn_q.bias": "self_attn.q_proj.bias",
        "attn_k.bias": "self_attn.k_proj.bias",
        "attn_v.bias": "self_attn.v_proj.bias",
    },
    "qwen3": SPLIT | LLAMA_NORM | QK_NORMS,
    "gemma3": SPLIT
    | QK_NORMS
    | {
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "ffn_norm.weight": "pre_feedforward_layernorm.weight",
        "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    },
    "phi3": {
        "attn_norm.weight": "input_layernorm.weight",
        "attn_qkv.weight": "self_attn.qkv_proj.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn_up.weight": "mlp.gate_up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    },
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@pytest.mark.parametrize("architecture", BLOCKS)
def test_every_tensor_comes_under_its_name_unpermuted(architecture: str, write_gguf: Write) -> None:
    names = OUTSIDE | {
        f"blk.{n}.{ours}": f"model.layers.{n}.{theirs}"
        for n in range(2)
        for ours, theirs in BLOCKS[architecture].items()
    }
    rng = np.random.default_rng(0)
    stored = {name: rng.standard_normal((16, 8)).astype(np.float32) for name in names}
    checkpoint = gguf.open_gguf(write_gguf(architecture, metadata(architecture), stored))
    assert list(checkpoint.infos()) == list(names.values())
    for name, theirs in names.items():
        is_shifted = architecture == "gemma3" and name.endswith("norm.weight")
        expected = stored[name] - np.float32(1.0) if is_shifted else stored[name]
        np.testing.assert_array_equal(checkpoint.read(theirs), expected, err_msg=name)


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.attn_output.bias", "output.bias", "blk.0.ffn_up_exps"]
)
def test_a_tensor_of_another_model_is_refused(
    architecture: str, name: str, write_gguf: Write
) -> None:
    path = write_gguf(architecture, metadata(architecture), {name: np.ones(8, np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"tensor {name} is not part"):
        gguf.open_gguf(path)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("qwen2", "attention.sliding_window", 8),
        ("qwen3", "attention.sliding_window", 8),
        ("qwen3", "pooling_type", 3),
        ("qwen2", "rope.dimension_count", 8),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("gemma3", "rope.scaling.attn_factor", 1.5),
        ("gemma3", "rope.scaling.type", "longrope"),
        ("phi3", "rope.scaling.type", "yarn"),
        ("phi3", "rope.scaling.factor", 2.0),
        ("phi3", "rope.scaling.attn_factor", 1.5),
    ],
)
def test_a_key_of_another_model_is_refused(
    architecture: str, key: str, value: Any, write_gguf: Write
) -> None:
    with pytest.raises(UnsupportedModelError, match=str(value)):
        gguf.gguf_config(write_gguf(architecture, metadata(architecture, {key: value})))


@pytest.mark.parametrize("architecture", BLOCKS)
def test_the_family_reads_the_config(architecture: str, write_gguf: Write) -> None:
    spec = spec_of(write_gguf(architecture, metadata(architecture)))
    assert (spec.model_dim, spec.blocks[0].mlp.dim, len(spec.blocks), spec.vocab_size) == (
        64,
        96,
        3,
        300,
    )
    assert (spec.num_heads, spec.num_kv_heads, spec.tied_head) == (4, 2, True)
    assert spec.head_dim == (24 if architecture in ("qwen3", "gemma3") else 16)
    assert spec.norm.eps == 0.5
    assert (spec.qkv_bias, spec.out_bias) == (architecture == "qwen2", False)
    assert (spec.qk_norm == "head") == (architecture in ("qwen3", "gemma3"))


def test_qwens_use_no_window(write_gguf: Write) -> None:
    for architecture in ("qwen2", "qwen3"):
        spec = spec_of(write_gguf(architecture, metadata(architecture)))
        assert {block.window for block in spec.blocks} == {None}


@pytest.mark.parametrize(
    ("changed", "is_global"),
    [
        ({"block_count": 13}, {5, 11}),
        ({"attention.sliding_window_pattern": 2}, {1}),
        ({"attention.sliding_window": None}, {0, 1, 2}),
        ({"attention.sliding_window": 0}, {0, 1, 2}),
    ],
)
def test_gemma_3_has_a_global_layer_after_every_five(
    changed: dict[str, Any], is_global: set[int], write_gguf: Write
) -> None:
    spec = spec_of(write_gguf("gemma3", metadata("gemma3", changed)))
    for number, block in enumerate(spec.blocks):
        assert block.rope is not None
        expected = (None, 5000.0) if number in is_global else (8, 10000.0)
        assert (block.window, block.rope.theta) == expected


def test_gemma_3_scales_its_global_layers_alone(write_gguf: Write) -> None:
    changed = {
        "block_count": 6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "rope.freq_base_swa": 200.0,
    }
    config = gguf.gguf_config(write_gguf("gemma3", metadata("gemma3", changed)))
    assert config["rope_parameters"] == {
        "full_attention": {"rope_theta": 5000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 200.0, "rope_type": "default"},
    }


def test_gemma_3_scales_scores_by_the_head_but_in_its_largest_size(write_gguf: Write) -> None:
    assert spec_of(write_gguf("gemma3", metadata("gemma3"))).attn_scale == 24**-0.5
    largest = metadata("gemma3", {"block_count": 62})
    assert spec_of(write_gguf("gemma3", largest)).attn_scale == 16**-0.5


def test_gemma_3_caps_logits_where_the_file_says_so(write_gguf: Write) -> None:
    assert spec_of(write_gguf("gemma3", metadata("gemma3"))).logit_softcap is None
    capped = metadata("gemma3", {"final_logit_softcapping": 20.0})
    assert spec_of(write_gguf("gemma3", capped)).logit_softcap == 20.0


@pytest.mark.parametrize(("said", "window"), [(8, 8), (0, None)])
def test_phi_3_has_a_window_unless_it_is_0(
    said: int, window: int | None, write_gguf: Write
) -> None:
    spec = spec_of(write_gguf("phi3", metadata("phi3", {"attention.sliding_window": said})))
    assert {block.window for block in spec.blocks} == {window}


def test_a_phi_3_that_does_not_say_whether_it_has_a_window_is_refused(write_gguf: Write) -> None:
    path = write_gguf("phi3", metadata("phi3", {"attention.sliding_window": None}))
    with pytest.raises(WeightsError, match=r"phi3\.attention\.sliding_window is missing"):
        gguf.gguf_config(path)


def test_phi_3_turns_by_the_factors_in_the_file(write_gguf: Write) -> None:
    short, long = (np.linspace(1, end, 6, dtype=np.float32) for end in (2, 30))
    keys = {
        "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": 1.25,
        "rope.dimension_count": 12,
    }
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    rope = spec_of(write_gguf("phi3", metadata("phi3", keys), tensors)).blocks[0].rope
    assert rope is not None
    assert rope.rotary_dim == 12
    assert rope.scaling == LongScaling(tuple(short.tolist()), tuple(long.tolist()), 32, 1.25)
