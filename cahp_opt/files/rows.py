"""What a table of texts is, whichever format it comes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Protocol

from cahp_opt.files.text_lines import TextError


class TextRows(Protocol):
    """A table that is read row by row, anew every time, so that it need not fit into memory."""

    @property
    def source(self) -> str:
        """The file or data set, as sentences name it."""
        ...

    @property
    def counted(self) -> str:
        """What the number of a row counts: ``line`` or ``row``."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """After going through it: sentences on what was read in an unexpected way."""
        ...

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
        """The number of every row, from 1, and its cells by column, those of ``columns`` at least.

        Raises:
            TextError: for what is not such a table.
            OSError: if it cannot be read.
        """
        ...


def needed(package: str, what: str) -> ModuleType:
    """A package of the ``data`` extra.

    Args:
        package: its name, maybe with a module in it.
        what: what is read with it.

    Raises:
        TextError: if it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise TextError(
            f"reading {what} needs the package {package.partition('.')[0]!r}; install it with "
            "`pip install 'cahp-opt[data]'`."
        ) from None
