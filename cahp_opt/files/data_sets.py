"""Data sets of the hub, streamed through the package `datasets`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from cahp_opt.files.rows import needed
from cahp_opt.files.text_lines import TextError

_MOST = 1 << 20
"""Rows that are read of a data set: some are larger than anybody wants to wait for."""


class DataSetRows:
    """The rows of one split of a data set, streamed; of a very large one the first million.

    Args:
        name: its id on the hub, such as ``owner/name``, or a folder that ``datasets`` can read.
        subset: which of several that the data set has; None for the only one.
        split: such as ``train``.

    Raises:
        TextError: if there is no such data set, subset or split, it cannot be reached, or ``datasets`` is
            not installed.
    """

    counted = "row"

    def __init__(self, name: str, subset: str | None = None, split: str = "train") -> None:
        self.source = f"the data set {name}"
        self.notes: tuple[str, ...] = ()
        library: Any = needed("datasets", "a data set of the hub")
        with self._told():
            self._set: Any = library.load_dataset(name, subset, split=split, streaming=True)
            names: Any = self._set.column_names
            self.columns: Sequence[str] = list(
                next(iter(self._set), ()) if names is None else names
            )

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
        """The number of every row, and its cells of these columns.

        Raises:
            TextError: if the data set cannot be read to the end.
        """
        with self._told():
            rows = enumerate(self._set.select_columns(list(columns)), start=1)
            yield from islice(rows, _MOST)
            if next(rows, None) is not None:
                self.notes = (f"of {self.source} only the first {_MOST:,} rows are read.",)

    @contextmanager
    def _told(self) -> Generator[None]:
        """Errors of the hub, of the network and of the data set's files as sentences."""
        try:
            yield
        except TextError:
            raise
        except Exception as error:  # the package has an error of its own for nearly everything
            raise TextError(f"{self.source} cannot be read: {_why(error)}.") from None


def _why(error: Exception) -> str:
    """What the package says, and the way out where it is known; without a full stop."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = (told[0] if told else type(error).__name__).rstrip(".:")
    if isinstance(error, ConnectionError):
        return f"{first}; check its name and the connection, or unset HF_HUB_OFFLINE"
    if "gated" in first:
        return (
            "it is gated on the hub; ask for access on its page, then log in with `hf auth login`"
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return f"{first}; check the name, and for a private one log in with `hf auth login`"
    if "split" in first:
        return f"{first}; name one by `split`"
    if "onfig" in first:  # what the package calls a subset
        choice = [line for line in told[1:2] if line.startswith("Please pick")]
        return f"{'. '.join([first, *choice])}; name one by `subset`"
    return first
