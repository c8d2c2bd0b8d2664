"""The description of a network: a frozen set of orthogonal features, each of which moves logits.

No field that changes numbers has a default: a family states every one of them, so that a
feature cannot be forgotten and then silently take somebody else's value.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: one angle per position and pair of channels.

    Attributes:
        theta: Base of the geometric series of frequencies.
        scaling: How the frequencies are stretched for longer contexts: "default" not at all,
            "linear" all by `factor`, "llama3" the low ones by `factor`.
        factor: The stretch; 1.0 when there is none.
        low_freq_factor: "llama3": wavelengths above `original_max_positions` over this are
            stretched in full.
        high_freq_factor: "llama3": wavelengths below `original_max_positions` over this are
            left alone.
        original_max_positions: "llama3": context length before stretching, in tokens.

    Source: transformers `modeling_rope_utils.py`, `_compute_linear_scaling_rope_parameters` and
    `_compute_llama3_parameters`.
    """

    theta: float
    scaling: Literal["default", "linear", "llama3"]
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What may differ from one layer to the next.

    Attributes:
        window: A position sees itself and the ``window - 1`` positions before it; `None` means
            all before it.
    """

    window: int | None


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Every number and choice that determines the logits of a decoder.

    Attributes:
        vocab_size: Rows of the embedding table.
        model_dim: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; each serves ``num_heads // num_kv_heads`` queries.
        head_dim: Width of one head.
        mlp_dim: Width of the MLP's hidden layer.
        activation: The function between the MLP's gate and its product with `up`.
        norm_eps: Added to the mean square under the root of an RMS norm.
        rope: The rotary position embedding.
        qkv_bias: Whether the query, key and value projections add a bias.
        out_bias: Whether the attention output projection adds a bias.
        mlp_bias: Whether the three MLP projections add a bias.
        tied_head: Whether the head is the transposed embedding table.
        blocks: One `BlockSpec` a layer.
    """

    vocab_size: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"]
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied_head: bool
    blocks: tuple[BlockSpec, ...]
