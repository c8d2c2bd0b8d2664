"""An adapter as PEFT's files have it, also where it began with a part of the base's weights.

Such an adapter is written as a plain one for the unchanged base: what was trained minus what it
began as, ``scaling * (B A - B0 A0)``, of twice its rank as far as the module has that.

Source: `peft/tuners/lora/model.py: LoraModel.subtract_mutated_init`. PEFT puts the scaling into
`lora_alpha`, which `use_rslora` makes no whole number, and patterns then impossible; here it is in
B, as for every sum of adapters (`algebra.combine`).
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
        lora: What the adapter is.
        family: Of the model.
        network: It, with the adapter.
        tree: All its leaves.
        base_model: Its name.
        revision: Of it, on the Hub.
    """
    content = peft_format.adapter_config(lora, family, network.spec, base_model, revision)
    tensors = peft_format.to_tensors(tree, family, network)
    if not starts.of(tree):
        return content, tensors
    began = peft_format.to_tensors(starts.as_begun(tree), family, network)
    content["init_lora_weights"] = True
    now, then = (algebra.parse(content, each, Path()) for each in (tensors, began))
    # What is trained as a whole takes the base's place, and is no part of the difference; tables
    # did not begin with the weights.
    begun = {name: each for name, each in then.updates.items() if name not in then.tables}
    now_alone = dataclasses.replace(now, whole={})
    then_alone = dataclasses.replace(then, whole={}, updates=begun, tables=frozenset())
    terms = [(now_alone, 1.0), (then_alone, -1.0)]
    difference = dataclasses.replace(algebra.combine(terms), whole=now.whole)
    return dict(difference.content), algebra.tensors_of(difference)
