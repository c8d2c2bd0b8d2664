"""Tables of the GGUF architectures: the Hugging Face meaning of their keys and tensors.

`gguf` follows these tables, and a further architecture is a further entry. Every key or tensor that
changes the model's numbers is in a table; others are refused.

Source: llama.cpp `convert_hf_to_gguf.py`, classes LlamaModel, Qwen2Model, Qwen3Model, Gemma3Model
and Phi3MiniModel, read backwards; llama.cpp `load_arch_hparams` for the defaults of missing keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxft.weights.formats import gguf_rope
from jaxft.weights.formats.gguf_rope import ReadTensor

Keys = Mapping[str, Any]
Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The table of one GGUF architecture.

    Attributes:
        model_type: The Hugging Face name.
        model_class: The Hugging Face class.
        fixed: Values of config.json that are the same for all models of this architecture.
        block_tensors: The module's Hugging Face name, below `model.layers.N`, for each tensor of
            a block.
        finish: Adds the values of config.json that need more than one key, such as the rope.
        config: The config.json key for each required `<architecture>.` key.
        optional: Keys that may be absent; `finish` or `gguf` reads them.
        neutral: Values at which an unsupported key changes nothing.
        tensors: The Hugging Face name for each tensor outside the blocks.
        rope_tensors: Tensors that are not weights: `finish` puts them into config.json.
        biased: Tensors that have a bias beside the weight.
        permuted: Tensors whose rows are reordered for another rotary layout, with the config.json
            key for the number of their heads.
        norm_offset: The number that the file adds to the weights of norms.
    """

    model_type: str
    model_class: str
    fixed: Config
    block_tensors: dict[str, str]
    finish: Callable[[Config, Keys, ReadTensor], Config]
    config: dict[str, str] = field(default_factory=lambda: dict(_CONFIG))
    optional: frozenset[str] = frozenset()
    neutral: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=lambda: dict(_TENSORS))
    rope_tensors: frozenset[str] = frozenset()
    biased: frozenset[str] = frozenset()
    permuted: dict[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0

    def is_handled(self, key: str, value: Any) -> bool:
        """Return whether a key is translated, or has a value that changes nothing."""
        changes_nothing = NEUTRAL | self.neutral
        if key in _HARMLESS or (key in changes_nothing and changes_nothing[key] == value):
            return True
        is_known = key in self.config or key in OPTIONAL | self.optional
        return is_known and not isinstance(value, list)


_CONFIG: dict[str, str] = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_TENSORS: dict[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

# Optional keys of every architecture.
OPTIONAL = frozenset(
    {
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    }
)
NEUTRAL = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}
_HARMLESS = frozenset({"rope.scaling.finetuned"})  # llama.cpp stores it and never uses it
_SCALING = frozenset(
    {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"}
)

_SPLIT = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


def _one_rope(config: Config, keys: Keys, read: ReadTensor) -> Config:
    return config | {"rope_parameters": gguf_rope.one(config, keys, read)}


def _gemma3(config: Config, keys: Keys, read: ReadTensor) -> Config:
    """Add the windows, the two ropes and the scale of the scores.

    Source: llama.cpp `llama_model_gemma3::load_arch_hparams`: after every five layers with a window
    (and a rope base of 10000) comes a global layer; and 27B, with 62 layers, has another scale.
    """
    layers, window = config["num_hidden_layers"], keys.get("attention.sliding_window", 0)
    period = keys.get("attention.sliding_window_pattern", 6) if window else 1
    is_27b = layers == 62
    cap = keys.get("final_logit_softcapping", 0.0)
    return config | {
        "layer_types": [
            "sliding_attention" if (layer + 1) % period else "full_attention"
            for layer in range(layers)
        ],
        "sliding_window": window or None,
        "rope_parameters": {
            "full_attention": gguf_rope.one(config, keys, read),
            "sliding_attention": {
                "rope_theta": keys.get("rope.freq_base_swa", 10000.0),
                "rope_type": "default",
            },
        },
        "query_pre_attn_scalar": (
            config["hidden_size"] // config["num_attention_heads"] if is_27b else config["head_dim"]
        ),
        "final_logit_softcapping": cap or None,
    }


def _phi3(config: Config, keys: Keys, read: ReadTensor) -> Config:
    """Add the rope with its two sets of factors. A window of 0 means none, as in Phi-4."""
    original = keys.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    return config | {
        "sliding_window": config["sliding_window"] or None,
        "original_max_position_embeddings": original,
        "rope_parameters": gguf_rope.by_length(config, keys, read),
    }


_LLAMA = Architecture(
    "llama",
    "LlamaForCausalLM",
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    block_tensors=_SPLIT,
    finish=_one_rope,
    optional=_SCALING,
    neutral={"tensor_data_layout": "Meta AI original pth", "rope.scaling.attn_factor": 1.0},
    rope_tensors=frozenset({gguf_rope.FACTORS}),
    permuted={"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"},
)
_QWEN2 = Architecture(
    "qwen2",
    "Qwen2ForCausalLM",
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    block_tensors=_SPLIT,
    finish=_one_rope,
    optional=_SCALING,
    biased=frozenset({"attn_q", "attn_k", "attn_v"}),
)
_QWEN3 = Architecture(
    "qwen3",
    "Qwen3ForCausalLM",
    fixed={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
    block_tensors=_SPLIT | _QK_NORMS,
    finish=_one_rope,
    optional=_SCALING,
)
_GEMMA3 = Architecture(
    "gemma3_text",
    "Gemma3ForCausalLM",
    fixed={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
    },
    block_tensors=_SPLIT
    | _QK_NORMS
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    finish=_gemma3,
    optional=_SCALING
    | {
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
        "rope.freq_base_swa",
    },
    norm_offset=1.0,
)
_PHI3 = Architecture(
    "phi3",
    "Phi3ForCausalLM",
    fixed={"hidden_act": "silu"},
    block_tensors={
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    finish=_phi3,
    # Required, because older files without the key do not say whether there is a window.
    config=_CONFIG | {"attention.sliding_window": "sliding_window"},
    optional=frozenset({"rope.scaling.original_context_length", "rope.scaling.attn_factor"}),
    neutral={"rope.scaling.type": "longrope"},
    rope_tensors=frozenset({gguf_rope.LONG_FACTORS, gguf_rope.SHORT_FACTORS}),
)

ARCHITECTURES = {
    "llama": _LLAMA,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma3": _GEMMA3,
    "phi3": _PHI3,
}
