"""Second moments of the head outputs, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cahp_opt.arrays import Bools, Floats, finite, scatter_between
from cahp_opt.stats.by_block import ByBlock
from cahp_opt.stats.statistic import COUNT, Arrays, counted


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the head outputs of one block, over real tokens; ``a + b`` pools two runs.

    ``z`` is the input of the block's output projection, the heads' outputs side by side, ``d`` wide:
    unit ``u`` owns the columns ``[u * d / units, (u + 1) * d / units)``.

    Args:
        sum: sum of ``z``, shape ``[d]``.
        scatter: sum of ``(z - m) (z - m)'`` about their mean ``m``, shape ``[d, d]``. Not about
            zero, where a mean that is large against the spread would leave only rounding.
        readout: ``W' W`` of the output projection ``W [hidden, d]``, shape ``[d, d]``: the squared
            length of a change of ``z`` as the block's output sees it. Not a sum: a fact of the model.
        count: tokens added up.

    Raises:
        ValueError: for a wrong shape, NaN or infinity.
    """

    sum: Floats
    scatter: Floats
    readout: Floats
    count: int

    def __post_init__(self) -> None:
        d = np.shape(self.sum)[0] if np.ndim(self.sum) == 1 else -1
        for name in ("sum", "scatter", "readout"):
            array = finite(getattr(self, name), name)
            if array.shape != ((d,) if name == "sum" else (d, d)):
                raise ValueError(
                    f"`{name}` of a block's moments has shape {list(array.shape)}; expected sum [d], "
                    "scatter [d, d] and readout [d, d]."
                )
            object.__setattr__(self, name, array)
        if self.count < 0:
            raise ValueError(f"`count` must be at least 0, got {self.count}.")

    def __add__(self, other: Moments) -> Moments:
        between = scatter_between(self.sum, self.count, other.sum, other.count)
        return Moments(
            self.sum + other.sum,
            self.scatter + other.scatter + between,
            self.readout,
            self.count + other.count,
        )

    def arrays(self) -> Arrays:
        return {
            "sum": self.sum,
            "scatter": self.scatter,
            "readout": self.readout,
            COUNT: counted(self.count),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Moments:
        return cls(arrays["sum"], arrays["scatter"], arrays["readout"], int(arrays[COUNT]))

    def of(self, columns: Bools) -> Moments:
        """The moments of some columns alone, bool ``[d]``."""
        both = np.ix_(columns, columns)
        return Moments(self.sum[columns], self.scatter[both], self.readout[both], self.count)

    @property
    def covariance(self) -> Floats:
        """Covariance of ``z``, shape ``[d, d]``.

        Raises:
            ValueError: if nothing was measured.
        """
        if not self.count:
            raise ValueError("no head outputs were measured in a block; calibrate with texts.")
        return self.scatter / self.count

    @property
    def constant(self) -> bool:
        """Whether the head outputs are the same at every token, up to rounding (in float32, about
        1e-15 here)."""
        return bool(np.trace(self.scatter) * self.count <= 1e-12 * (self.sum @ self.sum))


class BlockMoments(ByBlock[Moments]):
    """The moments of every block."""

    of_block = Moments
