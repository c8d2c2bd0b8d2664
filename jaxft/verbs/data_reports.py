"""`jaxft data check`: the check of the rows of a recipe, printed for people or as JSON.

Nothing is trained and no weights are read; only the tokenizer and chat template of the model are.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxft import console
from jaxft.config import RunConfig
from jaxft.data.batches.batch import Batches
from jaxft.data.check import Figures, Finding, Findings, findings, picture, shown
from jaxft.data.check.pool import Pool
from jaxft.data.check.shown import Shown
from jaxft.errors import ConfigError, DeviceError
from jaxft.parallel import mesh as meshes
from jaxft.training.prepare import batching, checking, reading
from jaxft.training.prepare.reading import Data
from jaxft.weights import base
from jaxft.weights.places import new_tokens, source

_BAR_WIDTH = 40
_NUM_PLACES = 3


class _Opened(NamedTuple):
    """The rows of a recipe as tokens, and their batches; None if the mesh does not fit."""

    data: Data
    batches: Batches | None


def check(config: RunConfig, *, title: str, is_json: bool, picture_file: Path | None) -> None:
    """Check the rows of a recipe and print the findings.

    Args:
        config: The recipe.
        title: The name of the recipe.
        is_json: Whether to print one JSON object instead of text.
        picture_file: The file for a picture of the lengths, or None.

    Raises:
        JaxftError: The rows or the model cannot be read, or training would be meaningless.
    """
    if config.data.streaming:
        raise ConfigError(
            "data.streaming is set, and rows of a stream are not known before they are read.",
            "Check a part of them: data.streaming=false, and data.train=one of the files.",
        )
    data, batches = _open(config)
    found = checking.run_check(config.data, data, batches)
    pool = Pool(data.train.examples)
    examples = [_shown(data, pool, index) for index in shown.typical(pool)]
    if picture_file is not None:
        picture.save(pool, found.train.max_length, f"Training rows of {title}", picture_file)
    if is_json:
        _print_json(found, examples)
    else:
        _print_text(title, found, examples)
    found.raise_if_meaningless()


def _open(config: RunConfig) -> _Opened:
    """Read the rows of a recipe as tokens, and plan their batches if the mesh fits this machine."""
    rows = reading.open_recipe(config.data)
    model = source.resolve(config.model.path, config.model.revision, console.note)
    model = new_tokens.with_new_tokens(model, config.model.new_tokens, console.note)
    _, spec = base.read_spec(model)
    tokenizer = model.tokenizer()
    stop_ids = base.read_stop_ids(model, tokenizer)
    data = reading.read_data(config.data, rows, tokenizer, stop_ids)
    for side in data.sides:
        side.check_ids(spec.vocab_size)
    try:
        mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    except DeviceError as error:
        console.note(f"Steps are not counted: {error.found}")
        return _Opened(data, None)
    return _Opened(data, batching.train_batches(config, data, mesh, spec.vocab_size))


def _shown(data: Data, pool: Pool, index: int) -> Shown:
    part, _ = pool.locate(index)
    tokenizer = data.train.encodings[part].tokenizer
    return shown.show(pool[index], str(pool.place(index)), tokenizer, shown.SHORT)


def _print_json(found: Findings, examples: Iterable[Shown]) -> None:
    whole = {**found.as_json(), "examples": [dataclasses.asdict(each) for each in examples]}
    console.result(json.dumps(whole, ensure_ascii=True, indent=2))


def _print_text(title: str, found: Findings, examples: Iterable[Shown]) -> None:
    console.facts(f"Data of {title}", _facts(found))
    console.result("Training examples by their tokens")
    has_blocks = "utf" in (sys.stdout.encoding or "").lower()
    for line in shown.bar_lines(found.train.lengths, _BAR_WIDTH, has_blocks=has_blocks):
        console.result(f"  {line}")
    console.result("")
    for each in found.findings:
        console.finding(each.level, f"{each.found} [{each.name}]", _details(each))
    doubtful = found.of_level("warning")
    if doubtful:
        console.finding("note", findings.how_to_accept(doubtful), ())
    elif not found.of_level("stop"):
        console.result("Nothing doubtful was found.")
    console.result("")
    for example in examples:
        amount = f"{example.tokens:,} tokens; {example.targets:,} are learned,"
        console.marked(f"{_near(example.place)}: {amount}", example.pieces)


def _details(finding: Finding) -> list[str]:
    """Return the lines below a finding: the first places and the remedy."""
    lines = [_near(place) for place in finding.places[:_NUM_PLACES]]
    num_left = finding.count - len(lines)
    if lines and num_left:
        lines.append(f"and {num_left:,} more")
    return [*lines, f"-> {finding.remedy}"] if finding.remedy else lines


def _near(text: str) -> str:
    """Return text in which paths are relative to the folder where the command runs."""
    return text.replace(f"{Path.cwd()}/", "")


def _facts(found: Findings) -> Iterator[tuple[str, str]]:
    """Yield the label and the value of each figure."""
    yield from _side_facts("training", found.train)
    if found.held_out is not None:
        yield from _side_facts("held out", found.held_out)
    batches = found.batches
    if batches is not None:
        padding = "" if batches.fill is None else f", {batches.fill:.0%} of them no padding"
        yield (
            "a step",
            f"{batches.sequences:,} sequences of {batches.sequence_length:,} tokens{padding}",
        )
        if batches.steps_per_epoch is not None:
            yield "an epoch", f"{batches.steps_per_epoch:,} steps"


def _side_facts(label: str, figures: Figures) -> Iterator[tuple[str, str]]:
    yield label, f"{figures.rows:,} rows of {_near(figures.source)}"
    if figures.examples != figures.rows:
        yield "", f"as {figures.examples:,} examples"
    yield "", f"{figures.tokens:,} tokens, {figures.supervised_share:.1%} of them learned"
    yield (
        "",
        f"{figures.shortest:,} to {figures.longest:,} tokens an example, median {figures.median:,}",
    )
