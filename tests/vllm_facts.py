"""What vLLM has for each family, and by which names it takes an adapter's tensors.

Read in its source and told in our words; no server was run. Ours is `verdicts`, the rest is data.

Source: github.com/vllm-project/vllm at 1f486d96a17303ce8db8e02be39545b2be338446 (3 July 2026,
after 0.24): `vllm/model_executor/models/registry.py` for the class of an architecture, and beside
it the file that `Served.file` names for that class's modules, `packed_modules_mapping`,
`embedding_modules` and `hf_to_vllm_mapper`. A model without a class goes by vLLM's Transformers
backend if transformers' own class says `_supports_attention_backend`, and is refused otherwise
(`registry.py: _try_resolve_transformers`).
Apertus, LFM2 and Muse Glimmer were read at 055e47c28003156421365af985d676fc921cb075, dense Hunyuan
at 00f8d4456f506c4885a122c993796a6abc319af8, EXAONE at 0531c2226a6a25cd96ccc856f3bda3f0bb4efb5f.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

TRANSFORMERS = "transformers/base"  # vLLM's class for any model that transformers' classes describe


@dataclasses.dataclass(frozen=True)
class Served:
    """What serves a family.

    Attributes:
        file: Of the class, in `vllm/model_executor/models`; "" if there is none.
        linear: The linear modules that take an adapter, in full, with {} for the layer; those
            that vLLM has as one under the names that they have in files. None if the class does
            not take LoRA.
        embeddings: What takes an adapter beside them.
        renames: Beginnings of an adapter's names, and what vLLM puts for them.
    """

    file: str
    linear: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()


def _within(layers: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{layers}.{{}}.{name}" for name in names)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENTION = (*_QKV, "self_attn.o_proj")
_PLAIN = _within("model.layers", *_ATTENTION, "mlp.up_proj", "mlp.down_proj")
_GATED = (*_PLAIN, *_within("model.layers", "mlp.gate_proj"))
_EMBEDDING = ("model.embed_tokens",)
_BOTH = (*_EMBEDDING, "lm_head")
# Of a model that also sees: from transformers' names to those of vLLM's whole.
_OF_THE_WHOLE = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_TEXT_PART = tuple(f"language_model.{name}" for name in _GATED)

SERVED: Mapping[str, Served] = {
    "llama": Served("llama", _GATED, _BOTH),
    "mistral": Served("mistral", _GATED),
    "ministral": Served(TRANSFORMERS, _GATED, _EMBEDDING),
    "ministral3": Served("mistral", _GATED),
    # Its modules have the names of EXAONE's own files, and no adapter has those.
    "exaone": Served("exaone"),
    "iquestcoder": Served("llama", _GATED, _BOTH),
    "smollm3": Served(TRANSFORMERS, _GATED, _EMBEDDING),
    "qwen2": Served("qwen2", _GATED),
    "qwen3": Served("qwen3", _GATED, _BOTH),
    "gemma": Served("gemma", _GATED),
    "gemma2": Served("gemma2", _GATED),
    "gemma3_text": Served("gemma3", _GATED),
    "vaultgemma": Served(TRANSFORMERS, _GATED, _EMBEDDING),
    "gemma3": Served("gemma3_mm", _TEXT_PART, renames=_OF_THE_WHOLE),
    "mistral3": Served("mistral3", _TEXT_PART, renames=_OF_THE_WHOLE),
    "muse_glimmer": Served(
        "muse_glimmer",
        (*_GATED, *_within("model.layers", "self_attn.gate_proj")),
        renames=(("model.language_model.", "model."),),
    ),
    "muse_glimmer_text": Served(""),  # without a head, as transformers' class is
    "olmo": Served("olmo", _GATED),
    "olmo2": Served("olmo2", _GATED),
    "olmo3": Served("olmo2", _GATED),
    "opt": Served(
        "opt",
        (
            *_within("model.decoder.layers", *_QKV, "self_attn.out_proj", "fc1", "fc2"),
            "model.decoder.project_in",
            "model.decoder.project_out",
        ),
    ),
    "gpt2": Served("gpt2"),
    "phi3": Served(
        "phi3",
        _within(
            "model.layers",
            "self_attn.qkv_proj",
            "self_attn.o_proj",
            "mlp.gate_up_proj",
            "mlp.down_proj",
        ),
        _BOTH,
    ),
    "granite": Served("granite", _GATED, _BOTH),
    "starcoder2": Served(
        TRANSFORMERS, _within("model.layers", *_ATTENTION, "mlp.c_fc", "mlp.c_proj"), _EMBEDDING
    ),
    "stablelm": Served("stablelm"),
    "cohere": Served("commandr", _GATED, _EMBEDDING),
    "cohere2": Served("commandr", _GATED, _EMBEDDING),
    # Files have `gate_up_proj` as one, and so has vLLM; but it says that files have two.
    "glm": Served("glm", _GATED, _BOTH),
    "glm4": Served("glm4", _GATED),
    "exaone4": Served("exaone4", _GATED, _BOTH),
    "seed_oss": Served("seed_oss", _GATED),
    "hunyuan_v1_dense": Served("hunyuan_v1", _GATED),
    "apertus": Served("apertus", _PLAIN, _BOTH),
    "lfm2": Served(
        "lfm2",
        _within(
            "model.layers",
            *_QKV,
            "self_attn.out_proj",
            *("conv.in_proj", "conv.out_proj"),
            *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        ),
        _BOTH,
    ),
    "arcee": Served("arcee", _PLAIN),
    "helium": Served(TRANSFORMERS, _GATED, _EMBEDDING),
    "ernie4_5": Served("ernie45", _GATED, _BOTH),
    "cwm": Served("llama", _GATED, _BOTH),
    "granitemoehybrid": Served(
        "granitemoehybrid",
        _within("model.layers", *_ATTENTION, "shared_mlp.input_linear", "shared_mlp.output_linear"),
        _BOTH,
    ),
    "hyperclovax": Served("hyperclovax", _GATED, _BOTH),
    "nemotron": Served("nemotron", _PLAIN, _BOTH),
    "jais2": Served("jais2", _PLAIN, _BOTH),
    "gpt_neo": Served(""),
    "gptj": Served("gpt_j"),
    "bloom": Served("bloom"),
    "xglm": Served(""),
    "gpt_neox": Served("gpt_neox"),
    "phi": Served("phi", _within("model.layers", *_QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2")),
    "falcon": Served("falcon"),
    # No embedding: the class knows them by the name embed_tokens alone.
    "gpt_bigcode": Served(
        TRANSFORMERS,
        _within("model.h", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        renames=(("transformer.", "model."),),
    ),
    "mpt": Served("mpt"),
    "biogpt": Served(""),
}


def verdicts(served: Served, tensors: Iterable[str]) -> dict[str, set[str]]:
    """Return the endings of an adapter's modules by what becomes of them.

    "refused" is an error, for the whole adapter; "dropped" are those that no module takes though
    their ending is known, of which nothing is said; the others are "taken".

    Source: `vllm/lora/utils.py: parse_fine_tuned_lora_name`; `lora_model.py:
    from_local_checkpoint`, which looks at the ending; `model_manager.py: activate_adapter`, which
    looks for the module in full.
    """
    modules = (*served.linear, *served.embeddings)
    endings = {module.rpartition(".")[2] for module in modules}
    found: dict[str, set[str]] = {"taken": set(), "dropped": set(), "refused": set()}
    for tensor in tensors:
        name = re.fullmatch(r"base_model\.model\.(.*)\.lora_[AB]\.weight", tensor)
        assert name is not None, f"vLLM knows no tensor {tensor}"
        module = name[1]
        for begins, instead in served.renames:
            if f"{module}.".startswith(begins):
                module = f"{instead}{f'{module}.'.removeprefix(begins)}".removesuffix(".")
                break
        ending = module.rpartition(".")[2]
        is_there = re.sub(r"\.\d+\.", ".{}.", module) in modules
        fate = "refused" if ending not in endings else "taken" if is_there else "dropped"
        found[fate].add(ending)
    return found
