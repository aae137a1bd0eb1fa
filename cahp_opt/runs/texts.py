"""Reading the texts that a model is calibrated on, and holding some out."""

from __future__ import annotations

import random
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cahp_opt.files.formats import rows_of
from cahp_opt.files.records import PathLike
from cahp_opt.files.rows import TextRows
from cahp_opt.files.text_lines import TextError as TextError
from cahp_opt.files.text_lines import TextLines
from cahp_opt.runs.columns import ColumnOptions
from cahp_opt.runs.conversations import conversation
from cahp_opt.runs.media import Medium

_POOL = 1 << 20  # distinct texts that are drawn from, at least; they bound the memory
_CHUNK = 1 << 18
_INVISIBLE = frozenset(["Cc", "Cf", "Zl", "Zp", "Zs"])  # control, format, separators


@dataclass(frozen=True)
class Example:
    """One text, with what a table may say about it.

    Args:
        text: the text.
        pair: the second text of a pair.
        label: the label, as it stands in the file.
        chat: whether the text is a conversation as JSON, which the tokenizer's chat template is to write.
        choices: the texts to choose between, for models that do; the pair is the beginning of each.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    chat: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextSplit:
    """Texts to measure and refit on, and held-out texts to judge the result by.

    Args:
        calibration: the texts to measure and refit on.
        held_out: the held-out texts.
        notes: sentences about the file that the user should read.
        medium: what they are; the text of an image or a recording is the path of its file.
    """

    calibration: tuple[Example, ...]
    held_out: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    medium: Medium = Medium.TEXT


class LineTexts:
    """One text per line of a file; lines that show nothing are left out.

    Going through it reads the file anew, line by line.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, path: PathLike) -> None:
        self._lines = TextLines(path)
        self.notes: tuple[str, ...] = ()
        """After going through it: how many lines held white space or invisible characters only."""

    def __iter__(self) -> Iterator[Example]:
        """The texts.

        Raises:
            TextError: if there is none, or bytes are not text.
        """
        found, hollow = 0, 0
        for line in self._lines:
            text = line.strip()
            if _shows(text):
                found += 1
                yield Example(text)
            elif line:
                hollow += 1
        path = self._lines.path
        if not found:
            raise TextError(f"{path} holds no text; give a file with one text per line.")
        if hollow:
            self.notes = (
                f"lines of {path} with nothing but white space and invisible characters, left out: "
                f"{hollow}.",
            )


class TableTexts:
    """The texts of a table; rows without one are left out.

    Going through it reads the table anew, row by row.

    Args:
        rows: the table, see :mod:`cahp_opt.files.formats`.
        columns: what to read, where the columns have other than the usual names.

    Raises:
        TextError: if a column is not there.
    """

    def __init__(self, rows: TextRows, columns: ColumnOptions = ColumnOptions()) -> None:
        self._rows = rows
        self._columns = columns.of(rows.columns, rows.source)
        self.notes: tuple[str, ...] = ()
        """After going through it: sentences on what was read, and what was not."""

    def __iter__(self) -> Iterator[Example]:
        """The texts.

        Raises:
            TextError: if there is none, or a cell is not what its column should hold.
        """
        columns, rows = self._columns, self._rows
        found, hollow, first = 0, 0, 0
        for number, row in rows.read(columns.read):
            try:
                text = _chat(row, columns.text) if columns.chat else _text(row, columns.text)
                if not _shows(text):
                    hollow, first = hollow + 1, first or number
                    continue
                pair = None if columns.pair is None else _text(row, columns.pair)
                label = None if columns.label is None else _label(row, columns.label)
                choices = _choices(row, columns.choices)
            except _CellError as error:
                raise TextError(f"{rows.counted} {number} of {rows.source}: {error}.") from None
            found += 1
            yield Example(text, pair, label, columns.chat, choices)
        if not found:
            raise TextError(
                f"{rows.source} has no text in its column {columns.text!r}; name another by `text_column`, or "
                "other data."
            )
        notes = [*columns.notes(rows.source), *rows.notes]
        if hollow:
            notes.append(
                f"rows of {rows.source} without a text, left out: {hollow} (the first in {rows.counted} {first})."
            )
        self.notes = tuple(notes)


class _CellError(Exception):
    """A cell does not hold what its column should; without a full stop."""


def _chat(row: Mapping[str, object], column: str) -> str:
    if row.get(column) in (None, "", []):
        return ""
    try:
        return conversation(row[column])
    except ValueError as error:
        raise _CellError(f"the column {column!r} {error}") from None


def _text(row: Mapping[str, object], column: str) -> str:
    cell = row.get(column)
    if isinstance(cell, str):
        return cell.strip()
    if cell is None or cell != cell:  # NaN is how pandas says None
        return ""
    raise _CellError(
        f"the column {column!r} holds {_shown(cell)}, and texts were expected; name another by `text_column` "
        "or `pair_column`"
    )


