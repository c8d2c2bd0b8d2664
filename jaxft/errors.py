"""The exceptions that a user of jaxft can cause, each with two sentences.

The first sentence says what was found, the second what was expected or what to do. The command line
prints both and exits with status 2. A traceback means a fault in jaxft, and not a mistake of the
user. Every room raises these exceptions, so they stand in a file that imports no room.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JaxftError(Exception):
    """A mistake that the user can correct.

    Attributes:
        found: The first sentence: what was found, with its place (file, line, key, tensor).
        remedy: The second sentence: what was expected instead, and what to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        """Keep both sentences and join them for `str`."""
        super().__init__(found, remedy)
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the two sentences on two lines."""
        return f"{self.found}\n{self.remedy}"


class ConfigError(JaxftError):
    """A recipe or an override that jaxft cannot follow."""


class DataError(JaxftError):
    """A row or a data set that cannot be trained on."""


class UnsupportedModelError(JaxftError):
    """A model whose architecture, or a feature of it, is not supported."""


class WeightsError(JaxftError):
    """A weights file that is missing, damaged, or does not fit its model."""


class AdapterError(JaxftError):
    """An adapter that cannot be made, read, or used with the model."""


class CheckpointError(JaxftError):
    """A checkpoint that cannot be written or resumed, or that belongs to another run."""


class DeviceError(JaxftError):
    """A device that cannot be used, although it was requested or is visible."""


class TrainingError(JaxftError):
    """A run whose loss or gradient is not finite."""


class Stopped(Exception):
    """A signal stopped the run, and its state is saved.

    Attributes:
        signal: The number of the signal; the exit status is 128 more.
    """

    def __init__(self, signal: int) -> None:
        """Keep the signal's number."""
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice whose spelling is most similar to `name`; "" if none is similar.

    Upper and lower case count as the same letter, so `Linear` finds `linear`.

    Args:
        name: The name that the user wrote.
        choices: The names that are allowed.
    """
    spelled = {choice.casefold(): choice for choice in sorted(choices, reverse=True)}
    matches = difflib.get_close_matches(name.casefold(), spelled, n=1, cutoff=0.6)
    return spelled[matches[0]] if matches else ""
