"""Apertus: an MLP without a gate, an activation with weights, norms on the heads of q and k.

Source: transformers `configuration_apertus.py`, `modeling_apertus.py` (defaults and names).
"""

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.family import buffer, norm, plain, replaced
from jaxft.models.families.keys import Key
from jaxft.models.families.llama import ATTENTION_BIAS, TENSORS, llama_family

_LAYER = "model.layers.{layer}"
_ACT = f"{_LAYER}.mlp.act_fn"
_TENSORS = (
    *replaced(
        TENSORS,
        *norm("attn_norm", f"{_LAYER}.attention_layernorm"),
        *norm("mlp_norm", f"{_LAYER}.feedforward_layernorm"),
    ),
    plain("mlp/act/alpha_p", f"{_ACT}.alpha_p"),
    plain("mlp/act/alpha_n", f"{_ACT}.alpha_n"),
    buffer("mlp/act/beta", f"{_ACT}.beta"),
    buffer("mlp/act/eps", f"{_ACT}.eps"),
)
_THETA = 12_000_000.0
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": _THETA,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def _read_activation(name: str) -> str:
    return name if name == "xielu" else read_activation(name)  # "xielu" is Apertus' own


APERTUS = llama_family(
    "apertus",
    ATTENTION_BIAS,
    Key("hidden_act", "activation", "xielu", _read_activation, activation_name),
    defaults={"rms_norm_eps": 1e-5},
    rope=_ROPE,
    tensors=_TENSORS,
    theta=_THETA,
    mlp="plain",
    qk_norm="head",
)
