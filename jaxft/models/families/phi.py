"""Phi 1, 1.5 and 2: attention and MLP in parallel after one norm, biases everywhere.

Source: transformers `configuration_phi.py`, `modeling_phi.py` (defaults and names).
"""

import dataclasses

from jaxft.models.families.family import linear, norm, plain
from jaxft.models.families.keys import Key, activation, choice
from jaxft.models.families.llama import LAYER_NORM, llama_family

_LAYER = "model.layers.{layer}"

TENSORS = (
    plain("embed/kernel", "model.embed_tokens.weight"),
    *norm("final_norm", "model.final_layernorm"),
    *linear("head", "lm_head"),
    *linear("attn/q", f"{_LAYER}.self_attn.q_proj"),
    *linear("attn/k", f"{_LAYER}.self_attn.k_proj"),
    *linear("attn/v", f"{_LAYER}.self_attn.v_proj"),
    *linear("attn/o", f"{_LAYER}.self_attn.dense"),
    *norm("attn/q_norm", f"{_LAYER}.self_attn.q_layernorm"),
    *norm("attn/k_norm", f"{_LAYER}.self_attn.k_layernorm"),
    *linear("mlp/up", f"{_LAYER}.mlp.fc1"),
    *linear("mlp/down", f"{_LAYER}.mlp.fc2"),
    *norm("attn_norm", f"{_LAYER}.input_layernorm"),
)


PHI = dataclasses.replace(
    llama_family(
        "phi",
        activation("hidden_act", "gelu_new"),
        Key("layer_norm_eps", "norm_eps", 1e-5),
        choice("qk_layernorm", "qk_norm", False, yes="head", no="none"),
        tensors=TENSORS,
        norm=LAYER_NORM,
        partial=0.5,
        parallel="one_norm",
        mlp="plain",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
    ),
    default_targets=("q_proj", "v_proj", "fc1", "fc2"),
)
