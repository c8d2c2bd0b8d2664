"""The exceptions that a user of jaxft can cause, each worded in two sentences.

Separate from everything else because every room raises them and none may import another for it.
The invariant: each error carries two sentences, what was found, and what was expected or what to
do about it. The command line prints both and exits with status 2; a traceback is for faults of
ours, not for mistakes of theirs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JaxftError(Exception):
    """A mistake that the person running jaxft can correct.

    Attributes:
        found: What was found, with its place (file, line, key, tensor).
        remedy: What was expected instead, and what to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        """Keep both sentences and join them for `str`."""
        super().__init__(found, remedy)
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the two lines, found first."""
        return f"{self.found}\n{self.remedy}"


class ConfigError(JaxftError):
    """A recipe or an override that asks for something jaxft cannot do."""


class DataError(JaxftError):
    """A row, or a whole data set, that cannot be trained on."""


class UnsupportedModelError(JaxftError):
    """A model whose architecture, or one of its features, is not handled."""


class WeightsError(JaxftError):
    """A weights file that is missing, damaged, or not what its model needs."""


class AdapterError(JaxftError):
    """An adapter that cannot be built, read, or used with this model."""


class CheckpointError(JaxftError):
    """A run's checkpoint that cannot be written, resumed, or belongs to another run."""


class DeviceError(JaxftError):
    """A device that was asked for, or is visible, and cannot be used."""


class TrainingError(JaxftError):
    """A run whose loss or gradients are not finite."""


class Stopped(Exception):
    """A signal ended the run, and what was done so far is saved.

    Attributes:
        signal: Number of the signal; the exit status is 128 more.
    """

    def __init__(self, signal: int) -> None:
        """Keep the signal's number."""
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice spelled most like `name`, or "" when none is close.

    Upper and lower case count as the same letter, so `Linear` finds `linear`.

    Args:
        name: What the user wrote.
        choices: What they could have written.
    """
    spelled = {choice.casefold(): choice for choice in sorted(choices, reverse=True)}
    matches = difflib.get_close_matches(name.casefold(), spelled, n=1, cutoff=0.6)
    return spelled[matches[0]] if matches else ""
