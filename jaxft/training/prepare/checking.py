"""Checks the data at the start of a run, and prints the result.

The check is that of `jaxft data check`. A run prints only the numbers and the findings, and stops
if training would be meaningless.
"""

from __future__ import annotations

from jaxft import console
from jaxft.config import DataConfig
from jaxft.data import check
from jaxft.data.batches.batch import Batches
from jaxft.data.check import BatchFigures, Figures, Findings, findings, looks
from jaxft.training.prepare.reading import Data

_SILENT_S = 2.0  # a shorter check is not mentioned; with the cache it takes no time
_NUM_PLACES = 3


def run_check(config: DataConfig, data: Data, batches: Batches | None) -> Findings:
    """Check the rows of a run, and show progress.

    Args:
        config: The `data` section of the recipe.
        data: The encoded rows; they must not be a stream.
        batches: The training batches; `None` leaves out the figures of batches.

    Raises:
        DataError: `data.accept` names something that is not a finding.
    """
    total = looks.work(data.train, data.eval)
    with console.loading("Checking the rows", total, silent_s=_SILENT_S) as advance:
        return check.check(
            data.train,
            data.eval,
            None if batches is None else _figures(batches),
            near_duplicates=config.near_duplicates,
            accepted=config.accept,
            advance=advance,
        )


def say(found: Findings) -> None:
    """Print the numbers of the rows and the findings to standard error.

    Raises:
        DataError: Training on these rows would be meaningless.
    """
    console.note(f"Training rows: {summary(found.train)}")
    if found.held_out is not None:
        console.note(f"Held-out rows: {summary(found.held_out)}")
    warnings = found.of_level("warning")
    for each in warnings:
        where = f" ({', '.join(each.places[:_NUM_PLACES])})" if each.places else ""
        console.warning(f"{each.found}{where} {each.remedy}")
    for each in found.of_level("note"):
        console.note(each.found)
    if warnings:
        console.note(findings.how_to_accept(warnings))
    found.raise_if_meaningless()


def summary(figures: Figures) -> str:
    """Return the numbers of the training rows, or of the held-out rows, as one sentence."""
    rows = f"{figures.rows:,} row{'' if figures.rows == 1 else 's'}"
    if figures.examples > figures.rows:
        rows += f" as {figures.examples:,} examples"
    return (
        f"{rows} of {figures.shortest:,} to {figures.longest:,} tokens, {figures.tokens:,} together"
        f", {figures.supervised_share:.0%} of them learned."
    )


def _figures(batches: Batches) -> BatchFigures:
    return BatchFigures(
        sequences=batches.global_batch,
        sequence_length=batches.sequence_length,
        fill=batches.fill,
        steps_per_epoch=batches.steps_per_epoch,
    )
