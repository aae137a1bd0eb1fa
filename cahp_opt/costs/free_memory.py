"""The main memory that a process may still take."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cahp_opt.costs.control_groups import control_groups


def free_memory(root: Path = Path("/")) -> float:
    """The bytes of main memory that are free, or held by files and given up when somebody needs them: of the machine, and
    of what its control groups grant this process. Where the system does not tell, all memory of the machine; infinite
    where it does not tell that either.

    Args:
        root: of the file system, for tests.
    """
    told = [
        left
        for folder in control_groups("memory", root)
        for left in (_left(folder),)
        if left is not None
    ]
    return max(0.0, min([_available(root), *told]))


def _available(root: Path) -> float:
    """What is free on the machine."""
    try:
        return 1024.0 * _numbers(root / "proc/meminfo")["MemAvailable"]
    except (OSError, KeyError):
        names = getattr(os, "sysconf_names", {})
        known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names)
        return (
            float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if known else math.inf
        )


def _left(folder: Path) -> float | None:
    """What one group leaves, by the files of version 2 or 1; None for no limit."""
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = (
                int((folder / name).read_text(encoding="utf-8")) for name in (limit, used)
            )
            return float(most - taken + _numbers(folder / "memory.stat").get(files, 0))
        except (OSError, ValueError):  # "max", the word for no limit
            continue
    return None


def _numbers(path: Path) -> dict[str, int]:
    """The first number of every line, by the word before it."""
    lines = (
        line.replace(":", " ").split() for line in path.read_text(encoding="utf-8").splitlines()
    )
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
