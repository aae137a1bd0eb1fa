"""Reading the texts that a model is calibrated on, and keeping some back."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cahp_opt.records import PathLike


class TextError(ValueError):
    """A file of texts cannot be used; the sentence names the file and the line."""


@dataclass(frozen=True)
class Example:
    """One text, with what a table may say about it.

    Args:
        text: the text.
        pair: the second text of a pair.
        label: the label, as it stands in the file.
    """

    text: str
    pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Split:
    """Texts to measure and refit on, and texts kept back to judge the result by."""

    calibration: tuple[Example, ...]
    held_out: tuple[Example, ...]


def read_lines(path: PathLike) -> list[Example]:
    """One text per line; blank lines are ignored.

    Raises:
        TextError: if there is no text, or the file is not UTF-8.
        OSError: if it cannot be read.
    """
    examples = [Example(line.strip()) for line in _lines(path) if line.strip()]
    if not examples:
        raise TextError(f"{path} holds no text; give a file with one text per line.")
    return examples


def read_table(path: PathLike) -> list[Example]:
    """Tab-separated values with a header that names ``text`` and maybe ``text_pair`` and ``label``.

    Quotes mean nothing; a text cannot hold a tab or a line break.

    Raises:
        TextError: for a missing or repeated column, a row of another width, a row without text, or no
            row at all.
        OSError: if the file cannot be read.
    """
    lines = _lines(path)
    header = [name.strip() for name in lines[0].split("\t")] if lines else []
    if "text" not in header or len(set(header)) != len(header):
        raise TextError(
            f"{path} must start with a header of distinct tab-separated names, one of them 'text', "
            f"got {header}; 'text_pair' and 'label' are used where they exist."
        )
    examples: list[Example] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise TextError(
                f"line {number} of {path} has {len(cells)} tab-separated cells, and its header "
                f"{len(header)}."
            )
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        if not row["text"]:
            raise TextError(f"line {number} of {path} has no text.")
        examples.append(Example(row["text"], row.get("text_pair"), row.get("label")))
    if not examples:
        raise TextError(f"{path} has a header and no text below it.")
    return examples


def split(examples: Iterable[Example], *, most: int, held_out: int, seed: int) -> Split:
    """Shuffle the distinct examples, keep some back, and take at most ``most`` of the others.

    Args:
        examples: the examples; repeated ones count once, so that none is on both sides.
        most: examples to calibrate and refit on; at least 1.
        held_out: examples to keep back, but never more than a fifth of all (at least one).
        seed: of the shuffle.

    Raises:
        ValueError: for a bad number, or if nothing would be left to calibrate on.
    """
    if most < 1 or held_out < 0:
        raise ValueError(
            f"`most` must be at least 1 and `held_out` at least 0, got {most} and {held_out}."
        )
    found = list(dict.fromkeys(examples))
    random.Random(seed).shuffle(found)
    back = min(held_out, max(len(found) // 5, 1))
    if len(found) <= back:
        raise TextError(
            f"there are {len(found)} distinct texts; at least {back + 1} are needed, {back} of them to "
            "judge the result by (none with `--held-out 0`)."
        )
    return Split(tuple(found[back : back + most]), tuple(found[:back]))


def _lines(path: PathLike) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
        ) from None
    return text.split("\n")
