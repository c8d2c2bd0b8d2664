"""Tiny specs with what other families have: each feature that `tiny` has not is in one of these."""

from __future__ import annotations

import dataclasses

import tiny

from jaxft.models.spec import (
    Alibi,
    AttentionSpec,
    BlockSpec,
    ConvSpec,
    MLPSpec,
    ModelSpec,
    NormSpec,
    QueryScaling,
    Rope,
    Sinusoidal,
)

# Gemma's: norms on both sides, scales from one, soft caps, windows with a rope of their own. And
# Ministral 3's growing queries.
SANDWICH: ModelSpec = dataclasses.replace(
    tiny.SPEC,
    embed_scale=8.0,
    query_scaling=QueryScaling(0.5, length=5),
    attn_softcap=1.5,
    logit_softcap=2.0,
    qk_norm="head",
    norm=NormSpec("rms", 0.1, scale="offset", bias=False),
    norm_placement="sandwich",
    blocks=tuple(
        BlockSpec(AttentionSpec(window, rope), tiny.MLP)
        for window, rope in ((7, Rope(100.0, 20, False, None)), (None, tiny.ROPE), (7, None))
    ),
)
# GPT-J's, and Cohere's: attention and MLP beside each other after one norm, a biased head. And
# Hunyuan's norms of what has been turned.
PARALLEL: ModelSpec = dataclasses.replace(
    tiny.SPEC,
    parallel="one_norm",
    qk_norm="turned",
    norm=NormSpec("layer", 0.1, scale="plain", bias=False),
    head_bias=True,
    logit_scale=0.25,
    tied_head=False,
    blocks=(BlockSpec(AttentionSpec(None, Rope(100.0, 12, True, None)), tiny.MLP),) * 3,
)
# GPT-NeoX's, and XGLM's: a norm for each, positions as sines; Granite's factor on both.
TWO_NORMS: ModelSpec = dataclasses.replace(
    PARALLEL,
    parallel="two_norms",
    residual_scale=0.5,
    norm=NormSpec("layer", 0.1, scale="none", bias=False),
    positions=Sinusoidal(offset=2),
    blocks=(BlockSpec(AttentionSpec(None, None), tiny.MLP),) * 3,
)
# BLOOM's: a penalty on distance, a normed embedding, the normed stream as residual.
ALIBI: ModelSpec = dataclasses.replace(
    tiny.LEARNED, positions=Alibi(), embed_norm=True, norm_placement="pre_residual"
)
# OLMo 2's: norms of what attention and MLP give, and of all heads together.
OUTPUT: ModelSpec = dataclasses.replace(tiny.SPEC, norm_placement="output", qk_norm="full")
# Apertus's: an activation that is learned.
LEARNED_ACT: ModelSpec = tiny.with_mlp(tiny.SPEC, kind="plain", activation="xielu")
# Muse Glimmer's: a gate on attention, and norms of several kinds.
GATED: ModelSpec = dataclasses.replace(
    tiny.SPEC,
    embed_norm=True,
    qk_norm="head",
    attn_gate=True,
    norm_placement="sandwich",
    norm=NormSpec("rms", 0.1, scale="offset", bias=False),
    other_norms=(
        ("embed_norm", NormSpec("rms", 0.3, scale="none", bias=False)),
        ("final_norm", NormSpec("layer", 0.2, scale="plain", bias=True)),
        ("k_norm", NormSpec("rms", 0.5, scale="none", bias=False)),
        ("mlp_out_norm", NormSpec("rms", 0.7, scale="plain", bias=False)),
    ),
)
# LFM2's: convolutions beside attention, the first layer with one.
CONVOLUTIONS: ModelSpec = dataclasses.replace(
    tiny.with_mixers(
        tiny.SPEC, ConvSpec(4, True), AttentionSpec(None, tiny.ROPE), ConvSpec(4, True)
    ),
    qk_norm="head",
)
# No model's yet: each layer's MLP has a kind, a width, an activation and biases of its own.
SEVERAL_MLPS: ModelSpec = dataclasses.replace(
    tiny.SPEC,
    blocks=tuple(
        BlockSpec(AttentionSpec(None, tiny.ROPE), mlp)
        for mlp in (
            tiny.MLP,
            MLPSpec("plain", 144, "relu", True),
            MLPSpec("gated", 96, "silu", True),
        )
    ),
)

SPECS = {
    "several MLPs": SEVERAL_MLPS,
    "convolutions": CONVOLUTIONS,
    "gated": GATED,
    "sandwich": SANDWICH,
    "parallel": PARALLEL,
    "two norms": TWO_NORMS,
    "alibi": ALIBI,
    "output": OUTPUT,
    "learned activation": LEARNED_ACT,
}
