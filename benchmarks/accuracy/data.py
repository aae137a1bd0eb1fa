"""Labelled texts to train, calibrate and judge with: a folder of tables, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cahp_opt.files.store import digest
from cahp_opt.runs.texts import Example, read_table

_SPLITS = {
    "train": ("train",),
    "dev": ("validation", "validation_matched", "dev"),
    "test": ("validation_mismatched", "test"),
}
"""Names on the hub, the first that is there wins: GLUE hides the labels of its test sets."""

_COLUMNS = {
    "text": ("text", "sentence", "premise", "sentence1"),
    "pair": ("text_pair", "hypothesis", "sentence2"),
}


class Data(NamedTuple):
    """A data set.

    Args:
        name: what tables call it.
        train: examples to learn, calibrate and refit on.
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
    def labels(self) -> list[str]:
        """The labels of the training examples."""
        return sorted({str(e.label) for e in self.train}, key=lambda label: (len(label), label))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of a SHA-256 over all of it."""
        return digest(self[1:])


def read(source: str) -> Data:
    """The data set.

    Args:
        source: a folder with ``train.tsv``, ``dev.tsv``, ``test.tsv`` and maybe ``train_phrases.tsv``, or a
            name on the Hugging Face hub with an optional configuration, such as ``SetFit/sst5`` or
            ``nyu-mll/glue:mnli``, which needs the package datasets.

    Raises:
        TextError: if a table cannot be used.
        SystemExit: if there is neither, or a split of the hub's has no labels.
    """
    folder = Path(source)
    if folder.is_dir():
        train, dev, test = (tuple(read_table(folder / f"{part}.tsv")) for part in _SPLITS)
        phrases = folder / "train_phrases.tsv"
        extra = tuple(read_table(phrases)) if phrases.exists() else ()
        return Data(folder.resolve().name, train, dev, test, extra)
    try:
        import datasets  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise SystemExit(
            f"{source} is no folder, and reading it from the hub needs `pip install datasets`"
        ) from None
    name, _, configuration = source.partition(":")
    splits: Any = datasets.load_dataset(name, configuration or None)
    parts = [of_rows(splits[_first(splits, names)]) for names in _SPLITS.values()]
    return Data(configuration or name.rpartition("/")[2], *parts)


def of_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
    """Examples from rows with the hub's usual names of columns.

    Raises:
        SystemExit: if there is no text, or a label is missing.
    """
    text = _first(rows[0], _COLUMNS["text"])
    pair = next((name for name in _COLUMNS["pair"] if name in rows[0]), None)
    if any(int(row["label"]) < 0 for row in rows):
        raise SystemExit("a split of this data set has no labels")
    return tuple(
        Example(str(row[text]), str(row[pair]) if pair else None, str(int(row["label"])))
        for row in rows
    )


def _first(among: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in among:
            return name
    raise SystemExit(f"none of {list(names)} is in {list(among)}")
