"""What a `LoraConfig` asks of the embedding and the head alone: trained rows, and what is tied.

Separate from `targets`, which chooses modules by their names. PEFT trains apart what it trains of a
tied embedding and head, unless `ensure_weight_tying` is set; rows alone are tied by themselves.

Source: `peft/utils/other.py: set_additional_trainable_modules` for rows,
`peft/tuners/tuners_utils.py: BaseTuner._check_tied_modules` and `peft/tuners/lora/model.py:
LoraModel._add_targets_to_tie`, `_add_modules_to_save_to_tie` for the rest.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxft import console
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.models.families.family import Family
from jaxft.models.network import EMBED, HEAD, Adapter, Network, Rows
from jaxft.models.spec import ModelSpec
from jaxft.weights import names

# The names by which PEFT knows an embedding or a head (`peft/utils/constants.py:
# EMBEDDING_LAYER_NAMES`): of a GPT-2, whose embedding is `wte`, it knows the head alone.
_KNOWN = ("embed_tokens", "lm_head")
_STARTS = (True, False, "gaussian")
_FIELD = "lora.trainable_token_indices"


def of(config: LoraConfig, family: Family, spec: ModelSpec) -> Literal["saved", "adapters"] | None:
    """Return what of embedding and head `ensure_weight_tying` makes one, if anything.

    An embedding that PEFT does not know counts by its full name, which is what PEFT writes in its
    file once the head was named.

    Returns:
        "saved" for the whole of them (`modules_to_save`), else "adapters" (`target_modules`).
    """
    if not config.ensure_weight_tying or not spec.tied_head:
        return None
    embedding = embedding_module(family)

    def is_known(name: str) -> bool:
        return name.rpartition(".")[2] in _KNOWN or name == embedding

    if any(map(is_known, config.modules_to_save or ())):
        return "saved"
    targets = config.target_modules or ()
    if isinstance(targets, str):
        is_adapted = targets.endswith(rf"|^{re.escape(embedding)}$)") or any(
            re.fullmatch(targets, name) for name in _KNOWN
        )
    else:
        is_adapted = any(map(is_known, targets))
    return "adapters" if is_adapted else None


def embedding_module(family: Family) -> str:
    """Return Hugging Face's name of the module that is the table of token embeddings."""
    return names.embedding_name(family).removesuffix(".weight")


def check(
    config: LoraConfig, family: Family, spec: ModelSpec, adapted: Sequence[names.Module]
) -> None:
    """Refuse what `ensure_weight_tying` cannot tie.

    Args:
        config: What is asked for.
        family: The model's names.
        spec: The model.
        adapted: The modules that get adapters.

    Raises:
        AdapterError: If the embedding or the head is left out, or adapters cannot begin so.
    """
    if not config.ensure_weight_tying:
        return
    tie = of(config, family, spec)
    if tie == "adapters":
        if {EMBED, HEAD} - {module.path for module in adapted}:
            raise AdapterError(
                "lora.ensure_weight_tying is set, and exclude_modules or layers_to_transform "
                "leaves out the embedding or the head.",
                "Take that restriction out, or set ensure_weight_tying=false.",
            )
        if config.init_lora_weights not in _STARTS:
            raise AdapterError(
                "lora.ensure_weight_tying is set for adapters, together with "
                f"init_lora_weights={config.init_lora_weights!r}.",
                "PEFT loses the tie then: use true, false or gaussian.",
            )


def warn_if_idle(config: LoraConfig, family: Family, spec: ModelSpec) -> None:
    """Say so where `ensure_weight_tying` is set and does nothing."""
    if not config.ensure_weight_tying or of(config, family, spec) is not None:
        return
    why = "the model's head is not tied to its embedding"
    if spec.tied_head:
        if EMBED in _chosen(config, family, spec):
            return  # their rows are tied
        why = (
            f"neither target_modules nor modules_to_save names {' or '.join(_KNOWN)}, "
            "by which PEFT knows what is tied"
        )
    console.warning(f"lora.ensure_weight_tying has no effect: {why}.")


