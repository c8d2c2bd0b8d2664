"""Embedding and head beside an adapter whose base has another vocabulary than its files.

Whoever opens such an adapter resizes the base first, to rows that PEFT's users get drawn. So a
table whose new rows are not all among what was trained is in the adapter's file as a whole, under
the name that PEFT has for it; and a file says by its shapes how many rows its base must have.

Source: `peft/utils/save_and_load.py: get_peft_model_state_dict`, which writes both tables whenever
the size of the vocabulary is not that of the base's config.json.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxft import console
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError, ConfigError
from jaxft.lora import tying
from jaxft.models.families.family import Family
from jaxft.models.network import EMBED, HEAD, Network
from jaxft.weights.places.source import Source
from jaxft.weights.places.vocabulary import Resized

PREFIX = "base_model.model."
# How PEFT calls what a module was before: as it is, adapted, with rows of tokens, with a copy.
_WRAPPED = ("", "base_layer.", "token_adapter.base_layer.", "original_module.")
_NOT_BY_TOKEN = ("lora_A.weight", "lora_embedding_B", "token_adapter.trainable_tokens_delta")
_CALLED = {EMBED: "embedding", HEAD: "head"}


class Beside(NamedTuple):
    """What of its base is beside an adapter.

    Attributes:
        rows: How many rows of tokens the base has to be resized to; `None` for those of its files.
        tensors: Embedding and head, frozen, under PEFT's names.
    """

    rows: int | None
    tensors: Mapping[str, np.ndarray]


NOTHING = Beside(None, {})


def _modules(family: Family) -> dict[str, str]:
    """Return Hugging Face's names of the embedding and the head."""
    return {
        EMBED: tying.embedding_module(family),
        HEAD: family.head_name,
    }


def frozen_names(family: Family) -> dict[str, str]:
    """Return each name that an adapter's file may have a frozen table under, and the model's own.

    What of them an adapter trains as a whole has such a name too.
    """
    return {
        f"{PREFIX}{module}.{wrapped}{kind}": f"{module}.{kind}"
        for module in _modules(family).values()
        for wrapped in _WRAPPED
        for kind in ("weight", "bias")
    }


def is_of_base(name: str, lora: LoraConfig) -> bool:
    """Return whether a tensor that is no adapter's is the base's own, where no base is known.

    Args:
        name: In the adapter's file.
        lora: What the adapter is.
    """
    module, _, kind = name.rpartition(".")
    if module.endswith((".base_layer", ".original_module")):
        return not (kind == "bias" and lora.bias != "none")
    is_trained = kind == "trainable_tokens_delta" or (kind == "bias" and lora.bias != "none")
    saved = tuple(lora.modules_to_save or ())
    return not (is_trained or lora.ensure_weight_tying or module.endswith(saved))


