"""The frozen embedding and head in the file of an adapter whose base model was resized.

Users of PEFT resize the base before they load such an adapter, and get random new rows. So if not
all new rows of a table are trained, the adapter's file has the whole table, under PEFT's name for
it. The shapes in a file tell how many rows its base model must have.

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
# PEFT's prefixes of a module's original tensors: for a plain module, an adapted one, one with
# trained token rows, and one with a trained copy.
_WRAPPED = ("", "base_layer.", "token_adapter.base_layer.", "original_module.")
_NOT_BY_TOKEN = ("lora_A.weight", "lora_embedding_B", "token_adapter.trainable_tokens_delta")
_CALLED = {EMBED: "embedding", HEAD: "head"}


class Beside(NamedTuple):
    """The tensors of a base model that are written to the file of an adapter.

    Attributes:
        rows: The number of token rows that the base model must be resized to, such as 32,001;
            `None` if its files have that many.
        tensors: The frozen embedding and head, under PEFT's names.
    """

    rows: int | None
    tensors: Mapping[str, np.ndarray]


NOTHING = Beside(None, {})


def _modules(family: Family) -> dict[str, str]:
    """Return Hugging Face's names of the embedding and the head, by our names."""
    return {
        EMBED: tying.embedding_module(family),
        HEAD: family.head_name,
    }


def frozen_names(family: Family) -> dict[str, str]:
    """Return the names that frozen tables may have in an adapter's file, with the model's own.

    A table that the adapter trains as a whole has one of these names too.
    """
    return {
        f"{PREFIX}{module}.{wrapped}{kind}": f"{module}.{kind}"
        for module in _modules(family).values()
        for wrapped in _WRAPPED
        for kind in ("weight", "bias")
    }


def is_of_base(name: str, lora: LoraConfig) -> bool:
    """Return whether a tensor without LoRA in its name is the base model's, not a trained one.

    This needs no base model.

    Args:
        name: The name in the adapter's file.
        lora: The adapter's config.
    """
    module, _, kind = name.rpartition(".")
    if module.endswith((".base_layer", ".original_module")):
        return not (kind == "bias" and lora.bias != "none")
    is_trained = kind == "trainable_tokens_delta" or (kind == "bias" and lora.bias != "none")
    saved = tuple(lora.modules_to_save or ())
    return not (is_trained or lora.ensure_weight_tying or module.endswith(saved))


def shared(several: Sequence[tuple[Path, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return the base model's tensors that are in the files of several adapters, by name.

    Args:
        several: For each adapter its folder, for messages, and the base's tensors in its file.

    Raises:
        AdapterError: If the adapters were trained with different embeddings.
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
    """Return whether two tensors are equal after rounding to the smaller of their dtypes."""
    coarser = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(one.astype(coarser), other.astype(coarser))


def frozen_in(
    tensors: Mapping[str, np.ndarray], family: Family, trained: Collection[str], *, is_tied: bool
) -> dict[str, np.ndarray]:
    """Return the frozen tables that an adapter's file has, by the model's own names.

    Args:
        tensors: The tensors of the file, under PEFT's names.
        family: The family of the model.
        trained: The names of the tensors that the adapter trains.
        is_tied: Whether the base model's head is tied to its embedding.
    """
    found = {
        own: tensors[name]
        for name, own in frozen_names(family).items()
        if name in tensors and name not in trained
    }
    embedding, head = (f"{module}.weight" for module in _modules(family).values())
    if is_tied:  # the base model's file may have both names; both then mean this table
        for one, other in ((embedding, head), (head, embedding)):
            if other in found:
                found.setdefault(one, found[other])
    return found


def num_rows(
    tensors: Mapping[str, np.ndarray], lora: LoraConfig, family: Family, stored: int
) -> int | None:
    """Return how many rows the embedding of an adapter's base has; `None` if no tensor tells.

    Args:
        tensors: The adapter's tensors, under PEFT's names.
        lora: The adapter's config.
        family: The family of the model.
        stored: The number of rows in the base model's files.
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
    # Tokens beyond the stored rows must be all added rows; else the adapter is for another model.
    is_whole = beyond == set(range(stored, stored + len(beyond)))
    return stored + len(beyond) if beyond and is_whole else None


def check_complete(
    frozen: Collection[str], family: Family, network: Network, stored: int, origin: Path
) -> None:
    """Refuse an adapter for a resized base model if its file lacks some of the added rows.

    Args:
        frozen: The names of the frozen tables in the adapter's file, by the model's own names.
        family: The family of the model.
        network: The network with the adapter, with the rows of the resized base.
        stored: The number of rows in the base model's files.
        origin: The adapter's folder, for messages.

    Raises:
        AdapterError: If a row of the embedding or the head is in neither file.
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
    """Return the base's tensors for an adapter's file; none if the base is as in its own files.

    Args:
        base: The base model.
        family: The family of the base model.
        network: The network with the adapter.
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
    if network.spec.tied_head:  # there is only one table; PEFT ties the head to it
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
    """Return whether the embedding, or the head, is trained as a whole."""
    table = side if side == EMBED or network.has_own_head else EMBED
    return f"{table}/kernel" in network.trained_leaves()


def _has_rows(network: Network, side: str, tokens: Iterable[int]) -> bool:
    """Return whether the rows of these tokens are trained in the embedding, or in the head."""
    if side == EMBED:
        chosen = dict(network.rows).get(EMBED, ())
    else:
        chosen = network.head_rows[1] if network.head_rows is not None else ()
    return set(tokens) <= set(chosen)


def _untrained(base: Source, network: Network) -> list[str]:
    """Return which of the embedding and the head do not train the rows of new tokens."""
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
    """Refuse new tokens whose rows are not trained.

    Args:
        base: The model, perhaps with new tokens.
        family: The family of the model.
        network: The network of the model; it says which parts are trained.
        method: The method of the recipe's `tuning` section, such as "lora".

    Raises:
        ConfigError: If the new rows are trained in neither the embedding nor the head.
    """
    if _untrained(base, network) == [EMBED, HEAD]:
        assert isinstance(base, Resized)
        raise ConfigError(
            f"model.new_tokens adds {_listed(base)}, and none of their rows are trained.",
            _remedy(base, family, network, method),
        )


def warn_of_untrained(base: Source, family: Family, network: Network, method: str) -> None:
    """Warn if the embedding or the head does not train new rows; see `refuse_untrained`."""
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
    """Return what to write in the recipe to have the rows of new tokens trained."""
    embedding, head = (name.rpartition(".")[2] for name in _modules(family).values())
    both = f"[{embedding}, {head}]"
    if method != "lora":
        return f"Name {both} among tuning.modules."
    saved = f"lora.modules_to_save: {both}"
    if network.spec.head_bias:  # PEFT cannot train single rows of a head with a bias
        return f"Write `{saved}`."
    tokens: Sequence[int] = list(base.new_ids)
    rows = f"{tokens}" if network.spec.tied_head else f"{{{embedding}: {tokens}, {head}: {tokens}}}"
    return f"Write `lora.trainable_token_indices: {rows}`, or `{saved}`."
