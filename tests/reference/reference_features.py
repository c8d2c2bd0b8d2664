"""What a model has that the plainest one has not, and families that have all of it together."""

from __future__ import annotations

import json
import os

import cases
import covering

from jaxft.models import families
from jaxft.models.families.family import ABSENT
from jaxft.models.spec import (
    Alibi,
    ConvSpec,
    Learned,
    LongScaling,
    ModelSpec,
    Sinusoidal,
    YarnScaling,
)

_POSITIONS = {Alibi: "alibi", Learned: "learned positions", Sinusoidal: "sines"}
_SCALINGS = {
    "AlphaScaling": "alpha",
    "DynamicScaling": "dynamic",
    "LinearScaling": "linear",
    "Llama3Scaling": "llama3",
}
_NAMES = {
    "embed_scale": "embedding scale",
    "embed_norm": "embedding norm",
    "other_norms": "norms of several kinds",
    "attn_gate": "gated attention",
    "query_scaling": "growing queries",
    "attn_softcap": "attention soft cap",
    "residual_scale": "residual scale",
    "head_bias": "head bias",
    "logit_scale": "logit scale",
    "logit_softcap": "logit soft cap",
}
_PLACEMENTS = {
    "pre_residual": "normed residual",
    "post": "norms after",
    "output": "norms of outputs",
    "sandwich": "sandwich norms",
}
_PARALLEL = {"one_norm": "parallel, one norm", "two_norms": "parallel, two norms"}
_QK_NORM = {
    "head": "qk norm",
    "full": "qk norm over all heads",
    "turned": "qk norm after rope",
}


def features(spec: ModelSpec) -> list[str]:
    """Return the features of a model, in the order of the spec: for the table of docs/models.md."""
    found = [_POSITIONS[type(spec.positions)]] if spec.positions is not None else []
    convolves = [isinstance(block.mixer, ConvSpec) for block in spec.blocks]
    found += ["short convolutions in some layers"] if any(convolves) else []
    blocks = [block for block in spec.blocks if not isinstance(block.mixer, ConvSpec)]
    ropes = dict.fromkeys(block.rope for block in blocks)
    for rope in filter(None, ropes):
        found += ["rope"]
        found += ["partial rope"] if rope.rotary_dim < spec.head_dim else []
        found += ["interleaved rope"] if rope.interleaved else []
        if rope.scaling is not None:
            kind = type(rope.scaling).__name__
            named = {YarnScaling.__name__: "yarn", LongScaling.__name__: "longrope", **_SCALINGS}
            found += [f"rope scaling {named[kind]}"]
    found += ["layers without rope"] if len(ropes) > 1 and None in ropes else []
    found += ["several ropes"] if len(ropes.keys() - {None}) > 1 else []
    windows = {block.window for block in blocks}
    found += ["windows in some layers"] if len(windows) > 1 else []
    found += ["window"] if len(windows) == 1 and None not in windows else []
    found += ["grouped queries"] if spec.num_kv_heads != spec.num_heads else []
    found += [name for field, name in _NAMES.items() if getattr(spec, field) != ABSENT[field]]
    tables = ((_PLACEMENTS, spec.norm_placement), (_PARALLEL, spec.parallel))
    found += [
        table[value] for table, value in (*tables, (_QK_NORM, spec.qk_norm)) if value in table
    ]
    found += (
        ["learned activation"]
        if any(block.mlp.activation == "xielu" for block in spec.blocks)
        else []
    )
    found += ["layer norm"] if spec.norm.kind == "layer" else []
    found += ["scales from one"] if spec.norm.scale == "offset" else []
    biases = {"qkv_bias": "qkv", "out_bias": "out"}
    has = [name for field, name in biases.items() if getattr(spec, field)]
    has += ["MLP"] if any(block.mlp.bias for block in spec.blocks) else []
    found += [f"biases ({', '.join(has)})"] if has else []
    found += ["narrow embedding"] if spec.embed_dim != spec.model_dim else []
    return list(dict.fromkeys(found))


def traits(case: str) -> set[str]:
    """Return all that sets a case apart where the names of its tensors do not matter."""
    saved = json.loads(cases.config_of(case).to_json_string())
    family = families.family_of(saved)
    spec = family.spec_from_config(saved)
    return {
        *features(spec),
        *(f"{block.mlp.kind} MLP of {block.mlp.activation}" for block in spec.blocks),
        f"tied head: {spec.tied_head}",
        *(" and ".join(line.ours) for line in family.lines(spec)),
    }


TAKES_EVERY_FAMILY = bool(os.environ.get("JAXFT_EVERY_FAMILY"))
# A case for every trait of the families' first cases, or all of them.
STANDING: list[str] = (
    list(cases.FIRST.values())
    if TAKES_EVERY_FAMILY
    else covering.covering({case: traits(case) for case in cases.FIRST.values()})
)
