"""GLM-4: a Llama that rotates neighbouring pairs in half of each head, with gate and up fused.

The models of 2025 (`glm4`) norm the outputs of attention and MLP too.

Source: transformers `configuration_glm.py`, `configuration_glm4.py`, `modeling_glm.py`,
`modeling_glm4.py` (defaults and names).
"""

from jaxft.models.families.family import linear, norm, replaced
from jaxft.models.families.keys import Key
from jaxft.models.families.llama import TENSORS, llama_family

_LAYER = "model.layers.{layer}"
_DEFAULTS = {
    "head_dim": 128,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1.5625e-7,
}

GLM_TENSORS = replaced(
    TENSORS, *linear("mlp/gate_up", f"{_LAYER}.mlp.gate_up_proj", parts=("mlp/gate", "mlp/up"))
)
GLM4_TENSORS = (
    *GLM_TENSORS,
    *norm("attn_out_norm", f"{_LAYER}.post_self_attn_layernorm"),
    *norm("mlp_out_norm", f"{_LAYER}.post_mlp_layernorm"),
)


GLM, GLM4 = (
    llama_family(
        model_type,
        Key("attention_bias", "qkv_bias", True),
        defaults=_DEFAULTS,
        tensors=tensors,
        partial=0.5,
        interleaved=True,
        norm_placement=placement,
    )
    for model_type, tensors, placement in (
        ("glm", GLM_TENSORS, "pre"),
        ("glm4", GLM4_TENSORS, "sandwich"),
    )
)
