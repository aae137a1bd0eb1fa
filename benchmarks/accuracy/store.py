"""A folder of results that survives crashes and that several processes may fill together."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.accuracy.data import digest
from cahp_opt.files.records import whole_file

Row = dict[str, Any]


class Busy(Exception):
    """Another process is making this result."""


class Store:
    """Every result is a file, named by a hash of all that it depends on, and written whole or not at all.

    Args:
        folder: where; it is made.
        device: what results are made on here, which is told in every row but is no part of its name.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device

    def path(self, kind: str, key: object, ending: str = "json") -> Path:
        """The file of a result of that kind; ``key`` must be plain values that ``repr`` tells apart."""
        return self.folder / kind / f"{digest(key)}.{ending}"

    def row(self, kind: str, key: object, make: Callable[[], Row], wait: bool = True) -> Row:
        """A result that is JSON: read, or made; arguments and exceptions as for :meth:`file`."""
        path = self.path(kind, key)
        told = {"key": repr(key), "device": self.device}
        self.file(path, lambda to: _write(to, {**told, **make()}), wait)
        found: Row = json.loads(path.read_text(encoding="utf-8"))
        return found

    def peek(self, kind: str, key: object) -> Row | None:
        """A result that is JSON, if it is there."""
        path = self.path(kind, key)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def file(self, path: Path, make: Callable[[Path], object], wait: bool = True) -> Path:
        """A result of any kind: ``make`` writes it to a path if it is not there.

        Args:
            path: its file.
            make: what makes it.
            wait: whether to wait while another process makes it.

        Raises:
            Busy: if another process makes it, and this one is not to wait.
        """
        if not path.exists():
            with _alone(path, wait):
                if not path.exists():
                    with whole_file(path) as temporary:
                        make(temporary)
        return path


@contextmanager
def _alone(path: Path, wait: bool) -> Generator[None]:
    """Nobody else makes this file meanwhile; the system frees the lock of a process that dies."""
    lock = path.parent / f".{path.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(path.name) from None
        yield
        lock.unlink(missing_ok=True)


def _write(path: Path, row: Row) -> None:
    path.write_text(json.dumps(row, indent=1, allow_nan=False) + "\n", encoding="utf-8")
