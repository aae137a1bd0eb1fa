"""Time as work: a clock for deadlines that no other process on the machine can move."""

from __future__ import annotations

import sys
import time
from types import FrameType

import pytest


class WorkClock:
    """While this context is open, every call of a function takes a microsecond, and nothing else does."""

    EACH = 1e-6

    def __init__(self) -> None:
        self.now = 0.0
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> WorkClock:
        self._patch.setattr(time, "monotonic", lambda: self.now)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.setprofile(None)
        self._patch.undo()

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.now += self.EACH
