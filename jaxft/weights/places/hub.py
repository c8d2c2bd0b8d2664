"""Find a model in the local Hugging Face cache, or download it from the Hub.

Only this file talks to the Hugging Face service. One short request finds out whether the Hub
answers, so that a machine without network waits for seconds and not for minutes of retries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors, utils

from jaxft.weights.formats import opening

# The first is the timeout of the request. Looking up a host name has no timeout, so the second one
# limits the whole call.
_REQUEST_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 10.0

# The files of configuration and tokenizer, downloaded beside the weights in one format. Nothing is
# downloaded from subfolders.
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
    """A place does not have the model; the message says why."""


def is_name(model: str) -> bool:
    """Return whether a model could have this name on the Hub."""
    try:
        utils.validate_repo_id(model)  # type: ignore[attr-defined]  # public, but not marked so
    except errors.HFValidationError:
        return False
    return True


def find_cached(repo_id: str, revision: str | None) -> Path:
    """Return the folder of a model in the local cache.

    Raises:
        NotHereError: The model is not in the cache, or only a part of it is.
    """
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, local_files_only=True)
        )
    except errors.LocalEntryNotFoundError as error:
        raise NotHereError("not in it") from error
    return _complete(folder)


def download(repo_id: str, revision: str | None, note: Callable[[str], None]) -> Path:
    """Download a model from the Hub into the local cache and return its folder there.

    Args:
        repo_id: The model's name on the Hub.
        revision: A branch, tag or commit; None is the main branch.
        note: Called with a line before the download.

    Raises:
        NotHereError: The Hub does not answer, or refuses this model.
    """
    if huggingface_hub.is_offline_mode():
        raise NotHereError("not asked, since HF_HUB_OFFLINE is set")
    # A lost connection raises different exceptions under different HTTP libraries.
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
    """Return the folder, or raise if a part of the model is missing."""
    lacking = opening.lack(folder)
    if lacking:
        raise NotHereError(f"incomplete: {lacking}")
    return folder


def _reason(error: Exception) -> str:
    """Return in one line why the download failed."""
    if isinstance(error, errors.GatedRepoError):
        return "the model is gated: accept its terms on the Hub, then run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such model (a private one needs `hf auth login`)"
    first_line = (str(error).splitlines() or [""])[0]
    return f"no answer ({type(error).__name__}: {first_line})"


def _within(limit_s: float, call: Callable[[], Any]) -> Any:
    """Return the result of a call, raise its error, or raise TimeoutError if it takes too long."""
    returned: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    # A daemon thread, because Python would wait for the thread of an executor before it ends.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"nothing came within {limit_s:g} s")
    if raised:
        raise raised[0]
    return returned[0]
