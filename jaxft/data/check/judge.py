"""The findings that follow from counts: their level, their sentences, and the remedies.

The thresholds of the check stand here and in `odd_texts`, each with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from jaxft import errors
from jaxft.data.chats.notes import DOUBTFUL, NOTES, TEMPLATED
from jaxft.data.check import odd_texts
from jaxft.data.check.duplicates import Copies, Duplicates
from jaxft.data.check.figures import Figures
from jaxft.data.check.findings import LEVELS, Finding, Level
from jaxft.data.check.looks import Looks, SideLook
from jaxft.errors import DataError

# Fewer copies than one in 100 change a run less than its seed does.
_DOUBTFUL_SHARE = 0.01
# Few copies of a single row may be intended, to be learned by heart. From this number on it is more
# likely that the wrong column was read.
_MANY_COPIES = 100
# If this many examples all have the same answer, that is no accident.
_MANY_ANSWERS = 20
# If most tokens are unknown, the tokenizer is for another language.
_MOSTLY = 0.5
# Old tokenizers do not know some emoji, which a few rows may have.
_UNKNOWN_SHARE = 0.001
# Below this share of supervised tokens, nearly all of the time goes into reading prompts.
_SUPERVISED_SHARE = 0.01
# A reply that is cut has no end, and a model that saw many of them may not stop. And if this many
# rows are left out, the others may differ in kind.
_TOO_LONG_SHARE = 0.05
# With fewer examples than this, each one decides more than a tenth of the held-out loss.
_FEW_HELD_OUT = 10

_HOLD_OUT = "Hold out other rows, or remove these from the training rows."
_COPIES = {
    "duplicates": ("Copies of earlier ones", "training examples", "Keep one of each."),
    "near_duplicates": ("Almost copies of earlier ones", "training examples", "Keep one of each."),
    "held_out_known": (
        "Also among the training examples",
        "held-out examples",
        f"{_HOLD_OUT} data.hold_out in place of data.eval keeps equal rows on one side.",
    ),
    "held_out_nearly_known": (
        "Almost the same as a training example",
        "held-out examples",
        _HOLD_OUT,
    ),
}

# All names that `data.accept` may have.
NAMES: tuple[str, ...] = (
    *("nothing_learned", "one_row", "one_answer", "blank_answers_only"),
    *("unknown_tokens", "cut_off", "without_target", "truncated", "split", "too_long"),
    *("duplicates", "near_duplicates", "held_out_known", "held_out_nearly_known"),
    *("no_end_learned", "little_learned", "few_held_out", "unused_fields", "not_all_read"),
    *odd_texts.SENTENCES,
    *(name for name in NOTES if name not in (TEMPLATED, "blank_reply")),
)


def judge(
    train: Figures, held_out: Figures | None, looks: Looks, accepted: Collection[str]
) -> tuple[Finding, ...]:
    """Return the findings, the worst first.

    Args:
        train: The figures of the training rows.
        held_out: The figures of the held-out rows.
        looks: The results of looking at all tokens and texts.
        accepted: Names of findings that are intended; these become notes.

    Raises:
        DataError: A name in `accepted` is not the name of a finding.
    """
    for name in accepted:
        if name not in NAMES:
            guess = errors.nearest(name, NAMES)
            raise DataError(
                f"data.accept has {name!r}, and the check has no finding of that name.",
                f"Did you mean {guess}?" if guess else f"Its findings are {', '.join(NAMES)}.",
            )
    found = [*_of_side("training", train, looks.train), *_of_copies(train, looks.copies)]
    if held_out is not None and looks.held_out is not None:
        found += _of_side("held-out", held_out, looks.held_out)
        if held_out.examples < _FEW_HELD_OUT:
            found.append(
                Finding(
                    "few_held_out",
                    "note",
                    held_out.examples,
                    f"So few held-out examples that their loss is uncertain: {held_out.examples}.",
                    "",
                )
            )
    found = [
        Finding(each.name, "note", each.count, each.found, "", each.places)
        if each.name in accepted
        else each
        for each in found
    ]
    return tuple(sorted(found, key=lambda each: LEVELS.index(each.level)))


def _of_side(label: str, figures: Figures, look: SideLook) -> Iterator[Finding]:
    """Yield the findings about one side."""
    rows = f"{label} rows"
    if not figures.targets:
        yield Finding(
            "nothing_learned",
            "stop",
            figures.rows,
            f"Nothing is learned in any of the {figures.rows:,} {rows}.",
            'Learned are turns of the role "assistant", answers and texts: add some, or raise '
            "data.max_length if they are cut off.",
        )
        return
    yield from _of_lengths(f"{label} examples", figures)
    yield from _of_tokens(f"{label} examples", figures, look)
    yield from odd_texts.judge(rows, look.texts)
    yield from _of_notes(rows, figures)
    if figures.unused:
        fields = ", ".join(f"{name} ({count:,})" for name, count in figures.unused.items())
        yield Finding(
            "unused_fields",
            "note",
            max(figures.unused.values()),
            f"Fields of {rows} that are not used, and in how many: {fields}.",
            "",
        )


def _of_notes(rows: str, figures: Figures) -> Iterator[Finding]:
    """Yield the findings for the notes of encoding."""
    blank = figures.notes.get("blank_reply", 0)
    if blank and blank == figures.rows:
        yield Finding(
            "blank_answers_only",
            "stop",
            blank,
            f"Every answer is blank: {_of(blank, figures.rows, rows)}.",
            "Look at the names of the fields; columns of a source maps other names.",
            _first(figures, "blank_reply"),
        )
    for name, count in figures.notes.items():
        if name not in NAMES:
            continue
        is_doubtful = name in DOUBTFUL
        yield Finding(
            name,
            "warning" if is_doubtful else "note",
            count,
            f"{_of(count, figures.rows, rows)}: {NOTES[name]}.",
            "Write the rows as the template takes them; docs/data.md says how."
            if is_doubtful
            else "",
            _first(figures, name),
        )


def _of_lengths(examples: str, figures: Figures) -> Iterator[Finding]:
    """Yield the findings about examples that are too long, or have no supervised token."""
    limit = f"{figures.max_length:,} tokens"
    left_out = figures.cut_off + figures.without_target + figures.too_long
    total = figures.examples + left_out
    raise_it = (
        f"Raise data.max_length (the longest has {figures.longest_row:,} tokens), or shorten the "
        "rows."
    )

    def level(count: int) -> Level:
        return "warning" if count > _TOO_LONG_SHARE * total else "note"

    kinds: tuple[tuple[str, str, Level, str], ...] = (
        (
            "cut_off",
            f"Left out, because all that is learned is beyond {limit}",
            "warning",
            raise_it,
        ),
        (
            "without_target",
            "Left out, because nothing is learned",
            "warning",
            "Give each an answer, or remove them.",
        ),
        (
            "truncated",
            f"Cut at {limit}, so that their ends are not learned",
            level(figures.truncated),
            f"{raise_it} Or set data.overlong to split or drop.",
        ),
        ("split", f"Longer than {limit}, and cut into several", "note", ""),
        (
            "too_long",
            f"Longer than {limit}, and left out",
            level(figures.too_long),
            f"{raise_it} Or set data.overlong to split.",
        ),
    )
    for name, what, how_bad, remedy in kinds:
        count = getattr(figures, name)
        if count:
            # The number of examples before splitting is not known.
            of = f"{count:,} {examples}" if name == "split" else _of(count, total, examples)
            found = f"{what}: {of}."
            yield Finding(name, how_bad, count, found, remedy, _first(figures, name))


def _of_tokens(examples: str, figures: Figures, look: SideLook) -> Iterator[Finding]:
    """Yield the findings about tokens."""
    if look.num_unknown:
        share = look.num_unknown / figures.tokens
        yield Finding(
            "unknown_tokens",
            "stop" if share > _MOSTLY else "warning" if share > _UNKNOWN_SHARE else "note",
            look.unknown.count,
            f"Tokens that stand for what the tokenizer does not know: {look.num_unknown:,} of "
            f"{figures.tokens:,}, in {_of(look.unknown.count, figures.examples, examples)}.",
            "Use a model whose tokenizer knows the language of the rows.",
            tuple(look.unknown.first),
        )
    if look.unended.count:
        yield Finding(
            "no_end_learned",
            "warning",
            look.unended.count,
            "The end of the reply is not learned, so that the model may not stop: "
            f"{_of(look.unended.count, figures.examples, examples)}.",
            "Learn the token that ends a reply too: in the labels of tokenized rows, or between "
            "the generation marks of the template.",
            tuple(look.unended.first),
        )
    if figures.supervised_share < _SUPERVISED_SHARE:
        yield Finding(
            "little_learned",
            "warning",
            figures.examples,
            f"Few tokens of the {examples} are learned: {figures.targets:,} of {figures.tokens:,}.",
            "Shorten the prompts, or set data.train_on to all if they should be learned too.",
        )


def _of_copies(train: Figures, copies: Duplicates) -> Iterator[Finding]:
    """Yield the findings about copies."""
    if train.examples >= _MANY_COPIES and copies.num_distinct == 1:
        yield Finding(
            "one_row",
            "stop",
            train.examples,
            f"All {train.examples:,} training examples are the same.",
            "Look at the names of the fields, or write the row once and raise "
            "train.num_train_epochs.",
        )
    elif train.examples >= _MANY_ANSWERS and copies.num_distinct_supervised == 1:
        yield Finding(
            "one_answer",
            "warning",
            train.examples,
            f"All {train.examples:,} training examples have the same answer.",
            "Look at the names of the fields, or add rows with other answers.",
        )
    elif copies.exact.count:
        yield _copies("duplicates", copies.exact)
    if copies.near and copies.near.count:
        yield _copies("near_duplicates", copies.near)
    known = copies.held_out
    if known and known.count:
        yield dataclasses.replace(_copies("held_out_known", known), level="warning")
    if copies.near_held_out and copies.near_held_out.count:
        yield _copies("held_out_nearly_known", copies.near_held_out)


def _copies(name: str, copies: Copies) -> Finding:
    """Return the finding about copies of one kind: a warning, or a note if they are few."""
    what, examples, remedy = _COPIES[name]
    about = "" if copies.is_exact else "about "
    sign = "~" if "near" in name else "="
    return Finding(
        name,
        "warning" if copies.count > _DOUBTFUL_SHARE * copies.of else "note",
        copies.count,
        f"{what}: {about}{_of(copies.count, copies.of, examples)}.",
        remedy,
        tuple(f"{one} {sign} {other}" for one, other in copies.first),
    )


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what}"


def _first(figures: Figures, name: str) -> tuple[str, ...]:
    place = figures.first.get(name)
    return () if place is None else (place,)
