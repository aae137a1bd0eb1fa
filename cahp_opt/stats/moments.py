"""Second moments of the head outputs, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Columns, Floats, constant, finite, scatter_between
from cahp_opt.stats.by_block import ByBlock
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.statistic import COUNT, Arrays, counted


@dataclass(frozen=True, eq=False, init=False)
class Moments:
    """Second moments of the head outputs of one block, over real tokens; ``a + b`` pools two runs.

    ``z`` is the input of the block's output projection, the heads' outputs side by side, ``d`` wide:
    unit ``u`` owns the columns ``[u * d / units, (u + 1) * d / units)``.

    Args:
        sum: sum of ``z``, shape ``[d]``.
        scatter: sum of ``(z - m) (z - m)'`` about their mean ``m``, shape ``[d, d]``. Not about
            zero, where a mean that is large against the spread would leave only rounding.
        readout: ``W' W`` of the output projection ``W [hidden, d]``, shape ``[d, d]``: the squared
            length of a change of ``z`` as the block's output sees it, or the same as a
            :class:`~cahp_opt.stats.column_form.ColumnForm`. Not a sum: a fact of the model.
        count: tokens added up.

    Raises:
        ValueError: for a wrong shape, NaN or infinity.
    """

    sum: Floats
    scatter: Floats
    form: ColumnForm
    count: int

    def __init__(
        self,
        sum: npt.ArrayLike,
        scatter: npt.ArrayLike,
        readout: npt.ArrayLike | ColumnForm,
        count: int,
    ) -> None:
        d = np.shape(sum)[0] if np.ndim(sum) == 1 else -1
        for name, given in (("sum", sum), ("scatter", scatter)):
            array = finite(given, name)
            _check_shape(name, array.shape, (d,) if name == "sum" else (d, d))
            object.__setattr__(self, name, array)
        if not isinstance(readout, ColumnForm):
            _check_shape("readout", np.shape(readout), (d, d))
            readout = ColumnForm(finite(readout, "readout"))
        _check_shape("readout", (readout.width,) * 2, (d, d))
        object.__setattr__(self, "form", readout)
        if count < 0:
            raise ValueError(f"`count` must be at least 0, got {count}.")
        object.__setattr__(self, "count", count)

    @property
    def readout(self) -> Floats:
        """``W' W`` of the output projection, ``[d, d]``."""
        return self.form.matrix

    @property
    def readout_form(self) -> ColumnForm:
        """:attr:`readout` in the form that it is held in."""
        return self.form

    def __add__(self, other: Moments) -> Moments:
        between = scatter_between(self.sum, self.count, other.sum, other.count)
        return Moments(
            self.sum + other.sum,
            constant(self.scatter + other.scatter + between),
            self.form,
            self.count + other.count,
        )

    def arrays(self) -> Arrays:
        return {
            "sum": self.sum,
            "scatter": self.scatter,
            **self.form.arrays("readout", "inner"),
            COUNT: counted(self.count),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Moments:
        form = ColumnForm.of_arrays(arrays, "readout", "inner")
        return cls(arrays["sum"], arrays["scatter"], form, int(arrays[COUNT]))

    def of(self, columns: Columns) -> Moments:
        """The moments of some columns alone, bool ``[d]``, or of all in another order, int ``[d]``."""
        scatter = constant(self.scatter[np.ix_(columns, columns)])
        return Moments(self.sum[columns], scatter, self.form.of_columns(columns), self.count)

    @property
    def covariance(self) -> Floats:
        """Covariance of ``z``, shape ``[d, d]``.

        Raises:
            ValueError: if nothing was measured.
        """
        if not self.count:
            raise ValueError("no head outputs were measured in a block; calibrate with texts.")
        return constant(self.scatter / self.count)

    @property
    def second_moment(self) -> Floats:
        """Second moment of ``z`` about zero, shape ``[d, d]``.

        Raises:
            ValueError: if nothing was measured.
        """
        mean = self.sum / max(self.count, 1)
        return constant(self.covariance + np.outer(mean, mean))

    @property
    def constant(self) -> bool:
        """Whether the head outputs are the same at every token, up to rounding (in float32, about
        1e-15 here)."""
        return bool(np.trace(self.scatter) * self.count <= 1e-12 * (self.sum @ self.sum))


class BlockMoments(ByBlock[Moments]):
    """The moments of every block."""

    of_block = Moments


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(
            f"`{name}` of a block's moments has shape {list(shape)}; expected sum [d], scatter [d, d] "
            "and readout [d, d]."
        )
