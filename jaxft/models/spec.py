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
    """The low frequencies divided by `factor`, with a smooth passage to the high ones.

    Attributes:
        factor: The stretch.
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
    """Each frequency divided by between 1 and `factor`, by how often it turns in the context.

    Attributes:
        factor: The stretch of frequencies that turn less than `beta_slow` times.
        beta_fast: Frequencies that turn more often than this are left alone.
        beta_slow: See `factor`.
        original_max_positions: Context length before stretching, in tokens.
        is_truncated: Whether the bounds of the passage are rounded to whole channels.
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
    """Each frequency divided by a factor of its own, one set for short texts, one for long.

    Attributes:
        short_factors: One for each pair of channels, in texts of up to `original_max_positions`.
        long_factors: The same in longer texts.
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
    """The base multiplied by ``alpha ** (d / (d - 2))``, d being the channels that are turned.

    The highest frequency stays, and the lowest is divided by `alpha`, whatever the text's length.

    Source: transformers `modeling_hunyuan_v1_dense.py: compute_ntk_alpha_rope_parameters`.
    """

    alpha: float


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """A larger base for a text longer than the model's context, the larger the longer it is.

    Attributes:
        factor: How fast the base grows: at 2, a text of twice the context has a base for three
            times of it.
        max_positions: The context, in tokens; shorter texts have the base as it is.

    Source: transformers `modeling_rope_utils.py: _compute_dynamic_ntk_parameters`.
    """

    factor: float
    max_positions: int


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: one angle per position and pair of channels.

    Attributes:
        theta: Base of the geometric series of frequencies.
        rotary_dim: How many leading channels of a head are turned; the others are left alone.
        interleaved: Whether the pairs are channels (2i, 2i + 1), not (i, i + rotary_dim / 2).
        scaling: How the frequencies are stretched for longer contexts; `None` not at all.
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

    Up to `length`, which is the context length that the model began with, they stay as they are.

    Source: transformers `modeling_ministral3.py: get_llama_4_attn_scale`.
    """

    beta: float
    length: int


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
class Sinusoidal:
    """Sines and cosines of the position, added to the token embeddings.

    Attributes:
        offset: Added to every position.

    Source: transformers `modeling_xglm.py: XGLMSinusoidalPositionalEmbedding.get_embedding`.
    """

    offset: int


@dataclasses.dataclass(frozen=True)
class Alibi:
    """A penalty on attention scores, linear in the distance, of another slope in each head.

    Source: Press et al. 2022, "Train Short, Test Long"; transformers `modeling_bloom.py:
    build_alibi_tensor`, for head counts that are no power of two.
    """


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """A normalisation over channels.

    Attributes:
        kind: "rms" divides by the root mean square, "layer" also centres before.
        eps: Added to the mean square, or the variance, under the root.
        scale: "plain" multiplies by a learned scale, "offset" by one plus it, "none" by nothing.
        bias: Whether a learned bias is added.
    """

    kind: Literal["rms", "layer"]
    eps: float
    scale: Literal["plain", "offset", "none"]
    bias: bool


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """A layer's attention, in what may differ from one layer to the next.

    Attributes:
        window: A position sees itself and the ``window - 1`` positions before it; `None` means
            all before it.
        rope: How queries and keys are turned; `None` means not at all.
    """

    window: int | None
    rope: Rope | None


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """A short convolution that mixes tokens, in the place of attention.

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
        activation: The nonlinearity; "xielu" has numbers of its own that are learned.
        bias: Whether the projections add a bias.
    """

    kind: Literal["gated", "plain"]
    dim: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
    bias: bool


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One layer, in what may differ from one layer to the next.

    Attributes:
        mixer: What mixes the tokens.
        mlp: What each token then goes through by itself.
    """

    mixer: AttentionSpec | ConvSpec
    mlp: MLPSpec

    @property
    def window(self) -> int | None:
        """The window of its attention; `None` also where there is no attention."""
        return self.mixer.window if isinstance(self.mixer, AttentionSpec) else None

    @property
    def rope(self) -> Rope | None:
        """How its attention turns queries and keys; `None` also where there is no attention."""
        return self.mixer.rope if isinstance(self.mixer, AttentionSpec) else None


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Every number and choice that determines the logits of a decoder.

    Attributes:
        vocab_size: Rows of the embedding table.
        embed_dim: Width of the embedding table; where it is not `model_dim`, one matrix leads
            from it into the residual stream and another one back before the head.
        embed_scale: Factor on token embeddings.
        embed_norm: Whether the first layer's input is normed.
        model_dim: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; each serves ``num_heads // num_kv_heads`` queries.
        head_dim: Width of one head.
        attn_scale: Factor on attention scores.
        attn_gate: Whether what attention mixes is multiplied by the sigmoid of one more projection
            of its input, before the output projection.
        query_scaling: How queries grow with their position; `None` means not at all.
        attn_softcap: Scores s become ``cap * tanh(s / cap)``; `None` leaves them.
        qk_norm: Whether queries and keys are normed: "head" each head by itself, "full" all heads
            together, both before they are turned; "turned" each head after that; "none" not.
        norm: Every norm of the model but those below.
        other_norms: By the name of their module, "final_norm", the norms that are not as `norm`.
        norm_placement: "pre" norms what attention and MLP read; "pre_residual" does so too, and
            adds their outputs to what they read; "output" norms what they give; "sandwich" what
            they read and what they give; "post" what they and the residual stream add up to.
        parallel: Whether attention and MLP read the same residual stream: "no", one after the
            other; "two_norms", each through its own norm; "one_norm", through one for both.
        residual_scale: Factor on what attention and MLP add to the residual stream.
        final_norm: Whether the last hidden state is normed.
        positions: How positions enter, other than by a layer's `rope`.
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
        """Return how the norm of a module's name is, of a layer's "mlp_norm" as of "final_norm"."""
        return dict(self.other_norms).get(module, self.norm)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens in a row; `None` where positions have no table to run out of."""
        if isinstance(self.positions, Learned):
            return self.positions.rows - self.positions.offset
        return None
