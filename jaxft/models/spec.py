"""The description of a network: a frozen set of orthogonal features, each of which moves logits.

No field that changes numbers has a default: a family states every one of them, so that a
feature cannot be forgotten and then silently take somebody else's value.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All angles divided by `factor`.

    Source: transformers `modeling_rope_utils.py: _compute_linear_scaling_rope_parameters`.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The low frequencies divided by `factor`, with a smooth transition to the high ones.

    Attributes:
        factor: The stretch of low frequencies.
        low_freq_factor: Wavelengths above `original_max_positions` over this are stretched in
            full.
        high_freq_factor: Wavelengths below `original_max_positions` over this are left alone.
        original_max_positions: Context length before stretching, in tokens.

    Source: transformers `modeling_rope_utils.py: _compute_llama3_parameters`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """Each frequency divided by 1 to `factor`, depending on how often it turns in the context.

    Attributes:
        factor: The stretch of frequencies that turn less often than `beta_slow`.
        beta_fast: Frequencies that turn more often than this are left alone.
        beta_slow: Frequencies that turn less often than this are divided by `factor`.
        original_max_positions: Context length before stretching, in tokens.
        is_truncated: Whether the bounds of the transition are rounded to whole channels.
        magnitude: Factor on cosine and sine.

    Source: Peng et al. 2023, "YaRN", section 3.2; transformers `modeling_rope_utils.py:
    _compute_yarn_parameters`.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_positions: int
    is_truncated: bool
    magnitude: float


@dataclasses.dataclass(frozen=True)
class LongScaling:
    """Each frequency divided by its own factor, with one set for short texts and one for long ones.

    Attributes:
        short_factors: One factor per pair of channels, for texts of up to `original_max_positions`.
        long_factors: One factor per pair of channels, for longer texts.
        original_max_positions: Context length before stretching, in tokens.
        magnitude: Factor on cosine and sine.

    Source: Ding et al. 2024, "LongRoPE"; transformers `modeling_rope_utils.py:
    _compute_longrope_parameters`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    magnitude: float


@dataclasses.dataclass(frozen=True)
class AlphaScaling:
    """The base multiplied by ``alpha ** (d / (d - 2))``, where d is the number of rotated channels.

    The highest frequency stays, and the lowest is divided by `alpha`, for texts of any length.

    Source: transformers `modeling_hunyuan_v1_dense.py: compute_ntk_alpha_rope_parameters`.
    """

    alpha: float


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """A base that grows with the length of a text, once it is longer than the model's context.

    Attributes:
        factor: How fast the base grows. With 2, a text twice as long as the context has a base for
            three times the context.
        max_positions: The context, in tokens; for shorter texts the base is unchanged.

    Source: transformers `modeling_rope_utils.py: _compute_dynamic_ntk_parameters`.
    """

    factor: float
    max_positions: int


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: one angle per position and pair of channels.

    Attributes:
        theta: Base of the geometric series of frequencies.
        rotary_dim: How many leading channels of a head are rotated; the others are left alone.
        interleaved: Whether the pairs are channels (2i, 2i + 1), not (i, i + rotary_dim / 2).
        scaling: How the frequencies are stretched for longer contexts; `None` for no stretching.
    """

    theta: float
    rotary_dim: int
    interleaved: bool
    scaling: (
        LinearScaling
        | Llama3Scaling
        | YarnScaling
        | LongScaling
        | AlphaScaling
        | DynamicScaling
        | None
    )


@dataclasses.dataclass(frozen=True)
class QueryScaling:
    """Queries multiplied by ``1 + beta * log(1 + floor(position / length))``, in every layer.

    At positions below `length`, the model's original context length, queries are unchanged.

    Source: transformers `modeling_ministral3.py: get_llama_4_attn_scale`.
    """

    beta: float
    length: int


@dataclasses.dataclass(frozen=True)
class Learned:
    """A table of learned positions, added to the token embeddings.

    Attributes:
        rows: The number of rows of the table.
        offset: The row of position 0. OPT's first two rows are for padding.

    Source: transformers `modeling_opt.py: OPTLearnedPositionalEmbedding`.
    """

    rows: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Sinusoidal:
    """Sines and cosines of the position, added to the token embeddings.

    Attributes:
        offset: A number that is added to every position.

    Source: transformers `modeling_xglm.py: XGLMSinusoidalPositionalEmbedding.get_embedding`.
    """

    offset: int


