"""Find a model in the local Hugging Face cache, or fetch it from the Hub.

Separate because only here the Hugging Face service is talked to. The invariant: one short request
decides whether the Hub answers, so that a machine without it waits for seconds, never through
minutes of retries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors, utils

from jaxft.weights.formats import opening

# The request has its own timeouts; looking up a name has none, hence a limit around it all.
_REQUEST_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 10.0

# Configuration and tokenizer, beside weights in the one format that is read: nothing from
# subfolders.
_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
]


class NotHereError(Exception):
    """A place does not have the model; the text says why."""


def is_name(model: str) -> bool:
    """Say whether a model could have this name on the Hub."""
    try:
        utils.validate_repo_id(model)  # type: ignore[attr-defined]  # public, but not marked so
    except errors.HFValidationError:
        return False
    return True


def find_cached(repo_id: str, revision: str | None) -> Path:
    """Return the folder of a model in the local cache.

    Raises:
        NotHereError: It is not there, or not all of it.
    """
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, local_files_only=True)
        )
    except errors.LocalEntryNotFoundError as error:
        raise NotHereError("not in it") from error
    return _complete(folder)


def download(repo_id: str, revision: str | None, note: Callable[[str], None]) -> Path:
    """Fetch a model from the Hub into the local cache and return its folder there.

    Args:
        repo_id: The model's name on the Hub.
        revision: A branch, tag or commit; None is the main branch.
        note: Called with what is about to take a while.

    Raises:
        NotHereError: The Hub does not answer, or does not give this model.
    """
    if huggingface_hub.is_offline_mode():
        raise NotHereError("not asked, since HF_HUB_OFFLINE is set")
    # Which exceptions a lost connection raises depends on the HTTP library of the day.
    try:
        answer = _within(
            _ANSWER_TIMEOUT_S,
            lambda: huggingface_hub.HfApi().model_info(
                repo_id, revision=revision, timeout=_REQUEST_TIMEOUT_S
            ),
        )
        weights = opening.wanted_files([file.rfilename for file in answer.siblings or ()])
        note(f"Fetching {repo_id} from the Hugging Face Hub")
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=[*_FILES, *weights]
        )
    except Exception as error:
        raise NotHereError(_reason(error)) from error
    return _complete(Path(folder))


def _complete(folder: Path) -> Path:
    """Return the folder, unless a part of the model is missing."""
    lacking = opening.lack(folder)
    if lacking:
        raise NotHereError(f"incomplete: {lacking}")
    return folder


def _reason(error: Exception) -> str:
    """Say in one line why the Hub gave nothing."""
    if isinstance(error, errors.GatedRepoError):
        return "the model is gated: accept its terms on the Hub, then run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such model (a private one needs `hf auth login`)"
    first_line = (str(error).splitlines() or [""])[0]
    return f"no answer ({type(error).__name__}: {first_line})"


def _within(limit_s: float, call: Callable[[], Any]) -> Any:
    """Make a call, give or raise what it does, or TimeoutError when it takes too long."""
    returned: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    # Not an executor: that one is waited for when Python ends.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"nothing came within {limit_s:g} s")
    if raised:
        raise raised[0]
    return returned[0]
