"""Tables of tab-separated values: rows, quotes, and the names of columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cahp_opt.files.records import PathLike
from cahp_opt.files.text_lines import TextError, TextLines

_LONGEST_CELL = (
    1 << 20
)  # a quote that is not closed within this many characters is an ordinary character
_MEANT = {
    "text": ("texts", "text1", "texta", "sentence", "sentences", "sentence1", "premise"),
    "text_pair": ("textpair", "textpairs", "pair", "text2", "textb", "sentence2", "hypothesis"),
    "label": ("label", "labels"),
}


class TextTable:
    """The rows of a table with a header that names ``text`` and maybe ``text_pair`` and ``label``.

    A cell that starts with a double quote ends with one, may hold tabs and line breaks, and has every
    quote inside doubled, as ``csv`` and pandas write it; any other quote is a character. A table with a
    cell that starts with a quote and breaks these rules was written without them: then every quote in
    it is a character, and a note says so. Going through it reads the file anew.

    Args:
        path: the file.

    Raises:
        TextError: for a missing or repeated column, one that seems to be meant for another, a row of
            another width, or bytes that are not text.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: PathLike) -> None:
        self._lines = TextLines(path)
        self._path = self._lines.path
        self._quoted = True
        notes: list[str] = []
        try:
            self._check()
        except _ShapeError as error:
            self._quoted = False
            try:
                self._check()
            except _ShapeError:
                raise TextError(f"{error}.") from None
            notes.append(f"quotes in {self._path} are read as characters, because {error}.")
        spare = [name for name in self.header if name not in _MEANT]
        if spare:
            notes.append(
                f"{self._path} has columns that are not read: {', '.join(map(repr, spare))}; read are "
                "'text', 'text_pair' and 'label'."
            )
        self.notes = tuple(notes)
        """Sentences on what was read in an unexpected way."""

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """The number of the line that a row starts on, and its cells by the names of their columns."""
        rows = self._rows()
        next(rows)
        for number, cells in rows:
            yield number, dict(zip(self.header, map(str.strip, cells), strict=True))

    def _check(self) -> None:
        rows = self._rows()
        self.header = [name.strip() for name in next(rows, (1, list[str]()))[1]]
        _check_header(self.header, str(self._path))
        for number, cells in rows:
            if len(cells) != len(self.header):
                raise _ShapeError(
                    f"line {number} of {self._path} has {len(cells)} tab-separated cells, and its "
                    f"header {len(self.header)}"
                )

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        numbered = enumerate(self._lines, start=1)
        if self._quoted:
            found = _quoted_rows(numbered, str(self._path))
        else:
            found = ((number, line.split("\t")) for number, line in numbered)
        for number, cells in found:
            if number == 1 or any(cell.strip() for cell in cells):
                yield number, cells


class _ShapeError(Exception):
    """Rows do not fit the header or quotes do not match; without a full stop."""


def _check_header(header: Sequence[str], path: str) -> None:
    for column, others in _MEANT.items():
        for name in header:
            plain = name.casefold().replace("_", "").replace("-", "").replace(" ", "")
            near = plain in others or plain == column
            if column not in header and name not in _MEANT and near:
                raise TextError(
                    f"{path} has a column {name!r} and none named {column!r}; rename it to {column!r} "
                    "in the header, or remove it."
                )
    if "text" not in header or len(set(header)) != len(header):
        raise TextError(
            f"{path} must start with a header of distinct tab-separated names, one of them 'text', "
            f"got {list(header)}; 'text_pair' and 'label' are used where they exist."
        )


def _quoted_rows(numbered: Iterable[tuple[int, str]], path: str) -> Iterator[tuple[int, list[str]]]:
    """Rows whose cells may be quoted, with the number of the line that each starts on."""
    first, cells = 0, list[str]()
    pending: list[str] | None = None  # of a quoted cell, which continues
    for number, line in numbered:
        if pending is None:
            first, cells = number, []
            if '"' not in line:
                yield number, line.split("\t")
                continue
        at = 0
        while True:
            if pending is None and not line.startswith('"', at):
                end = line.find("\t", at)
                end = len(line) if end < 0 else end
                cells.append(line[at:end])
            else:
                if pending is None:
                    pending, at = [], at + 1
                end = _closing(line, at)
                pending.append(line[at:] + "\n" if end < 0 else line[at:end])
                if end < 0:
                    break
                cells.append("".join(pending).replace('""', '"'))
                pending, end = None, end + 1
                if end < len(line) and line[end] != "\t":
                    raise _ShapeError(
                        f"the quote that starts a cell of line {first} of {path} ends inside of it"
                    )
            if end >= len(line):
                yield first, cells
                break
            at = end + 1
        if pending is not None and sum(map(len, pending)) > _LONGEST_CELL:
            break
    if pending is not None:
        raise _ShapeError(f"the quote that starts a cell of line {first} of {path} is never closed")


def _closing(line: str, at: int) -> int:
    """Where the quote is that ends a cell, from ``at`` on; -1 if it does not end in this line."""
    while True:
        at = line.find('"', at)
        if at < 0 or line[at + 1 : at + 2] != '"':
            return at
        at += 2
