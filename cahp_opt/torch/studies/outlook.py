"""How much of a study is left, and about how long it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Outlook:
    """Counts of cells, and the seconds of those that were worked on by now.

    Args:
        total: cells in all.
        done: cells with an outcome.
        failed: cells that failed.
        began: when the work began, by the monotonic clock.
        found: cells of both that cost no work now: they were there already, or their texts failed.
    """

    total: int
    done: int = 0
    failed: int = 0
    began: float = field(default_factory=time.monotonic)
    found: int = 0

    @property
    def left(self) -> int:
        """Cells still to do."""
        return self.total - self.done - self.failed

    def seconds_left(self) -> float | None:
        """About how long they take, at the pace of this run; None before its first cell."""
        worked = self.done + self.failed - self.found
        if worked <= 0:
            return None
        return (time.monotonic() - self.began) / worked * self.left

    def __str__(self) -> str:
        left, failed = self.seconds_left(), f", {self.failed} failed" if self.failed else ""
        about = "" if left is None or not self.left else f", about {duration(left)} left"
        return f"cells: {self.done} done{failed}, {self.left} left{about}"


def duration(seconds: float) -> str:
    """Seconds as people say them, such as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
