"""The console: what goes to which stream, on a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import console

REPO = Path(__file__).parent.parent
SAMPLE = console.Sample("Say [hello] :smile:", "Hello there.", "Hail,\nthou " + "long word " * 20)


def on_terminal(code: str, **environment: str) -> str:
    """Run code with its three streams on a terminal of 80 columns; return all it wrote."""
    leader, follower = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **environment}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=env, cwd=REPO
    ) as process:
        os.close(follower)
        written = b""
        while select.select([leader], [], [], 30)[0]:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            written += piece
    os.close(leader)
    assert process.returncode == 0, written.decode()
    return written.decode()


def test_notes_and_warnings_go_to_standard_error_and_results_do_not(capsys):
    console.note("reading [bold]rows[/bold] from /a/b.jsonl :smile:")
    console.warning("little memory")
    console.error("found this", "Do that.")
    console.result("loss 1.5")
    captured = capsys.readouterr()
    assert captured.out == "loss 1.5\n"
    assert captured.err.splitlines() == [
        "reading [bold]rows[/bold] from /a/b.jsonl :smile:",
        "warning: little memory",
        "error: found this",
        "  -> Do that.",
    ]


def test_a_long_line_is_not_broken_on_a_pipe(capsys):
    console.note("word " * 100)
    console.result("x" * 500)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == "x" * 500 + "\n"


def test_a_table_on_a_pipe_is_whole_and_aligned(capsys):
    console.table(
        "Losses", ["when", "loss", "tokens"], [["before", 1.87612, 12345], ["x" * 90, 1, 6]]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "Losses" in lines[0]
    first = next(line for line in lines if "before" in line)
    second = next(line for line in lines if "x" * 90 in line)
    assert first.split() == ["before", "1.8761", "12,345"]
    assert len(first.rstrip()) == len(second.rstrip())


def test_an_empty_table_shows_its_headings(capsys):
    console.table("Losses", ["when", "loss"], [])
    assert "when" in capsys.readouterr().out


def test_samples_on_a_pipe_are_labelled_and_fit_eighty_columns(capsys):
    console.samples([SAMPLE])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "prompt: Say [hello] :smile:"
    assert lines[1] == "base:   Hello there."
    assert lines[2] == "tuned:  Hail,"
    assert lines[3].startswith("        thou long word")
    assert max(map(len, lines)) <= 80
    assert captured.err == ""


def test_an_answer_is_streamed_to_standard_output(capsys):
    console.stream(["Good ", "morrow"])
    assert capsys.readouterr().out == "Good morrow\n"


def test_training_on_a_pipe_is_a_plain_line_for_each_log(capsys, monkeypatch):
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.training("train", num_steps=60, start_step=0) as bar:
        bar.update(1, loss=1.87654, tokens_per_second=812.4)
        bar.update(6, loss=1.5, tokens_per_second=1812.4)
        bar.update(60, loss=1.2, tokens_per_second=800.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train 1/60  loss 1.8765  812 tokens/s",
        "train 6/60  loss 1.5000  1,812 tokens/s  1:48 left",
        "train 60/60  loss 1.2000  800 tokens/s  0:00 left",
    ]


@pytest.mark.parametrize(
    ("done", "left", "seconds", "text"),
    [
        (0, 10, 0.0, ""),
        (10, 10, 5.0, "0:05 left"),
        (1, 100, 60.0, "1:40:00 left"),
        (1, 1, 59.6, "1:00 left"),
    ],
)
def test_time_left_follows_the_pace(done, left, seconds, text):
    assert console._time_left(done, left, seconds) == text


def test_loading_on_a_pipe_is_one_line_at_the_end(capsys):
    with console.loading("weights", total=3) as count:
        count(2)
        assert capsys.readouterr().err == ""
        count(1)
    line = capsys.readouterr().err
    assert line.startswith("weights: ")
    assert line.endswith(" s\n")


def test_a_short_wait_may_go_without_saying(capsys):
    with console.loading("rows", total=3, silent_s=60.0) as count:
        count(3)
    with console.progress("rows", total=3) as count:
        count(3)
    assert capsys.readouterr().err == ""


def test_a_pipe_does_not_hear_of_steps_between_two_logged_ones(capsys, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.training("train", num_steps=60, start_step=0) as bar:
        bar.advance(10)  # where the pace is counted from
        bar.update(20, loss=1.5, tokens_per_second=10.0)
    assert capsys.readouterr().err == "train 20/60  loss 1.5000  10 tokens/s  0:40 left\n"


def test_a_failed_load_does_not_say_it_is_done(capsys):
    with pytest.raises(ValueError, match="torn"), console.loading("weights", total=3):
        raise ValueError("torn")
    assert capsys.readouterr().err == ""


BAR = """
from jaxft import console
with console.training("train", num_steps=60, start_step=0) as bar:
    bar.update(12, loss=1.5321, tokens_per_second=812)
    console.note("held-out loss 1.4")
    console.result("a result")
