"""The config.json of published models before Llama, in the spellings that their files have."""

import pytest
from family_configs import field_of

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.spec import Alibi, Learned, Rope

OLD = {"transformers_version": "4.9.0.dev0", "use_cache": True, "torch_dtype": "float16"}
GPT_NEO_125M = {
    **OLD,
    "model_type": "gpt_neo",
    "activation_function": "gelu_new",
    "attention_layers": ["global", "local"] * 6,
    "attention_types": [[["global", "local"], 6]],
    "attention_dropout": 0,
    "embed_dropout": 0,
    "gradient_checkpointing": False,
    "hidden_size": 768,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 2048,
    "num_heads": 12,
    "num_layers": 12,
    "resid_dropout": 0,
    "summary_type": "cls_index",
    "vocab_size": 50257,
    "window_size": 256,
}
GPTJ_6B = {
    **OLD,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "task_specific_params": {"text-generation": {"do_sample": True}},
    "vocab_size": 50400,
}
BLOOM_560M = {
    **OLD,
    "model_type": "bloom",
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "hidden_dropout": 0.0,
    "masked_softmax_fusion": True,
    "n_embed": 1024,
    "n_inner": None,
    "n_layer": 24,
    "num_attention_heads": 16,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "slow_but_exact": False,
    "unk_token_id": 0,
    "vocab_size": 250880,
}
PYTHIA_160M = {
    **OLD,
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
PHI_2 = {
    **OLD,
    "model_type": "phi",
    "embd_pdrop": 0.0,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 51200,
}
FALCON_7B = {
    **OLD,
    "model_type": "falcon",
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "bias": False,
    "hidden_size": 4544,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "parallel_attn": True,
    "vocab_size": 65024,
}
MPT_7B = {
    **OLD,
    "model_type": "mpt",
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "clip_qkv": None,
        "softmax_scale": None,
    },
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_"},
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "vocab_size": 50432,
}
STARCODER = {
    **OLD,
    "model_type": "gpt_bigcode",
    "activation_function": "gelu_pytorch_tanh",
    "inference_runner": 0,
    "multi_query": True,
    "n_embd": 6144,
    "n_head": 48,
    "n_inner": 24576,
    "n_layer": 40,
    "n_positions": 8192,
    "validate_runner_input": True,
    "vocab_size": 49152,
}


def spec_of(config, **changes):
    changed = {**config, **changes}
    return families.family_of(changed).spec_from_config(changed)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (GPT_NEO_125M, {"attn_scale": 1.0, "mlp_dim": 3072, "positions": Learned(2048, 0)}),
        (GPTJ_6B, {"parallel": "one_norm", "head_bias": True, "mlp_dim": 16384}),
        (BLOOM_560M, {"model_dim": 1024, "num_heads": 16, "positions": Alibi()}),
        (PYTHIA_160M, {"parallel": "two_norms", "activation": "gelu", "tied_head": False}),
        (PHI_2, {"parallel": "one_norm", "head_bias": True, "activation": "gelu_tanh"}),
        (FALCON_7B, {"num_kv_heads": 1, "parallel": "one_norm", "head_dim": 64}),
        (MPT_7B, {"mlp_dim": 16384, "attn_scale": 128**-0.5, "positions": Alibi()}),
        (STARCODER, {"num_kv_heads": 1, "qkv_bias": True, "positions": Learned(8192, 0)}),
    ],
    ids=lambda value: value.get("model_type", ""),
)
def test_published_files_are_read_as_what_they_are(config, fields):
    spec = spec_of(config)
    assert {name: field_of(spec, name) for name in fields} == fields
    family = families.family_of(config)
    assert family.spec_from_config(family.config_from_spec(spec)) == spec


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        (GPTJ_6B, Rope(10_000.0, 64, True, None)),
        (PYTHIA_160M, Rope(10_000.0, 16, False, None)),
        ({**PYTHIA_160M, "rotary_emb_base": 500, "rotary_pct": 1.0}, Rope(500.0, 64, False, None)),
        (PHI_2, Rope(10_000.0, 32, False, None)),
        (FALCON_7B, Rope(10_000.0, 64, False, None)),
    ],
)
def test_rope_is_read_in_old_spellings(config, rope):
    assert {block.rope for block in spec_of(config).blocks} == {rope}


def test_every_other_layer_of_a_gpt_neo_has_a_window():
    assert [block.window for block in spec_of(GPT_NEO_125M).blocks] == [None, 256] * 6
    only_global = spec_of(GPT_NEO_125M, attention_types=[[["global"], 12]])
    assert {block.window for block in only_global.blocks} == {None}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"new_decoder_architecture": True, "num_kv_heads": 1}, ("two_norms", 1)),
        (
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "num_kv_heads": 71},
            ("one_norm", 71),
        ),
        ({"multi_query": False}, ("one_norm", 71)),
        ({"parallel_attn": False}, ("no", 1)),
    ],
)
def test_falcons_architectures(changes, fields):
    spec = spec_of(FALCON_7B, **changes)
    assert (spec.parallel, spec.num_kv_heads) == fields


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (GPT_NEO_125M, {"attention_types": [[["global"], 3]]}, "3 layers of 12, global"),
        (GPT_NEO_125M, {"attention_types": [[["global", "odd"], 6]]}, "global, odd"),
        (GPTJ_6B, {"rotary": False}, "rotary=False"),
        (BLOOM_560M, {"slow_but_exact": True}, "slow_but_exact=True"),
        (PYTHIA_160M, {"rope_theta": 500.0}, "rope_theta=500.0"),
        (PYTHIA_160M, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (FALCON_7B, {"alibi": True}, "alibi=True"),
        (FALCON_7B, {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        (FALCON_7B, {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
        (FALCON_7B, {"multi_query": False, "num_kv_heads": 8}, "num_kv_heads=8"),
        (MPT_7B, {"attn_config": {"clip_qkv": 8}}, "clip_qkv=8"),
        (MPT_7B, {"attn_config": {"alibi": False}}, "alibi=False"),
        (MPT_7B, {"no_bias": False}, "no_bias=False"),
        (STARCODER, {"add_cross_attention": True}, "add_cross_attention=True"),
    ],
)
def test_what_is_not_handled_raises_naming_it(config, changes, named):
    with pytest.raises(UnsupportedModelError, match=named):
        spec_of(config, **changes)
