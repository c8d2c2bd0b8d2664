"""The check of a data set before training.

`check(train, held_out, ...)` takes encoded rows and returns `Findings`: numbers, and sentences
about problems. The slow parts of the check are kept on disk beside the encoded rows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from jaxft.data.check import figures, judge, looks
from jaxft.data.check.figures import BatchFigures, Figures
from jaxft.data.check.findings import Finding, Findings
from jaxft.data.check.looks import EncodedSide
from jaxft.data.check.pool import Pool
from jaxft.data.check.sweep import Advance


def check(
    train: EncodedSide,
    held_out: EncodedSide | None,
    batches: BatchFigures | None,
    *,
    near_duplicates: bool,
    accepted: Collection[str],
    advance: Advance,
) -> Findings:
    """Check the rows of a run.

    Args:
        train: The training rows, encoded.
        held_out: The held-out rows, encoded.
        batches: The figures of the training batches.
        near_duplicates: Whether to look for examples that are almost equal.
        accepted: Names of findings that are intended.
        advance: Called with the amount of work done since the last call; `looks.work` is the total.

    Raises:
        DataError: A name in `accepted` is not the name of a finding.
    """
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "jaxft"
    seen = looks.cached(train, held_out, folder, near=near_duplicates, advance=advance)
    train_figures = _figures(train)
    held_figures = None if held_out is None else _figures(held_out)
    found = judge.judge(train_figures, held_figures, seen, accepted)
    return Findings(train_figures, held_figures, batches, found)


def _figures(side: EncodedSide) -> Figures:
    names = [source.name for source in side.sources]
    reports = [examples.report for examples in side.examples]
    return figures.figures(", ".join(names), reports, Pool(side.examples).lengths)


__all__ = ["BatchFigures", "EncodedSide", "Figures", "Finding", "Findings", "check"]
