"""The first signal is noted, the second acts; afterwards all is as it was."""

from __future__ import annotations

import signal
import threading

import pytest

from jaxft.training.run import interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_said(number, capsys):
    with interrupt.deferred() as received:
        assert received() is None
        signal.raise_signal(number)
        assert received() == number
    said = capsys.readouterr().err
    assert said == "Stopping after this step; once more to stop without saving.\n"


def test_a_second_signal_of_the_same_kind_acts():
    with interrupt.deferred() as received:
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_first_of_two_kinds_counts():
    with interrupt.deferred() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert received() == signal.SIGTERM


def test_it_can_be_asked_after_the_block():
    with interrupt.deferred() as received:
        signal.raise_signal(signal.SIGTERM)
    assert received() == signal.SIGTERM


@pytest.mark.parametrize("is_signalled", [False, True])
def test_afterwards_signals_do_what_they_did(is_signalled):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.deferred():
        if is_signalled:
            signal.raise_signal(signal.SIGINT)
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


def test_a_signal_that_the_process_ignores_is_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.deferred() as received:
            signal.raise_signal(signal.SIGINT)
            assert received() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def work():
        with interrupt.deferred() as received:
            found.append((received(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]
