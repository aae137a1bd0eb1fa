"""Iterating over the same batches several times without keeping them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Repeated:
    """Batches that can be iterated over several times and must be the same every time.

    Lists and tuples are trusted. Of other iterables (a ``DataLoader``) a checksum of every batch is
    kept, so that a loader that shuffles is refused. The batches of an iterator, which runs only
    once, are kept.

    Args:
        batches: the batches.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = list(batches) if isinstance(batches, Iterator) else batches
        self._trusted = isinstance(self._batches, Sequence)
        self._marks: list[int] = []
        self._complete = False

    def __iter__(self) -> Iterator[Any]:
        """Iterate over them.

        Raises:
            ValueError: if they are not those of the first time.
        """
        number = -1
        for number, batch in enumerate(self._batches):
            if not self._trusted:
                mark = _checksum(batch)
                if number == len(self._marks) and not self._complete:
                    self._marks.append(mark)
                self._check(number < len(self._marks) and self._marks[number] == mark)
            yield batch
        if not self._trusted:
            self._check(number + 1 == len(self._marks))
            self._complete = True

    def _check(self, same: bool) -> None:
        if not same:
            raise ValueError(
                "`batches` gives other batches when it is iterated again (a loader that shuffles, "
                "perhaps), and every pass needs the same ones; pass a list, or a loader with "
                "`shuffle=False`."
            )


def _checksum(batch: Any) -> int:
    """A checksum of the tensors of a batch; of nothing if it is not a mapping, which is refused
    later."""
    found = 0
    for name, value in sorted(batch.items()) if hasattr(batch, "items") else ():
        if isinstance(value, Tensor):
            found = zlib.crc32(f"{name} {list(value.shape)}".encode(), found)
            plain = value.detach().cpu().contiguous().flatten()
            found = zlib.crc32(plain.view(torch.uint8).numpy().data, found)
    return found
