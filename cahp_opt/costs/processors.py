"""The processors' worth of time that control groups grant a process in a container."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cahp_opt.costs.control_groups import control_groups


def granted(root: Path = Path("/")) -> float:
    """Processors' worth of time that control groups grant this process; 0 for no limit that is known.

    Libraries count the processors that they see, and as many threads; where fewer are granted, all threads
    are stopped together for a part of every period.

    Args:
        root: of the file system, for tests.
    """
    limits = [
        limit for folder in control_groups("cpu", root) for limit in (_limit(folder),) if limit
    ]
    return min(limits, default=0.0)


def fitting_threads(threads: int, root: Path = Path("/")) -> int:
    """At most ``threads``, as many as have a processor: of those granted, and of those it may run on.

    Args:
        threads: wanted, at least 1.
        root: of the file system, for tests.
    """
    found = granted(root)
    allowed = math.inf
    if hasattr(os, "sched_getaffinity"):  # not on every system
        allowed = len(os.sched_getaffinity(0))
    if found:
        allowed = min(allowed, math.floor(found))
    return int(max(1, min(threads, allowed)))


def _limit(folder: Path) -> float | None:
    """The limit of one group, in the file of version 2 or in those of version 1; None for none."""
    try:
        quota, _, period = (folder / "cpu.max").read_text(encoding="utf-8").strip().partition(" ")
    except OSError:
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        except OSError:
            return None
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", the word for no limit
        return None
    return share if share > 0 else None  # in version 1, -1 means no limit
