"""A folder of results that survives crashes and that several processes and machines may fill together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from cahp_opt.files.records import RecordError, whole_file

Row = dict[str, Any]


class Busy(Exception):
    """Another process is making this result."""


class Store:
    """Every result is a file, named by a digest of all that it depends on, and written whole or not at all.

    Args:
        folder: where; it is made.
        device: what results are made on here, which every row states but which is no part of its name.
    """

    def __init__(self, folder: Path, device: str = "") -> None:
        self.folder, self.device = folder, device
        self.made = 0
        """How many results were made here, rather than found."""

    def path(self, kind: str, key: object, ending: str = "json") -> Path:
        """The file of a result of that kind; ``key`` must be plain values that ``repr`` tells apart."""
        return self.folder / kind / f"{digest(key)}.{ending}"

    def row(self, kind: str, key: object, make: Callable[[], Row], wait: bool = True) -> Row:
        """A result that is JSON: read, or made; arguments and exceptions as for :meth:`file`."""
        path = self.path(kind, key)
        told = {"key": repr(key), "device": self.device}
        self.file(path, lambda to: _write(to, {**told, **make()}), wait)
        return _read(path)

    def peek(self, kind: str, key: object) -> Row | None:
        """A result that is JSON, if it is there."""
        path = self.path(kind, key)
        return _read(path) if path.exists() else None

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
                    self.made += 1
        return path


def digest(of: object) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over what ``repr`` tells of plain values."""
    return hashlib.sha256(repr(of).encode(errors="surrogatepass")).hexdigest()[:16]


@contextmanager
def _alone(path: Path, wait: bool) -> Generator[None]:
    """Nobody else makes this file meanwhile; the system frees the lock of a process that dies."""
    lock = path.parent / f".{path.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            yield
            with suppress(OSError):  # Windows removes no file that is open
                lock.unlink()  # after a failure it stays: somebody may be waiting for it
    except Timeout:
        raise Busy(path.name) from None


def _write(path: Path, row: Row) -> None:
    path.write_text(json.dumps(row, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path) -> Row:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(
            f"{path} is damaged ({error}); remove it, and it is made again."
        ) from None
    if not isinstance(found, dict):
        raise RecordError(f"{path} is no row of results; remove it, and it is made again.")
    return cast("Row", found)
