"""One cost that depends on how many units each block keeps, with its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum

import numpy as np

from cahp_opt.space import Floats, Ints


@dataclass(frozen=True, eq=False)
class CountTable:
    """``max(least, fixed + sum over blocks of costs[b][counts[b]]) <= limit``.

    The sum is correctly rounded (``math.fsum``), so it does not depend on the order of the blocks,
    and the comparison with the limit is exact.

    Args:
        name: what is counted, such as ``latency``.
        costs: for every block an array ``[units + 1]``, finite and at least 0.
        limit: the largest cost allowed.
        fixed: the cost outside the blocks, counted against the limit.
        unit: the unit of measure for messages, such as ``s``.
        least: what the cost never goes below, whatever the counts.
    """

    name: str
    costs: tuple[Floats, ...]
    limit: float
    fixed: float = 0.0
    unit: str = ""
    least: float = 0.0

    def cost(self, counts: Sequence[int] | Ints) -> float:
        """The cost of these counts."""
        total = fsum([self.fixed, *(float(c[k]) for c, k in zip(self.costs, counts, strict=True))])
        return max(self.least, total)

    def fits(self, counts: Sequence[int] | Ints) -> bool:
        """Whether these counts are within the limit."""
        return self.cost(counts) <= self.limit

    @cached_property
    def only_block(self) -> int | None:
        """The one block whose count this cost depends on; None if several matter."""
        varying = [b for b, c in enumerate(self.costs) if np.any(c != c[0])]
        if len(varying) > 1:
            return None
        return varying[0] if varying else 0
