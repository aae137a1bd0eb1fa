"""The lines of a text file, one at a time, decoded for certain or refused."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from cahp_opt.files.records import PathLike

_MARKS = {  # the long ones first: the mark of UTF-16 begins the one of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_LONGEST_LINE = 1 << 25  # characters; a file without line breaks would not fit into memory


class TextError(ValueError):
    """A file of texts cannot be used; the sentence names the file and the line."""


class TextLines:
    """The lines of a file, read anew on every iteration, so that the file need not fit into memory.

    UTF-8 with or without a byte-order mark, and UTF-16 and UTF-32 with one. A file that cannot be
    read twice, such as a pipe, is kept in memory.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._kept = None if self.path.is_file() else self.path.read_bytes()
        with self._bytes() as file:
            start = file.read(4)
        self._encoding = next((e for m, e in _MARKS.items() if start.startswith(m)), "utf-8-sig")

    def __iter__(self) -> Iterator[str]:
        """Every line without its end.

        Raises:
            TextError: for bytes that are not text, or a line that is too long.
        """
        with self._bytes() as file, io.TextIOWrapper(file, encoding=self._encoding) as lines:
            each = iter(partial(lines.readline, _LONGEST_LINE), "")
            try:
                for number, line in enumerate(each, start=1):
                    if len(line) == _LONGEST_LINE and line[-1] != "\n":
                        raise TextError(
                            f"line {number} of {self.path} has {_LONGEST_LINE:,} characters or more; break "
                            "it into texts, one per line."
                        )
                    if "\0" in line:
                        raise TextError(
                            f"line {number} of {self.path} holds a NUL, as UTF-16 without a byte-order "
                            "mark and files that are not text do; convert it to UTF-8 "
                            "(`iconv -f UTF-16LE -t UTF-8`)."
                        )
                    yield line.removesuffix("\n")
            except UnicodeDecodeError as error:
                raise TextError(self._undecodable(error)) from None

    def _bytes(self) -> IO[bytes]:
        return self.path.open("rb") if self._kept is None else io.BytesIO(self._kept)

    def _undecodable(self, error: UnicodeDecodeError) -> str:
        if self._encoding != "utf-8-sig":
            return (
                f"{self.path} starts with the byte-order mark of {self._encoding.upper()} and is not "
                f"such text ({error.reason}); convert it to UTF-8."
            )
        return (
            f"line {self._first_undecodable()} of {self.path} is not UTF-8 text (byte "
            f"0x{error.object[error.start]:02x}); convert the file, for instance with "
            "`iconv -f WINDOWS-1252 -t UTF-8` if it is Latin-1."
        )

    def _first_undecodable(self) -> int:
        """The number of the line, which decoding block by block does not give."""
        with self._bytes() as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return number
        raise AssertionError("the file has changed while it was read")
