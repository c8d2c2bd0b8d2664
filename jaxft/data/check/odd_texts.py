"""The findings about odd text: one for each kind of oddity that `texts` counted.

Three rows of mojibake become the warning "Letters that were decoded wrongly: 3 of 1,000 training
rows", with their places and a remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxft.data.check.findings import Finding, Level
from jaxft.data.check.texts import TextScan

_REPLACE = "Replace them in the data."

# For each kind, the words for the finding and the remedy. A kind without a remedy is a note.
SENTENCES: Mapping[str, tuple[str, str]] = {
    "replaced": (
        "The character U+FFFD, which stands for what could not be decoded",
        "Read the original file with its own encoding, and write it as UTF-8.",
    ),
    "mojibake": (
        "Letters that were decoded wrongly",
        "Decode the original as UTF-8, or repair the text, which the package ftfy does.",
    ),
    "controls": ("Control characters", _REPLACE),
    "returns": ("Carriage returns, which a model learns to write", ""),
    "invisible": ("Characters that cannot be seen, such as U+200B", _REPLACE),
    "decomposed": (
        "Letters written in parts (Unicode NFD), which are other tokens than whole ones",
        'Normalise the text: unicodedata.normalize("NFC", text).',
    ),
    "entities": ("Entities of HTML in plain text", "Unescape them: html.unescape(text)."),
    "template_marks": (
        "Marks of a template that was not filled in",
        "Fill them in, or remove the rows.",
    ),
    "special_tokens": (
        "Special tokens spelled in the text, which the tokenizer takes for real ones",
        "Remove them from the text, or give the chat as messages.",
    ),
    "written_chat": (
        "Plain text with special tokens, all of which is learned, questions too",
        "Give the chat as messages, so that replies alone are learned.",
    ),
    "blank_question": ("A blank question", "Give each a question, or remove the rows."),
    "blank_answer": (
        "A blank answer, so that nothing but its end is learned",
        "Give each an answer, or remove the rows.",
    ),
    "no_answer": (
        'An answer that a program wrote for "nothing", such as nan or None',
        "Remove the rows.",
    ),
    "blank_text": ("Blank text", "Remove the rows."),
}


def judge(rows: str, scan: TextScan) -> Iterator[Finding]:
    """Yield a finding for each kind of odd text.

    Args:
        rows: The words for the rows, such as "training rows".
        scan: The counts of odd texts.
    """
    for name, (what, remedy) in SENTENCES.items():
        seen = scan.odd.get(name)
        if seen is not None:
            level: Level = "warning" if remedy else "note"
            yield Finding(
                name,
                level,
                seen.count,
                f"{what}: {seen.count:,} of {scan.rows:,} {rows}.",
                remedy,
                tuple(f"{place}: {snippet}" if snippet else place for place, snippet in seen.first),
            )
    if not scan.is_whole:
        yield Finding(
            "not_all_read",
            "note",
            scan.rows,
            f"Searched for odd text: only the first {scan.rows:,} {rows}, of "
            f"{scan.characters:,} characters.",
            "",
        )
