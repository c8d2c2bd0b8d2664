"""Every way to ask for an adapter, by every kind of model: what is combined, and what is compared.

A row of factors, one level each, makes a `Choice`. `compare` then holds what jaxft does with it to
PEFT, in both directions. The suite runs a covering set of the rows, `scripts/cross_variants.py` all
of them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import peft
import reference_adapters
import reference_runs
import reference_texts
from covering import Row
from jax.sharding import Mesh
from reference_adapters import Adapted, Choice
from reference_models import TinyModel

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.data.rows.tokenized import IGNORED
from jaxft.lora import mask, starts
from jaxft.training import step
from jaxft.training.objective import CAUSAL_LM
from jaxft.weights import names

# By what an adapter has to do with: how projections are fused, what is tied, what lies outside.
KINDS = {
    "apart": "llama",
    "apart, tied, biased": "opt-smooth",
    "apart, tied, scaled embedding": reference_adapters.GEMMA,
    "narrow embedding": "opt-350m-smooth",
    "fused, transposed, tied": "gpt2",
    "fused by head, tied": "bloom",
    "fused side by side": "phi3",
    "part of a multimodal model": "gemma3",
}

CLEARLY = 0.05  # by how much, of the largest logit, an adapter must move the logits
TOKENS = [5, 90, 2, 17]  # frequent ones among them

FACTORS: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "targets": ("null", "list", "regex", "all-linear", "head", "embedding"),
    "whole": ("nothing", "all biases", "biases beside", "head", "norm", "tokens", "both ends"),
    "form": ("plain", "biased", "dora", "pissa", "olora"),
    "scaling": ("plain", "rank-stabilised", "patterns"),
    "layers": ("all", "some", "excluded"),
}


def is_allowed(row: Row) -> bool:
    """Return whether PEFT takes a row, or what there is of it yet, and means something by it."""
    kind, targets = row.get("kind", ""), row.get("targets")
    whole, form = row.get("whole"), row.get("form")
    is_multimodal = kind == "part of a multimodal model"
    has_tie = kind not in ("apart", "fused side by side")
    return not (
        # Layers are counted for lists alone, and these modules are in none.
        (row.get("layers") == "some" and targets in ("regex", "all-linear", "head", "embedding"))
        # What is trained as a whole has no adapter, and no trained rows.
        or (whole in ("head", "both ends") and targets == "head")
        or (whole in ("tokens", "both ends") and targets == "embedding")
        # PEFT knows what is tied by the names embed_tokens and lm_head.
        or (whole == "both ends" and "apart, tied" not in kind and kind != "")
        # PEFT has no choice of its own for this type, nor for the next.
        or (kind == "fused side by side" and targets == "null")
        # "All" would be the modules that see as well; and names end alike in the parts that see.
        or (is_multimodal and targets not in ("regex", None))
        # Biases of what sees would be trained as well.
        or (is_multimodal and whole == "all biases")
        # PEFT has no bias there. DoRA is not supported here, nor on a head with rows.
        or (targets == "embedding" and form in ("biased", "dora"))
        or (targets == "head" and form == "dora" and whole == "tokens")
        # PEFT takes what such an adapter begins with out of the embedding as well.
        or (has_tie and targets == "head" and form in ("pissa", "olora"))
        # PEFT fails, on weights that lie the other way about.
        or (kind == "fused, transposed, tied" and form == "olora")
    )


def choice_of(row: Row, model: TinyModel) -> Choice:
    """Return the fields of `LoraConfig` that a row means for a model."""
    modules = [
        module for module in names.linear_modules(model.family, model.spec) if module.layer == 1
    ]
    # One that is adapted whatever the targets are.
    ending = model.family.default_targets[0] if row["targets"] == "null" else ""
    in_attention, in_mlp = (
        next(each.name for each in modules if each.path.startswith(part) and each.name.endswith(to))
        for part, to in (("attn/", ending), ("mlp/", ""))
    )
    attn, mlp = (name.rpartition(".")[2] for name in (in_attention, in_mlp))
    head = model.family.head_name
    embedding = names.embedding_name(model.family).removesuffix(".weight")
    norm = next(
        one.module
        for one in names.owned_leaves(model.family, model.spec)
        if one.layer == 1 and "norm" in one.leaves[0]
    )
    levels: dict[str, dict[str, Choice]] = {
        "targets": {
            "list": {"target_modules": [attn, mlp]},
            "regex": {"target_modules": rf"{in_attention.partition('.1.')[0]}.*\.({attn}|{mlp})"},
            "all-linear": {"target_modules": "all-linear"},
            "head": {"target_modules": [attn, head]},
            "embedding": {"target_modules": [attn, embedding]},
        },
        "whole": {
            "all biases": {"bias": "all"},
            "biases beside": {"bias": "lora_only"},
            "head": {"modules_to_save": [head]},
            "norm": {"modules_to_save": [norm]},
            "tokens": {"trainable_token_indices": TOKENS},
            "both ends": {
                "modules_to_save": [embedding.rpartition(".")[2]],
                "ensure_weight_tying": True,
            },
        },
        "form": {
            "biased": {"lora_bias": True},
            "dora": {"use_dora": True},
            "pissa": {"init_lora_weights": "pissa"},
            "olora": {"init_lora_weights": "olora"},
        },
        "scaling": {
            "rank-stabilised": {"use_rslora": True},
            "patterns": {"rank_pattern": {attn: 2}, "alpha_pattern": {in_attention: 5}},
        },
        "layers": {
            "some": {"layers_to_transform": [0, 1]},
            "excluded": {"exclude_modules": [in_attention.replace(".1.", ".0.")]},
        },
    }
    chosen: dict[str, Any] = {}
    for factor, level in row.items():
        chosen |= levels.get(factor, {}).get(level, {})
    return chosen


class Seen(NamedTuple):
    """What was seen of one row.

    Attributes:
        logits: How far ours are from PEFT's, relative; an adapter that PEFT wrote.
        gradients: The same of what is trained: of the tensor that is furthest off.
        returned: How far PEFT's logits are from ours, when it reads what we wrote.
        moved: How far the adapter moves the logits from the base's.
    """

    logits: float
    gradients: float
    returned: float
    moved: float


def compare(model: TinyModel, row: Row, folder: Path, mesh: Mesh) -> Seen:
    """Hold one row to PEFT; counts and tensors are asserted, the rest is returned."""
    choice = choice_of(row, model)
    theirs = reference_adapters.peft_on(model, choice, seed=1)
    if row["form"] in ("pissa", "olora"):
        ours = reference_adapters.begun(model, choice, theirs, mesh)
    else:
        theirs.save_pretrained(folder / "theirs")
        ours = reference_adapters.read(model, folder / "theirs", mesh)
    assert mask.num_trained(ours.network) == theirs.get_nb_trainable_parameters()[0]

    text = reference_texts.draw((21, 17), "left", model.spec.vocab_size, seed=5)
    expected = reference_runs.torch_logits(theirs, text)
    logits = reference_runs.our_logits(ours.network, ours.tree, text, mesh)
    base = reference_runs.torch_logits(model.torch_model, text)

    with_start = trees.combine(ours.adapters, starts.of(ours.frozen))
    reference_adapters.export(model, choice, ours.network, with_start, folder / "ours")
    if (folder / "theirs").exists():
        reference_adapters.assert_same_tensors(folder / "ours", folder / "theirs", model)
    returned = reference_runs.torch_logits(
        reference_adapters.peft_from(model, folder / "ours"), text
    )
    return Seen(
        logits=reference_runs.difference(logits, expected, text),
        gradients=_furthest_gradient(model, ours, theirs, mesh),
        returned=reference_runs.difference(returned, logits, text),
        moved=reference_runs.difference(expected, base, text),
    )


def _furthest_gradient(
    model: TinyModel, ours: Adapted, theirs: peft.PeftModel, mesh: Mesh
) -> float:
    text = reference_texts.draw((21, 17, 9), "right", model.spec.vocab_size, seed=6)
    labels = reference_texts.ragged_labels(text, (0.9, 0.4, 0.0), seed=7)
    reference_runs.torch_loss_sum(theirs, text, labels).backward()
    batch = reference_texts.batch_of(text, labels, 1)
    capacity = int((labels != IGNORED).sum())
    program = step.Program(ours.network, mesh, "float32", capacity, False, CAUSAL_LM)
    gradients = jax.jit(functools.partial(step.gradients, program))
    grads = gradients(ours.adapters, ours.frozen, batch, 0, 0)[1]
    return reference_adapters.furthest(
        peft_format.to_tensors(grads, model.family, ours.network),
        reference_adapters.gradients_by_name(theirs),
    )
