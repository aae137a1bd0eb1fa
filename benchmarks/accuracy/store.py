"""A folder of results that survives crashes and that several processes may fill together."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.accuracy.data import digest
from cahp_opt.records import whole_file

Row = dict[str, Any]


class Store:
    """Every result is a file, named by a hash of all that it depends on, and written whole or not at all.

    Args:
        folder: where; it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, key: object, ending: str = "json") -> Path:
        """The file of a result of that kind; ``key`` must be plain values that ``repr`` tells apart."""
        return self.folder / kind / f"{digest(key)}.{ending}"

    def row(self, kind: str, key: object, make: Callable[[], Row]) -> Row:
        """A result that is JSON: read, or made while others who want it wait."""
        path = self.path(kind, key)
        self.file(path, lambda to: _write(to, {"key": repr(key), **make()}))
        found: Row = json.loads(path.read_text(encoding="utf-8"))
        return found

    def peek(self, kind: str, key: object) -> Row | None:
        """A result that is JSON, if it is there."""
        path = self.path(kind, key)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def file(self, path: Path, make: Callable[[Path], object]) -> Path:
        """A result of any kind: ``make`` writes it to a path if it is not there."""
        if not path.exists():
            with _alone(path):
                if not path.exists():
                    with whole_file(path) as temporary:
                        make(temporary)
        return path


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """Nobody else makes this file meanwhile; the system frees the lock of a process that dies."""
    lock = path.parent / f".{path.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)


def _write(path: Path, row: Row) -> None:
    path.write_text(json.dumps(row, indent=1, allow_nan=False) + "\n", encoding="utf-8")
