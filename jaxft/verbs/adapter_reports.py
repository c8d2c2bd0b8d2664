"""`jaxft adapter info` and `diff`: descriptions of adapters, from their own files.

The base model is not needed and not looked for. `adapters` has the commands that write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxft import console
from jaxft.adapters import algebra, compare, kinds, peft_format, serving
from jaxft.adapters.algebra import LoraAdapter
from jaxft.console import Size

_TAIL = re.compile(
    r"\.lora_(embedding_[AB]|magnitude_vector)$"
    r"|\.token_adapter\.trainable_tokens_delta$"
    r"|(\.lora_[AB])?\.(weight|bias)$"
)
_SHAPES = ("module", "count", "in", "out", "rank")
_SIZES = ("norm", "largest", "directions")


def info(folder: Path) -> None:
    """Print the settings of an adapter and the sizes of its updates.

    Raises:
        AdapterError: The adapter cannot be read.
    """
    content, tensors = peft_format.read_adapter(folder)
    adapter = algebra.parse(content, tensors, folder)
    console.facts(str(folder), _facts(adapter, tensors))
    is_dora = adapter.lora.use_dora
    rows = []
    for kind in compare.summary(adapter):
        dims = [_cell(side) for side in zip(*kind.dims, strict=True)]
        sizes = () if is_dora else (kind.norm, kind.largest, kind.effective_rank)
        rows.append((kind.name, kind.count, *dims, _cell(kind.ranks), *sizes))
    columns = _SHAPES if is_dora else _SHAPES + _SIZES
    console.table("Updates by kind of module", columns, rows)
    if is_dora:
        console.result("How large the updates are cannot be said without the base: DoRA rescales")
        console.result("its weights.")
        return
    console.result("norm: of what is added to the weights, over all modules of the kind;")
    console.result("largest: the largest singular value in any; directions: how many of the rank's")
    console.result("are in use, on average (the effective rank).")


def diff(first: Path, second: Path) -> None:
    """Print the differences of two adapters.

    Raises:
        AdapterError: An adapter cannot be read, or they are for different base models.
    """
    one, other = algebra.read(first), algebra.read(second)
    rows = compare.differences(one, other)
    fields = compare.config_differences(one, other)
    if fields:
        console.table(
            "Configuration",
            ("field", "first", "second"),
            [(name, _shown(ours), _shown(theirs)) for name, ours, theirs in fields],
        )
    console.facts(f"{first} and {second}", _shared_facts(one, other, bool(fields)))
    console.table(
        "Updates by kind of module",
        ("module", "norm of first", "of second", "distance", "relative", "cosine"),
        [
            (
                row.name,
                *row.norms,
                row.distance,
                _or_dash(row.relative),
                _or_dash(row.cosine),
            )
            for row in rows
        ],
    )
    console.result("relative: the distance over the norm of the first; cosine: 1 is one direction.")


def _facts(adapter: LoraAdapter, tensors: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the label and the value of each fact about an adapter."""
    lora = adapter.lora
    yield "base model", adapter.base_model or "not named"
    chosen = lora.target_modules or "PEFT's for the family"
    yield "targets", chosen if isinstance(chosen, str) else kinds.shortened(chosen)
    if adapter.updates:
        ranks = sorted({each.rank for each in adapter.updates.values()})
        scalings = sorted({each.scaling for each in adapter.updates.values()})
        kind = ", rank-stabilised" if lora.use_rslora else ""
        yield "rank", _listed(ranks)
        yield "alpha", _listed(sorted({lora.lora_alpha, *lora.alpha_pattern.values()})) + kind
        yield "scaling", _listed(scalings)
        yield "adapted", f"{len(adapter.updates):,} modules"
    if lora.use_dora:
        lengths = sum(each.size for each in adapter.magnitudes.values())
        yield "DoRA", f"yes, with the lengths of {lengths:,} rows"
    yield "parameters", f"{adapter.num_parameters:,}"
    dtypes = sorted({str(each.dtype) for each in tensors.values()})
    size = sum(each.nbytes for each in tensors.values())
    yield "tensors", f"{len(tensors):,} of {_listed(dtypes)}, {Size(size)}"
    if lora.bias != "none":
        yield "biases", {"all": "all of the model's", "lora_only": "of adapted modules"}[lora.bias]
    if lora.modules_to_save:
        yield "saved whole", ", ".join(lora.modules_to_save)
    rows = [each for name, each in adapter.whole.items() if "trainable_tokens" in name]
    if rows:
        yield "trained tokens", f"{sum(len(each) for each in rows):,}"
    objections = serving.vllm_objections(adapter.content, tensors)
    yield "vLLM", f"no: {'; '.join(objections)}" if objections else _served_where(adapter)


def _served_where(adapter: LoraAdapter) -> str:
    rank = adapter.lora.r
    option = "" if rank <= serving.VLLM_RANK else f" with --max-lora-rank {rank},"
    # The adapter does not tell the model's family, which decides it: see docs/lora.md.
    return f"yes,{option} if its class for the model takes LoRA"


def _shared_facts(
    first: LoraAdapter, second: LoraAdapter, differ: bool
) -> Iterable[tuple[str, str]]:
    """Yield the label and the value of each fact about the tensors of two adapters."""
    shared = compare.shared_tensors(first, second)
    if not differ:
        yield "configuration", "the same"
    both = len(shared.equal) + len(shared.different)
    yield "tensors in both", f"{both:,}, {len(shared.equal):,} of them equal bit for bit"
    for label, names in (("first", shared.only_first), ("second", shared.only_second)):
        if names:
            yield f"in the {label} only", f"{len(names):,}, on {', '.join(_kinds(names))}"


def _kinds(tensors: Iterable[str]) -> list[str]:
    """Return the kinds of modules that tensors belong to."""
    stems = (name.removeprefix("base_model.model.") for name in tensors)
    return list(kinds.grouped(dict.fromkeys(_TAIL.sub("", stem) for stem in stems)))


def _cell(values: Iterable[int]) -> int | str:
    """Return a single number as a number, so that it is aligned right, and several as text."""
    several = list(dict.fromkeys(values))
    return several[0] if len(several) == 1 else _listed(several)


def _listed(values: Iterable[Any]) -> str:
    return kinds.shortened(
        f"{each:,}" if isinstance(each, int) else f"{each:g}" if isinstance(each, float) else each
        for each in dict.fromkeys(values)
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return kinds.shortened(f"{name}: {_shown(each)}" for name, each in value.items()) or "{}"
    return kinds.shortened(value) if isinstance(value, list) else str(value)


def _or_dash(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
