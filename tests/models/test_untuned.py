"""The base beneath a tuned model is the base, bit for bit, whatever was tuned."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.lora import mask
from jaxft.models import untuned
from jaxft.models.network import base_network

TIED = tiny.with_windows([None] * 2)
APART = tiny.with_windows([None] * 2, tied_head=False)
MICRO = tiny.micro_batch(2, 9)
VARIANTS = {
    "lora": {},
    "one layer": {"layers": [0]},
    "biased": {"bias": True, "head": True},
    "dora": {"dora": True},
    "taken away": {"start": True, "head": True},
    "embedding": {"outside": ["embed"]},
    "shared by a tied head": {"outside": ["embed"], "follows": True},
    "tokens": {"rows": {"embed": (1, 5)}, "follows": True},
    "norms": {"trained": ["attn_norm/scale"], "outer_trained": ["final_norm/scale"]},
    "copy of a tied head": {"outer_trained": ["head/kernel"]},
    "both ends": {"outer_trained": ["embed/kernel"], "keeps_tie": True},
    "full": {"modules": [], "trained": ["attn/q/kernel", "mlp/down/kernel"], "layers": [1]},
}


CASES = [
    pytest.param(spec, variant, id=f"{name}, {variant}")
    for name, spec in {"tied": TIED, "apart": APART}.items()
    for variant in VARIANTS
    if spec is TIED or "tied" not in variant
]


@pytest.mark.parametrize(("spec", "variant"), CASES)
def test_the_base_view_is_the_base_network_bit_for_bit(spec, variant):
    network = tiny.adapted(spec, **VARIANTS[variant])
    tuned = tiny.random_leaves(network, seed=1)
    base = base_network(spec)
    own = tiny.random_leaves(base, seed=2)
    expected = tiny.forward_logits(base, own, MICRO)
    # The model's own leaves stacked as the tuned network has them, an untied head with its copy.
    if network.unties_head:
        own = {**own, "head": {"kernel": own["embed"]["kernel"].T}}
    stacked = trees.flatten(tiny.restacked(own, base, network))
    marks = trees.flatten(mask.trainable_mask(network, tuned))
    tree = {
        path: leaf if marks[path] else stacked.get(path, leaf)
        for path, leaf in trees.flatten(tuned).items()
    }
    originals = {path: leaf for path, leaf in stacked.items() if marks[path]}
    found = untuned.base_tree(network, trees.unflatten(tree), trees.unflatten(originals))
    ours = tiny.forward_logits(network.untuned(), found, MICRO)
    assert np.array_equal(ours, expected)
    assert not np.allclose(tiny.forward_logits(network, trees.unflatten(tree), MICRO), expected)


def test_an_original_that_was_not_kept_is_named():
    network = tiny.adapted(TIED, **VARIANTS["norms"])
    with pytest.raises(ValueError, match="original of 'final_norm/scale', which was not kept"):
        untuned.base_tree(network, tiny.random_leaves(network), {})