def completed(config: LoraConfig, family: Family, network: Network) -> Network:
    """Return a network with the rows that are trained, and what its head takes of the embedding.

    Args:
        config: What is asked for.
        family: The model's names.
        network: The model, and what else is trained of it.

    Raises:
        AdapterError: If a name is of neither embedding nor head, a token is not there or named
            twice, or what is asked for is trained already.
    """
    spec, rows = network.spec, _chosen(config, family, network.spec)
    is_tied = spec.tied_head and EMBED in rows
    if is_tied and rows.get(HEAD) == rows[EMBED]:
        del rows[HEAD]  # one leaf for both
    if is_tied and HEAD in rows and config.ensure_weight_tying:
        raise AdapterError(
            f"{_FIELD} names other tokens for the head than for the embedding that it is tied to.",
            "Name the same in the same order, or set ensure_weight_tying=false.",
        )
    follows = is_tied and HEAD not in rows
    for path in [*rows, HEAD] if follows else rows:
        _check_free(path, rows, network)
    if config.use_dora and HEAD in dict(network.outer_adapters) and (follows or HEAD in rows):
        raise AdapterError(
            f"{_FIELD} names tokens of the head, which has an adapter with use_dora.",
            f"That is not supported: leave {family.head_name} out of target_modules, or use_dora.",
        )
    if of(config, family, spec) == "adapters":
        follows = True
        _check_one_rank(dict(network.outer_adapters))
    return dataclasses.replace(network, rows=tuple(sorted(rows.items())), head_follows=follows)


def _check_one_rank(adapters: Mapping[str, Adapter]) -> None:
    ranks = [adapters[module].width for module in (EMBED, HEAD)]
    if len(set(ranks)) > 1:
        raise AdapterError(
            "lora.ensure_weight_tying makes one adapter of the embedding's and the head's, and "
            f"rank_pattern gives them {ranks[0]} and {ranks[1]}.",
            "Give both one rank, or set ensure_weight_tying=false.",
        )


def _chosen(config: LoraConfig, family: Family, spec: ModelSpec) -> dict[str, Rows]:
    """Return the tokens that a config names, by "embed" and "head"."""
    chosen = config.trainable_token_indices
    embedding = embedding_module(family)
    if isinstance(chosen, list):
        chosen = {embedding: chosen}
    rows: dict[str, Rows] = {}
    for name, tokens in (chosen or {}).items():
        path = _path(name, {embedding: EMBED, family.head_name: HEAD})
        if path in rows:
            raise AdapterError(f"{_FIELD} names one module twice.", f"Take {name!r} out.")
        _check_tokens(tokens, spec.vocab_size)
        rows[path] = tuple(tokens)
    return rows


def _path(name: str, paths: Mapping[str, str]) -> str:
    for module, path in paths.items():
        if module == name or module.endswith(f".{name}"):
            return path
    raise AdapterError(
        f"{_FIELD} has {name!r}, which is neither the embedding of tokens nor the head.",
        f"They are {' and '.join(paths)}.",
    )


def _check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    beyond = [token for token in tokens if token >= vocab_size]
    if beyond:
        raise AdapterError(
            f"{_FIELD} has {beyond[0]}, and the model's tokens are 0 to {vocab_size - 1}.",
            "Name tokens that the model has an embedding for.",
        )
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise AdapterError(f"{_FIELD} has {twice[0]} more than once.", "Name each token once.")


def _check_free(path: str, rows: Mapping[str, Rows], network: Network) -> None:
    """Refuse rows of what is trained as a whole, or adapted: PEFT has one of these on a module."""
    what = {EMBED: "the embedding", HEAD: "the head"}[path]
    table = path if path == EMBED or network.has_own_head else EMBED
    if f"{table}/kernel" in network.outer_trained:
        raise AdapterError(
            f"{_FIELD} has rows of {what}, all of which lora.modules_to_save trains.",
            "Take one of the two out. Rows of an embedding are those of a head tied to it.",
        )
    # Below an adapter of its own, a tied head may take the embedding's rows.
    if path in rows and path in dict(network.outer_adapters):
        raise AdapterError(
            f"{_FIELD} has rows of {what}, which has an adapter by lora.target_modules.",
            "Take one of the two out: PEFT has no module with both.",
        )
    if path == HEAD and network.spec.head_bias:
        raise AdapterError(
            f"{_FIELD} has rows of a head with a bias.",
            "PEFT would leave the bias out, so it is not supported: train rows of an untied "
            "embedding, or the whole head by modules_to_save.",
        )