def shared(several: Sequence[tuple[Path, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return what several adapters have beside them, by name.

    Args:
        several: Folders, for messages, and what is beside the adapter in each.

    Raises:
        AdapterError: If they were trained on other embeddings.
    """
    together: dict[str, np.ndarray] = {}
    for origin, tensors in several:
        for name, tensor in tensors.items():
            if not _is_same(together.setdefault(name, tensor), tensor):
                raise AdapterError(
                    f"{origin} has another {name} beside it than the adapter before.",
                    "They were trained on other embeddings: adapters can be added for one base "
                    "model alone.",
                )
    return together


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two tensors are equal in the coarser of their dtypes."""
    coarser = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(one.astype(coarser), other.astype(coarser))


def frozen_in(
    tensors: Mapping[str, np.ndarray], family: Family, trained: Collection[str], *, is_tied: bool
) -> dict[str, np.ndarray]:
    """Return the frozen tables that an adapter's file has, by the model's own names.

    Args:
        tensors: Under PEFT's names.
        family: Of the model.
        trained: The names of what the adapter trains.
        is_tied: Whether the base's head is its embedding.
    """
    found = {
        own: tensors[name]
        for name, own in frozen_names(family).items()
        if name in tensors and name not in trained
    }
    embedding, head = (f"{module}.weight" for module in _modules(family).values())
    if is_tied:  # the file of such a base may have both names, and both are this table then
        for one, other in ((embedding, head), (head, embedding)):
            if other in found:
                found.setdefault(one, found[other])
    return found


def num_rows(
    tensors: Mapping[str, np.ndarray], lora: LoraConfig, family: Family, stored: int
) -> int | None:
    """Return how many rows the embedding of an adapter's base has; `None` if it does not say.

    Args:
        tensors: The adapter's, under PEFT's names.
        lora: What it is.
        family: Of the model.
        stored: How many rows the base's files have.
    """
    sizes = []
    for module in _modules(family).values():
        stem = f"{PREFIX}{module}."
        for name, tensor in tensors.items():
            part = name.removeprefix(stem)
            axis = int(part == "lora_embedding_A")
            if name.startswith(stem) and part not in _NOT_BY_TOKEN and tensor.ndim > axis:
                sizes.append(tensor.shape[axis])
    if sizes:
        return max(sizes)
    chosen = lora.trainable_token_indices or []
    by_module = chosen.values() if isinstance(chosen, dict) else [chosen]
    beyond = {token for tokens in by_module for token in tokens if token >= stored}
    # All of the rows that were made, or else it is an adapter for another model.
    is_whole = beyond == set(range(stored, stored + len(beyond)))
    return stored + len(beyond) if beyond and is_whole else None


def check_complete(
    frozen: Collection[str], family: Family, network: Network, stored: int, origin: Path
) -> None:
    """Refuse an adapter that is for more rows than the base's files have, and lacks some of them.

    Args:
        frozen: The tables that its file has, by the model's own names.
        family: Of the model.
        network: The adapter's.
        stored: How many rows the base's files have.
        origin: The adapter's folder, for messages.

    Raises:
        AdapterError: If a row that it was trained beside is nowhere.
    """
    rows, modules = network.spec.vocab_size, _modules(family)
    for side in (EMBED, HEAD):
        table = f"{modules[EMBED if network.spec.tied_head else side]}.weight"
        if not (
            table in frozen
            or _is_whole(network, side)
            or _has_rows(network, side, range(stored, rows))
        ):
            raise AdapterError(
                f"{origin}: its base had {rows:,} tokens, and this one has {stored:,}: the others' "
                f"rows of the {_CALLED[side]} are not in the adapter's file.",
                "They are lost in it. Where the resized base is still there, merge them in PEFT "
                "(merge_and_unload), and use the merged model.",
            )


def to_write(base: Source, family: Family, network: Network) -> Beside:
    """Return what of its base goes into the file of an adapter: nothing, if that is its files'.

    Args:
        base: The base model.
        family: Its family.
        network: The adapter's.
    """
    if not isinstance(base, Resized) or (base.rows == base.stored_rows and not base.tables):
        return NOTHING
    is_said = not base.tables and base.rows > base.stored_rows
    made = range(base.stored_rows, base.rows)
    wanted = [
        side
        for side in (EMBED, HEAD)
        if not (_is_whole(network, side) or (is_said and _has_rows(network, side, made)))
    ]
    if network.spec.tied_head:  # there is one table, which PEFT ties by itself
        wanted = wanted[:1]
    modules, checkpoint, found = _modules(family), base.checkpoint(), {}
    stored = checkpoint.infos()
    for side in wanted:
        for kind in ("weight", "bias"):
            own = f"{modules[EMBED if network.spec.tied_head else side]}.{kind}"
            if own in stored:
                found[f"{PREFIX}{modules[side]}.{_wrapped(network, side)}{kind}"] = checkpoint.read(
                    own
                )
    return Beside(None if base.rows == base.stored_rows else base.rows, found)


def _wrapped(network: Network, side: str) -> str:
    rows = dict(network.rows).get(EMBED) if side == EMBED else network.head_rows
    if rows is not None:
        return "token_adapter.base_layer."
    return "base_layer." if side in dict(network.outer_adapters) else ""


def _is_whole(network: Network, side: str) -> bool:
    """Say whether the embedding, or the head, is trained as a whole."""
    table = side if side == EMBED or network.has_own_head else EMBED
    return f"{table}/kernel" in network.trained_leaves()


def _has_rows(network: Network, side: str, tokens: Iterable[int]) -> bool:
    """Say whether these rows of the embedding, or of the head, are trained."""
    if side == EMBED:
        chosen = dict(network.rows).get(EMBED, ())
    else:
        chosen = network.head_rows[1] if network.head_rows is not None else ()
    return set(tokens) <= set(chosen)


def _untrained(base: Source, network: Network) -> list[str]:
    """Return which of embedding and head do not learn what tokens that are new to it mean."""
    if not isinstance(base, Resized) or not base.new_ids:
        return []
    adapted = dict(network.outer_adapters)
    return [
        side
        for side in (EMBED, HEAD)
        if side not in adapted
        and not _is_whole(network, side)
        and not _has_rows(network, side, base.new_ids)
    ]


def refuse_untrained(base: Source, family: Family, network: Network, method: str) -> None:
    """Refuse to add tokens of which nothing is trained.

    Args:
        base: The model, perhaps with new tokens.
        family: Its family.
        network: It, with what is trained of it.
        method: Of `tuning`.

    Raises:
        ConfigError: If neither embedding nor head learns the new tokens.
    """
    if _untrained(base, network) == [EMBED, HEAD]:
        assert isinstance(base, Resized)
        raise ConfigError(
            f"model.new_tokens adds {_listed(base)}, and none of their rows are trained.",
            _remedy(base, family, network, method),
        )


def warn_of_untrained(base: Source, family: Family, network: Network, method: str) -> None:
    """Say so where the embedding or the head does not learn new tokens; arguments as above."""
    if sides := _untrained(base, network):
        assert isinstance(base, Resized)
        whose = " and ".join(f"the {_CALLED[side]}" for side in sides)
        why = " They can be read and not be learned to be written." if sides == [HEAD] else ""
        console.warning(
            f"the rows of new tokens in {whose} are not trained.{why} "
            f"{_remedy(base, family, network, method)}"
        )


def _listed(base: Resized) -> str:
    shown = ", ".join(map(str, base.new_ids[:5]))
    more = f" and {len(base.new_ids) - 5:,} more" if len(base.new_ids) > 5 else ""
    return f"the tokens {shown}{more}"


def _remedy(base: Resized, family: Family, network: Network, method: str) -> str:
    """Return what to write to have the new tokens learned."""
    embedding, head = (name.rpartition(".")[2] for name in _modules(family).values())
    both = f"[{embedding}, {head}]"
    if method != "lora":
        return f"Name {both} among tuning.modules."
    saved = f"lora.modules_to_save: {both}"
    if network.spec.head_bias:  # PEFT has no rows of such a head
        return f"Write `{saved}`."
    tokens: Sequence[int] = list(base.new_ids)
    rows = f"{tokens}" if network.spec.tied_head else f"{{{embedding}: {tokens}, {head}: {tokens}}}"
    return f"Write `lora.trainable_token_indices: {rows}`, or `{saved}`."
