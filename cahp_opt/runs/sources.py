"""Texts as people have them: a file of any format, a folder of a data set, or its id on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from cahp_opt.files.data_sets import DataSetRows
from cahp_opt.files.delimited import DelimitedRows
from cahp_opt.files.formats import FORMATS, rows_of
from cahp_opt.files.records import PathLike
from cahp_opt.runs.columns import ColumnOptions
from cahp_opt.runs.texts import LineTexts, TableTexts, TextError

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LINES = ".txt"


def texts_in(
    source: PathLike,
    columns: ColumnOptions = ColumnOptions(),
    *,
    subset: str | None = None,
    split: str | None = None,
) -> LineTexts | TableTexts:
    """The texts of a source, read anew whenever one goes through them.

    A file ends as its format does: ``.tsv``, ``.csv``, ``.jsonl`` or ``.parquet``; ``.txt`` has one text per
    line, unless its first line is the header of a table. A file of any other name is a table of tab-separated
    values. What is no file is a data set for the package ``datasets``: a folder, or an id on the hub.

    Args:
        source: the file, the folder or the id.
        columns: the names of the columns.
        subset: of a data set that has several; None for the only one.
        split: of a data set; None for ``train``.

    Raises:
        TextError: if it cannot be understood.
        OSError: if there is no such file, or it cannot be read.
    """
    path = Path(source)
    if path.is_dir() or (not path.exists() and _is_id(str(source))):
        try:
            rows = DataSetRows(str(source), subset, split or "train")
        except TextError as error:
            nowhere = "" if path.is_dir() else f"there is no file {source}, and "
            raise TextError(f"{nowhere}{error}") from None
        return TableTexts(rows, columns)
    if subset is not None or split is not None:
        raise TextError(
            f"{source} is a file, and `subset` and `split` are of data sets of the hub; leave them out."
        )
    if path.suffix.lower() == _LINES and not columns.given and not _has_header(path):
        return LineTexts(path)
    return TableTexts(rows_of(path), columns)


def _is_id(source: str) -> bool:
    """Whether it can be the id of a data set, rather than the name of a file that is not there."""
    known = {*FORMATS, _LINES}
    return bool(_ID.fullmatch(source)) and Path(source).suffix.lower() not in known


def _has_header(path: Path) -> bool:
    """Whether the first line names a column of texts."""
    try:
        rows = DelimitedRows(path)
        ColumnOptions().of(rows.columns, rows.source)
    except TextError:
        return False
    return True
