"""Sums over samples: one number for every unit, or for every pair of units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cahp_opt.arrays import Bools, Floats, finite
from cahp_opt.space import HeadSpace
from cahp_opt.stats.statistic import COUNT, Arrays, below, counted, joined

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Total:
    """A sum, ``[n]`` or ``[n, n]``, and its number of samples; ``count`` is 0 if nothing was
    measured.

    Raises:
        ValueError: if the sum holds NaN or infinity, or the count is negative.
    """

    sum: Floats
    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "sum", finite(self.sum, "sum"))
        if self.count < 0:
            raise ValueError(f"`count` must be at least 0, got {self.count}.")

    def __add__(self, other: Self) -> Self:
        return type(self)(self.sum + other.sum, self.count + other.count)

    @property
    def mean(self) -> Floats:
        """The sum over the count, ``[n]`` or ``[n, n]``.

        Raises:
            ValueError: if nothing was measured.
        """
        if not self.count:
            raise ValueError("this statistic was not measured; calibrate with it switched on.")
        return self.sum / self.count


class _OverUnits(Total):
    """A sum whose axes are the units."""

    axes: ClassVar[int]

    @classmethod
    def of(cls, total: Total) -> Self:
        """A sum that is known to be of this kind."""
        return total if isinstance(total, cls) else cls(total.sum, total.count)

    def arrays(self) -> Arrays:
        return {"": self.sum, COUNT: counted(self.count)}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Self:
        return cls(arrays[""], int(arrays[COUNT]))

    def restricted(self, space: HeadSpace, kept: Bools) -> Self:
        del space
        return type(self)(self.sum[np.ix_(*[kept] * self.axes)], self.count)

    def check(self, name: str, space: HeadSpace) -> None:
        expected = (space.n,) * self.axes
        if self.sum.shape != expected:
            raise ValueError(
                f"`{name}` must have shape {list(expected)}, got {list(self.sum.shape)}."
            )


class PerUnit(_OverUnits):
    """A sum for every unit, shape ``[n]``."""

    axes = 1


class PerPair(_OverUnits):
    """A sum for every pair of units, shape ``[n, n]``."""

    axes = 2


class PairsByDensity(Mapping[float, PerPair]):
    """One sum over pairs of units for every density of the random masks it was taken under, in order.

    Args:
        totals: by density, in (0, 1].
    """

    def __init__(self, totals: Mapping[float, Total]) -> None:
        self._totals = {float(rho): PerPair.of(totals[rho]) for rho in sorted(totals)}

    def __getitem__(self, density: float) -> PerPair:
        return self._totals[density]

    def __iter__(self) -> Iterator[float]:
        return iter(self._totals)

    def __len__(self) -> int:
        return len(self._totals)

    def __add__(self, other: PairsByDensity) -> PairsByDensity:
        if self.keys() != other.keys():
            raise ValueError(
                f"matrices at the densities {list(self)} and {list(other)} cannot be added; calibrate "
                "both with the same `densities`."
            )
        return PairsByDensity({rho: total + other[rho] for rho, total in self.items()})

    def parts(self) -> Mapping[str, PerPair]:
        return {repr(rho): total for rho, total in self.items()}

    def of_parts(self, parts: Mapping[str, PerPair]) -> PairsByDensity:
        return PairsByDensity({float(name): total for name, total in parts.items()})

    def arrays(self) -> Arrays:
        return joined({name: part.arrays() for name, part in self.parts().items()})

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> PairsByDensity:
        names = {name.split("/")[0] for name in arrays}
        return cls({float(name): PerPair.of_arrays(below(arrays, name)) for name in names})

    def restricted(self, space: HeadSpace, kept: Bools) -> PairsByDensity:
        return PairsByDensity({rho: t.restricted(space, kept) for rho, t in self.items()})

    def check(self, name: str, space: HeadSpace) -> None:
        for rho, total in self.items():
            if not 0 < rho <= 1:
                raise ValueError(f"`{name}` has the density {rho}; densities lie in (0, 1].")
            total.check(f"{name}[{rho}]", space)
