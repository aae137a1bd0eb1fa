"""One cost with its limit, and the sum that every cost is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.space import HeadSpace


class _Pair(NamedTuple):
    value: float
    limit: float


class Cost(_Pair):
    """The cost of a keep-set by one table of a budget and the table's limit: a pair, with their unit.

    Args:
        value: the cost.
        limit: the largest cost allowed.
        unit: the unit of measure of both, such as ``s``; empty where there is none.
    """

    unit: str = ""

    def __new__(cls, value: float, limit: float, unit: str = "") -> Cost:
        cost = super().__new__(cls, value, limit)
        cost.unit = unit
        return cost


@dataclass(frozen=True, eq=False)
class CountTable:
    """``max(least, fixed + sum over blocks of costs[b][counts[b]]) <= limit``.

    The comparison with the limit is exact, see :func:`whole_cost`.

    Args:
        name: the name of the cost, such as ``latency``.
        costs: for every block an array ``[units + 1]``, finite and at least 0.
        limit: the largest cost allowed.
        fixed: the cost outside the blocks, counted against the limit.
        unit: the unit of measure for messages, such as ``s``.
        least: the lowest possible cost, whatever the counts.
    """

    name: str
    costs: tuple[Floats, ...]
    limit: float
    fixed: float = 0.0
    unit: str = ""
    least: float = 0.0

    def cost(self, counts: Sequence[int] | Ints) -> float:
        """The cost of these counts, ``[blocks]``."""
        parts = (float(c[k]) for c, k in zip(self.costs, counts, strict=True))
        return whole_cost(self.least, self.fixed, parts)

    def smallest(self, allowed: Sequence[Bools]) -> float:
        """The smallest cost that counts out of ``allowed``, for every block a bool ``[units + 1]``, reach."""
        cheapest = (float(c[f].min()) for c, f in zip(self.costs, allowed, strict=True))
        return whole_cost(self.least, self.fixed, cheapest)

    def fits(self, counts: Sequence[int] | Ints) -> bool:
        """Whether these counts, ``[blocks]``, are within the limit."""
        return self.cost(counts) <= self.limit

    def without_limit(self) -> CountTable:
        """The same cost with a limit that no counts exceed."""
        largest = whole_cost(self.least, self.fixed, (float(c.max()) for c in self.costs))
        return replace(self, limit=largest)

    @cached_property
    def only_block(self) -> int | None:
        """The one block whose count this cost depends on; None if several matter."""
        varying = [b for b, c in enumerate(self.costs) if np.any(c != c[0])]
        if len(varying) > 1:
            return None
        return varying[0] if varying else 0


def whole_cost(least: float, fixed: float, parts: Iterable[float]) -> float:
    """``max(least, fixed + sum(parts))``: the cost of a whole model, from those of its blocks.

    The sum is correctly rounded (``math.fsum``), so it does not depend on the order of the blocks.
    """
    return max(least, fsum([fixed, *parts]))


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with a number after each that was there before, as in ``units (2)``."""
    found = list[str]()
    for first in names:
        name, again = first, 2
        while name in found:
            name, again = f"{first} ({again})", again + 1
        found.append(name)
    return found


def check_counts(space: HeadSpace, counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``counts`` as whole numbers, ``[blocks]``, each within its block.

    Raises:
        ValueError: for another shape, or a count outside ``0 .. units``.
    """
    array = np.asarray(counts)
    if array.shape != (len(space.blocks),) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"`counts` must be {len(space.blocks)} whole numbers, one per block, got "
            f"{array.dtype} of shape {list(array.shape)}."
        )
    if np.any(array < 0) or np.any(array > space.units):
        raise ValueError(
            f"`counts` must lie within 0 and the units of each block {space.units.tolist()}, "
            f"got {array.tolist()}."
        )
    return array.astype(np.int64)


def count_arrays(
    space: HeadSpace, given: Sequence[npt.ArrayLike], argument: str
) -> tuple[Floats, ...]:
    """One read-only array ``[units + 1]`` of finite numbers of at least 0 for every block.

    Raises:
        ValueError: naming ``argument`` and the block that is wrong.
    """
    if len(given) != len(space.blocks):
        raise ValueError(
            f"`{argument}` must have one array per block, {len(space.blocks)} in all, "
            f"got {len(given)}."
        )
    arrays: list[Floats] = []
    for block, row in zip(space.blocks, given, strict=True):
        array = np.array(row, dtype=np.float64)
        if array.shape != (block.units + 1,):
            raise ValueError(
                f"`{argument}` of block {block.name!r} must have {block.units + 1} entries (for 0 to "
                f"{block.units} units kept), got shape {list(array.shape)}."
            )
        if not np.all(np.isfinite(array)) or np.any(array < 0):
            raise ValueError(
                f"`{argument}` of block {block.name!r} must be finite and at least 0, "
                f"got {array.tolist()}."
            )
        array.flags.writeable = False
        arrays.append(array)
    return tuple(arrays)
