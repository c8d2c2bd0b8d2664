"""Families that vary a Llama: configs as the Hub has them say what transformers 5 would write."""

import pytest

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.spec import (
    AlphaScaling,
    Llama3Scaling,
    LongScaling,
    QueryScaling,
    Rope,
    YarnScaling,
)

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "vocab_size": 112,
}
FACTORS = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
PHI4_MINI = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rope_theta": 10000.0,
}
COHERE2 = {
    "cache_implementation": "hybrid",
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": False,
    "use_qk_norm": False,
}
DENSE = {"num_local_experts": 0, "shared_intermediate_size": 96, "position_embedding_type": "rope"}
S, F = "sliding_attention", "full_attention"


def spec_of(model_type, **changes):
    config = {"model_type": model_type, **SIZES, **changes}
    if "num_layers" in changes:
        del config["num_hidden_layers"]
    return families.family_of(config).spec_from_config(config)


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_every_name_of_phi3s_scaling_is_the_same_scaling(kind):
    spec = spec_of("phi3", rope_scaling={"type": kind, **FACTORS}, **PHI4_MINI)
    rope = spec.blocks[0].rope
    magnitude = rope.scaling.magnitude
    assert magnitude == pytest.approx((1 + 2 / 6) ** 0.5)  # log 4 over log 64
    assert rope == Rope(10_000.0, 12, False, LongScaling((1.0,) * 6, (2.0,) * 6, 64, magnitude))


def test_phi3s_original_length_is_4096_unless_it_says_another_one():
    parameters = {"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 7}
    rope = spec_of("phi3", rope_parameters=parameters, partial_rotary_factor=0.75).blocks[0].rope
    assert rope.scaling.original_max_positions == 4096
    assert rope.scaling.magnitude == 1.0  # 256 is no growth


@pytest.mark.parametrize(
    ("model_type", "old", "new"),
    [
        (
            "cohere2",
            {**COHERE2, "sliding_window_pattern": 3, "rope_theta": 5e4},
            {
                "layer_types": [S, S, F, S, S],
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
            },
        ),
        ("exaone4", {"sliding_window_pattern": "LLG"}, {"layer_types": [S, S, F, S, S]}),
        ("exaone4", {"sliding_window_pattern": 2}, {"layer_types": [S, F, S, F, S]}),
        ("exaone4", {"sliding_window": None}, {"sliding_window": None, "layer_types": [F] * 5}),
        ("cwm", {}, {"layer_types": [F, S, S, S, F], "sliding_window": 8192}),
        (
            "granitemoehybrid",
            {
                **DENSE,
                "layer_types": ["attention"] * 5,
                "mamba_d_conv": 4,
                "num_experts_per_tok": 0,
            },
            {**DENSE, "layer_types": [F] * 5},
        ),
        ("starcoder2", {"mlp_type": "default", "norm_type": "layer_norm"}, {}),
        ("nemotron", {"rope_percent": 0.3, "kv_channels": 16}, {"partial_rotary_factor": 0.5}),
        ("stablelm", {}, {"rope_parameters": {"partial_rotary_factor": 0.25}}),
        ("glm4", {"head_dim": 16}, {"head_dim": 16, "partial_rotary_factor": 0.5}),
        (
            "exaone",
            {
                "num_layers": 2,
                "layer_norm_epsilon": 0.5,
                "activation_function": "gelu",
                "rope_theta": 5e5,
            },
            {"num_hidden_layers": 2, "rms_norm_eps": 0.5, "hidden_act": "gelu"},
        ),
        (
            "hunyuan_v1_dense",
            {"rope_scaling": {"type": "dynamic", "alpha": 9.0, "beta_fast": 32, "factor": 1.0}},
            {
                "eod_token_id": 3,
                "rope_parameters": {"rope_type": "dynamic", "alpha": 9, "rope_theta": 1e4},
            },
        ),
    ],
)
def test_an_old_spelling_says_the_same(model_type, old, new):
    assert spec_of(model_type, **old) == spec_of(model_type, **new)


def test_cohere2_and_exaone4_turn_only_what_slides():
    for model_type in ("cohere2", "exaone4"):
        blocks = spec_of(model_type, layer_types=[S, F, F, S, F], sliding_window=11).blocks
        assert [block.window for block in blocks] == [11, None, None, 11, None]
        assert [block.rope is not None for block in blocks] == [True, False, False, True, False]


def test_hunyuans_dynamic_rope_is_a_fixed_one_by_its_alpha():
    scaled = {"rope_type": "dynamic", "alpha": 9.0, "rope_theta": 300.0}
    rope = spec_of("hunyuan_v1_dense", rope_parameters=scaled).blocks[0].rope
    assert rope == Rope(300.0, 16, False, AlphaScaling(9.0))


def test_ministral_3_grows_queries_and_stretches_its_rope_unless_it_says_otherwise():
    spec = spec_of("ministral3")
    assert spec.query_scaling == QueryScaling(0.1, 16384)
    assert spec.blocks[0].rope.scaling == YarnScaling(16.0, 32.0, 1.0, 16384, True, 1.0)
    plain = {"rope_theta": 9.0, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 5}
    spec = spec_of("ministral3", head_dim=16, rope_parameters=plain)
    assert spec.query_scaling == QueryScaling(0.3, 5)
    assert spec.blocks[0].rope == Rope(9.0, 16, False, None)


def test_an_apertus_learns_its_activation_and_stretches_its_rope_unless_it_says_otherwise():
    spec = spec_of("apertus")
    assert (spec.blocks[0].mlp.kind, spec.blocks[0].mlp.activation) == ("plain", "xielu")
    assert spec.blocks[0].rope == Rope(12e6, 16, False, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert spec_of("apertus", hidden_act="gelu_new").blocks[0].mlp.activation == "gelu_tanh"
    plain = {"rope_parameters": {"rope_type": "default"}}
    assert spec_of("apertus", **plain).blocks[0].rope == Rope(12e6, 16, False, None)


def test_cwm_has_a_scaled_rope_unless_it_says_another_one():
    assert spec_of("cwm").blocks[0].rope.scaling.factor == 16.0
    plain = {"rope_type": "default", "rope_theta": 300.0}
    rope = spec_of("cwm", head_dim=16, rope_parameters=plain).blocks[0].rope
    assert rope == Rope(300.0, 16, False, None)


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("phi3", {"interpolate_factor": 2}, "interpolate_factor=2"),
        ("llama", {"hidden_act": "xielu"}, "'xielu'"),
        ("ministral3", {"rope_parameters": {"rope_theta": 9.0}}, "llama_4_scaling_beta"),
        ("starcoder2", {"norm_type": "rms"}, "norm_type"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("nemotron", {"kv_channels": 8}, "kv_channels=8"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere2", {"rotary_pct": 0.5}, "rotary_pct=0.5"),
        ("cohere2", {"sliding_window": None}, "no sliding_window"),
        ("granitemoehybrid", {"layer_types": [F] * 5}, "num_local_experts=8"),
        ("granitemoehybrid", DENSE, "mamba"),
        ("granitemoehybrid", {**DENSE, "layer_types": [F, "mamba"] * 2 + [F]}, "mamba"),
    ],
)
def test_what_is_not_handled_raises_naming_it(model_type, changes, named):
    with pytest.raises(UnsupportedModelError, match=named):
        spec_of(model_type, **changes)
