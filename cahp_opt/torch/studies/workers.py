"""Which of a machine's workers a process is."""

from __future__ import annotations

import platform
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout


class WorkerNumber:
    """The smallest number that no other process of this machine holds for a folder, until the process ends.

    Args:
        folder: the folder that the workers share.
    """

    def __init__(self, folder: Path) -> None:
        places = folder / "workers"
        places.mkdir(parents=True, exist_ok=True)
        for number in count():
            lock = FileLock(places / f"{platform.node() or 'machine'}.{number}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            self._lock = lock  # the system frees it when the process ends, however it does
            self.number = number
            return
