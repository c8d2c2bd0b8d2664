"""LFM2, in what its cases do not reach: spellings of its config.json, and biased convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import cases
import numpy as np
import reference_models
import reference_runs
import reference_texts
import torch
import transformers
from jax.sharding import Mesh

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.lfm2 import LFM2
from jaxft.models.spec import ConvSpec

pytestmark = pytest.mark.reference

SIZES = {
    "vocab_size": 112,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPELLINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "older names": {"block_ff_dim": 100, "tie_embedding": False, "intermediate_size": 7},
    "a factor": {"block_ffn_dim_multiplier": 1.7, "block_multiple_of": 24},
    "as it is": {"block_auto_adjust_ff_dim": False, "intermediate_size": 100},
    "layers by number": {"full_attn_idxs": [1, 3], "conv_L_cache": 2},
    "layers by name": {
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "full_attn_idxs": [0],
    },
    "of other programs": {"block_dim": 3, "conv_dim": 5, "num_heads": 7, "use_pos_enc": True},
}


@pytest.mark.parametrize("said", SPELLINGS.values(), ids=SPELLINGS)
def test_a_spelling_means_what_it_means_in_transformers(said: dict[str, Any]) -> None:
    spec = LFM2.spec_from_config({"model_type": "lfm2", **SIZES, **said})
    config = transformers.Lfm2Config(**SIZES, **said)
    with torch.device("meta"):
        model = transformers.Lfm2ForCausalLM(config)
    assert spec.blocks[0].mlp.dim == model.model.layers[0].feed_forward.w1.out_features
    assert spec.tied_head == config.tie_word_embeddings
    kinds = [
        "conv" if isinstance(block.mixer, ConvSpec) else "full_attention" for block in spec.blocks
    ]
    assert kinds == config.layer_types
    widths = {block.mixer.width for block in spec.blocks if isinstance(block.mixer, ConvSpec)}
    assert widths <= {config.conv_L_cache}


def test_kinds_of_layers_that_are_not_there_raise() -> None:
    with pytest.raises(UnsupportedModelError, match="'sliding_attention'"):
        LFM2.spec_from_config({**SIZES, "layer_types": ["sliding_attention"] * 4})
    with pytest.raises(UnsupportedModelError, match="3 layer_types"):
        LFM2.spec_from_config({**SIZES, "layer_types": ["conv"] * 3})


def test_biased_convolutions_have_the_logits_of_transformers_without_padding_before_a_text(
    tmp_path: Path, one_device: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padding on the left, transformers' first tokens see the biases of what is no text."""
    config_class, _ = cases.CASES["lfm2"]
    monkeypatch.setitem(cases.CASES, "biased", (config_class, {"conv_bias": True}))
    model = reference_models.make("biased", tmp_path)
    tree = model.load(model.network, one_device)
    text = reference_texts.draw((53, 47, 31), "right", cases.VOCAB_SIZE, seed=7)
    ours = reference_runs.our_logits(model.network, tree, text, one_device)
    theirs = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(ours, theirs, text) < reference_runs.TOLERANCE
    padded = reference_texts.Text(
        np.pad(text.input_ids, ((0, 0), (3, 0))), np.pad(text.attention_mask, ((0, 0), (3, 0)))
    )
    again = reference_runs.our_logits(model.network, tree, padded, one_device)[:, 3:]
    assert reference_runs.difference(again, ours, text) < reference_runs.TOLERANCE
    moved = reference_runs.torch_logits(model.torch_model, padded)[:, 3:]
    assert reference_runs.difference(moved, theirs, text) > 100 * reference_runs.TOLERANCE
