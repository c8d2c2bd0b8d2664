"""The options of a `LoraConfig` for the embedding and the head: trained rows, and weight tying.

Separate from `targets`, which chooses modules by their names. PEFT trains a tied embedding and head
separately unless `ensure_weight_tying` is set; only trained rows stay tied without it.

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

# The names by which PEFT recognises an embedding or a head (`peft/utils/constants.py:
# EMBEDDING_LAYER_NAMES`). In GPT-2, whose embedding is `wte`, it recognises only the head.
_KNOWN = ("embed_tokens", "lm_head")
_STARTS = (True, False, "gaussian")
_FIELD = "lora.trainable_token_indices"


def of(config: LoraConfig, family: Family, spec: ModelSpec) -> Literal["saved", "adapters"] | None:
    """Return what the embedding and the head share because of `ensure_weight_tying`.

    An embedding that PEFT does not recognise counts if its full name is given, because PEFT writes
    the full name in its file when the head was named.

    Returns:
        "saved" if they are trained as a whole (`modules_to_save`), "adapters" if they are adapted
        (`target_modules`), or `None` if they share nothing.
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
    """Return Hugging Face's name of the token embedding, such as "model.embed_tokens"."""
    return names.embedding_name(family).removesuffix(".weight")


def check(
    config: LoraConfig, family: Family, spec: ModelSpec, adapted: Sequence[names.Module]
) -> None:
    """Refuse a config whose `ensure_weight_tying` cannot be applied.

    Args:
        config: The config of the adapters.
        family: The family, which names the modules.
        spec: The model.
        adapted: The modules that get adapters.

    Raises:
        AdapterError: If the embedding or the head is left out, or `init_lora_weights` has a value
            with which PEFT loses the tie.
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
    """Warn if `ensure_weight_tying` is set and has no effect."""
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
    """Return a network with its trained rows, and with a head that shares the embedding's tuning.

    Args:
        config: The config of the adapters.
        family: The family, which names the modules.
        network: The network, with everything else that is trained.

    Raises:
        AdapterError: If a name is neither the embedding's nor the head's, a token does not exist
            or is named twice, or rows are named that are already trained in another way.
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
    """Return the tokens whose rows a config trains, by module: "embed" or "head"."""
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
    """Refuse rows of a module that is trained as a whole or adapted; PEFT allows only one."""
    what = {EMBED: "the embedding", HEAD: "the head"}[path]
    table = path if path == EMBED or network.has_own_head else EMBED
    if f"{table}/kernel" in network.outer_trained:
        raise AdapterError(
            f"{_FIELD} has rows of {what}, all of which lora.modules_to_save trains.",
            "Take one of the two out. Rows of an embedding are those of a head tied to it.",
        )
    # A tied head that has an adapter may also share the embedding's trained rows.
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