with console.loading("weights", total=2) as count:
    count(1)
console.samples([console.Sample("Say hello", "Hello there.", "Hail, thou.")])
"""


def test_training_on_a_terminal_is_a_bar_that_notes_stand_above():
    written = on_terminal(BAR)
    assert "\x1b[" in written
    assert "12/60" in written
    assert "loss 1.5321  812 tokens/s" in written
    # Each on a line of its own: the bar was lifted for it, and drawn again below.
    assert "\r\x1b[2Kheld-out loss 1.4" in written
    assert "\r\x1b[2Ka result" in written


def test_samples_on_a_terminal_stand_side_by_side():
    lines = on_terminal(BAR).splitlines()
    assert any("Hello there." in line and "Hail, thou." in line for line in lines)


def test_a_terminal_without_colour_gets_none():
    coloured = on_terminal("from jaxft import console; console.warning('x')")
    assert "\x1b[33m" in coloured
    plain = on_terminal("from jaxft import console; console.warning('x')", NO_COLOR="1")
    assert plain == "warning: x\r\n"


FINDINGS = """
from jaxft import console
pieces = [("say ", False), ("ho\\x1b[2J", True), ("\\n", False)]
console.marked("f:1: 5 tokens; 2 are learned,", pieces)
console.finding("warning", "word " * 20 + "end", ["f:1", "-> " + "do " * 40])
"""


def test_what_is_marked_is_coloured_on_a_terminal_and_in_brackets_elsewhere(capsys):
    written = on_terminal(FINDINGS)
    assert "2 are learned, in colour" in written
    assert "\x1b[32mho\\x1b[2J\x1b[0m" in written
    plain = on_terminal(FINDINGS, NO_COLOR="1")
    assert "2 are learned, in [[ ]]" in plain
    assert "say [[ho\\x1b[2J]]" in plain
    console.marked("f:1:", [("a\n", False), ("b\x07", True)])
    assert capsys.readouterr().out == "f:1: in [[ ]]\na\n[[b\\x07]]\n\n"


def test_a_finding_is_broken_between_words_on_a_terminal_only(capsys):
    lines = on_terminal(FINDINGS, NO_COLOR="1").replace("\r", "").splitlines()
    shown = lines[next(i for i, line in enumerate(lines) if line.startswith("warning: ")) :]
    assert max(map(len, shown)) <= 80
    assert shown[1].startswith("  word")
    assert "  f:1" in [line.rstrip() for line in shown]
    assert any(line.startswith("  -> do do") for line in shown)
    assert any(line.startswith("    do do") for line in shown)
    console.finding("note", "word " * 40 + "end", ["one\ntwo"])
    written = capsys.readouterr().out
    assert written.splitlines() == ["note: " + "word " * 40 + "end", "  one\\ntwo"]


def test_facts_on_a_pipe_are_a_line_each(capsys):
    console.facts("Model [x]", [("found", "word " * 50), ("", ":smile:")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Model [x]"
    assert lines[1].split() == ["found", *["word"] * 50]
    assert lines[2].index(":smile:") == lines[1].index("word")
    assert lines[3:] == [""]


@pytest.mark.parametrize(
    ("num_bytes", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (98_412_345, "98.4 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1 GB"),
        (1_076_120_064, "1.08 GB"),
        (5 * 10**15, "5e+03 TB"),
    ],
)
def test_a_size_is_written_with_three_digits(num_bytes, written):
    assert str(console.Size(num_bytes)) == written


def test_sizes_and_shares_in_a_table_are_numbers_to_the_right(capsys):
    console.table(
        "t",
        ["size", "part"],
        [[console.Size(5), console.Share(0.0034)], [console.Size(123_456), console.Share(1.0)]],
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[4:6]] == [
        ["5", "B", "0.34", "%"],
        ["123", "kB", "100", "%"],
    ]
    assert lines[4].rstrip().endswith("%")
    assert lines[4].index("B ") == lines[5].index("kB") + 1
