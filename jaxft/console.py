"""All printing of jaxft.

Results that a person asked for (tables, answers, samples) go to standard output. Notes, warnings,
progress and errors go to standard error, so that a pipe carries only results. On a terminal
progress is a live bar; elsewhere it is plain lines without control codes. `NO_COLOR` is honoured.
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 80
_TEXT_WIDTH = 100  # longer lines are hard to read
_UNCUT = 10_000
_BAR_WIDTH = 24

_notes = Console(stderr=True, highlight=False)
_results = Console(highlight=False)
_drawn: list[Progress] = []  # the bars that are on the terminal at present


class Size(int):
    """A number of bytes, written as "269 MB" with three digits; a MB is 1,000 kB."""

    def __str__(self) -> str:
        value, *units = float(self), "B", "kB", "MB", "GB", "TB"
        while len(units) > 1 and value >= 999.5:
            value, units = value / 1000, units[1:]
        return f"{value:.3g} {units[0]}"


class Share(float):
    """A part of a whole, written as "0.343 %"."""

    def __str__(self) -> str:
        return f"{100 * self:.3g} %"


class Sample(NamedTuple):
    """A prompt with the answers of the base model and the tuned model."""

    prompt: str
    base: str
    tuned: str


def note(text: str) -> None:
    """Print a note about the run to standard error."""
    _say(_notes, text)


def warning(text: str) -> None:
    """Print a warning to standard error."""
    _say(_notes, f"warning: {text}", style="yellow")


def error(found: str, remedy: str) -> None:
    """Print the error that ends the command: what was found, and what to do about it."""
    _say(_notes, f"error: {found}", style="bold red")
    _say(_notes, f"  -> {remedy}")


def result(text: str) -> None:
    """Print a line of a result to standard output."""
    _say(_where_results_go(), text)


def text_width() -> int:
    """Return the width for text: that of the terminal, but at most 100; 80 on a pipe."""
    return min(_results.width, _TEXT_WIDTH) if _results.is_terminal else _PIPE_WIDTH


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> None:
    """Print a table to standard output; columns of numbers are aligned right.

    Args:
        title: The line above the table.
        columns: The headings.
        rows: The cells of each row. Whole numbers get thousands separators and other numbers four
            decimals; `Size` and `Share` are written in their own way.
    """
    cells = [list(row) for row in rows]
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(columns):
        is_number = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        grid.add_column(Text(heading), justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(_cell(value)) for value in row))
    _show(grid)


def facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print labelled facts about one thing to standard output, and a blank line.

    Args:
        title: The line above them.
        rows: A label and a value for each line. On a terminal a long value is wrapped.
    """
    grid = Table(box=None, show_header=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(Text(label), Text(value))
    _say(_where_results_go(), title, style="bold")
    _show(grid)
    result("")


def samples(shown: Iterable[Sample]) -> None:
    """Print prompts with both answers: side by side on a terminal, in labelled lines elsewhere."""
    console = _where_results_go()
    for sample in shown:
        if console.is_terminal:
            _say(console, f"\n{sample.prompt}", style="bold")
            grid = Table(box=box.ROUNDED, expand=True)
            grid.add_column("base model", ratio=1, overflow="fold")
            grid.add_column("tuned model", ratio=1, overflow="fold")
            grid.add_row(Text(sample.base), Text(sample.tuned))
            console.print(grid)
        else:
            for label, text in zip(("prompt", "base", "tuned"), sample, strict=True):
                _say(console, _labelled(label, text))
            _say(console, "")


def marked(title: str, pieces: Iterable[tuple[str, bool]]) -> None:
    """Print a text to standard output with parts of it marked: by colour, or with [[ and ]].

    Args:
        title: The line above the text, which is continued by "in colour" or "in [[ ]]".
        pieces: The parts of the text, and whether each is marked. Control characters are written
            as escapes.
    """
    console = _where_results_go()
    has_colour = console.is_terminal and not console.no_color
    text = Text()
    for piece, is_marked in pieces:
        shown = printable(piece, kept="\n\t")
        if is_marked:
            text.append(shown if has_colour else f"[[{shown}]]", style="green")
        else:
            text.append(shown, style="dim" if has_colour else "")
    marks = "in colour" if has_colour else "in [[ ]]"
    _say(console, f"{title} {marks}", style="bold")
    text.rstrip()
    console.print(text, soft_wrap=True)
    _say(console, "")


def printable(text: str, kept: str = "") -> str:
    """Return text with escapes for invisible characters and for those that move the cursor.

    Args:
        text: Any text.
        kept: Characters that are not escaped.
    """
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def finding(level: str, found: str, details: Iterable[str]) -> None:
    """Print a finding to standard output, with indented lines below it.

    Args:
        level: The word before the finding; "warning" and "stop" have colours.
        found: The finding.
        details: The lines below it.
    """
    console = _where_results_go()
    style = {"warning": "yellow", "stop": "bold red"}.get(level, "")
    _wrapped(console, f"{level}: {found}", indent=0, style=style)
    for line in details:
        _wrapped(console, line, indent=2, style="")


def stream(pieces: Iterable[str]) -> None:
    """Write the pieces of an answer to standard output as they come, and end the line."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def lines() -> Iterator[str]:
    """Yield the lines of standard input, with a prompt mark if it is a terminal."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


class TrainingBar:
    """The progress of a training run: call `advance` after each step, and `update` at log lines."""

    def __init__(
        self, description: str, num_steps: int, bar: Progress | None, task: TaskID | None
    ) -> None:
        """Keep the live bar, or None to write plain lines."""
        self._description = description
        self._num_steps = num_steps
        self._bar = bar
        self._task = task
        self._first: tuple[int, float] | None = None

    def advance(self, step: int) -> None:
        """Show on a terminal that `step` steps are done; elsewhere only `update` writes lines."""
        # The time until the first step ends is mostly compilation, and is not counted.
        self._first = self._first or (step, time.monotonic())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that `step` steps are done, with the loss, the speed and the time left."""
        now = time.monotonic()
        first_step, since = self._first = self._first or (step, now)
        left = _time_left(step - first_step, self._num_steps - step, now - since)
        figures = "  ".join(filter(None, (f"loss {loss:.4f}", _speed(tokens_per_second), left)))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, figures=figures)
        else:
            _say(_notes, f"{self._description} {step}/{self._num_steps}  {figures}")


@contextlib.contextmanager
def training(description: str, num_steps: int, start_step: int) -> Iterator[TrainingBar]:
    """Show a training run's progress while the block runs.

    Args:
        description: A word or two in front of the bar.
        num_steps: The number of steps of the whole run.
        start_step: The number of steps before this start, if the run continues from a checkpoint.
    """
    if not _notes.is_terminal:
        yield TrainingBar(description, num_steps, None, None)
        return
    with _bar(MofNCompleteColumn(), TextColumn("{task.fields[figures]}")) as bar:
        task = bar.add_task(description, total=num_steps, completed=start_step, figures="")
        yield TrainingBar(description, num_steps, bar, task)


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal while the block runs, and remove it afterwards.

    The block gets a function that takes the amount done since the last call.

    Args:
        description: The work, in a word or two.
        total: The whole amount, in any unit; None if it is not known.
    """
    if not _notes.is_terminal:
        yield lambda amount: None
        return
    with _bar(TaskProgressColumn()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.update(task, advance=amount)


@contextlib.contextmanager
def loading(
    description: str, total: int | None, silent_s: float = 0.0
) -> Iterator[Callable[[int], None]]:
    """Show `progress`, and afterwards a line with the time it took.

    Args:
        description: The work, in a few words.
        total: The whole amount, in any unit; None if it is not known.
        silent_s: The line is left out if the work took less than this, in seconds.
    """
    started = time.monotonic()
    with progress(description, total) as count:
        yield count
    seconds = time.monotonic() - started
    if seconds >= silent_s:
        _say(_notes, f"{description}: {seconds:.1f} s")


@contextlib.contextmanager
def _bar(*columns: ProgressColumn) -> Iterator[Progress]:
    """Draw a live bar on standard error while the block runs, and remove it afterwards."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_WIDTH),
        *columns,
        console=_notes,
        refresh_per_second=4,
        redirect_stdout=False,
        transient=True,
    )
    with bar:
        _drawn.append(bar)
        try:
            yield bar
        finally:
            _drawn.remove(bar)


def _show(grid: Table) -> None:
    """Print a table as a result."""
    console = _where_results_go()
    if not console.is_terminal:
        # On a pipe nothing is cut or folded, so that a program can read it.
        console = Console(file=console.file, width=_UNCUT, highlight=False)
    console.print(grid)


def _where_results_go() -> Console:
    """Return the console for results.

    While a bar is drawn on the same terminal, only the bar's own console can write without
    breaking the bar.
    """
    return _notes if _drawn and _results.is_terminal else _results


def _say(console: Console, text: str, style: str = "") -> None:
    """Write text unchanged: without markup, emoji codes or line breaks of rich."""
    console.print(Text(text, style=style), soft_wrap=True)


def _wrapped(console: Console, text: str, indent: int, style: str) -> None:
    """Write indented text. On a terminal it is wrapped between words, with a hanging indent."""
    margin = " " * indent
    line = Text(printable(text), style=style)
    if not console.is_terminal:
        _say(console, margin + line.plain)
        return
    for number, part in enumerate(line.wrap(console, console.width - indent - 2)):
        console.print(Text(margin + "  " * bool(number)) + part, soft_wrap=True)


def _cell(value: str | int | float) -> str:
    """Return the text of a table's cell."""
    if isinstance(value, str | Size | Share):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _labelled(label: str, text: str) -> str:
    """Return a wrapped text beside its label."""
    indent = " " * 8
    lines = [
        part for line in text.splitlines() for part in textwrap.wrap(line, _PIPE_WIDTH - 8) or [""]
    ]
    return f"{label + ':':<8}" + f"\n{indent}".join(lines)


def _speed(tokens_per_second: float) -> str:
    """Return the text of a speed."""
    return f"{tokens_per_second:,.0f} tokens/s"


def _time_left(done: int, left: int, seconds: float) -> str:
    """Return the estimated time left, from the pace so far; "" before the first step.

    Args:
        done: The number of steps since the clock started.
        left: The number of steps still to do.
        seconds: The time since the clock started.
    """
    if done <= 0:
        return ""
    minutes, rest = divmod(round(seconds / done * left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{clock} left"
