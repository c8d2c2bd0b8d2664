"""A quantized checkpoint is refused as what it is, and never for what follows from it."""

from __future__ import annotations

import pytest
import tiny

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.families import foreign_quantization

_WEIGHTS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ, 4 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "AWQ, 4 bits"),
        ({"quant_method": "awq", "w_bit": 4}, "AWQ, 4 bits"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
            "bitsandbytes, 4 bits",
        ),
        ({"load_in_4bit": False, "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "fbgemm_fp8"}, r"FP8 \(fbgemm_fp8\), 8 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8, 8 bits"),
        (
            {"quant_method": "compressed-tensors", "config_groups": _WEIGHTS},
            "compressed-tensors, 8 bits",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "MXFP4, 4 bits"),
        ({"quant_method": "hqq", "nbits": 3}, "HQQ, 3 bits"),
        ({"quant_method": "of_tomorrow"}, "of_tomorrow"),
        ({"bits": 4}, "a method that it does not name, 4 bits"),
    ],
)
def test_method_and_bits_are_named(described, said):
    config = {**tiny.SMOLLM2_CONFIG, "quantization_config": described}
    with pytest.raises(UnsupportedModelError, match=rf"are quantized: {said}\.") as caught:
        families.family_of(config)
    assert "take the original checkpoint" in caught.value.remedy


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_oss", "text_config": {"quantization_config": {"bits": 4}}},
        {"model_type": "llama", "compression_config": {"quant_method": "compressed-tensors"}},
        {"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}},
    ],
)
def test_it_is_found_elsewhere_too_and_before_an_unknown_type_is_complained_of(config):
    with pytest.raises(UnsupportedModelError, match="weights are quantized"):
        families.family_of(config)


def test_what_was_released_quantized_alone_has_a_copy_as_its_remedy():
    for method, name in (("mxfp4", "gpt-oss"), ("fp8", "FP8 alone")):
        config = {"quantization_config": {"quant_method": method}}
        with pytest.raises(UnsupportedModelError, match="converted to bfloat16") as caught:
            foreign_quantization.refuse_quantized(config)
        assert name in caught.value.remedy


@pytest.mark.parametrize(
    ("named", "is_said"),
    [
        ("meta-llama/Llama-3.2-1B", True),
        ("unsloth/Llama-3.2-1B-bnb-4bit", False),
        ("/home/me/models/llama", False),
        ("./llama", False),
        (None, False),
    ],
)
def test_the_originals_name_is_said_where_config_json_has_it(named, is_said):
    config = {"_name_or_path": named, "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(UnsupportedModelError) as caught:
        foreign_quantization.refuse_quantized(config)
    assert ("config.json names" in caught.value.remedy) is is_said
    assert caught.value.remedy.endswith(f"names {named})." if is_said else "bfloat16.")


@pytest.mark.parametrize("nothing", [{}, {"quantization_config": None}, {"text_config": None}])
def test_a_model_that_is_not_quantized_passes(nothing):
    foreign_quantization.refuse_quantized({**tiny.SMOLLM2_CONFIG, **nothing})


@pytest.mark.parametrize(
    ("endings", "kind"),
    [
        (["weight", "weight.absmax", "weight.quant_map"], "bitsandbytes, 4 bits"),
        (["weight", "weight.quant_state.bitsandbytes__nf4"], "bitsandbytes, 4 bits"),
        (["weight", "SCB", "weight_format"], "bitsandbytes, 8 bits"),
        (["g_idx", "qweight", "qzeros", "scales"], "GPTQ"),
        (["qweight", "qzeros", "scales"], "AWQ or GPTQ"),
        (["weight", "weight_scale_inv"], "FP8, or another kind of 8 bits"),
        (["weight", "weight_scale", "input_scale"], "FP8, or another kind of 8 bits"),
        (["weight_packed", "weight_scale", "weight_shape"], "compressed-tensors"),
        (["W_q", "scale", "zero"], "HQQ"),
        (["weight", "scales", "biases"], "MLX"),
        (["weight", "bias"], ""),
    ],
)
def test_tensors_are_told_by_their_names(endings, kind):
    names = [f"model.layers.0.mlp.down_proj.{ending}" for ending in endings]
    assert foreign_quantization.quantization_of(["model.norm.weight", *names]) == kind
    if not kind:
        foreign_quantization.refuse_quantized_tensors("model.safetensors", names)
        return
    with pytest.raises(UnsupportedModelError, match=r"^model\.safetensors: .*are quantized: "):
        foreign_quantization.refuse_quantized_tensors("model.safetensors", names)


def test_experts_of_gpt_oss_are_told_by_their_blocks():
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    names = [f"{experts}_blocks", f"{experts}_scales", f"{experts}_bias"]
    with pytest.raises(UnsupportedModelError, match=r"(?s)quantized: MXFP4.*gpt-oss"):
        foreign_quantization.refuse_quantized_tensors("model.safetensors", names)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.model_type)
def test_no_familys_own_tensors_are_taken_for_quantized(family):
    names = [line.theirs.format(layer=0) for line in family.tensors]
    assert foreign_quantization.quantization_of(names) == ""
