"""`jaxft data ...` on the command line: one function for each command.

Its help texts are printed without importing jax or numpy, like those of `main`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """\b
Examples:
  jaxft data check configs/quickstart.yaml
  jaxft data show configs/quickstart.yaml --row 12
"""
_CHECK_EXAMPLES = """\b
Examples:
  jaxft data check configs/quickstart.yaml
  jaxft data check configs/quickstart.yaml data.max_length=512
  jaxft data check configs/quickstart.yaml --json > check.json
  jaxft data check configs/quickstart.yaml --picture lengths.png
"""
_SHOW_EXAMPLES = """\b
Examples:
  jaxft data show configs/quickstart.yaml --row 12
  jaxft data show configs/quickstart.yaml --row 12 --eval --ids
  jaxft data show configs/quickstart.yaml --row style.train.jsonl:12
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Options that replace the recipe's, such as data.max_length=512.",
        show_default=False,
    ),
]


@app.callback(epilog=_EXAMPLES)
def _data() -> None:
    """Look at what a recipe trains on, before it trains."""


@app.command(no_args_is_help=True, epilog=_CHECK_EXAMPLES)
def check(
    recipe: Recipe,
    overrides: Overrides = None,
    json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object, and nothing else, to stdout.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the lengths: .png, .svg or .pdf. Needs matplotlib.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check the rows of a recipe: what is learned, what is lost, what is odd.

    A run does the same check when it starts. Ends with status 2 where training would be
    meaningless.
    """
    from jaxft import config

    run_config = config.load_config(recipe, overrides or [])

    from jaxft.verbs import data_reports

    data_reports.check(run_config, title=str(recipe), is_json=json, picture_file=picture)


@app.command(no_args_is_help=True, epilog=_SHOW_EXAMPLES)
def show(
    recipe: Recipe,
    row: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Which row, counted from 1; or its place, as in rows.jsonl:12.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    eval: Annotated[bool, typer.Option("--eval", help="Of the held-out rows.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Show the numbers of the tokens too.")] = False,
) -> None:
    """Show one row: as it was read, and as the model learns it."""
    from jaxft import config

    run_config = config.load_config(recipe, overrides or [])

    from jaxft.verbs import data_show

    data_show.show(run_config, row, is_eval=eval, has_ids=ids)
