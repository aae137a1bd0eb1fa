"""One record for every block, of columns that the units of the block share equally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.space import HeadSpace
from cahp_opt.stats.statistic import Arrays, Sums, below, joined

if TYPE_CHECKING:
    from typing_extensions import Self


class OfBlock(Sums, Protocol):
    """A statistic of one block."""

    @property
    def sum(self) -> Floats:
        """The sum of every column, shape ``[d]``; unit ``u`` owns the ``u``-th share of the
        columns."""
        ...

    def of(self, columns: Bools) -> Self:
        """The statistic of some columns alone, bool ``[d]``."""
        ...


Entry = TypeVar("Entry", bound=OfBlock)


class ByBlock(Generic[Entry]):
    """One record for every block, in the order of the space.

    Args:
        entries: the records.
    """

    of_block: ClassVar[type[Any]]
    """The class of the records."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)

    def __add__(self, other: Self) -> Self:
        return type(self)(a + b for a, b in zip(self.entries, other.entries, strict=True))

    def parts(self) -> Mapping[str, Entry]:
        """The records by the number of their block, as text."""
        return {str(number): entry for number, entry in enumerate(self.entries)}

    def of_parts(self, parts: Mapping[str, Entry]) -> Self:
        return type(self)(parts.values())

    def arrays(self) -> Arrays:
        return joined({name: entry.arrays() for name, entry in self.parts().items()})

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Self:
        numbers = sorted({int(name.split("/")[0]) for name in arrays})
        return cls(cls.of_block.of_arrays(below(arrays, str(number))) for number in numbers)

    def restricted(self, space: HeadSpace, kept: Bools) -> Self:
        own = [kept[where] for where in space.slices]
        return type(self)(
            entry.of(np.repeat(some, len(entry.sum) // len(some)))
            for entry, some in zip(self.entries, own, strict=True)
            if some.any()
        )

    def check(self, name: str, space: HeadSpace) -> None:
        if len(self.entries) != len(space.blocks):
            raise ValueError(
                f"`{name}` must have one entry per block, {len(space.blocks)} in all, "
                f"got {len(self.entries)}."
            )
        for block, entry in zip(space.blocks, self.entries, strict=True):
            if len(entry.sum) % block.units:
                raise ValueError(
                    f"`{name}` of block {block.name!r} are {len(entry.sum)} wide, which "
                    f"{block.units} units cannot share equally."
                )
