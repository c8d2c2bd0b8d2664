"""config.json becomes a spec key by key, and no key that matters is overlooked."""

from pathlib import Path

import pytest
import tiny
from family_configs import field_of

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.families import llama, refused
from jaxft.models.families.config_reader import unapplied_dropout
from jaxft.models.spec import (
    AttentionSpec,
    BlockSpec,
    LinearScaling,
    Llama3Scaling,
    MLPSpec,
    NormSpec,
    Rope,
)

MISTRAL_CONFIG = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def spec_of(**changes):
    return llama.llama_spec({**tiny.SMOLLM2_CONFIG, **changes})


def test_smollm2_is_read_as_what_it_is():
    spec = spec_of()
    assert (spec.vocab_size, spec.model_dim) == (49152, 576)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (9, 3, 64)
    assert (spec.norm.eps, spec.tied_head) == (1e-5, True)
    attention = AttentionSpec(None, Rope(100000.0, 64, False, None))
    assert spec.blocks == (BlockSpec(attention, MLPSpec("gated", 1536, "silu", False)),) * 30
    assert (spec.qkv_bias, spec.out_bias) == (False, False)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"head_dim": 48}, {"head_dim": 48}),
        ({"num_key_value_heads": None}, {"num_kv_heads": 9}),
        ({"attention_bias": True}, {"qkv_bias": True, "out_bias": True, "mlp_bias": False}),
        ({"mlp_bias": True}, {"mlp_bias": True, "qkv_bias": False}),
        ({"hidden_act": "gelu_new"}, {"activation": "gelu_tanh"}),
        ({"tie_word_embeddings": False}, {"tied_head": False}),
        ({"rms_norm_eps": 1e-6}, {"norm": NormSpec("rms", 1e-6, scale="plain", bias=False)}),
        ({"num_hidden_layers": 2}, {"blocks": spec_of().blocks[:2]}),
    ],
)
def test_each_key_reaches_its_field(changes, fields):
    spec = spec_of(**changes)
    assert {name: field_of(spec, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(5e5, 64, False, None)),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            Rope(1e5, 64, False, LinearScaling(4.0)),
        ),
        (
            {"rope_scaling": LLAMA3_ROPE, "rope_parameters": {"rope_theta": 3.0}},
            Rope(1e5, 64, False, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
        ),
        ({"rope_scaling": LLAMA3_ROPE}, Rope(1e5, 64, False, Llama3Scaling(32.0, 1.0, 4.0, 8192))),
        (
            {"rope_parameters": {"rope_theta": 7.0, **LLAMA3_ROPE}, "rope_theta": None},
            Rope(7.0, 64, False, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
        ),
    ],
)
def test_rope_is_read_in_the_old_and_the_new_spelling(changes, rope):
    assert {block.rope for block in spec_of(**changes).blocks} == {rope}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"per_layer_config": {"0": {}}}, "per_layer_config"),
        ({"hidden_act": "tanhshrink"}, "'tanhshrink'"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "'proportional'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "without low_freq_factor"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_what_is_not_handled_raises_naming_it(changes, named):
    with pytest.raises(UnsupportedModelError, match=named):
        spec_of(**changes)


def test_fields_that_a_kind_of_rope_does_not_have_are_not_looked_at():
    linear = {"rope_type": "linear", "factor": 4.0}
    assert spec_of(rope_scaling={**linear, "beta": 1}) == spec_of(rope_scaling=linear)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    foreign = {"finetuned": True, "attn_factor": 2.0}
    assert spec_of(rope_scaling=yarn | foreign) == spec_of(rope_scaling=yarn)


def test_a_mistral_without_a_number_of_kv_heads_has_eight():
    config = {key: each for key, each in MISTRAL_CONFIG.items() if key != "num_key_value_heads"}
    assert llama.mistral_spec(config) == llama.mistral_spec(MISTRAL_CONFIG)
    assert llama.mistral_spec(config | {"num_key_value_heads": None}).num_kv_heads == 32


def test_dropout_of_the_base_changes_no_spec_and_is_told_by_name():
    assert spec_of(attention_dropout=0.1) == spec_of()
    config = {"resid_pdrop": 0.0, "embd_pdrop": 0.2, "attention_dropout": 0.1, "hidden_size": 3}
    assert unapplied_dropout(config) == ["attention_dropout=0.1", "embd_pdrop=0.2"]
    assert unapplied_dropout(tiny.SMOLLM2_CONFIG) == []


def test_a_missing_key_without_a_default_is_named():
    config = {key: v for key, v in tiny.SMOLLM2_CONFIG.items() if key != "hidden_size"}
    with pytest.raises(UnsupportedModelError, match="no 'hidden_size'"):
        llama.llama_spec(config)


def test_mistral_has_its_window_on_every_layer():
    rope = Rope(10_000.0, 128, False, None)
    mlp = MLPSpec("gated", 14336, "silu", False)
    assert llama.mistral_spec(MISTRAL_CONFIG).blocks == (
        (BlockSpec(AttentionSpec(4096, rope), mlp),) * 32
    )
    without = {**MISTRAL_CONFIG, "sliding_window": None}
    assert llama.mistral_spec(without).blocks == (BlockSpec(AttentionSpec(None, rope), mlp),) * 32


def test_model_type_finds_the_family():
    assert families.family_of(tiny.SMOLLM2_CONFIG) is llama.LLAMA
    assert families.family_of(MISTRAL_CONFIG) is llama.MISTRAL


def test_unknown_model_type_raises_with_the_nearest():
    with pytest.raises(UnsupportedModelError, match="'llama5', which is not handled") as raised:
        families.family_of({"model_type": "llama5"})
    handled = sorted(family.model_type for family in families.FAMILIES)
    assert ", ".join(handled) in raised.value.remedy
    assert "the nearest is llama" in raised.value.remedy
    with pytest.raises(UnsupportedModelError, match="None"):
        families.family_of({})


def test_a_type_that_is_known_and_not_handled_is_refused_as_what_it_is():
    with pytest.raises(UnsupportedModelError, match="not handled: a mixture of experts"):
        families.family_of({"model_type": "mixtral"})
    with pytest.raises(UnsupportedModelError, match="state-space, linear-attention or recurrent"):
        families.family_of({"model_type": "mamba"})


def test_no_type_is_both_handled_and_refused():
    handled = {family.model_type for family in families.FAMILIES}
    listed = [name for names in refused.by_kind().values() for name in names]
    assert handled.isdisjoint(listed)
    assert len(set(listed)) == len(listed)


def test_the_page_has_a_row_for_every_family_and_counts_them():
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    handled = {family.model_type for family in families.FAMILIES}
    table = page.partition("<!-- table")[2].partition("<!-- end")[0]
    assert {line.split()[1] for line in table.splitlines()[3:]} == handled
    assert f"names the family; {len(handled)} are supported" in page
    assert len(handled) > 50
