"""Parquet files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cahp_opt.files.records import PathLike
from cahp_opt.files.rows import needed
from cahp_opt.files.text_lines import TextError

_AT_ONCE = 128  # rows
_BUFFER = 1 << 20  # bytes; without one pyarrow reads a whole column of a row group


class ParquetRows:
    """The rows of a Parquet file, of which only the columns in question are read.

    Args:
        path: the file.

    Raises:
        TextError: if it is no Parquet file, or pyarrow is not installed.
        OSError: if it cannot be read.
    """

    counted = "row"
    notes: tuple[str, ...] = ()

    def __init__(self, path: PathLike) -> None:
        self._path = Path(path)
        self.source = str(path)
        with self._opened() as file:
            self.columns: Sequence[str] = list(file.schema_arrow.names)

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
        """The number of every row, and its cells of these columns.

        Raises:
            TextError: if the file is damaged.
        """
        number = 0
        with self._opened() as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row

    @contextmanager
    def _opened(self) -> Generator[Any]:
        arrow: Any = needed("pyarrow", "Parquet")
        parquet: Any = needed("pyarrow.parquet", "Parquet")
        try:
            with (
                self._path.open("rb") as bytes_of,
                parquet.ParquetFile(bytes_of, buffer_size=_BUFFER, pre_buffer=False) as file,
            ):
                yield file
        except arrow.ArrowException as error:
            why = str(error).partition("\n")[0].rstrip(".")
            raise TextError(f"{self.source} cannot be read as Parquet: {why}.") from None