def _choices(row: Mapping[str, object], columns: Iterable[str]) -> tuple[str, ...]:
    """The choices of a row, from columns of texts or of lists of them; rows may have fewer than others."""
    found: list[str] = []
    for column in columns:
        cell = row.get(column)
        several = cast("Sequence[object]", cell) if isinstance(cell, (list, tuple)) else (cell,)
        for each in several:
            found.append(_text({column: each}, column))
    while found and not _shows(found[-1]):
        found.pop()
    empty = next((i for i, text in enumerate(found) if not _shows(text)), None)
    if empty is not None:  # without it, a number would name another choice
        raise _CellError(
            f"choice {empty} is empty and a later one is not; fill it in, or remove the row"
        )
    return tuple(found)


def _label(row: Mapping[str, object], column: str) -> str | None:
    cell = row.get(column)
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, (int, float)):
        return str(int(cell) if isinstance(cell, bool) else cell)
    if cell is None:
        return None
    raise _CellError(
        f"the column {column!r} holds {_shown(cell)}, and a label is a text or a number; name another by "
        "`label_column`"
    )


def _shown(cell: object) -> str:
    told = repr(cell)
    return told if len(told) <= 60 else f"{told[:60]}..."


def read_table(path: PathLike) -> list[Example]:
    """All texts of a table at once.

    Raises:
        TextError: if it is not such a table, see :class:`TableTexts`.
        OSError: if the file cannot be read.
    """
    return list(TableTexts(rows_of(path)))


def split(examples: Iterable[Example], *, most: int, held_out: int, seed: int) -> TextSplit:
    """Shuffle the distinct texts, hold some out, and take at most ``most`` of the others.

    Texts are the same if they and their pairs differ in white space only. A text is on one side
    only, whatever its labels, and counts once per label. Of more than a million distinct texts, a
    million are drawn first, by a hash of the text.

    Args:
        examples: the examples. Files are read twice, and only the texts taken are kept.
        most: examples to calibrate and refit on; at least 1.
        held_out: examples to hold out, but never more than a fifth of all (at least one).
        seed: of the shuffle.

    Returns:
        The two sides, and the notes of the file.

    Raises:
        ValueError: for a bad number, or if nothing would be left to calibrate on.
    """
    if most < 1 or held_out < 0:
        raise ValueError(
            f"`most` must be at least 1 and `held_out` at least 0, got {most} and {held_out}."
        )
    if isinstance(examples, Iterator):
        examples = list(examples)
    order = _distinct(map(key_of, examples), max(_POOL, most + 5 * held_out))
    random.Random(seed).shuffle(order)
    medium: Medium = getattr(examples, "medium", Medium.TEXT)
    back = min(held_out, max(len(order) // 5, 1))
    if len(order) <= back:
        raise TextError(
            f"there are {len(order)} distinct {medium.value}; at least {back + 1} are needed, {back} of them to "
            "judge the result by (none with `--held-out 0`)."
        )
    taken: dict[int, dict[Example, Example]] = {key: {} for key in order[: back + most]}
    for example in examples:
        same = taken.get(key_of(example))
        if same is not None:
            same.setdefault(_plain(example), example)
    sides = list(taken.values())
    return TextSplit(
        tuple(islice(chain.from_iterable(side.values() for side in sides[back:]), most)),
        tuple(islice(chain.from_iterable(side.values() for side in sides[:back]), back)),
        examples.notes if isinstance(examples, (LineTexts, TableTexts)) else (),
    )


def _shows(text: str) -> bool:
    """Whether any character is neither white space nor invisible."""
    return text[:1].isalnum() or any(unicodedata.category(c) not in _INVISIBLE for c in text)


def _plain(example: Example) -> Example:
    """The example with single spaces for all white space."""
    pair = None if example.pair is None else " ".join(example.pair.split())
    return replace(example, text=" ".join(example.text.split()), pair=pair)


def key_of(example: Example) -> int:
    """A hash of the texts, the same in every process."""
    text = " ".join(example.text.split())
    if example.pair is not None:
        text += "\0" + " ".join(example.pair.split())
    for choice in example.choices:
        text += "\0\0" + " ".join(choice.split())
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _distinct(keys: Iterable[int], most: int) -> Any:
    """The distinct keys in the order in which they came first; of more than ``most`` the smallest."""
    kept: NDArray[np.uint64] = np.empty(0, np.uint64)
    first: NDArray[np.int64] = np.empty(0, np.int64)
    keys, read = iter(keys), 0
    while chunk := array("Q", islice(keys, _CHUNK)):
        both = np.concatenate([kept, np.frombuffer(chunk, np.uint64)])
        came = np.concatenate([first, np.arange(read, read + len(chunk))])
        read += len(chunk)
        kept, at = np.unique(both, return_index=True)  # at the first of equal ones
        kept, first = kept[:most], came[at][:most]
    return array("Q", kept[np.argsort(first)].tobytes())
