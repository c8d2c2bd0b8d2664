"""A picture of the lengths of a data set, drawn with matplotlib, an optional dependency."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxft.data.check.pool import Pool
from jaxft.errors import ConfigError

_BINS = 50


def save(pool: Pool, max_length: int, title: str, file: Path) -> None:
    """Draw histograms of the lengths and the supervised shares of examples, and write the picture.

    Args:
        pool: The examples.
        max_length: The largest number of tokens in an example, drawn as a line.
        title: The title of the picture.
        file: The file to write. Its ending names the format: .png, .svg or .pdf.

    Raises:
        ConfigError: matplotlib is not installed or does not know the ending, or the file cannot be
            written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--picture draws with matplotlib, which is not installed.",
            "Install it: pip install 'jaxft[picture]'. The histogram in the terminal needs none.",
        ) from error
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    bins = np.linspace(0, max(1, int(pool.lengths.max(initial=1))), _BINS + 1)
    for label, counts in (("all tokens", pool.lengths), ("learned tokens", pool.targets)):
        above.hist(counts, bins=bins, label=label, histtype="stepfilled", alpha=0.6)
    above.axvline(max_length, color="black", linestyle="dashed", label="data.max_length")
    above.set(title=title, xlabel="tokens in an example", ylabel="examples")
    above.legend()
    shares = 100 * pool.targets / np.maximum(pool.lengths, 1)
    below.hist(shares, bins=_BINS, range=(0, 100))
    below.set(xlabel="% of an example that is learned", ylabel="examples")
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The picture {file} cannot be written: {error}.",
            "Name a file that ends in .png, .svg or .pdf, in a folder that this user may write to.",
        ) from error