@dataclasses.dataclass(frozen=True)
class Alibi:
    """A penalty on attention scores, linear in the distance, with a different slope in each head.

    Source: Press et al. 2022, "Train Short, Test Long"; transformers `modeling_bloom.py:
    build_alibi_tensor`, for head counts that are not a power of two.
    """


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """A normalisation over channels.

    Attributes:
        kind: "rms" divides by the root mean square; "layer" first subtracts the mean.
        eps: A number that is added to the mean square, or the variance, under the root.
        scale: "plain" multiplies by a learned scale, "offset" by one plus a learned scale; "none"
            has no scale.
        bias: Whether a learned bias is added.
    """

    kind: Literal["rms", "layer"]
    eps: float
    scale: Literal["plain", "offset", "none"]
    bias: bool


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The features of attention that may differ from one layer to the next.

    Attributes:
        window: A position sees itself and the ``window - 1`` positions before it; `None` means
            all before it.
        rope: How queries and keys are rotated; `None` means not at all.
    """

    window: int | None
    rope: Rope | None


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """A short convolution that mixes tokens, instead of attention.

    Attributes:
        width: How many tokens it mixes: each one and the ``width - 1`` before it.
        bias: Whether its projections and the convolution add a bias.

    Source: transformers `modeling_lfm2.py: Lfm2ShortConv`.
    """

    width: int
    bias: bool


@dataclasses.dataclass(frozen=True)
class MLPSpec:
    """A layer's MLP.

    Attributes:
        kind: "gated" is ``down(act(gate(x)) * up(x))``, "plain" is ``down(act(up(x)))``.
        dim: Width of the hidden layer.
        activation: The nonlinearity; "xielu" has learned parameters of its own.
        bias: Whether the projections add a bias.
    """

    kind: Literal["gated", "plain"]
    dim: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
    bias: bool


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The features of a layer that may differ from one layer to the next.

    Attributes:
        mixer: The part that mixes the tokens: attention or a convolution.
        mlp: The MLP that is then applied to each token by itself.
    """

    mixer: AttentionSpec | ConvSpec
    mlp: MLPSpec

    @property
    def window(self) -> int | None:
        """The window of its attention; `None` for no window, and for a layer without attention."""
        return self.mixer.window if isinstance(self.mixer, AttentionSpec) else None

    @property
    def rope(self) -> Rope | None:
        """How its attention rotates queries and keys; `None` also for a layer without attention."""
        return self.mixer.rope if isinstance(self.mixer, AttentionSpec) else None


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Every number and choice that determines the logits of a decoder.

    Attributes:
        vocab_size: The number of rows of the embedding table.
        embed_dim: Width of the embedding table; if it is not `model_dim`, one matrix projects
            embeddings to the residual stream, and another one projects back before the head.
        embed_scale: Factor on token embeddings.
        embed_norm: Whether the first layer's input is normed.
        model_dim: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; each serves ``num_heads // num_kv_heads`` queries.
        head_dim: Width of one head.
        attn_scale: Factor on attention scores.
        attn_gate: Whether attention's output, before the output projection, is multiplied by the
            sigmoid of one more projection of its input.
        query_scaling: How queries grow with their position; `None` means not at all.
        attn_softcap: Scores s become ``cap * tanh(s / cap)``; `None` leaves them.
        qk_norm: How queries and keys are normed: "head" each head by itself, "full" all heads
            together, both before rotation; "turned" each head after rotation; "none" not at all.
        norm: Every norm of the model but those in `other_norms`.
        other_norms: The norms that differ from `norm`, by module name, such as "final_norm".
        norm_placement: "pre" norms the inputs of attention and MLP; "pre_residual" does so too,
            and adds their outputs to the normed inputs; "output" norms their outputs; "sandwich"
            their inputs and outputs; "post" the sums of their outputs and the residual stream.
        parallel: Whether attention and MLP read the same residual stream: "no", one after the
            other; "two_norms", each through its own norm; "one_norm", both through the same norm.
        residual_scale: Factor on what attention and MLP add to the residual stream.
        final_norm: Whether the last hidden state is normed.
        positions: How positions enter the model, other than by a layer's `rope`.
        qkv_bias: Whether the query, key and value projections add a bias.
        out_bias: Whether the attention output projection adds a bias.
        tied_head: Whether the head is the transposed embedding table.
        head_bias: Whether the head adds a bias.
        logit_scale: Factor on logits.
        logit_softcap: Logits l become ``cap * tanh(l / cap)``; `None` leaves them.
        blocks: The layers, one after the other.
    """

    vocab_size: int
    embed_dim: int
    embed_scale: float
    embed_norm: bool
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attn_scale: float
    attn_gate: bool
    query_scaling: QueryScaling | None
    attn_softcap: float | None
    qk_norm: Literal["none", "head", "full", "turned"]
    norm: NormSpec
    other_norms: tuple[tuple[str, NormSpec], ...]
    norm_placement: Literal["pre", "pre_residual", "post", "output", "sandwich"]
    parallel: Literal["no", "two_norms", "one_norm"]
    residual_scale: float
    final_norm: bool
    positions: Learned | Sinusoidal | Alibi | None
    qkv_bias: bool
    out_bias: bool
    tied_head: bool
    head_bias: bool
    logit_scale: float
    logit_softcap: float | None
    blocks: tuple[BlockSpec, ...]

    def norm_of(self, module: str) -> NormSpec:
        """Return the norm with a module's name, such as "mlp_norm" or "final_norm"."""
        return dict(self.other_norms).get(module, self.norm)

    @property
    def max_tokens(self) -> int | None:
        """The maximum number of tokens in a batch row; `None` if no position table limits it."""
        if isinstance(self.positions, Learned):
            return self.positions.rows - self.positions.offset
        return None
