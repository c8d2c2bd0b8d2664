"""Converts a live adapter to PEFT's config and tensors.

An adapter that began with a part of the base's weights (PiSSA, OLoRA) becomes a plain adapter for
the unchanged base: the trained product minus the initial one, ``scaling * (B A - B0 A0)``. It has
twice the rank, or as much as the module's smaller side allows.

Source: `peft/tuners/lora/model.py: LoraModel.subtract_mutated_init`. PEFT puts the scaling into
`lora_alpha`, which with `use_rslora` is then not a whole number, and cannot have patterns. Here B
is multiplied by it, as for every sum of adapters (`algebra.combine`).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.adapters import algebra, peft_format
from jaxft.config import LoraConfig
from jaxft.lora import starts
from jaxft.models.families.family import Family
from jaxft.models.network import Network


def to_peft(
    lora: LoraConfig,
    family: Family,
    network: Network,
    tree: Mapping[str, Any],
    *,
    base_model: str,
    revision: str | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of adapter_config.json, and the tensors under PEFT's names.

    Args:
        lora: The config of the adapter.
        family: The family of the model.
        network: The network of the model, with the adapter.
        tree: All leaves of the network.
        base_model: The name of the base model.
        revision: The revision of the base model on the Hub.
    """
    content = peft_format.adapter_config(lora, family, network.spec, base_model, revision)
    tensors = peft_format.to_tensors(tree, family, network)
    if not starts.of(tree):
        return content, tensors
    began = peft_format.to_tensors(starts.as_begun(tree), family, network)
    content["init_lora_weights"] = True
    now, then = (algebra.parse(content, each, Path()) for each in (tensors, began))
    # Tensors trained as a whole replace the base's, and are not part of the difference. Adapters
    # on tables did not begin with the base's weights.
    begun = {name: each for name, each in then.updates.items() if name not in then.tables}
    now_alone = dataclasses.replace(now, whole={})
    then_alone = dataclasses.replace(then, whole={}, updates=begun, tables=frozenset())
    terms = [(now_alone, 1.0), (then_alone, -1.0)]
    difference = dataclasses.replace(algebra.combine(terms), whole=now.whole)
    return dict(difference.content), algebra.tensors_of(difference)
