"""The protocol of a statistic, so that saving, adding and restricting are loops over all of
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools
from cahp_opt.space import HeadSpace

if TYPE_CHECKING:
    from typing_extensions import Self

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
"""Arrays by name. The name of a single one is empty; a slash separates parts of parts."""

COUNT = "count"
"""Name of a number of samples, held as a 0-dimensional array."""


class Sums(Protocol):
    """Named sums over samples, with all that is needed to add those of another run."""

    def arrays(self) -> Arrays:
        """All of its content, as files hold it and processes send it."""
        ...

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Self:
        """The inverse of :meth:`arrays`.

        Raises:
            KeyError, ValueError: if they are not of this class.
        """
        ...

    def __add__(self, other: Self) -> Self:
        """The same over the samples of both runs, which measured the same model.

        Raises:
            ValueError: if they measured different things.
        """
        ...


class Statistic(Sums, Protocol):
    """An immutable record of a quantity that calibration measured for all units.

    :mod:`cahp_opt.stats.registry` lists those that files may hold.
    """

    def restricted(self, space: HeadSpace, kept: Bools) -> Self:
        """The statistic of some units alone, over the blocks that have any of them.

        Args:
            space: all blocks.
            kept: the units, bool ``[n]``.
        """
        ...

    def check(self, name: str, space: HeadSpace) -> None:
        """Refuse a statistic of other units.

        Args:
            name: its name in messages.
            space: the blocks.

        Raises:
            ValueError: saying what does not fit.
        """
        ...


@runtime_checkable
class InParts(Protocol):
    """A statistic whose parts can be sent and added one at a time, which takes less memory."""

    def parts(self) -> Mapping[str, Sums]:
        """The parts by name; the arrays of the whole are those of the parts, :func:`joined`."""
        ...

    def of_parts(self, parts: Mapping[str, Any]) -> Any:
        """The same statistic with other parts of the same names."""
        ...


def counted(count: int) -> Array:
    """A number of samples as an array, ``[]``, for :data:`COUNT`."""
    return np.array(count, dtype=np.int64)


def below(arrays: Arrays, name: str) -> Arrays:
    """The arrays of one part, by their names in it: ``name`` becomes the empty name, ``name/x``
    ``x``."""
    start = f"{name}/"
    return {
        key.removeprefix(name).removeprefix("/"): array
        for key, array in arrays.items()
        if key == name or key.startswith(start)
    }


def joined(parts: Mapping[str, Arrays]) -> Arrays:
    """The arrays of several parts in one mapping; the inverse of :func:`below`."""
    return {
        f"{name}/{key}" if key else name: array
        for name, arrays in parts.items()
        for key, array in arrays.items()
    }
