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
class Learned:
    """A table of learned positions, added to the token embeddings.

    Attributes:
        rows: Rows of the table.
        offset: The row of position 0. OPT's first two rows are for padding.

    Source: transformers `modeling_opt.py: OPTLearnedPositionalEmbedding`.
    """

    rows: int
    offset: int


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
        embed_dim: Width of the embedding table; where it is not `model_dim`, one matrix leads
            from it into the residual stream and another one back before the head.
        model_dim: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; each serves ``num_heads // num_kv_heads`` queries.
        head_dim: Width of one head.
        mlp_dim: Width of the MLP's hidden layer.
        mlp: "gated" is ``down(act(gate(x)) * up(x))``, "plain" is ``down(act(up(x)))``.
        activation: The MLP's nonlinearity.
        norm: RMS norm (a scale), or layer norm (which also centres, and adds a bias).
        norm_eps: Added to the mean square, or the variance, under the root.
        norm_placement: "pre" norms what attention and MLP read, "post" what they and the
            residual stream add up to.
        final_norm: Whether the last hidden state is normed.
        positions: How positions enter.
        qkv_bias: Whether the query, key and value projections add a bias.
        out_bias: Whether the attention output projection adds a bias.
        mlp_bias: Whether the MLP's projections add a bias.
        tied_head: Whether the head is the transposed embedding table.
        blocks: One `BlockSpec` a layer.
    """

    vocab_size: int
    embed_dim: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    mlp: Literal["gated", "plain"]
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"]
    norm: Literal["rms", "layer"]
    norm_eps: float
    norm_placement: Literal["pre", "post"]
    final_norm: bool
    positions: Rope | Learned
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied_head: bool
    blocks: tuple[BlockSpec, ...]

    @property
    def max_tokens(self) -> int | None:
        """The most tokens in a row; `None` where positions have no table to run out of."""
        if isinstance(self.positions, Learned):
            return self.positions.rows - self.positions.offset
        return None
