"""Tables of delimited values: tabs, commas, semicolons or bars, with quotes or without."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from cahp_opt.files.records import PathLike
from cahp_opt.files.text_lines import TextError, TextLines

_LONGEST_CELL = 1 << 24  # characters; a quote that is not closed within them is a character
_ANY_LENGTH = (1 << 31) - 1
_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}


class DelimitedRows:
    """The rows of a table with a header.

    A cell that starts with a double quote ends with one, may hold delimiters and line breaks, and has
    every quote inside doubled, as ``csv`` and pandas write it; any other quote is a character. A table with
    a cell that starts with a quote and breaks these rules was written without them: then every quote in
    it is a character, and a note says so.

    Args:
        path: the file.
        delimiter: what separates cells. If it does not occur in the header and exactly one of tab, comma,
            semicolon and bar does, that one does.

    Raises:
        TextError: for a file without a header, or bytes that are not text.
        OSError: if the file cannot be read.
    """

    counted = "line"

    def __init__(self, path: PathLike, delimiter: str = "\t") -> None:
        self._lines = TextLines(path)
        self.source = str(self._lines.path)
        self._delimiter = _delimiter(next(iter(self._lines), ""), delimiter)
        self._quoted: bool | None = None  # until it is known
        self.notes: tuple[str, ...] = ()
        try:
            header = next(self._cells(quoted=True), None)
        except _ShapeError:
            header = next(self._cells(quoted=False), None)
        self.columns: Sequence[str] = [name.strip() for name in header[1]] if header else []
        if not any(self.columns):
            raise TextError(f"{self.source} must start with a header that names its columns.")

    def read(self, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
        """The number of the line that a row starts on, and its cells by column.

        Raises:
            TextError: for a row of another width than the header, or bytes that are not text.
        """
        if self._quoted is None:
            self._settle_quotes()
        rows = self._rows(quoted=bool(self._quoted))
        next(rows)
        for number, cells in rows:
            yield number, dict(zip(self.columns, cells, strict=True))

    def _settle_quotes(self) -> None:
        """Go through the file once, to see whether its quotes match."""
        try:
            for _ in self._rows(quoted=True):
                pass
            self._quoted = True
        except _ShapeError as error:
            try:
                for _ in self._rows(quoted=False):
                    pass
            except _ShapeError:
                raise TextError(f"{error}.") from None
            self._quoted = False
            self.notes = (f"quotes in {self.source} are read as characters, because {error}.",)

    def _rows(self, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not empty, all of the header's width."""
        for number, cells in self._cells(quoted=quoted):
            if number > 1 and not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(self.columns):
                raise _ShapeError(
                    f"line {number} of {self.source} has {len(cells)} {_NAMES[self._delimiter]}-separated "
                    f"cells, and its header {len(self.columns)}"
                )
            yield number, cells

    def _cells(self, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
        """The rows with the numbers of the lines that they start on."""
        reader = csv.reader(
            (f"{line}\n" for line in self._lines),
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            strict=True,
        )
        first = 1
        while (cells := self._next(reader, first, quoted=quoted)) is not None:
            yield first, cells
            first = reader.line_num + 1

    def _next(self, reader: Iterator[list[str]], first: int, *, quoted: bool) -> list[str] | None:
        """One row; the limit of a cell's length is one for the whole process, and is put back."""
        usual = csv.field_size_limit(_LONGEST_CELL if quoted else _ANY_LENGTH)
        try:
            return next(reader, None)
        except csv.Error as error:
            how = "ends inside of it" if "expected after" in str(error) else "is never closed"
            raise _ShapeError(
                f"the quote that starts a cell of line {first} of {self.source} {how}"
            ) from None
        finally:
            csv.field_size_limit(usual)


class _ShapeError(Exception):
    """Rows do not fit the header or quotes do not match; without a full stop."""


def _delimiter(header: str, usual: str) -> str:
    """The delimiter of a header: the usual one, or the only other one in it."""
    others = [delimiter for delimiter in _NAMES if delimiter in header]
    return others[0] if usual not in others and len(others) == 1 else usual
