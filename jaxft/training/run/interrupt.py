"""Handles signals: after the first one, the current step is finished and the state is saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from jaxft import console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Record SIGINT and SIGTERM within the block, instead of ending the process.

    Yields:
        A function that returns the signal received, or `None`. A second signal of the same kind
        acts as it would without this. A signal that the process ignores is ignored here too.
    """
    received: list[int] = []
    said: list[threading.Thread] = []
    words = "Stopping after this step; once more to stop without saving."
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        # In a thread: the signal may have interrupted a write to standard error, and Python does
        # not allow another write inside it.
        said.append(threading.Thread(target=console.note, args=[words]))
        said[-1].start()

    # Python delivers signals only to the main thread, and only that thread may set handlers.
    handled = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
    for number in handled:
        # A shell that starts a process in the background may have it ignore SIGINT.
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        for handled_number, handler in previous.items():
            signal.signal(handled_number, handler)
        for thread in said:
            thread.join()
