"""Ending in order when the system asks for it: what Ctrl-C cleans up, SIGTERM and SIGHUP do too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = ("SIGTERM", "SIGHUP")  # the latter, where there is one, is a terminal that was closed


class Stop:
    """Whether a signal has asked to end."""

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code of the signal, 128 and its number; None if none came."""

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        """Take the signal: from now on nothing disturbs the clearing up."""
        self.code = 128 + number
        for name in _SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        raise KeyboardInterrupt


@contextmanager
def stopping_in_order() -> Generator[Stop]:
    """Turn requests to end into the interruption that Ctrl-C is, while the context lasts.

    A signal that is ignored stays so (``nohup``), as does one that somebody else handles. Outside of the
    main thread, where Python takes no signals, nothing changes.

    Yields:
        The record of whether a signal came.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
