"""Notes: what can happen to a row when it is encoded, as a name to count and a sentence to show.

For example `cut_into_replies`, counted once for each row, is shown as "12 rows: cut into one
example a reply, since the chat template writes earlier turns differently." The sentences are kept
here, so that a report on disk holds only names and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

# The note for every chat, which is counted and not shown.
TEMPLATED = "templated"

# Each sentence follows the number of rows and a colon.
NOTES: Mapping[str, str] = {
    TEMPLATED: "written with the chat template",
    "cut_into_replies": (
        "cut into one example a reply, since the chat template writes earlier turns differently "
        "from how they are generated"
    ),
    "end_added": (
        "a token that ends the reply is added, since the chat template writes none there"
    ),
    "reasoning_left_out": "the chat template leaves out the thoughts of a reply",
    "thought_closed": (
        "the generation prompt opens a thought and the reply has none: an empty one is closed"
    ),
    "tools_left_out": "the chat template does not write the tools that may be called",
    "words_left_out": "the chat template leaves out words that stand beside a tool call",
    "blank_reply": "a reply is blank, so that nothing but its end is learned",
}

# Notes that a person should look at: something else is supervised than the row says.
DOUBTFUL = frozenset({"reasoning_left_out", "words_left_out", "tools_left_out", "blank_reply"})
