"""`jaxft adapter ...` on the command line: one function for each command.

As in `main`, help texts load neither jax nor numpy.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from jaxft.errors import ConfigError

_EXAMPLES = """\b
Examples:
  jaxft adapter info runs/quickstart/adapter
  jaxft adapter diff runs/one/adapter runs/two/adapter
  jaxft adapter add runs/one/adapter runs/two/adapter --output both
"""
_INFO_EXAMPLES = """\b
Examples:
  jaxft adapter info runs/quickstart/adapter
"""
_DIFF_EXAMPLES = """\b
Examples:
  jaxft adapter diff runs/one/adapter runs/two/adapter
"""
_SCALE_EXAMPLES = """\b
Examples:
  jaxft adapter scale runs/quickstart/adapter 0.5 --output half
  jaxft adapter scale runs/quickstart/adapter -1 --output away
"""
_ADD_EXAMPLES = """\b
Examples:
  jaxft adapter add runs/one/adapter runs/two/adapter --output both
  jaxft adapter add runs/one/adapter runs/two/adapter --output both \\
    --weights 1,0.5
"""
_INTERPOLATE_EXAMPLES = """\b
Examples:
  jaxft adapter interpolate runs/quickstart/adapter \\
    --data configs/data/style.eval.jsonl
  jaxft adapter interpolate runs/quickstart/adapter --at 0.7 --output less
  jaxft adapter interpolate runs/one/adapter runs/two/adapter \\
    --at 0.3 --output between
"""
_FOLD_EXAMPLES = """\b
Examples:
  jaxft adapter fold runs/quickstart/adapter --output served
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The adapter's folder.", show_default=False)
]
First = Annotated[
    Path, typer.Argument(metavar="A", help="The first adapter's folder.", show_default=False)
]
Second = Annotated[
    Path, typer.Argument(metavar="B", help="The second adapter's folder.", show_default=False)
]
Output = Annotated[Path, typer.Option(help="The folder to write.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(
        help="The base model. Without it: the one that the adapters name.", show_default=False
    ),
]


@app.callback(epilog=_EXAMPLES)
def _adapter() -> None:
    """Look at adapters, compare them, and make others out of them."""


@app.command(no_args_is_help=True, epilog=_INFO_EXAMPLES)
def info(folder: Folder) -> None:
    """Show what an adapter is, and how large.

    Only its own files are read. A norm is that of what is added to the weights.
    """
    from jaxft.verbs import adapter_reports

    adapter_reports.info(folder)


@app.command(no_args_is_help=True, epilog=_DIFF_EXAMPLES)
def diff(first: First, second: Second) -> None:
    """Show in what two adapters differ.

    Settings, tensors, and how far apart the updates of the weights are. A cosine of 1 is the
    same direction, 0 is none in common.
    """
    from jaxft.verbs import adapter_reports

    adapter_reports.diff(first, second)


# Unknown options are ignored, so that a negative factor is not taken for one.
@app.command(
    no_args_is_help=True,
    epilog=_SCALE_EXAMPLES,
    context_settings={"ignore_unknown_options": True},
)
def scale(
    folder: Folder,
    factor: Annotated[
        float, typer.Argument(metavar="FACTOR", help="By how much.", show_default=False)
    ],
    output: Output,
) -> None:
    """Write an adapter so many times as large."""
    from jaxft.verbs import adapters

    adapters.scale(folder, factor, output)


@app.command(no_args_is_help=True, epilog=_ADD_EXAMPLES)
def add(
    first: First,
    second: Second,
    output: Output,
    weights: Annotated[
        str, typer.Option(metavar="W,W", help="How much of each; may be negative.")
    ] = "1,1",
    model: Model = None,
) -> None:
    """Write the sum of two adapters of one base model.

    The sum is exact: its rank is the sum of their ranks.
    """
    from jaxft.verbs import adapters

    adapters.add(first, second, output, _numbers("--weights", weights), model)


@app.command(no_args_is_help=True, epilog=_INTERPOLATE_EXAMPLES)
def interpolate(
    first: First,
    second: Annotated[
        Path | None,
        typer.Argument(
            metavar="B",
            help="The second's. Without it, 0 is the base model and 1 is A.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(help="The point to write: 0 is A, 1 is B.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Held-out rows to measure the loss on.", show_default=False),
    ] = None,
    points: Annotated[
        str, typer.Option(metavar="T,...", help="Where to measure it.")
    ] = "0,0.25,0.5,0.75,1",
    model: Model = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens in a held-out row.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Held-out rows at once.")] = 8,
) -> None:
    """Write an adapter between two, or measure.

    With held-out rows in --data, the loss is measured at several points on the way. With one
    adapter the way begins at the base model: how much of the tuning to keep.
    """
    from jaxft.verbs import adapters

    adapters.interpolate(
        first,
        second,
        at=at,
        output=output,
        data=data,
        points=_numbers("--points", points),
        model=model,
        max_length=max_length,
        batch_size=batch_size,
    )


@app.command(no_args_is_help=True, epilog=_FOLD_EXAMPLES)
def fold(folder: Folder, output: Output) -> None:
    """Write an adapter with one rank, for servers.

    Servers such as vLLM read one rank and one alpha, and no patterns. Ranks of rank_pattern are
    filled up with zeros, scalings go into B; the logits stay.
    """
    from jaxft.verbs import adapters

    adapters.fold(folder, output)


def _numbers(option: str, text: str) -> list[float]:
    """Return the numbers of a list such as "0,0.5,1"."""
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"{option} is {text!r}, which is no list of numbers.",
            f"Write numbers with commas between them, such as {option} 0,0.5",
        )
    return numbers
