"""Timings written to a file one by one, so that an interrupted measurement resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from cahp_opt.files.records import PathLike, RecordError

_KIND, _VERSION = "cahp-samples", 1


class SampleFile:
    """A file with one timed run per line, after a line that states what was timed and where.

    A line is on disk before the next run starts. A last line that was cut off by a crash is dropped.

    Args:
        path: the file; created when the first run is added.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._taken: dict[str, list[float]] = {}
        self._setting: Mapping[str, Any] | None = None
        if self.path.exists():
            self._read()

    def open(self, setting: Mapping[str, Any]) -> None:
        """State what is about to be timed; a file with runs of anything else is refused.

        Raises:
            RecordError: if the file holds runs of something else.
            OSError: if it cannot be written.
        """
        told: Mapping[str, Any] = json.loads(json.dumps(setting))
        if self._setting is None:
            self._setting = told
            header = {"kind": _KIND, "version": _VERSION, "setting": told}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        elif self._setting != told:
            keys = sorted(told.keys() | self._setting.keys())
            other = [key for key in keys if told.get(key) != self._setting.get(key)]
            now, then = ({k: s.get(k) for k in other} for s in (told, self._setting))
            raise RecordError(
                f"{self.path} holds timings of something else ({_short(then)} against {_short(now)}); "
                "delete it, or name another file."
            )

    def taken(self, name: str) -> list[float]:
        """Seconds of the runs of this piece so far."""
        return list(self._taken.get(name, []))

    def add(self, name: str, seconds: float) -> None:
        """Write one more run of this piece."""
        self._taken.setdefault(name, []).append(seconds)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, seconds]) + "\n")

    def delete(self) -> None:
        """Remove the file, once its runs have become a table."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        whole, _, broken = self.path.read_bytes().rpartition(b"\n")
        try:
            lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
            if not lines:
                raise ValueError("it is empty")
            header = lines[0]
            if header["kind"] != _KIND or header["version"] != _VERSION:
                raise ValueError(f"it holds {header['kind']!r}, version {header['version']!r}")
            self._setting = dict(header["setting"])
            for name, seconds in lines[1:]:
                if not (
                    isinstance(name, str) and isinstance(seconds, float) and 0 <= seconds < inf
                ):
                    raise ValueError(f"it holds the run {[name, seconds]}")
                self._taken.setdefault(name, []).append(seconds)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                f"{self.path} is not a file of timings of this release ({error}); delete it, or name "
                "another file."
            ) from None
        if broken:
            self.path.write_bytes(whole + b"\n")


def _short(setting: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in setting.items())
    return text if len(text) <= 200 else text[:197] + "..."
