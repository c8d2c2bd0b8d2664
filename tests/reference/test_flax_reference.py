"""Checkpoints of transformers' former Flax classes, held to the logits of those classes.

The files were written by the last release that had them; their logits, and torch's, lie beside.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")

import reference_runs
from jax.sharding import Mesh
from reference_runs import Record
from reference_texts import Text

from jaxft import tree as trees
from jaxft.models import families
from jaxft.models.network import Network, base_network
from jaxft.weights import load
from jaxft.weights.formats import opening

FLAX = Path(__file__).parents[2].parent / "shared" / "reference" / "flax"
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not FLAX.is_dir(), reason="no reference files here"),
]

TOLERANCE = 1e-4  # of a logit, not of the largest one
NEW_TOKENS = 8
FAMILIES = tuple(
    family
    for family in ("opt", "gpt2", "gpt_neo", "gptj", "bloom", "xglm")
    if (FLAX / family).is_dir()
)
# The weights, and whose logits they must give.
CHOICES = (
    ("fp32", "reference_fp32.npz"),
    ("fp32", "reference_torch_fp32.npz"),
    ("fp32_sharded", "reference_fp32.npz"),
    ("bf16", "reference_bf16weights_fp32compute.npz"),
)
# What the table of formats calls them.
NAMES = {"fp32": "msgpack", "fp32_sharded": "msgpack, sharded", "bf16": "msgpack, bfloat16"}


class Loaded(NamedTuple):
    """A network and its leaves, float32."""

    network: Network
    tree: trees.Tree


@pytest.fixture(scope="module")
def loaded(one_device: Mesh) -> Any:
    """Return a function from a family and a variant to its model."""

    @functools.cache
    def model(family_name: str, variant: str) -> Loaded:
        folder = FLAX / family_name / variant
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = families.family_of(config)
        network = base_network(family.spec_from_config(config))
        tree = load.load_base(
            opening.open_folder(folder),
            family,
            network,
            dtype="float32",
            mesh=one_device,
            progress=lambda _: None,
            quantization=None,
            rounding=None,
        )
        return Loaded(network, tree)

    return model


def reference(family_name: str, file: str, padding: str) -> dict[str, np.ndarray]:
    with np.load(FLAX / family_name / file) as arrays:
        keys = [key for key in arrays if key.startswith(f"{padding}/")]
        return {key.partition("/")[2]: arrays[key] for key in keys}


@pytest.mark.parametrize("padding", ["nopad", "leftpad", "rightpad"])
@pytest.mark.parametrize(("variant", "file"), CHOICES)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_logits_equal_those_of_the_flax_class(
    family_name: str,
    variant: str,
    file: str,
    padding: str,
    loaded: Any,
    one_device: Mesh,
    record_property: Record,
) -> None:
    expected = reference(family_name, file, padding)
    text = Text(expected["input_ids"], expected["attention_mask"])
    np.testing.assert_array_equal(
        text.positions[text.is_token], expected["position_ids"][text.is_token]
    )
    logits = reference_runs.our_logits(*loaded(family_name, variant), text, one_device)
    distance = np.abs(logits - expected["logits"])[text.is_token].max()
    record_property("absolute", distance)
    record_property("family", family_name)
    record_property("format", NAMES[variant])
    record_property("difference", reference_runs.difference(logits, expected["logits"], text))
    assert distance < TOLERANCE


@pytest.mark.parametrize("padding", ["nopad", "leftpad"])
@pytest.mark.parametrize(("variant", "file"), CHOICES)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_greedy_tokens_equal_those_of_the_flax_class(
    family_name: str, variant: str, file: str, padding: str, loaded: Any, one_device: Mesh
) -> None:
    expected = reference(family_name, file, padding)
    prompts = Text(expected["input_ids"], expected["attention_mask"])
    model = loaded(family_name, variant)
    tokens = reference_runs.greedy(*model, prompts, one_device, NEW_TOKENS)
    np.testing.assert_array_equal(tokens, expected["greedy_tokens"])
