"""The formats of tables, by the suffix of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cahp_opt.files.delimited import DelimitedRows
from cahp_opt.files.json_lines import JsonRows
from cahp_opt.files.parquet import ParquetRows
from cahp_opt.files.records import PathLike
from cahp_opt.files.rows import TextRows
from cahp_opt.files.text_lines import TextError

FORMATS: Mapping[str, Callable[[PathLike], TextRows]] = {
    ".tsv": DelimitedRows,
    ".csv": partial(DelimitedRows, delimiter=","),
    ".jsonl": JsonRows,
    ".ndjson": JsonRows,
    ".json": JsonRows,
    ".parquet": ParquetRows,
}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def rows_of(path: PathLike) -> TextRows:
    """The table in a file, by its suffix; tab-separated values for a suffix that says nothing.

    Raises:
        TextError: if it is not such a table, or compressed.
        OSError: if it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _PACKED:
        raise TextError(f"{path} is compressed; unpack it first.")
    return FORMATS.get(suffix, DelimitedRows)(path)
