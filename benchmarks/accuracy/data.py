"""Labelled texts to train, calibrate and judge with: a folder of tables."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cahp_opt.files.store import digest
from cahp_opt.runs.texts import Example, read_table


class Data(NamedTuple):
    """A data set.

    Args:
        name: what tables call it.
        train: examples to learn, calibrate and recover on.
        dev: examples to choose by.
        test: examples to report on.
        phrases: more examples to learn from, parts of those of ``train``; may be empty.
    """

    name: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    phrases: tuple[Example, ...] = ()

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of a SHA-256 over all of it."""
        return digest(self[1:])


def read(folder: Path) -> Data:
    """The data set of a folder with ``train.tsv``, ``dev.tsv``, ``test.tsv`` and maybe ``train_phrases.tsv``.

    Raises:
        TextError: if a table cannot be used.
        OSError: if one cannot be read.
    """
    train, dev, test = (
        tuple(read_table(folder / f"{part}.tsv")) for part in ("train", "dev", "test")
    )
    phrases = folder / "train_phrases.tsv"
    extra = tuple(read_table(phrases)) if phrases.exists() else ()
    return Data(folder.resolve().name, train, dev, test, extra)
