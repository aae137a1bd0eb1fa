"""The time of a choice, by the wall clock and the processor's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def timed(
    choose: Callable[[], tuple[list[int], dict[str, Any]]],
) -> tuple[list[int], dict[str, Any]]:
    """What was chosen, and what is told of it with the seconds that it took."""
    clock, start = time.perf_counter(), time.process_time()
    kept, extra = choose()
    spent = time.process_time() - start
    return kept, {"processor_seconds": spent, "seconds": time.perf_counter() - clock, **extra}
