"""JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from cahp_opt.files.records import PathLike
from cahp_opt.files.text_lines import TextError, TextLines


class JsonRows:
    """The objects of a file with one per line; their keys are columns, those of the first one its names.

    Args:
        path: the file.

    Raises:
        TextError: for a first line that is no object, or bytes that are not text.
        OSError: if the file cannot be read.
    """

    counted = "line"

    def __init__(self, path: PathLike) -> None:
        self._lines = TextLines(path)
        self.source = str(self._lines.path)
        self.notes: tuple[str, ...] = ()
        """After going through it: which keys came too late to be columns."""
        self.columns: Sequence[str] = ()
        _, first = next(self.read(), (0, dict[str, object]()))
        if not first:
            raise TextError(f"{self.source} holds no JSON object with a key; give one per line.")
        self.columns = list(first)

    def read(self, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, object]]]:
        """The number of every line that is not empty, and its object.

        Raises:
            TextError: for a line that is no object, or bytes that are not text.
        """
        late: dict[str, int] = {}
        for number, line in enumerate(self._lines, start=1):
            if line and not line.isspace():
                row = self._object(number, line)
                for key in row.keys() - self.columns if self.columns else ():
                    late.setdefault(key, number)
                yield number, row
        self.notes = tuple(
            f"the key {key!r} of {self.source} is not read, because the first object lacks it (line {number} is "
            "the first that has it); write null there."
            for key, number in sorted(late.items())
        )

    def _object(self, number: int, line: str) -> dict[str, object]:
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            found = f"{error}"
        if isinstance(found, dict):
            return cast("dict[str, object]", found)
        if number == 1 and line.lstrip().startswith("["):
            raise TextError(
                f"{self.source} holds one JSON list; JSON Lines has one object per line (`jq -c '.[]'` turns "
                "the one into the other)."
            )
        raise TextError(
            f"line {number} of {self.source} is not a JSON object; JSON Lines has one whole object per line."
        )
